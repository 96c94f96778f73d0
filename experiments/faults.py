"""Faults of devices, cables and the network, one after the other: how long until all is well again.

All devices are one group; then each step brings one fault, ends it, and waits for the invariants:
one group of all, one epoch that all have written and send with, the SADs read back alike (so there
is no orphan SA), and a red packet of every device arrives at every other. Nobody helps: what died
is started again, as a supervisor would, and nothing else is done.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from experiments.campaign import PlannedStep, Repetition
from experiments.idpsteps import IdpSteps
from experiments.latencies import StepRecord
from experiments.outcome import Context, Outcome
from testbed.errors import DeadlineError, TestbedError

if TYPE_CHECKING:
    from testbed.fleet import Fleet

GROUP_DEADLINE_S = 90.0
BOTH = ("idpd", "miked")
LOSS_PERCENT = 30.0
JITTER_MS = 20.0


def run(fleet: Fleet, repetition: Repetition, context: Context) -> Outcome:
    """Run one repetition; only KeyboardInterrupt and errors of ours pass through."""
    return _Faults(fleet, repetition, context).run()


class _Faults(IdpSteps):
    """One network lives through all steps; after one that fails it is formed anew."""

    def __init__(self, fleet: Fleet, repetition: Repetition, context: Context) -> None:
        super().__init__(fleet, repetition, context)
        self._formed = False

    def step(self, planned: PlannedStep, record: StepRecord) -> None:
        """Bring the fault, end it, wait until all is well."""
        if not self._formed:
            self._form()
        subject = self._tm_name() if planned.method.endswith("-tm") else record.subject
        record.subject = subject
        self.clock.sleep(planned.jitter_ns / 1e9)
        since = record.trigger_wall_ns = self.clock.now_ns()
        try:
            self._bring(planned, subject)
            ended = self.clock.now_ns()
            self._await_well(record)
        except TestbedError:
            self._formed = False
            raise
        now = self.clock.now_ns()
        self.note(record, "fault_ms", (ended - since) / 1e6, subject)
        self.note(record, "recovered_ms", (now - ended) / 1e6, subject)
        self._note_keys(record, subject, since, died=planned.method == "kill-tm")

    def park(self) -> None:
        """Park only what has to be formed anew, and at the end."""
        last = all(record.status != "not-run" for record in self.records)
        if last or not self._formed:
            self._formed = False
            for device in self.fleet.devices:
                if not all(f"{device}/{daemon}" in self.fleet.processes for daemon in BOTH):
                    self.fleet.revive(device)
            super().park()

    def _form(self) -> None:
        for device in self.fleet.devices:
            self.fleet.start(device)
        self.fleet.await_members(self.fleet.devices, deadline_s=GROUP_DEADLINE_S)
        self._formed = True

    def _tm_name(self) -> str:
        roles = {name: self.fleet.status(name, "miked")["role"] for name in self.fleet.devices}
        return next((name for name, role in roles.items() if role == "tm"), self.fleet.devices[0])

    # Faults.

    def _bring(self, planned: PlannedStep, subject: str) -> None:
        """Bring a fault and end it after its time."""
        with ExitStack() as undo:
            self._begin(planned.method, subject, undo)
            self.clock.sleep(planned.amount / 1000)

    def _begin(self, method: str, subject: str, undo: ExitStack) -> None:
        """Begin a fault; ``undo`` gets what ends each part of it that has begun."""
        kind, _, what = method.partition("-")
        daemons = BOTH if what in ("both", "tm", "") else (what,)
        fleet, network = self.fleet, self.fleet.network
        match kind:
            case "kill":
                for daemon in daemons:
                    fleet.processes.kill(f"{subject}/{daemon}")
                undo.callback(self._start_again, subject, daemons)
            case "pause":
                pids = [fleet.processes[f"{subject}/{daemon}"].pid for daemon in daemons]
                self._signal(pids, signal.SIGSTOP)
                undo.callback(self._signal, pids, signal.SIGCONT)
            case "restart":
                fleet.stop(subject)
                undo.callback(fleet.start, subject)
            case "cut":
                fleet.cut(subject)
                undo.callback(fleet.heal, subject)
            case "partition":
                network.part(fleet.devices[: len(fleet.devices) // 2])
                undo.callback(network.join_again)
            case "loss" | "reorder":
                values = {"loss_percent": LOSS_PERCENT} if kind == "loss" else _REORDER
                for link in fleet.devices if what == "all" else [subject]:
                    network.set_link(link, **values)
                    undo.callback(network.set_link, link, **dict.fromkeys(values, 0.0))
            case _:
                raise AssertionError(method)

    def _start_again(self, subject: str, daemons: Sequence[str]) -> None:
        self.fleet.revive(subject)
        for daemon in daemons:
            self.fleet.start_daemon(subject, daemon)

    @staticmethod
    def _signal(pids: list[int], which: int) -> None:
        for pid in pids:
            os.kill(pid, which)

    # Invariants.

    def _await_well(self, record: StepRecord) -> None:
        """Wait for all of them.

        Raises:
            TestbedError: what is not so within the deadline.
        """
        fleet, deadline_s = self.fleet, self.campaign.deadline_ms / 1000
        fleet.await_members(fleet.devices, deadline_s=deadline_s)
        sads = fleet.sad_check(fleet.devices, deadline_s)
        if sads.applicable:
            record.sad_ok = sads.ok
            if not sads.ok:
                raise DeadlineError(f"SADs: {sads.reason}")
        packets = fleet.packet_check(fleet.devices, deadline_s=deadline_s)
        if packets.applicable:
            record.packet_ok = packets.ok
            if not packets.ok:
                raise DeadlineError(f"red packets: {packets.reason}")

    def _note_keys(self, record: StepRecord, subject: str, since_ns: int, *, died: bool) -> None:
        """Note how many epochs came, and how long after the TM died the others had a new key."""
        self.fleet.flush()
        self.fleet.events()
        keys = [
            event
            for event in self.fleet.all_events()
            if event.point == "t_key" and event.wall_ns >= since_ns
        ]
        self.note(record, "rekeys", len({event.fields["epoch"] for event in keys}), subject)
        others = [event.wall_ns for event in keys if event.device != subject]
        if died and others:
            self.note(record, "new_key_ms", (min(others) - since_ns) / 1e6, subject)


_REORDER = {"delay_ms": JITTER_MS, "jitter_ms": JITTER_MS}
"""A packet waits for 0 to 40 ms: those sent within that time overtake one another."""
