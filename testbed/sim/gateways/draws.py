"""Which scenario with gateways a seed draws."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from protocol.mike.config import Mode
from testbed.sim.chance import Chance
from testbed.sim.faults import FOR_GOOD, Fault, Kind, gone_for_good, in_order
from testbed.sim.gateways.layout import PARTITIONS, TOPOLOGIES
from testbed.sim.people import Crypto
from testbed.sim.reddraws import draw_red, draw_revocation
from testbed.sim.scenario import Scenario, Theme, draw
from testbed.sim.schedules import SETTLED_MS, draw_faults

DEVICES_MIN, DEVICES_MAX = 3, 8
"""Devices besides gateways: one to three in each partition."""

THEMES = (Theme.ANY,) * 3 + (Theme.DEATH,)

DEATH_MS = SETTLED_MS + 6_000
"""When a gateway dies in a run about that: all have listened, spoken and settled before."""


def draw_gateways(
    seed: int,
    *,
    members: int | None = None,
    theme: Theme | None = None,
    mode: str = "ka",
    crypto: Crypto = Crypto.MODELLED,
) -> Scenario:
    """Draw a scenario of three partitions.

    Args:
        seed: any whole number.
        members: number of devices besides the gateways, or None to draw that too.
        theme: `Theme.ANY`, `Theme.DEATH` of a gateway, or None to draw that too.
        mode: of MIKE.
        crypto: which cryptography.
    """
    chance = Chance(seed)
    draws = chance.stream("gateways")
    drawn = draws.randint(DEVICES_MIN, DEVICES_MAX)
    size = drawn if members is None else members
    about = draws.choice(THEMES)
    about = about if theme is None else theme
    topology = draws.choice(list(TOPOLOGIES))
    count = len(TOPOLOGIES[topology])
    base = draw(seed, members=size, theme=about, mode=mode, crypto=crypto)
    later = draws.choice([0, 50, 4_000])
    starts_ms = base.starts_ms + tuple(draws.randint(0, later) for _ in range(count))
    safety_ms = base.safety_ms
    if about is Theme.DEATH:
        faults = _deaths(draws, size, topology)
        safety_ms = DEATH_MS + 10_000
    else:
        faults = draw_faults(chance.stream("faults of gateways"), starts_ms, safety_ms)
        faults += _kills(draws, size, count, safety_ms)
        faults += draw_red(chance.stream("red"), range(size), safety_ms, thieves=False)
        revoked = draw_revocation(chance.stream("revocation"), range(size), safety_ms)
        if set(range(size)) - gone_for_good(faults + revoked):
            faults += revoked
    least = min(size // len(PARTITIONS) + 2, base.kd_members_min)
    return replace(
        base,
        unicast=draws.choice(["group", "group", "group", "psk"]),
        starts_ms=starts_ms,
        safety_ms=safety_ms,
        faults=in_order(faults),
        kd_members_min=least if mode == Mode.AUTO else base.kd_members_min,
        ka_members_max=least - 1 if mode == Mode.AUTO else base.ka_members_max,
        topology=topology,
    )


def _deaths(draws: Random, size: int, topology: str) -> tuple[Fault, ...]:
    """Draw the end of one gateway, or of its gatewayd, and perhaps of a device a little later."""
    gateway = size + draws.randrange(len(TOPOLOGIES[topology]))
    kind = draws.choice([Kind.CRASH, Kind.CRASH, Kind.STOP, Kind.KILL_GATEWAYD])
    faults = [Fault(kind, DEATH_MS, FOR_GOOD, (gateway,))]
    if draws.random() < 0.3:
        start = DEATH_MS + draws.randint(0, 1_000)
        faults.append(Fault(Kind.CRASH, start, FOR_GOOD, (draws.randrange(size),)))
    return tuple(faults)


def _kills(draws: Random, size: int, count: int, safety_ms: int) -> tuple[Fault, ...]:
    """Draw when gatewayds are killed, and how long each is away."""
    faults = []
    for gateway in range(count):
        if draws.random() < 0.4:
            start = draws.randint(0, safety_ms - 1_000)
            duration = min(safety_ms - start, draws.choice([1, 300, 3_000, 8_000]))
            faults.append(Fault(Kind.KILL_GATEWAYD, start, duration, (size + gateway,)))
    return tuple(faults)
