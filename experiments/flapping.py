"""Campaigns about devices that go and come: flapping links, leaves and returns; rekeys counted.

Both daemons run. A rekey is a step of the epoch's number, as all devices say it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.campaign import PlannedStep, Repetition
from experiments.idpsteps import IdpSteps
from experiments.latencies import StepRecord
from experiments.outcome import Context, Outcome

if TYPE_CHECKING:
    from testbed.fleet import Fleet

GROUP_DEADLINE_S = 90.0


def flap(fleet: Fleet, repetition: Repetition, context: Context) -> Outcome:
    """Run one repetition of ``flapping``."""
    return _Flapping(fleet, repetition, context).run()


def leave(fleet: Fleet, repetition: Repetition, context: Context) -> Outcome:
    """Run one repetition of ``idp-leave``."""
    return _Leave(fleet, repetition, context).run()


class _Group(IdpSteps):
    def form(self, record: StepRecord) -> list[str]:
        """Have all devices in one group, with nothing of the joins left to do."""
        devices = list(record.expected)
        for number, device in enumerate(devices):
            self.fleet.start(device)
            self.fleet.await_members(devices[: number + 1], deadline_s=GROUP_DEADLINE_S)
        self.clock.sleep(self.intervals(5))
        return devices

    def await_group(self, devices: list[str]) -> None:
        """Wait until exactly these are members, everywhere with one epoch that is in use."""
        self.fleet.await_members(devices, deadline_s=self.campaign.deadline_ms / 1000)


class _Flapping(_Group):
    """A device's cable goes out and in with a period; half of it is out."""

    def step(self, planned: PlannedStep, record: StepRecord) -> None:
        devices = self.form(record)
        before = self.epoch_number(devices)
        half_ns = int(planned.amount * self.variant.hello_interval_ms * 1e4 / 2)
        self.clock.sleep(planned.jitter_ns / 1e9)
        at = record.trigger_wall_ns = self.clock.now_ns()
        for _ in range(self.campaign.flaps):
            self.cut(record.subject)
            at += half_ns
            self.clock.sleep_until(at)
            self.heal(record.subject)
            at += half_ns
            self.clock.sleep_until(at)
        # Whatever a flap can cause begins at the latest one dead interval after it.
        self.clock.sleep(self.intervals(6))
        self.await_group(devices)
        self.note(record, "period_intervals", planned.amount / 100)
        self.note(record, "flaps", self.campaign.flaps)
        self.note(record, "rekeys", self.epoch_number(devices) - before)


class _Leave(_Group):
    """A device goes, and comes back if its method is a cable's."""

    def step(self, planned: PlannedStep, record: StepRecord) -> None:
        devices = self.form(record)
        others = [name for name in devices if name != record.subject]
        before = self.epoch_number(devices)
        self.clock.sleep(planned.jitter_ns / 1e9)
        if record.method == "shutdown":
            since = self.clock.now_ns()
            self.fleet.stop(record.subject)
        else:
            since = self.cut(record.subject)
        record.trigger_wall_ns = since
        self.await_group(others)
        self.clock.sleep(self.intervals(2))
        gone = self.epoch_number(others)
        if record.method != "restore":
            self._written(record, others, since, "written_ms")
            self.note(record, "rekeys", gone - before)
            return
        since = record.trigger_wall_ns = self.heal(record.subject)
        self.await_group(devices)
        self.clock.sleep(self.intervals(2))
        self._written(record, devices, since, "written_ms")
        self.note(record, "rekeys", self.epoch_number(devices) - gone)
        for event in self.detections(others, "restore", [record.subject], since):
            self.note(record, "detection_ms", (event.wall_ns - since) / 1e6, event.device)

    def _written(self, record: StepRecord, devices: list[str], since: int, measure: str) -> None:
        """Note when each device had written the SAs of its newest epoch, and noticed the change."""
        self.fleet.flush()
        self.fleet.events()
        last = {
            event.device: event.wall_ns
            for event in self.fleet.all_events()
            if event.point == "t_written" and event.wall_ns >= since and event.device in devices
        }
        for name, wall_ns in last.items():
            self.note(record, measure, (wall_ns - since) / 1e6, name)
        if record.method != "restore":
            for event in self.detections(devices, "leave", [record.subject], since):
                self.note(record, "detection_ms", (event.wall_ns - since) / 1e6, event.device)
