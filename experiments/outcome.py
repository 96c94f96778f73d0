"""What measures one repetition is given, and what it hands back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from experiments.campaign import PlannedStep, Repetition
from experiments.latencies import StepRecord
from protocol.core.errors import LocalError
from testbed.errors import TestbedError

NS_PER_S = 1_000_000_000

STEP_ERRORS: Final = (TestbedError, LocalError, OSError)
"""What fails a step and not the campaign: also the system's bare errors, such as ESRCH, which tell
that something ended while it was looked at. `testbed.errors.one_line` says them."""

Tables = dict[str, list[dict[str, Any]]]
"""Rows by file name; the columns are those of `experiments.schema`."""


@dataclass(frozen=True, slots=True)
class Time:
    """The orchestrator's clock; a test gives a virtual one."""

    now_ns: Callable[[], int] = time.time_ns
    sleep: Callable[[float], None] = time.sleep

    def sleep_until(self, wall_ns: int) -> None:
        """Sleep until this UTC time; returns at once if it has passed."""
        self.sleep(max(0.0, (wall_ns - self.now_ns()) / NS_PER_S))


@dataclass(frozen=True, slots=True)
class Context:
    """What a repetition is given beside the fleet.

    Attributes:
        clock: the orchestrator's.
        on_step: told of every step that is done.
        load_began_ns: when loading the fleet began, UTC ns of that clock.
    """

    clock: Time = field(default_factory=Time)
    on_step: Callable[[StepRecord], None] = lambda _step: None
    load_began_ns: int = 0


@dataclass(slots=True)
class Outcome:
    """What one repetition left behind.

    Attributes:
        tables: rows by file name.
        steps: the step records.
        broken: why the fleet must be loaded anew, or empty.
        about: further facts for part.json.
        after: what is left to do once the fleet has ended, such as judging its captures; it
            completes this outcome, which is recorded only then.
    """

    tables: Tables
    steps: list[StepRecord]
    broken: str = ""
    about: dict[str, Any] = field(default_factory=dict)
    after: Callable[[], None] | None = None


def fail(record: StepRecord, reason: str) -> None:
    """Record a failure of a step; the first reason stands first."""
    record.status = "failed"
    text = " ".join(reason.split())
    record.reason = f"{record.reason}; {text}" if record.reason else text


def blank(
    repetition: Repetition, step: PlannedStep, devices: Sequence[str], expected: Iterable[str]
) -> StepRecord:
    """Return the record of a step that has not begun.

    Args:
        repetition: whose step it is.
        step: as planned.
        devices: of the fleet.
        expected: those that take part.
    """
    return StepRecord(
        campaign=repetition.campaign.kind,
        variant=repetition.variant.name,
        repetition=repetition.index,
        step=step.index,
        group_size=step.group_size,
        subject=devices[step.subject - 1],
        method=step.method,
        expected=tuple(expected),
    )
