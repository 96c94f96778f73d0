"""What one leg of a gateway learns of trust, the others are told (GATE-19)."""

from __future__ import annotations

from protocol.core.engine import Instant
from protocol.core.errors import LocalError
from protocol.daemon.gatewaytrust import REREAD_NS, LegTrust
from protocol.gateway import rules
from protocol.gateway.events import LegView

NONE, OLD, NEW = "00" * 8, "01" * 8, "02" * 8


class Legs:
    """Three legs; records who read again, and who was told to."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.logged: list[str] = []
        self.broken = False
        self.trust = LegTrust(
            {leg: lambda leg=leg: self._reread(leg) for leg in "abc"},  # type: ignore[misc]
            {leg: lambda leg=leg: self.done.append(f"tell {leg}") for leg in "abc"},  # type: ignore[misc]
            lambda _level, text: self.logged.append(text),
        )

    def _reread(self, leg: str) -> None:
        self.done.append(f"reread {leg}")
        if self.broken:
            raise LocalError("x.der is malformed")

    def view(self, leg: str, digest: str, at_s: float, *, strangers: bool = False) -> list[str]:
        self.done.clear()
        now = Instant(int(at_s * 1e9), 0)
        self.trust.on_view(leg, LegView(1, None, trust_digest=digest), strangers=strangers, now=now)
        return list(self.done)


def test_gate_19() -> None:
    """GATE-19."""
    assert rules.is_news(NEW, OLD)
    assert rules.is_news(OLD, None)
    assert not rules.is_news(OLD, OLD)
    assert not rules.is_news(NONE, None)
    assert not rules.is_news("", OLD)


def test_gate_19_other_legs_are_told_once_for_each_change() -> None:
    """GATE-19."""
    legs = Legs()
    assert legs.view("a", NONE, 1) == []
    assert legs.view("a", OLD, 2) == ["reread a", "tell b", "tell c"]
    assert legs.view("a", OLD, 20) == []
    # They have it now; that is news of theirs, but to tell it changes nothing.
    assert legs.view("b", OLD, 21) == ["reread b", "tell a", "tell c"]
    assert legs.view("a", OLD, 30) == []


def test_gate_19_lists_that_change_all_the_time_are_read_at_a_bounded_rate() -> None:
    """GATE-19."""
    legs = Legs()
    told = [legs.view("a", f"{n:016x}", n / 10) for n in range(1, 101)]
    assert sum(bool(done) for done in told) == 2
    assert legs.view("a", f"{100:016x}", 10 + REREAD_NS / 1e9) != []


def test_a_stranger_makes_us_read_again_but_nobody_else() -> None:
    legs = Legs()
    assert legs.view("a", NONE, 1, strangers=True) == ["reread a"]
    assert legs.view("a", NONE, 2, strangers=True) == []


def test_files_that_cannot_be_read_are_said_and_the_others_told_all_the_same() -> None:
    legs = Legs()
    legs.broken = True
    assert legs.view("a", NEW, 1) == ["reread a", "tell b", "tell c"]
    assert legs.logged == ["leg a: x.der is malformed"]
