"""Faults of devices, cables and the network, one after the other: how long until all is well again.

All devices are one group; then each step brings one fault (experiments/faultkinds.py), ends it, and
waits for the invariants: one group of all, one epoch that all have written and send with, the SADs
read back alike, every SA of a pair at both of its ends, the policies, routes, rules and processes
of before and no others, and a red packet of every device at every other. Nobody helps: what died is
started again, as a supervisor would, and nothing else is done. At the end of a repetition every
frame on every black link is judged: nothing may have left in clear.
"""

from __future__ import annotations

from contextlib import ExitStack
from random import Random
from typing import TYPE_CHECKING

from experiments.campaign import PlannedStep, Repetition
from experiments.faultkinds import BOTH, INSTANT, FaultKinds
from experiments.idpsteps import IdpSteps
from experiments.idpsummary import new_key_limit_ms
from experiments.latencies import StepRecord
from experiments.outcome import STEP_ERRORS, Context, Outcome, fail
from experiments.verdicts import judge_leaks
from testbed.errors import DeadlineError, TestbedError, one_line
from testbed.wait import wait_until
from testbed.wellness import Wellness

if TYPE_CHECKING:
    from testbed.fleet import Fleet

DOUBLING = "duplicate-all"
"""While it lasts red packets are sent too: none may come twice."""

GROUP_DEADLINE_S = 90.0
LOOK_S = 0.2

PROOFS = {
    "overrun": ("kernel_overruns", "link_overruns"),
    "disk-full": ("disk_refusals",),
}
"""Kinds that must show in numbers: else the fault did not happen."""


def run(fleet: Fleet, repetition: Repetition, context: Context) -> Outcome:
    """Run one repetition; only KeyboardInterrupt and errors of ours pass through."""
    return _Faults(fleet, repetition, context).run()


class _Faults(IdpSteps):
    """One network lives through all steps; after one that fails it is formed anew."""

    def __init__(self, fleet: Fleet, repetition: Repetition, context: Context) -> None:
        super().__init__(fleet, repetition, context)
        self._formed = False
        self._wellness: Wellness | None = None
        self._seed = f"faults {repetition.campaign.kind} {repetition.index}"

    def run(self) -> Outcome:
        """Run all steps; judge the captures when the fleet has ended."""
        outcome = super().run()
        if self._wellness is not None:
            self._wellness.close()
        if self.fleet.options.capture:
            outcome.after = lambda: self._judge(outcome)
        return outcome

    def step(self, planned: PlannedStep, record: StepRecord) -> None:
        """Bring the fault, end it, wait until all is well."""
        if not self._formed:
            self._form()
        of_tm = planned.method.endswith("-tm") or planned.method.startswith("tm-")
        subject = record.subject = self._tm_name() if of_tm else record.subject
        numbers: dict[str, float] = {}
        chance = Random(f"{self._seed} {planned.index}")  # noqa: S311 - a plan
        kinds = FaultKinds(self.fleet, chance, numbers.__setitem__)
        self.clock.sleep(planned.jitter_ns / 1e9)
        since = record.trigger_wall_ns = self.clock.now_ns()
        try:
            with ExitStack() as undo:
                kinds.begin(planned.method, subject, undo)
                if planned.method == DOUBLING:
                    self._check_packets(record)
                if planned.method not in INSTANT:
                    self.clock.sleep(planned.amount / 1000)
            ended = self.clock.now_ns()
            self._await_well(record)
        except STEP_ERRORS:
            self._formed = False
            raise
        now = self.clock.now_ns()
        self.note(record, "fault_ms", (ended - since) / 1e6, subject)
        self.note(record, "recovered_ms", (now - ended) / 1e6, subject)
        for name, value in numbers.items():
            self.note(record, name, value, subject)
        died_ns = kinds.died_ns or (since if planned.method == "kill-tm" else None)
        self._note_keys(record, subject, since, died_ns)
        lacking = [name for name in PROOFS.get(planned.method, ()) if not numbers.get(name)]
        if lacking:
            raise DeadlineError(f"the fault did not come about: no {lacking[0]}")

    def park(self) -> None:
        """Park only what has to be formed anew, and at the end."""
        last = all(record.status != "not-run" for record in self.records)
        if last or not self._formed:
            self._formed = False
            try:
                for device in self.fleet.devices:
                    if not all(f"{device}/{daemon}" in self.fleet.processes for daemon in BOTH):
                        self.fleet.revive(device)
            except STEP_ERRORS as error:
                self.broken = self.broken or f"reviving: {one_line(error)}"
            super().park()

    def _form(self) -> None:
        fleet = self.fleet
        for device in fleet.devices:
            fleet.start(device)
        fleet.await_members(fleet.devices, deadline_s=GROUP_DEADLINE_S)
        if fleet.options.kernel and self._wellness is None:
            self._wellness = Wellness(fleet.network, fleet.devices, fleet.facts["run_id"])
            wellness = self._wellness
            problem = ""

            def settled() -> bool:
                nonlocal problem
                try:
                    wellness.settle()
                except TestbedError as error:
                    problem = str(error)
                return wellness.settled

            wait_until(settled, GROUP_DEADLINE_S, lambda: problem, pause_s=LOOK_S)
        self._formed = True

    def _tm_name(self) -> str:
        roles = {name: self.fleet.status(name, "miked")["role"] for name in self.fleet.devices}
        return next((name for name, role in roles.items() if role == "tm"), self.fleet.devices[0])

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
        if self._wellness is not None:
            self._await_wellness(self._wellness, deadline_s)
        self._check_packets(record)

    def _check_packets(self, record: StepRecord) -> None:
        """Send a red packet from each device to all; none may come more often than it was sent."""
        deadline_s = self.campaign.deadline_ms / 1000
        packets = self.fleet.packet_check(self.fleet.devices, deadline_s=deadline_s)
        if packets.applicable:
            record.packet_ok = packets.ok
            if not packets.ok:
                raise DeadlineError(f"red packets: {packets.reason}")

    def _await_wellness(self, wellness: Wellness, deadline_s: float) -> None:
        problems: list[str] = []

        def well() -> bool:
            nonlocal problems
            self.fleet.check_alive()
            problems = wellness.problems()
            return not problems

        wait_until(well, deadline_s, lambda: "; ".join(problems), pause_s=LOOK_S)

    def _note_keys(
        self, record: StepRecord, subject: str, since_ns: int, died_ns: int | None
    ) -> None:
        """Note how many epochs came, and how long after the TM died all others had a new TM's key.

        Raises:
            DeadlineError: that took longer than it may.
        """
        fleet = self.fleet
        fleet.flush()
        fleet.events()
        keys = [
            event
            for event in fleet.all_events()
            if event.point == "t_key" and event.wall_ns >= since_ns
        ]
        self.note(record, "rekeys", len({event.fields["epoch"] for event in keys}), subject)
        if died_ns is None:
            return
        first: dict[str, int] = {}
        for event in keys:
            new = event.wall_ns >= died_ns and event.fields["tm"] != fleet.addresses[subject]
            if new and event.device != subject:
                first.setdefault(event.device, event.wall_ns)
        without = [name for name in fleet.devices if name not in first and name != subject]
        if without:
            raise DeadlineError(f"{', '.join(without)}: no key of another TM")
        new_key_ms = (max(first.values()) - died_ns) / 1e6
        self.note(record, "new_key_ms", new_key_ms, subject)
        limit_ms = new_key_limit_ms(self.variant.hello_interval_ms)
        if new_key_ms > limit_ms:
            raise DeadlineError(
                f"a new key {new_key_ms:.0f} ms after the TM died: more than {limit_ms:.0f}"
            )

    def _judge(self, outcome: Outcome) -> None:
        """Judge every frame of the repetition; a leak fails the step during which it was sent."""
        if not self.fleet.options.kernel:  # announcements of prefixes are in clear then
            self._discard_captures()
            return
        report, rows = judge_leaks(self.fleet)
        about = {"campaign": self.campaign.kind, "variant": self.variant.name}
        outcome.tables["leaks.csv"] = [
            {**about, "repetition": self.repetition.index, **row} for row in rows
        ]
        for leak in report.leaks:
            begun = [r for r in self.records if (r.begin_wall_ns or 0) <= leak.wall_ns]
            fail(begun[-1] if begun else self.records[0], f"leak: {leak.link}: {leak.reason}")
        if not report.ok and not report.leaks:
            fail(self.records[-1], report.text())
        outcome.tables["steps.csv"] = [record.row() for record in self.records]
        if report.ok and all(record.status == "ok" for record in self.records):
            self._discard_captures()

    def _discard_captures(self) -> None:
        for one in self.fleet.captured:
            one.path.unlink(missing_ok=True)
