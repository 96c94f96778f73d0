"""What a seed lets go wrong, and when: the schedule of faults of each theme."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from testbed.sim.faults import APART, FOR_GOOD, PROCESSES, Fault, Kind, in_order, is_final

CLASS_ON = 0.45
"""Probability that a class of faults occurs at all in a seed."""

REST_MS = 400
"""Least time between two process faults of one device."""

SETTLED_MS = 12_000
"""In a run with a theme nothing goes wrong before; by then all must be one group."""

FLAP_MS_MAX = 1_900
"""Two lost hellos, a third one late: shorter than the dead interval of IDP and `tm_silence_ms`."""

ABSENCE_MS = 60_000
"""How long a device is away in a long run that would else be gone for good."""


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
    return in_order(faults)


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
            start = draws.randint(0, safety_ms - 1_000)
            fault = _draw_one(draws, kind, members, start, safety_ms)
            if fault is not None and (kind not in PROCESSES or _is_free(busy, fault, safety_ms)):
                faults.append(fault)
    finals = [fault for fault in faults if is_final(fault)]
    if len(finals) == members:
        # Somebody must be there to be judged.
        faults.remove(finals[0])
    return in_order(faults)


def draw_soak(draws: Random, members: int, safety_ms: int) -> tuple[Fault, ...]:
    """Draw faults of a settled group for a long time, in the order of time; whoever goes is back.

    They come at random, one in 30, 60 or 120 s in the mean, whether or not the last one is over.
    """
    mean_ms = draws.choice([30_000, 60_000, 120_000])
    kinds = [kind for kind in Kind if kind not in APART and draws.random() < CLASS_ON]
    busy: dict[int, list[tuple[int, int]]] = {index: [] for index in range(members)}
    faults: list[Fault] = []
    start = SETTLED_MS + round(draws.expovariate(1 / mean_ms))
    while kinds and start < safety_ms - 1_000:
        fault = _draw_one(draws, draws.choice(kinds), members, start, safety_ms)
        if fault is not None and is_final(fault):
            fault = replace(fault, duration_ms=min(ABSENCE_MS, safety_ms - start))
        if fault is not None and (fault.kind not in PROCESSES or _is_free(busy, fault, safety_ms)):
            faults.append(fault)
        start += round(draws.expovariate(1 / mean_ms))
    return in_order(faults)


def _is_free(busy: dict[int, list[tuple[int, int]]], fault: Fault, safety_ms: int) -> bool:
    """Say whether the device's processes are there all the time of a fault; if so, book it."""
    start = fault.start_ms
    end = safety_ms if is_final(fault) else fault.end_ms
    windows = busy[fault.devices[0]]
    if any(start < until + REST_MS and since < end + REST_MS for since, until in windows):
        return False
    windows.append((start, end))
    return True


def _draw_one(draws: Random, kind: Kind, members: int, start: int, safety_ms: int) -> Fault | None:
    """Draw one fault of a kind; None if it makes no sense with so few devices."""
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
