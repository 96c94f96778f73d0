"""What campaigns about streams have in common: the group stays up for all steps of a repetition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from experiments.campaign import PlannedStep, Repetition
from experiments.latencies import StepRecord
from experiments.outcome import Context, Outcome, blank, fail
from testbed.errors import DaemonDiedError, TestbedError

if TYPE_CHECKING:
    from testbed.fleet import Fleet


class StreamSteps:
    """Runs one repetition; a subclass says how it is measured.

    Attributes:
        table: file of the rows.
        records: the steps.
        rows: what was measured.
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
        self.records = [self._blank(step) for step in repetition.steps]

    def measure(self) -> None:
        """Start the devices, run every step; errors of the testbed end the repetition."""
        raise AssertionError(self)

    def expected(self) -> tuple[str, ...]:
        """Return the devices whose SAs must agree."""
        return tuple(self.fleet.devices)

    def about(self) -> dict[str, Any]:
        """Return further facts for part.json."""
        return {}

    def _blank(self, step: PlannedStep) -> StepRecord:
        return blank(self.repetition, step, self.fleet.devices, self.expected())

    def run(self) -> Outcome:
        """Measure, then park the devices; only KeyboardInterrupt and errors of ours pass."""
        broken = ""
        try:
            self.measure()
        except TestbedError as error:
            broken = str(error) if isinstance(error, DaemonDiedError) else ""
            self._give_up(str(error))
        try:
            for device in reversed(self.fleet.devices):
                self.fleet.stop(device)
        except TestbedError as error:
            broken = broken or f"parking: {error}"
        about = {
            "campaign": self.campaign.kind,
            "variant": self.variant.name,
            "repetition": self.repetition.index,
            "broken": broken,
            **self.about(),
        }
        tables = {self.table: self.rows, "steps.csv": [record.row() for record in self.records]}
        return Outcome(tables, self.records, broken, about)

    def finish(self, record: StepRecord) -> None:
        """A step is over."""
        record.status = "ok" if record.status == "not-run" else record.status
        record.end_wall_ns = self.clock.now_ns()
        self.on_step(record)

    def _give_up(self, reason: str) -> None:
        """Put a failure on the first step that has not been measured, and leave out the rest."""
        for record in self.records:
            if record.status == "not-run":
                fail(record, reason)
                self.on_step(record)
                return
