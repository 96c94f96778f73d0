"""Everything one seed decides before the run begins: devices, starts, links, faults."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from random import Random
from typing import Any

from protocol.mike.config import Mode
from testbed.errors import TestbedError
from testbed.sim.chance import Chance
from testbed.sim.faults import APART, FOR_GOOD, PROCESSES, Fault, Kind
from testbed.sim.people import Crypto
from testbed.sim.reddraws import draw_red, draw_revocation

MEMBERS_MIN, MEMBERS_MAX = 2, 10
"""Size of the group where nobody says: small ones find most faults, and fast."""

CLASS_ON = 0.45
"""Probability that a class of faults occurs at all in a seed."""

REST_MS = 400
"""Least time between two process faults of one device."""

SETTLED_MS = 12_000
"""In a run with a theme nothing goes wrong before; by then all must be one group."""

FLAP_MS_MAX = 1_900
"""Two lost hellos, a third one late: shorter than the dead interval of IDP and `tm_silence_ms`."""

REKEY_INTERVAL_MS = 15_000
"""Where MIKE renews the key by itself: nine tenths of it, less the 4 s in which an epoch's SAs and
those of the pairs come and the older ones go, are more than `testbed.sim.rest.STABLE_MS`."""

MODES = tuple(mode.value for mode in Mode)
"""Modes of MIKE."""


class Theme(StrEnum):
    """What a run is about."""

    ANY = "any"
    """Whatever may go wrong, at any time."""
    FLAP = "flap"
    """A settled group whose links and processes come and go, each time too short to matter."""
    DEATH = "death"
    """A settled group of which devices die on an otherwise perfect network."""


THEMES = (Theme.ANY,) * 8 + (Theme.FLAP, Theme.DEATH)
"""How often each is drawn."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run, in full; two runs of the same scenario are the same.

    Attributes:
        seed: decides everything below, and every draw during the run.
        members: number of devices, without gateways.
        theme: what it is about.
        mode: of MIKE.
        crypto: real or modelled.
        sa_mode: ``per-sender`` or ``paper``.
        unicast: what the keys of IDP's unicast SAs come from: ``off``, ``group`` or ``psk``; unless
            it is ``off``, red prefixes are announced and routed to.
        starts_ms: when each device is switched on.
        gap_ms: how long after miked a device's idpd starts; negative: before.
        link_us: bounds of the delay of a link; each direction has a fixed one between them.
        clock_ms: bound of the devices' constant clock errors, either way.
        safety_ms: length of the phase with faults; liveness is judged afterwards.
        faults: what goes wrong.
        datagram_size_max: of MIKE: 512 bytes make fragments of the TREEs of five and more.
        change_parts_min: of MIKE: with 1 every group tells its epochs by CHANGEs.
        rekey_interval_ms: of MIKE: how often the key is renewed without a cause, 0: never.
        kd_members_min: of MIKE: with mode ``auto``, a group of so many is switched to ``kd``.
        ka_members_max: of MIKE: ... and one of so few is switched back.
        topology: how gateways join partitions (`testbed.sim.gateways.layout`); empty: one network.
    """

    seed: int
    members: int
    theme: Theme
    mode: str
    crypto: Crypto
    sa_mode: str
    unicast: str
    starts_ms: tuple[int, ...]
    gap_ms: int
    link_us: tuple[int, int]
    clock_ms: int
    safety_ms: int
    faults: tuple[Fault, ...]
    datagram_size_max: int = 1232
    rekey_interval_ms: int = 0
    kd_members_min: int = 64
    ka_members_max: int = 48
    change_parts_min: int = 8
    topology: str = ""

    def with_faults(self, faults: tuple[Fault, ...]) -> Scenario:
        """Return the same run with other faults."""
        return replace(self, faults=faults)

    @property
    def survivors(self) -> tuple[int, ...]:
        """Devices that are there in the end, with a certificate that counts."""
        gone = gone_for_good(self.faults)
        return tuple(index for index in range(self.members) if index not in gone)

    def to_json(self) -> str:
        """Return one line."""
        return json.dumps({**asdict(self), "faults": [str(fault) for fault in self.faults]})

    @classmethod
    def from_json(cls, line: str) -> Scenario:
        """Read what `to_json` wrote.

        Raises:
            TestbedError: the line is no scenario.
        """
        try:
            values: dict[str, Any] = json.loads(line)
            values["faults"] = tuple(Fault.parse(text) for text in values["faults"])
            values["theme"] = Theme(values["theme"])
            values["crypto"] = Crypto(values["crypto"])
            values["starts_ms"] = tuple(values["starts_ms"])
            values["link_us"] = tuple(values["link_us"])
            return cls(**values)
        except (ValueError, KeyError, TypeError) as error:
            raise TestbedError(f"{line[:60]!r} is no scenario: {error}") from error

    def describe(self) -> list[str]:
        """Return every drawn parameter, one line each."""
        values = asdict(self)
        lines = [f"{name} = {value}" for name, value in values.items() if name != "faults"]
        return lines + [f"fault {number}: {fault}" for number, fault in enumerate(self.faults)]


def in_order(faults: tuple[Fault, ...]) -> tuple[Fault, ...]:
    """Return faults in the order of time."""
    return tuple(sorted(faults, key=lambda fault: (fault.start_ms, fault.kind)))


def gone_for_good(faults: tuple[Fault, ...]) -> set[int]:
    """Return devices that die, or are revoked, and do not come back."""
    return {f.devices[0] for f in faults if is_final(f) or f.kind is Kind.REVOKE}


def is_final(fault: Fault) -> bool:
    """Say whether a fault takes its device away for good."""
    return fault.duration_ms == FOR_GOOD and fault.kind in PROCESSES


def draw(
    seed: int,
    *,
    members: int | None = None,
    theme: Theme | None = None,
    mode: str = "ka",
    crypto: Crypto = Crypto.MODELLED,
) -> Scenario:
    """Draw a scenario.

    Args:
        seed: any whole number.
        members: number of devices, or None to draw that too.
        theme: what it is about, or None to draw that too.
        mode: of MIKE.
        crypto: which cryptography; the same seed draws the same faults with either.
    """
    chance = Chance(seed)
    draws = chance.stream("scenario")
    drawn = draws.randint(MEMBERS_MIN, MEMBERS_MAX)
    size = drawn if members is None else members
    about = draws.choice(THEMES) if theme is None else theme
    safety_ms = draws.randint(8_000, 40_000)
    spread_ms = draws.choice([0, 50, 2_000, safety_ms // 2])
    if about is not Theme.ANY:
        spread_ms = min(spread_ms, 2_000)
        safety_ms = SETTLED_MS + 14_000
    link_us = draws.choice([(100, 400), (1_000, 5_000), (2_000, 40_000)])
    sa_mode = draws.choice(["per-sender", "per-sender", "per-sender", "paper"])
    unicast = draws.choice(["off", "group", "group", "group", "psk"])
    starts_ms = tuple(draws.randint(0, spread_ms) for _ in range(size))
    of_faults = chance.stream("faults")
    match about:
        case Theme.FLAP:
            faults = draw_flaps(of_faults, size, safety_ms)
        case Theme.DEATH:
            faults = draw_deaths(of_faults, size)
        case Theme.ANY:
            faults = draw_faults(of_faults, starts_ms, safety_ms)
    gap_ms = draws.choice([0, 0, 5, -5, 300, -300])
    clock_ms = draws.choice([0, 5, 1_000])
    if unicast != "off":
        red = draw_red(chance.stream("red"), range(size), safety_ms, thieves=True)
        faults = in_order(faults + red)
    if about is Theme.ANY:
        revoked = draw_revocation(chance.stream("revocation"), range(size), safety_ms)
        if set(range(size)) - gone_for_good(faults + revoked):
            faults = in_order(faults + revoked)
    of_mike = chance.stream("mike")
    datagram_size_max = of_mike.choice([1232, 1232, 512])
    # Where links only flap no key may change, so none is renewed; a run ends with 6.5 s of rest.
    rekey_interval_ms = 0 if about is Theme.FLAP else of_mike.choice([0, 0, 0, REKEY_INTERVAL_MS])
    kd_members_min = of_mike.randint(2, size) if mode == Mode.AUTO else 64
    ka_members_max = min(48, of_mike.randint(1, kd_members_min - 1))
    change_parts_min = of_mike.choice([8, 1])
    return Scenario(
        seed=seed,
        members=size,
        theme=about,
        mode=mode,
        crypto=crypto,
        sa_mode=sa_mode,
        unicast=unicast,
        starts_ms=starts_ms,
        gap_ms=gap_ms,
        link_us=link_us,
        clock_ms=clock_ms,
        safety_ms=safety_ms,
        faults=faults,
        datagram_size_max=datagram_size_max,
        rekey_interval_ms=rekey_interval_ms,
        kd_members_min=kd_members_min,
        ka_members_max=ka_members_max,
        change_parts_min=change_parts_min,
    )


def draw_flaps(draws: Random, members: int, safety_ms: int) -> tuple[Fault, ...]:
    """Draw short faults of a settled group, one after the other; between two, hellos pass."""
    faults = [
        Fault(kind, SETTLED_MS, safety_ms - SETTLED_MS, (), 0.3)
        for kind in (Kind.DUPLICATION, Kind.REORDERING)
        if draws.random() < CLASS_ON
    ]
    start = SETTLED_MS
    while start + FLAP_MS_MAX < safety_ms:
        kind = draws.choice([Kind.CARRIER, Kind.PARTITION, Kind.ONE_WAY, Kind.CLOG, Kind.PAUSE])
        order = draws.sample(range(members), members)
        some = tuple(order[: draws.randint(2, members)])
        devices = some if kind in (Kind.ONE_WAY, Kind.CLOG) else (order[0],)
        if kind is Kind.PARTITION:
            devices = tuple(sorted(some[: max(1, members // 2)]))
        faults.append(Fault(kind, start, draws.randint(100, FLAP_MS_MAX), devices))
        start = faults[-1].end_ms + draws.randint(1_200, 3_000)
    return tuple(sorted(faults, key=lambda fault: (fault.start_ms, fault.kind)))


def draw_deaths(draws: Random, members: int) -> tuple[Fault, ...]:
    """Draw the end of one device, or of more at one time; somebody stays."""
    dead = draws.sample(range(members), draws.randint(1, max(1, members // 2)))
    start = SETTLED_MS + draws.randint(0, 2_000)
    spread = draws.choice([0, 1_000])
    return tuple(
        Fault(draws.choice([Kind.CRASH, Kind.STOP]), start + draws.randint(0, spread), 0, (index,))
        for index in sorted(dead)
    )


def draw_faults(draws: Random, starts_ms: tuple[int, ...], safety_ms: int) -> tuple[Fault, ...]:
    """Draw a schedule that ends with the safety phase, in the order of time.

    Args:
        draws: where chance comes from.
        starts_ms: when each device is switched on; nothing befalls its processes before.
        safety_ms: length of the phase.
    """
    members = len(starts_ms)
    faults: list[Fault] = []
    busy = {index: [(-REST_MS, start)] for index, start in enumerate(starts_ms)}
    for kind in (kind for kind in Kind if kind not in APART):
        count = draws.randint(1, 3) if draws.random() < CLASS_ON else 0
        for _ in range(count):
            fault = _draw_one(draws, kind, members, safety_ms)
            if fault is not None and (kind not in PROCESSES or _is_free(busy, fault, safety_ms)):
                faults.append(fault)
    finals = [fault for fault in faults if is_final(fault)]
    if len(finals) == members:
        # Somebody must be there to be judged.
        faults.remove(finals[0])
    return tuple(sorted(faults, key=lambda fault: (fault.start_ms, fault.kind)))


def _is_free(busy: dict[int, list[tuple[int, int]]], fault: Fault, safety_ms: int) -> bool:
    """Say whether the device's processes are there all the time of a fault; if so, book it."""
    start = fault.start_ms
    end = safety_ms if is_final(fault) else fault.end_ms
    windows = busy[fault.devices[0]]
    if any(start < until + REST_MS and since < end + REST_MS for since, until in windows):
        return False
    windows.append((start, end))
    return True


def _draw_one(draws: Random, kind: Kind, members: int, safety_ms: int) -> Fault | None:
    """Draw one fault of a kind; None if it makes no sense with so few devices."""
    start = draws.randint(0, safety_ms - 1_000)
    longest = safety_ms - start
    duration = min(
        longest, draws.choice([300, 1_500, 3_500, 6_000, 12_000]) + draws.randint(0, 500)
    )
    order = draws.sample(range(members), members)
    one = (order[0],)
    some = tuple(order[: draws.randint(2, max(2, members - 1))])
    amount = 0.0
    flavour = ""
    devices: tuple[int, ...] = ()
    match kind:
        case Kind.LOSS:
            amount = draws.choice([0.01, 0.1, 0.3, 0.6])
        case Kind.BURST:
            amount = draws.choice([20.0, 200.0, 1_500.0])
        case Kind.DUPLICATION:
            amount = draws.choice([0.1, 0.5])
        case Kind.REORDERING:
            amount = draws.choice([0.1, 0.4])
        case Kind.DELAY:
            amount = draws.choice([5.0, 50.0, 300.0])
            flavour = draws.choice(["uniform", "exponential", "pareto"])
        case Kind.PARTITION:
            devices = tuple(sorted(some[: max(1, members // 2)]))
        case Kind.ONE_WAY | Kind.CLOG:
            devices = some
        case Kind.REPLAY | Kind.FORGERY:
            amount = draws.choice([2.0, 8.0])
        case Kind.CRASH:
            devices = one
            duration = FOR_GOOD if draws.random() < 0.3 else duration
        case Kind.STOP:
            devices = one
            flavour = draws.choice(["", "kept"])
            duration = FOR_GOOD if draws.random() < 0.3 else max(duration, 200)
        case Kind.CLOCK:
            devices = one
            amount = draws.choice([-1.0, 1.0]) * draws.choice([200.0, 3_000.0, 20_000.0, 45_000.0])
        case Kind.HANDOVER:
            devices = tuple(order[:2])
            duration = 1
        case _:
            devices = one
    if kind in (Kind.PARTITION, Kind.ONE_WAY, Kind.CLOG, Kind.HANDOVER) and members < 2:
        return None
    return Fault(kind, start, duration, devices, amount, flavour)
