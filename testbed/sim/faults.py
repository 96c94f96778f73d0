"""Faults as data: what goes wrong, when, with whom; a schedule is a list of them, as text too.

Every deviation from a perfect network and perfect devices is one `Fault`, so that a failing run can
be shrunk by leaving faults out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from testbed.errors import TestbedError


class Kind(StrEnum):
    """Classes of faults; a seed may switch any of them off altogether."""

    LOSS = "loss"
    BURST = "burst"
    DUPLICATION = "duplication"
    REORDERING = "reordering"
    DELAY = "delay"
    PARTITION = "partition"
    ONE_WAY = "one-way"
    CLOG = "clog"
    REPLAY = "replay"
    FORGERY = "forgery"
    CRASH = "crash"
    KILL_IDPD = "kill-idpd"
    KILL_MIKED = "kill-miked"
    STOP = "stop"
    PAUSE = "pause"
    CLOCK = "clock"
    CARRIER = "carrier"
    HANDOVER = "handover"
    PREFIX_ADD = "prefix-add"
    PREFIX_DROP = "prefix-drop"
    THEFT = "theft"
    REVOKE = "revoke"
    KILL_GATEWAYD = "kill-gatewayd"


PACKETS = frozenset(
    {Kind.LOSS, Kind.BURST, Kind.DUPLICATION, Kind.REORDERING, Kind.DELAY,
     Kind.PARTITION, Kind.ONE_WAY, Kind.CLOG}
)  # fmt: skip
"""Faults of the network: what happens to datagrams under way."""

ADVERSARY = frozenset({Kind.REPLAY, Kind.FORGERY})
"""Somebody on the wire without a key."""

RED = frozenset({Kind.PREFIX_ADD, Kind.PREFIX_DROP, Kind.THEFT})
"""What is announced changes: no fault but the last, of a device that lies."""

APART = RED | {Kind.REVOKE, Kind.KILL_GATEWAYD}
"""What people do, and what befalls gateways only: drawn apart from the others."""

PROCESSES = frozenset({Kind.CRASH, Kind.KILL_IDPD, Kind.KILL_MIKED, Kind.STOP, Kind.PAUSE})
"""Faults that take a device's processes away; two of one device never overlap."""

FOR_GOOD = 0
"""Duration of a crash or stop from which the device does not come back, of a change that stays."""

_WINDOW = re.compile(r"([0-9]+)\+([0-9]+)")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        kind: what.
        start_ms: when it begins, since the start of the run.
        duration_ms: how long it lasts, or `FOR_GOOD`.
        devices: whom it hits, as indices. ``partition``: one side. ``one-way`` and ``clog``: the
            first device's datagrams to the others. ``theft``: the thief, and from whom. Empty:
            everybody.
        amount: ``loss``, ``duplication``, ``reordering``: a probability; ``burst``: mean length in
            ms; ``delay``: mean in ms; ``replay``, ``forgery``: datagrams a second; ``clock``: the
            step in ms; ``prefix-add``, ``theft``: which prefix, from 0; else 0.
        flavour: of a ``delay``: ``uniform``, ``exponential`` or ``pareto``; of a ``stop``: ``kept``
            if the same processes start again, else empty; of a ``prefix-add``: ``common`` if other
            devices may announce it too.
    """

    kind: Kind
    start_ms: int
    duration_ms: int
    devices: tuple[int, ...] = ()
    amount: float = 0.0
    flavour: str = ""

    @property
    def end_ms(self) -> int:
        """When it is over; for good: its start, for nothing follows."""
        return self.start_ms + self.duration_ms

    def __str__(self) -> str:
        words = [self.kind.value, f"{self.start_ms}+{self.duration_ms}"]
        if self.devices:
            words.append("devices=" + ",".join(map(str, self.devices)))
        if self.amount:
            words.append(f"amount={self.amount:g}")
        if self.flavour:
            words.append(f"flavour={self.flavour}")
        return " ".join(words)

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read what ``str`` wrote.

        Raises:
            TestbedError: it is not a fault; the text says what one looks like.
        """
        kind, _, rest = text.partition(" ")
        window, *words = rest.split()[:4] or [""]
        matched = _WINDOW.fullmatch(window)
        fields = dict(word.partition("=")[::2] for word in words)
        if matched is None or kind not in list(Kind) or fields.keys() - _FIELDS:
            raise TestbedError(f"{text!r} is no fault: KIND START_MS+DURATION_MS [devices=0,2] ...")
        try:
            devices = tuple(map(int, fields["devices"].split(","))) if "devices" in fields else ()
            amount = float(fields.get("amount", 0))
        except ValueError:
            raise TestbedError(f"{text!r} is no fault: devices and amount are numbers") from None
        start, duration = int(matched[1]), int(matched[2])
        return cls(Kind(kind), start, duration, devices, amount, fields.get("flavour", ""))


def in_order(faults: Iterable[Fault]) -> tuple[Fault, ...]:
    """Return faults in the order of time."""
    return tuple(sorted(faults, key=lambda fault: (fault.start_ms, fault.kind)))


def gone_for_good(faults: tuple[Fault, ...]) -> set[int]:
    """Return devices that die, or are revoked, and do not come back."""
    return {f.devices[0] for f in faults if is_final(f) or f.kind is Kind.REVOKE}


def is_final(fault: Fault) -> bool:
    """Say whether a fault takes its device away for good."""
    return fault.duration_ms == FOR_GOOD and fault.kind in PROCESSES


_FIELDS = {"devices", "amount", "flavour"}
