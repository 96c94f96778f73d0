"""Campaigns about hellos alone: discovery, what a hello costs, how soon a dead device is noticed.

idpd runs and miked stays parked: no group is formed, so that a hundred devices are measured in
seconds and nothing but hellos is on the wire.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.campaign import PlannedStep, Repetition
from experiments.idpsteps import IdpSteps, transmitted_bytes
from experiments.latencies import StepRecord
from experiments.outcome import Context, Outcome
from testbed.cpu import processor_ns
from testbed.errors import DeadlineError
from testbed.wiring import black_interface

if TYPE_CHECKING:
    from testbed.fleet import Fleet

UP_DEADLINE_S = 60.0
SETTLED_INTERVALS = 6
"""The first four hellos of an instance are signed whatever they say."""


def discover(fleet: Fleet, repetition: Repetition, context: Context) -> Outcome:
    """Run one repetition of ``discovery``."""
    return _Discovery(fleet, repetition, context).run()


def cost(fleet: Fleet, repetition: Repetition, context: Context) -> Outcome:
    """Run one repetition of ``hello-cost``."""
    return _Cost(fleet, repetition, context).run()


def detect(fleet: Fleet, repetition: Repetition, context: Context) -> Outcome:
    """Run one repetition of ``hello-interval``."""
    return _Detection(fleet, repetition, context).run()


class _Discovery(IdpSteps):
    """One device is switched on among others: who knows whom when."""

    def step(self, planned: PlannedStep, record: StepRecord) -> None:
        *others, newcomer = self.fleet.devices[: planned.group_size]
        for name, offset in self.fleet.clock_offsets(4).items():
            if name in record.expected and name != self.fleet.devices[0]:
                self.note(record, "rtt_ms", offset.delay_ns / 1e6, name)
        self.start_idp(others)
        self.await_up(others, UP_DEADLINE_S)
        self.clock.sleep(self.intervals(SETTLED_INTERVALS))
        at = self.clock.now_ns() + self.campaign.lead_ms * 1_000_000 + planned.jitter_ns
        record.trigger_wall_ns = at
        if self.variant.cpu == "measured-first":
            self.fleet.give_turns([newcomer])
        self.fleet.start_daemon(newcomer, "idpd", at)
        self.clock.sleep_until(at)
        self.clock.sleep((self.variant.hello_answer_spread_ms + 250) / 1000)
        self.fleet.give_turns(None)
        self.await_up([*others, newcomer], self.campaign.deadline_ms / 1000)
        joined = self.detections(others, "join", [newcomer], at)
        answered = self.detections([newcomer], "join", others, at)
        if len(joined) != len(others) or len(answered) != len(others):
            raise DeadlineError(f"{len(joined)} and {len(answered)} of {len(others)} in the traces")
        for event in joined:
            self.note(record, "detected_ms", (event.wall_ns - at) / 1e6, event.device)
        for event in answered:
            device = self.name_of(event.fields["peer"])
            self.note(record, "answered_ms", (event.wall_ns - at) / 1e6, device)


class _Cost(IdpSteps):
    """A settled network says hello, nothing else: what that takes of each device's processor."""

    def step(self, planned: PlannedStep, record: StepRecord) -> None:
        devices = self.fleet.devices[: planned.group_size]
        self.start_idp(devices)
        self.await_up(devices, UP_DEADLINE_S)
        self.clock.sleep(self.intervals(SETTLED_INTERVALS))
        pids = {name: self.fleet.processes[f"{name}/idpd"].pid for name in devices}
        began = self._counters(devices)
        self.fleet.idle()
        start = self.clock.now_ns()
        spent = {name: -processor_ns(pid) for name, pid in pids.items()}
        self.clock.sleep(self.campaign.window_ms / 1000)
        for name, pid in pids.items():
            spent[name] += processor_ns(pid)
        seconds = (self.clock.now_ns() - start) / 1e9
        record.idle_percent = float(self.fleet.idle().mean_percent)
        ended = self._counters(devices)
        for name in devices:
            self.note(record, "cpu_percent", spent[name] / seconds / 1e7, name)
            for kind in ("light", "signed"):
                heard = ended[name][kind] - began[name][kind]
                self.note(record, f"{kind}_per_s", heard / seconds, name)

    def _counters(self, devices: tuple[str, ...]) -> dict[str, dict[str, int]]:
        found = {}
        for name in devices:
            counters = self.fleet.status(name, "idpd")["counters"]
            found[name] = {
                kind: int(counters.get(f"idp.hello_{kind}", 0)) for kind in ("light", "signed")
            }
        return found


class _Detection(IdpSteps):
    """A device dies silently; before that, what the hellos take of the wire."""

    def step(self, planned: PlannedStep, record: StepRecord) -> None:
        devices = self.fleet.devices[: planned.group_size]
        others = [name for name in devices if name != record.subject]
        self.start_idp(devices)
        self.await_up(devices, UP_DEADLINE_S)
        self.clock.sleep(self.intervals(SETTLED_INTERVALS))
        pids = {name: self.fleet.processes[f"{name}/idpd"].pid for name in devices}
        start = self.clock.now_ns()
        sent = {name: -transmitted_bytes(pid, black_interface(0)) for name, pid in pids.items()}
        self.clock.sleep(max(self.intervals(16), self.campaign.window_ms / 1000))
        for name, pid in pids.items():
            sent[name] += transmitted_bytes(pid, black_interface(0))
        seconds = (self.clock.now_ns() - start) / 1e9
        for name, count in sent.items():
            self.note(record, "bytes_per_s", count / seconds, name)
        self.clock.sleep(planned.jitter_ns / 1e9)
        record.trigger_wall_ns = self.clock.now_ns()
        self.fleet.stop(record.subject)
        self.clock.sleep(self.intervals(4.1) + 0.2)
        lost = self.detections(others, "leave", [record.subject], record.trigger_wall_ns)
        if len(lost) != len(others):
            raise DeadlineError(f"{len(lost)} of {len(others)} devices noticed")
        for event in lost:
            waited_ms = (event.wall_ns - record.trigger_wall_ns) / 1e6
            self.note(record, "detection_ms", waited_ms, event.device)
