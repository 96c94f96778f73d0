"""What runs the steps of one repetition, whatever its kind: records, rows, parking, the outcome."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from experiments.campaign import PlannedStep, Repetition
from experiments.latencies import StepRecord
from experiments.outcome import STEP_ERRORS, Context, Outcome, blank
from testbed.errors import one_line

if TYPE_CHECKING:
    from testbed.fleet import Fleet


class RepetitionSteps:
    """The frame of a repetition; a subclass runs it.

    Attributes:
        table: file of the rows.
        records: the steps.
        rows: what was measured.
        broken: why the fleet must be loaded anew, or empty.
    """

    table: ClassVar[str]

    def __init__(self, fleet: Fleet, repetition: Repetition, context: Context) -> None:
        self.fleet = fleet
        self.repetition = repetition
        self.campaign = repetition.campaign
        self.variant = repetition.variant
        self.clock = context.clock
        self.rows: list[dict[str, Any]] = []
        self.on_step = context.on_step
        self.broken = ""
        self.records = [
            blank(repetition, step, fleet.devices, self.expected(step)) for step in repetition.steps
        ]

    def expected(self, step: PlannedStep) -> Iterable[str]:
        """Return the devices that take part in a step."""
        return self.fleet.devices[: step.group_size]

    def about(self) -> dict[str, Any]:
        """Return further facts for part.json."""
        return {}

    def end(self, record: StepRecord) -> None:
        """A step is over."""
        record.end_wall_ns = self.clock.now_ns()
        self.on_step(record)

    def park(self) -> None:
        """Shut all devices down; what fails breaks the fleet."""
        try:
            for device in reversed(self.fleet.devices):
                self.fleet.stop(device)
        except STEP_ERRORS as error:
            self.broken = self.broken or f"parking: {one_line(error)}"

    def outcome(self) -> Outcome:
        """Return what is recorded."""
        about = {
            "campaign": self.campaign.kind,
            "variant": self.variant.name,
            "repetition": self.repetition.index,
            "broken": self.broken,
            **self.about(),
        }
        tables = {self.table: self.rows, "steps.csv": [record.row() for record in self.records]}
        return Outcome(tables, self.records, self.broken, about)
