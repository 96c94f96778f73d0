"""A scenario: what happens to which device when, with times calculated before it begins.

Steps are triggered by the clock and not by one another, as in the paper ("all time triggered events
were pre-calculated before the measurements"): a slow step does not move the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol

from testbed.errors import TestbedError

LEAD_S: Final = 0.3
"""So long before its trigger a start is handed to the daemon, whose own clock then fires it."""


class Action(StrEnum):
    """What can be done to a device."""

    START = "start"
    STOP = "stop"
    CUT = "cut"
    HEAL = "heal"
    HANDOVER = "handover"


class Stage(Protocol):
    """What a scenario is played on: the methods of `testbed.fleet.Fleet` that it needs."""

    def start(self, device: str, at_wall_ns: int | None = None) -> None:
        """Start the protocol, at a trigger time."""

    def stop(self, device: str) -> None:
        """Stop the protocol."""

    def cut(self, device: str) -> int:
        """Cut the cable."""

    def heal(self, device: str) -> int:
        """Plug the cable in."""

    def handover(self, device: str) -> Any:
        """Make it the transaction manager."""


@dataclass(frozen=True, slots=True, order=True)
class Step:
    """One thing that happens.

    Attributes:
        at_s: seconds after the beginning.
        action: what.
        device: to which device.
    """

    at_s: float
    action: Action
    device: str


@dataclass(frozen=True, slots=True)
class Scenario:
    """Steps in order of time.

    Raises:
        TestbedError: on construction, if a step lies before the beginning or before the one that
            precedes it.
    """

    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        last = 0.0
        for number, step in enumerate(self.steps, 1):
            if step.at_s < last:
                raise TestbedError(
                    f"step {number} ({step.action} {step.device}) is at {step.at_s:g} s, "
                    f"before {last:g} s"
                )
            last = step.at_s

    @property
    def duration_s(self) -> float:
        """Return when the last step happens."""
        return self.steps[-1].at_s if self.steps else 0.0


def one_by_one(
    devices: Iterable[str], action: Action, spacing_s: float, first_s: float = LEAD_S
) -> Scenario:
    """Return the same action for one device after the other."""
    return Scenario(
        tuple(
            Step(first_s + number * spacing_s, action, device)
            for number, device in enumerate(devices)
        )
    )


@dataclass(frozen=True, slots=True)
class Played:
    """A step and its times.

    Attributes:
        step: what was planned.
        trigger_wall_ns: when it was to happen.
        late_ms: how late it was done; for a start, how late the daemon was told (0: in time).
    """

    step: Step
    trigger_wall_ns: int
    late_ms: float


def play(
    scenario: Scenario,
    stage: Stage,
    *,
    now_ns: Callable[[], int] = time.time_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Played]:
    """Perform the steps, each at its time.

    Args:
        scenario: the steps.
        stage: what they are performed on.
        now_ns: UTC in nanoseconds.
        sleep: waits for seconds.
    """
    begin_ns = now_ns()
    played = []
    for step in scenario.steps:
        trigger = begin_ns + round(step.at_s * 1e9)
        is_start = step.action is Action.START
        wanted = trigger - round(LEAD_S * 1e9) if is_start else trigger
        while (left := wanted - now_ns()) > 0:
            sleep(left / 1e9)
        late_ms = max(0.0, (now_ns() - trigger) / 1e6)
        if is_start:
            stage.start(step.device, at_wall_ns=trigger)
        else:
            getattr(stage, step.action.value)(step.device)
        played.append(Played(step, trigger, round(late_ms, 3)))
    return played
