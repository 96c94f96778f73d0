"""Everything one seed decides before the run begins: devices, starts, links, faults."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from protocol.mike.config import Mode
from testbed.errors import TestbedError
from testbed.sim.chance import Chance
from testbed.sim.faults import Fault, gone_for_good, in_order
from testbed.sim.people import Crypto
from testbed.sim.reddraws import draw_red, draw_revocation
from testbed.sim.schedules import SETTLED_MS, draw_deaths, draw_faults, draw_flaps, draw_soak

MEMBERS_MIN, MEMBERS_MAX = 2, 10
"""Size of the group where nobody says: small ones find most faults, and fast."""

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
    SOAK = "soak"
    """Minutes of a group to which now and then something happens; between, it must agree again."""


THEMES = (Theme.ANY,) * 8 + (Theme.FLAP, Theme.DEATH)
"""How often each is drawn; a soak test takes as long as many other runs, and is asked for."""

SOAK_MS = (300_000, 900_000)
"""Bounds of the safety phase of a soak test."""

SOAK_REKEY_INTERVALS_MS = (0, 60_000, 300_000)
"""Where MIKE renews the key by itself in a soak test."""


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

    @property
    def sample_ms(self) -> int:
        """How often is measured what devices hold and send."""
        return 60_000 if self.theme is Theme.SOAK else 10_000

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
        safety_ms = draws.randint(*SOAK_MS) if about is Theme.SOAK else SETTLED_MS + 14_000
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
        case Theme.SOAK:
            faults = draw_soak(of_faults, size, safety_ms)
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
    if about is Theme.SOAK:
        rekey_interval_ms = of_mike.choice(SOAK_REKEY_INTERVALS_MS)
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
