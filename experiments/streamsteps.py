"""What campaigns about streams have in common: the group stays up for all steps of a repetition."""

from __future__ import annotations

from collections.abc import Iterable

from experiments.campaign import PlannedStep
from experiments.latencies import StepRecord
from experiments.outcome import STEP_ERRORS, Outcome, fail
from experiments.repetitionsteps import RepetitionSteps
from testbed.errors import DaemonDiedError, one_line


class StreamSteps(RepetitionSteps):
    """Runs one repetition; a subclass says how it is measured."""

    def measure(self) -> None:
        """Start the devices, run every step; errors of the testbed end the repetition."""
        raise AssertionError(self)

    def expected(self, step: PlannedStep) -> Iterable[str]:
        """Return the devices whose SAs must agree: all."""
        return self.fleet.devices

    def run(self) -> Outcome:
        """Measure, then park the devices; only KeyboardInterrupt and errors of ours pass."""
        try:
            self.measure()
        except STEP_ERRORS as error:
            self.broken = str(error) if isinstance(error, DaemonDiedError) else ""
            self._give_up(one_line(error))
        self.park()
        return self.outcome()

    def finish(self, record: StepRecord) -> None:
        """A step is over, and ok if nothing was found wrong."""
        record.status = "ok" if record.status == "not-run" else record.status
        self.end(record)

    def _give_up(self, reason: str) -> None:
        """Put a failure on the first step that has not been measured, and leave out the rest."""
        for record in self.records:
            if record.status == "not-run":
                fail(record, reason)
                self.on_step(record)
                return
