"""An engine that is broken on purpose is caught by a run, not only by a made-up history.

docs/decisions/0004-mutations.md lists more of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from typing import Any

import pytest

from protocol.core.antireplay import AntiReplayWindow
from protocol.core.engine import Effect, Event, Instant
from protocol.idp import connectivity
from protocol.idp.engine import IdpEngine
from protocol.idp.messages import Hello
from protocol.mike.hierarchy import Hierarchy
from protocol.mike.joining import Joiner
from protocol.mike.manager import Manager
from protocol.mike.messages import Join
from testbed.sim.chance import SeededKeys
from testbed.sim.checkers import Checker
from testbed.sim.faults import FOR_GOOD, Fault, Kind
from testbed.sim.modelled import ModelledSigner
from testbed.sim.rest import ViolationError
from testbed.sim.run import Verdict, run
from testbed.sim.scenario import Scenario, Theme, draw
from testbed.sim.schedules import SETTLED_MS
from testbed.sim.secrecy import Secrecy
from testbed.sim.world import World


def scenario(*faults: Fault, theme: Theme = Theme.ANY, members: int = 4) -> Scenario:
    """A few devices, started together on a good network, and exactly these faults."""
    drawn = draw(1, members=members, theme=theme)
    return replace(
        drawn,
        faults=faults,
        starts_ms=(0,) * members,
        link_us=(100, 400),
        clock_ms=0,
        safety_ms=SETTLED_MS + 8_000,
        sa_mode="per-sender",
    )


def caught(verdict: Verdict) -> str:
    assert verdict.violation is not None
    return verdict.violation.checker


DEATH = scenario(Fault(Kind.CRASH, SETTLED_MS, FOR_GOOD, (3,)), theme=Theme.DEATH)
CUT = scenario(Fault(Kind.PARTITION, 3_000, 9_000, (0, 1)))
FORGER = scenario(Fault(Kind.FORGERY, 3_000, 12_000, (), 150.0))
REPEATER = scenario(Fault(Kind.REPLAY, 3_000, 12_000, (), 30.0), members=3)
QUIET = scenario()


def broken(monkeypatch: pytest.MonkeyPatch, place: object, name: str, answer: object) -> None:
    monkeypatch.setattr(place, name, lambda *_args, **_words: answer)


@pytest.mark.parametrize("sound", [DEATH, CUT, FORGER, REPEATER, QUIET])
def test_the_engines_as_they_are_pass_the_runs_below(sound: Scenario) -> None:
    assert run(sound).violation is None


def test_no_signature_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, ModelledSigner, "verify", None)
    assert caught(run(FORGER)) == "strangers-change-nothing"


def test_no_replay_window_is_consulted(monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, AntiReplayWindow, "mark", True)
    assert caught(run(REPEATER)) == "strangers-change-nothing"


def test_nobody_is_ever_excluded(monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, Manager, "exclude", None)
    assert caught(run(DEATH)) == "dead-is-forgotten"


def test_the_death_of_a_device_is_noticed_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hello, "dead_interval_ns", 7_000_000_000)
    assert caught(run(DEATH)) == "dead-is-forgotten"


def test_two_groups_never_unite(monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, Joiner, "dissolve", None)
    assert caught(run(CUT)) == "group-agrees"


def test_a_join_is_never_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, Manager, "on_join", None)
    assert caught(run(QUIET)) == "group-agrees"


def test_all_devices_have_the_same_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = SeededKeys.random_bytes

    def predictable(self: SeededKeys, length: int) -> bytes:
        drawn = sound(self, length)
        if length == 32:
            drawn = len(self.drawn).to_bytes(32, "big")
            self.drawn[-1] = drawn
        return drawn

    monkeypatch.setattr(SeededKeys, "random_bytes", predictable)
    world = World(DEATH, [Secrecy()])
    with pytest.raises(ViolationError, match="can compute the key"):
        world.run()


def test_keys_of_a_hierarchy_stay_after_an_exclusion(monkeypatch: pytest.MonkeyPatch) -> None:
    """Key distribution mode; what is caught is the ex-member that goes on unwrapping."""
    dead = replace(DEATH, mode="kd", unicast="off", members=5, starts_ms=(0,) * 5)
    assert run(dead).violation is None
    sound = Hierarchy.remove

    def forgetful(self: Hierarchy, address: IPv6Address) -> None:
        sound(self, address)
        self._stale.clear()

    monkeypatch.setattr(Hierarchy, "remove", forgetful)
    assert caught(run(dead)) == "secrecy"


def test_an_engine_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_args: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(Join, "encode", fails)
    verdict = run(QUIET)
    assert caught(verdict) == "no-internal-error"
    assert "KeyError('a bug')" in str(verdict.violation)


def test_time_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timer in the past, set again and again by its own expiry, must not hang the simulator."""
    broken(monkeypatch, connectivity, "is_silent", False)
    verdict = run(DEATH)
    assert caught(verdict) == "no-internal-error"
    assert "at one instant" in str(verdict.violation)


@dataclass(frozen=True, slots=True)
class Dance(Effect):
    """An effect that nobody has a model of."""


def test_an_effect_without_a_model_is_named_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sound = IdpEngine.handle

    def handle(self: IdpEngine, event: Event, now: Instant) -> list[Effect]:
        return [Dance(), *sound(self, event, now)]

    monkeypatch.setattr(IdpEngine, "handle", handle)
    verdict = run(QUIET)
    assert verdict.violation is None
    assert verdict.left_out == ("Dance",)


def test_devices_that_do_not_run_at_the_end_are_missed() -> None:
    class Blind(Checker):
        """Objects to nothing."""

    gone = QUIET.with_faults((Fault(Kind.PAUSE, 3_000, 1_000, (0,)),))
    world = World(gone, [Blind()])
    world.agenda.at(5_000_000_000, world.devices[1].power_off)
    with pytest.raises(ViolationError, match="1 devices do not run"):
        world.run()


def test_the_checkers_get_what_happens() -> None:
    class Witness(Checker):
        """Notes the kinds of record and the calls."""

        name = "witness"

        def __init__(self) -> None:
            self.seen: set[str] = set()

        def record(self, record: object) -> str | None:
            self.seen.add(type(record).__name__)
            return None

        def judge(self, views: Sequence[object]) -> str | None:
            self.seen.add(f"judge {len(views)}")
            return None

        def conclude(self, evidence: object) -> str | None:
            self.seen.add(type(evidence).__name__)
            return None

    witness = Witness()
    World(FORGER, [witness]).run()
    wanted = {"MikeStarted", "KeyPublished", "Detected", "Signalled", "Injected", "Sampled"}
    assert wanted | {"judge 4", "Evidence"} <= witness.seen
