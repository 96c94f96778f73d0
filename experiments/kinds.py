"""The kinds of campaigns: how the steps of each are drawn, and what runs one repetition.

A new kind is one entry of `KINDS`. Plans are read where nothing can be measured, figures drawn from
them even where the testbed is not; so what measures is named, and imported when it is needed.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from experiments.campaign import FLOODS, Campaign, PlannedStep

Draw = Callable[[Campaign, int, int, random.Random], tuple[PlannedStep, ...]]
"""Draws the steps of a repetition from campaign, number of devices, repetition and a generator."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of campaign.

    Attributes:
        draw: None for what is measured as a whole and without a fleet (`Runner` is given how).
        measure: ``module:function`` that runs one repetition on a loaded fleet whose daemons are
            parked: ``(Fleet, Repetition, Context) -> Outcome`` (experiments/outcome.py); the
            tables that it returns are recorded. Empty without a fleet.
        capture: whether every black link is captured from before the daemons to after them; the
            fleet is then loaded anew for each repetition.
    """

    draw: Draw | None = None
    measure: str = ""
    capture: bool = False

    def load(self) -> Callable[..., Any]:
        """Import what runs one repetition."""
        module, function = self.measure.split(":")
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
        return found


def draw_steps(
    campaign: Campaign, devices: int, repetition: int, draw: random.Random
) -> tuple[PlannedStep, ...]:
    """Return the steps of one repetition of a campaign on a fleet."""
    kind = KINDS[campaign.kind]
    return () if kind.draw is None else kind.draw(campaign, devices, repetition, draw)


def _joins(
    campaign: Campaign, devices: int, repetition: int, draw: random.Random
) -> tuple[PlannedStep, ...]:
    """The third and all further devices join, one after the other."""
    return tuple(
        PlannedStep(
            index=index,
            subject=subject,
            method="start",
            group_size=subject,
            jitter_ns=_jitter_ns(campaign, draw),
            packet_sender=1 + (index + repetition) % subject,
        )
        for index, subject in enumerate(range(3, devices + 1), 1)
    )


def _leaves(
    campaign: Campaign, devices: int, repetition: int, draw: random.Random
) -> tuple[PlannedStep, ...]:
    """The last device leaves, then the one before it, down to two; the methods take turns."""
    return tuple(
        PlannedStep(
            index=index,
            subject=subject,
            method=campaign.methods[(index + repetition) % len(campaign.methods)],
            group_size=subject - 1,
            jitter_ns=_jitter_ns(campaign, draw),
            packet_sender=1 + (index + repetition) % (subject - 1),
        )
        for index, subject in enumerate(range(devices, 2, -1), 1)
    )


def _deliveries(
    campaign: Campaign, devices: int, repetition: int, draw: random.Random
) -> tuple[PlannedStep, ...]:
    """Everybody sends to everybody, listeners and a member leave and return, captures are judged.

    The device whose listeners leave, the one that leaves the group, and who sends meanwhile take
    turns over the repetitions.
    """
    everyone = range(1, devices + 1)
    leaver = 1 + repetition % devices
    listeners = 1 + leaver % devices
    parts = [
        ("first", 1),
        *(("matrix", number) for number in everyone),
        ("listeners", listeners),
        ("member", leaver),
        ("leaks", 1),
        ("witness", 1),
    ]
    return tuple(
        PlannedStep(
            index=index,
            subject=subject,
            method=method,
            group_size=devices,
            jitter_ns=0,
            packet_sender=1 + (subject + devices - 2) % devices,
        )
        for index, (method, subject) in enumerate(parts, 1)
    )


def _levels(
    campaign: Campaign, devices: int, repetition: int, draw: random.Random
) -> tuple[PlannedStep, ...]:
    """A client behind the first device sends, at each rate for each size."""
    return tuple(
        PlannedStep(
            index=index,
            subject=1,
            method=f"{size}-bytes-{rate}-pps",
            group_size=devices,
            jitter_ns=0,
            packet_sender=1,
        )
        for index, (size, rate) in enumerate(campaign.levels(), 1)
    )


def _idp_step(
    campaign: Campaign,
    draw: random.Random,
    *,
    index: int,
    group_size: int,
    method: str,
    amount: int = 0,
) -> PlannedStep:
    """Return a step about the last device of a group."""
    return PlannedStep(
        index=index,
        subject=group_size,
        method=method,
        group_size=group_size,
        jitter_ns=_jitter_ns(campaign, draw),
        packet_sender=1,
        amount=amount,
    )


def _sizes(
    campaign: Campaign, devices: int, repetition: int, draw: random.Random
) -> tuple[PlannedStep, ...]:
    """One step for each group size that the plan has devices for."""
    return tuple(
        _idp_step(campaign, draw, index=index, group_size=size, method="start")
        for index, size in enumerate((s for s in campaign.sizes if s <= devices), 1)
    )


def _deaths(
    campaign: Campaign, devices: int, repetition: int, draw: random.Random
) -> tuple[PlannedStep, ...]:
    """The last device dies."""
    return (_idp_step(campaign, draw, index=1, group_size=devices, method="shutdown"),)


def _flaps(
    campaign: Campaign, devices: int, repetition: int, draw: random.Random
) -> tuple[PlannedStep, ...]:
    """The last device's cable goes out and in, with one period after the other."""
    return tuple(
        _idp_step(campaign, draw, index=index, group_size=devices, method="flap", amount=period)
        for index, period in enumerate(campaign.periods_percent, 1)
    )


def _returns(
    campaign: Campaign, devices: int, repetition: int, draw: random.Random
) -> tuple[PlannedStep, ...]:
    """The last device leaves by shut-down, by its cable, and comes back on its cable."""
    return tuple(
        _idp_step(campaign, draw, index=index, group_size=devices, method=method)
        for index, method in enumerate(("shutdown", "cut", "restore"), 1)
    )


def _comings_and_goings(
    campaign: Campaign, devices: int, repetition: int, draw: random.Random
) -> tuple[PlannedStep, ...]:
    """The last devices come, all of them, and go, in the same order, over and over."""
    stay = devices - campaign.churners
    steps = [_idp_step(campaign, draw, index=1, group_size=stay, method="steady")]
    for number in range(campaign.events):
        turn, place = divmod(number, campaign.churners)
        goes = turn % 2 == 1
        step = _idp_step(
            campaign,
            draw,
            index=number + 2,
            group_size=stay + (campaign.churners - place - 1 if goes else place + 1),
            method="shutdown" if goes else "start",
        )
        steps.append(replace(step, subject=stay + place + 1))
    return tuple(steps)


def _faults(
    campaign: Campaign, devices: int, repetition: int, draw: random.Random
) -> tuple[PlannedStep, ...]:
    """Every kind of fault in turn, in an order of its own each time, of a device and a duration."""
    methods: list[str] = []
    while len(methods) < campaign.events:
        methods += draw.sample(campaign.faults, len(campaign.faults))
    steps = []
    for index, method in enumerate(methods[: campaign.events], 1):
        duration_ms = draw.randrange(*FAULT_MS)
        step = _idp_step(
            campaign, draw, index=index, group_size=devices, method=method, amount=duration_ms
        )
        steps.append(replace(step, subject=draw.randrange(1, devices + 1)))
    return tuple(steps)


def _attacks(
    campaign: Campaign, devices: int, repetition: int, draw: random.Random
) -> tuple[PlannedStep, ...]:
    """Every attack once; the last device but one joins, the last one was a member."""
    steps = []
    for index, method in enumerate(draw.sample(campaign.attacks, len(campaign.attacks)), 1):
        pairs = campaign.pairs if method in FLOODS else 1
        step = _idp_step(
            campaign, draw, index=index, group_size=devices - 1, method=method, amount=pairs
        )
        steps.append(step)
    return tuple(steps)


def _jitter_ns(campaign: Campaign, draw: random.Random) -> int:
    return draw.randrange(campaign.jitter_ms * 1_000_000 + 1)


FAULT_MS = (100, 6000)
"""How long a fault lasts: from next to nothing to longer than the dead interval."""

KINDS: dict[str, Kind] = {
    "join": Kind(_joins, "experiments.steps:run"),
    "leave": Kind(_leaves, "experiments.steps:run"),
    "delivery": Kind(_deliveries, "experiments.delivery:run", capture=True),
    "throughput": Kind(_levels, "experiments.throughput:run"),
    "discovery": Kind(_sizes, "experiments.hellobench:discover"),
    "hello-cost": Kind(_sizes, "experiments.hellobench:cost"),
    "hello-interval": Kind(_deaths, "experiments.hellobench:detect"),
    "flapping": Kind(_flaps, "experiments.flapping:flap"),
    "idp-leave": Kind(_returns, "experiments.flapping:leave"),
    "faults": Kind(_faults, "experiments.faults:run", capture=True),
    "attacks": Kind(_attacks, "experiments.attacks:run"),
    "rekey-loss": Kind(_comings_and_goings, "experiments.rekeyloss:run"),
    "sa-write": Kind(),
}
"""The kinds by name."""
