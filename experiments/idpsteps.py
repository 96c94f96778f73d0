"""What the campaigns about IDP itself have in common: steps, rows, and how a device is waited for.

Their results are few numbers of many kinds, so they share one table with a row for each number
(hellos.csv). A kind of campaign is a subclass that says what one step does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.campaign import PlannedStep, Repetition
from experiments.errors import ExperimentError
from experiments.latencies import StepRecord
from experiments.outcome import STEP_ERRORS, Context, Outcome, fail
from experiments.repetitionsteps import RepetitionSteps
from testbed.errors import (
    DaemonDiedError,
    DeadlineError,
    TestbedError,
    naming_the_gone,
    one_line,
)
from testbed.trace import Event

if TYPE_CHECKING:
    from testbed.fleet import Fleet

_POLL_S = 0.1


class IdpSteps(RepetitionSteps):
    """Runs the steps of one repetition; after each all devices are parked again."""

    table = "hellos.csv"

    def __init__(self, fleet: Fleet, repetition: Repetition, context: Context) -> None:
        super().__init__(fleet, repetition, context)
        self._cut: list[str] = []

    def step(self, planned: PlannedStep, record: StepRecord) -> None:
        """Do what a step is about; errors of the testbed fail it."""
        raise AssertionError(self)

    def run(self) -> Outcome:
        """Run all steps; only KeyboardInterrupt and errors of ours pass through."""
        for planned, record in zip(self.repetition.steps, self.records, strict=True):
            record.begin_wall_ns = self.clock.now_ns()
            try:
                self.fleet.events()
                self.step(planned, record)
                record.status = "ok"
            except STEP_ERRORS as error:
                fail(record, one_line(error))
                if isinstance(error, DaemonDiedError):
                    self.broken = str(error)
            self.park()
            self.end(record)
            if self.broken:
                break
        return self.outcome()

    def park(self) -> None:
        """Shut all devices down, and put in every cable that is out."""
        super().park()
        try:
            for device in self._cut:
                self.fleet.heal(device)
            self._cut.clear()
        except STEP_ERRORS as error:
            self.broken = self.broken or f"parking: {one_line(error)}"

    # What a step uses.

    def note(self, record: StepRecord, measure: str, value: float, device: str = "") -> None:
        """Record one number."""
        self.rows.append(
            {
                "campaign": record.campaign,
                "variant": record.variant,
                "repetition": record.repetition,
                "step": record.step,
                "method": record.method,
                "group_size": record.group_size,
                "hello_interval_ms": self.variant.hello_interval_ms,
                "subject": record.subject,
                "device": device,
                "measure": measure,
                "value": round(value, 6),
            }
        )

    def cut(self, device: str) -> int:
        """Take the cable out; it is put in again at the end of the step, if not before."""
        self._cut.append(device)
        return self.fleet.cut(device)

    def heal(self, device: str) -> int:
        """Put the cable in again."""
        self._cut.remove(device)
        return self.fleet.heal(device)

    def intervals(self, number: float) -> float:
        """Return so many hello intervals in seconds."""
        return number * self.variant.hello_interval_ms / 1000

    def start_idp(self, devices: Sequence[str]) -> None:
        """Start IDP alone: miked stays parked, no group is formed."""
        for device in devices:
            self.fleet.start_daemon(device, "idpd")

    def await_up(self, devices: Sequence[str], deadline_s: float) -> None:
        """Wait until each of these devices has all others of them up."""
        wanted = {self.fleet.addresses[name] for name in devices}
        missing = list(devices)

        def all_up() -> bool:
            while missing:
                peers = self.fleet.status(missing[-1], "idpd")["peers"]
                up = {peer["address"] for peer in peers if peer["state"] == "up"}
                if up | {self.fleet.addresses[missing[-1]]} < wanted:
                    return False
                missing.pop()
            return True

        self.await_true(
            all_up, deadline_s, lambda: f"{', '.join(missing)}: not all others are up there"
        )

    def await_true(
        self, condition: Callable[[], bool], deadline_s: float, describe: Callable[[], str]
    ) -> None:
        """Wait for a condition that costs the daemons little.

        Raises:
            DeadlineError: with the description.
        """
        end = self.clock.now_ns() + int(deadline_s * 1e9)
        while not condition():
            self.fleet.check_alive()
            if self.clock.now_ns() >= end:
                raise DeadlineError(describe())
            self.clock.sleep(_POLL_S)

    def detections(
        self, devices: Sequence[str], kind: str, peers: Sequence[str], since_wall_ns: int
    ) -> list[Event]:
        """Return the first ``t_detect`` of this kind for each device and peer, as far as traced."""
        self.fleet.flush()
        self.fleet.events()
        addresses = {self.fleet.addresses[name] for name in peers}
        found: dict[tuple[str, str], Event] = {}
        for event in self.fleet.all_events():
            if (
                event.point == "t_detect"
                and event.wall_ns >= since_wall_ns
                and event.device in devices
                and event.fields["kind"] == kind
                and event.fields["peer"] in addresses
            ):
                found.setdefault((event.device, event.fields["peer"]), event)
        return list(found.values())

    def name_of(self, address: str) -> str:
        """Return the device with this black address."""
        return next(name for name, one in self.fleet.addresses.items() if one == address)

    def epoch_number(self, devices: Sequence[str]) -> int:
        """Return the number of the epoch that all of them have written.

        Raises:
            ExperimentError: they have not one epoch (the caller has waited for it).
        """
        epochs = {str(self.fleet.status(name, "idpd")["epoch"]) for name in devices}
        if len(epochs) != 1:
            raise ExperimentError(f"no common epoch: {', '.join(sorted(epochs))}")
        return int(epochs.pop().split("-")[0])


def transmitted_bytes(pid: int, interface: str) -> int:
    """Return the bytes that a process's network namespace has sent on an interface so far.

    Raises:
        ProcessGoneError: it has ended.
    """
    with naming_the_gone(f"process {pid}", "its network counters cannot be read"):
        lines = Path(f"/proc/{pid}/net/dev").read_text(encoding="ascii").splitlines()
    for line in lines:
        name, _, counters = line.partition(":")
        if name.strip() == interface:
            return int(counters.split()[8])
    raise TestbedError(f"process {pid} has no interface {interface}")
