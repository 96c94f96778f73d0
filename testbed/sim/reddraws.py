"""What a seed has people do: operators, thieves, and the CA that revokes a certificate."""

from __future__ import annotations

from random import Random

from testbed.sim.faults import FOR_GOOD, Fault, Kind, in_order

CHANGES_MAX = 5
"""Changes of what is announced, in a run in which it changes at all."""

QUIET_PROBABILITY = 0.3
"""... and how often it does not."""

LOOT = 6
"""Kinds of prefixes that a thief takes."""

COMMON = "common"

REVOKED_PROBABILITY = 0.15
"""How often a device's certificate is revoked."""


def draw_red(draws: Random, devices: range, safety_ms: int, *, thieves: bool) -> tuple[Fault, ...]:
    """Draw changes of what is announced, in the order of time; what a thief takes it gives back.

    Args:
        draws: where chance comes from.
        devices: whose.
        safety_ms: length of the phase with faults.
        thieves: whether devices may also announce what is not theirs.
    """
    found = []
    count = 0 if draws.random() < QUIET_PROBABILITY else draws.randint(1, CHANGES_MAX)
    for _ in range(count):
        kind = draws.choice(
            [Kind.PREFIX_ADD, Kind.PREFIX_ADD, Kind.PREFIX_DROP, *[Kind.THEFT] * (2 * thieves)]
        )
        start = draws.randint(0, safety_ms - 1_000)
        duration = min(safety_ms - start, draws.choice([40, 300, 1_500, 6_000, 12_000]))
        stays = draws.random() < 0.5
        who, other = draws.sample(devices, 2) if len(devices) > 1 else (devices[0],) * 2
        number, flavour = 0, ""
        involved: tuple[int, ...] = (who,)
        if kind is Kind.THEFT:
            number, involved, stays = draws.randrange(LOOT), (who, other), False
        elif kind is Kind.PREFIX_ADD:
            number = draws.randrange(3)
            if thieves and draws.random() < 0.4:
                number, flavour = draws.randrange(2), COMMON
        ends = FOR_GOOD if stays else duration
        found.append(Fault(kind, start, ends, involved, float(number), flavour))
    return in_order(found)


def draw_revocation(draws: Random, devices: range, safety_ms: int) -> tuple[Fault, ...]:
    """Draw whose certificate is revoked, mostly nobody's; everybody else learns it at once."""
    if draws.random() >= REVOKED_PROBABILITY:
        return ()
    start = draws.randint(1_000, safety_ms - 1_000)
    return (Fault(Kind.REVOKE, start, FOR_GOOD, (draws.choice(devices),)),)
