"""One repetition on a loaded fleet: prepare the group, then join or leave step by step, checking.

The daemons are parked before and after. A step whose check fails is recorded as failed and the
repetition goes on; a step after which the group is not what it should be ends the repetition, and
the steps after it are recorded as not run. Nothing here decides what counts: rows and flags do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments.campaign import MONITOR, TM, PlannedStep, Repetition
from experiments.firstpacket import FirstPackets
from experiments.latencies import (
    Bench,
    Stamp,
    StepRecord,
    combine_offsets,
    event_rows,
    repetition_rows,
)
from experiments.outcome import NS_PER_S, STEP_ERRORS, Context, Outcome, Time, blank, fail
from experiments.unicast import UnicastJoins
from experiments.wan import Wan
from testbed.errors import DaemonDiedError, DeadlineError, one_line

if TYPE_CHECKING:
    from testbed.fleet import Fleet

PREPARATION_DEADLINE_S = 60.0
_POLL_S = 0.2
"""Between looks at the kernels' announcements; adds nothing to what is measured."""

_UNHINTED_NS = 3 * NS_PER_S
"""With kernel SAs: ask the daemons after this long even if the observer lost an announcement."""


def run(fleet: Fleet, repetition: Repetition, context: Context) -> Outcome:
    """Run one repetition of joins or leaves."""
    return RepetitionRunner(fleet, repetition, clock=context.clock, on_step=context.on_step).run()


class RepetitionRunner:
    """Runs one repetition on a fleet whose daemons are parked."""

    def __init__(
        self,
        fleet: Fleet,
        repetition: Repetition,
        *,
        clock: Time | None = None,
        on_step: Callable[[StepRecord], None] = lambda _step: None,
    ) -> None:
        self._fleet = fleet
        self._repetition = repetition
        self._campaign = repetition.campaign
        self._time = clock or Time()
        self._on_step = on_step
        self._monitor = self._name(MONITOR)
        self._tm = self._name(TM)
        self._started: list[str] = []
        self._cut: list[str] = []
        self._stamps: list[Stamp] = []
        self._role: str | None = None
        self._broken = ""
        self._kernel = repetition.variant.sa_backend != "memory"
        self._epoch: str | None = None
        self._records = [self._blank(step) for step in repetition.steps]
        self._wan = Wan(fleet, repetition.variant)
        self._red = FirstPackets(fleet, repetition, self._monitor, self._time)
        self._unicast = UnicastJoins(fleet, repetition, self._monitor)

    def _name(self, number: int) -> str:
        return self._fleet.devices[number - 1]

    def _blank(self, step: PlannedStep) -> StepRecord:
        expected = tuple(self._name(n) for n in range(1, step.group_size + 1))
        return blank(self._repetition, step, self._fleet.devices, expected)

    def run(self) -> Outcome:
        """Run it; only KeyboardInterrupt and errors of ours pass through."""
        before = after = None
        probes: dict[str, Any] = {}
        try:
            self._drain()
            self._stamps.clear()
            self._wan.clear()
            before = self._fleet.clock_offsets()
            self._wan.impair()
            probes = self._wan.probe()
            self._red.open()
            self._prepare()
            for planned, record in zip(self._repetition.steps, self._records, strict=True):
                if not self._step(planned, record):
                    break
        except STEP_ERRORS as error:
            self._fail_first(f"preparation: {one_line(error)}")
            self._note_broken(error)
        try:
            self._red.close()
            self._park()
            self._wan.clear()
            after = self._fleet.clock_offsets()
        except STEP_ERRORS as error:
            self._note_broken(error)
            self._broken = self._broken or f"parking: {one_line(error)}"
        self._drain()
        return self._outcome({"before": before, "wan": probes, "after": after})

    # --- preparation and parking -----------------------------------------------------------------

    def _prepare(self) -> None:
        """Start the device that holds the TM role, then the monitor; before leaves, all others."""
        self._start(self._tm)
        self._await_group([self._tm])
        self._start(self._monitor)
        group = [self._monitor, self._tm]
        self._await_group(group)
        if self._campaign.kind == "leave":
            others = [name for name in self._fleet.devices if name not in group]
            stagger_ns = self._campaign.stagger_ms * 1_000_000
            first = self._time.now_ns() + stagger_ns
            for number, device in enumerate(others):
                at = max(first + number * stagger_ns, self._time.now_ns() + stagger_ns)
                self._start(device, at)
                self._time.sleep_until(at)
            self._await_group([*group, *others])
        self._role = None

    def _start(self, device: str, at_wall_ns: int | None = None) -> None:
        self._started.append(device)
        self._fleet.start(device, at_wall_ns)

    def _await_group(self, devices: Sequence[str]) -> None:
        self._epoch = self._fleet.await_members(devices, deadline_s=PREPARATION_DEADLINE_S)

    def _park(self) -> None:
        """Stop every started device, last first, and plug every cut cable in again."""
        self._fleet.give_turns(None)
        for device in reversed(self._started):
            self._fleet.stop(device)
        self._started.clear()
        for device in self._cut:
            self._fleet.heal(device)
        self._cut.clear()

    # --- one step --------------------------------------------------------------------------------

    def _step(self, planned: PlannedStep, record: StepRecord) -> bool:
        """Run one step; return whether the group is fit for the next."""
        record.begin_wall_ns = self._time.now_ns()
        intact = False
        try:
            self._ensure_tm(record)
            if record.method == "start":
                self._red.before(record)
                self._unicast.before(record)
                self._trigger_join(planned, record)
            else:
                self._trigger_leave(planned, record)
            try:
                self._await_epoch(record)
                self._unicast.after(record)
            finally:
                self._fleet.give_turns(None)
            intact = True
            self._check(planned, record)
            intact = self._check_members(record)
            self._red.after(record)
            self._after_leave(record)
        except STEP_ERRORS as error:
            fail(record, one_line(error))
            self._note_broken(error)
            intact = intact and not self._broken
        self._red.end_step()
        if record.status != "failed":
            record.status = "ok"
        record.end_wall_ns = self._time.now_ns()
        self._on_step(record)
        return intact

    def _ensure_tm(self, record: StepRecord) -> None:
        """Before each step the second device holds the TM role, as in the paper."""
        if self._role is None:
            self._role = str(self._fleet.status(self._tm, "miked").get("role"))
        record.tm = self._tm
        if self._role != "tm":
            record.handover = True
            self._fleet.handover(self._tm)

    def _trigger_join(self, planned: PlannedStep, record: StepRecord) -> None:
        """Give the joiner its trigger time ahead of it; the joiner's own clock releases it."""
        self._fleet.idle()  # counts from here: the wait for the trigger shows others' load
        lead_ns = self._campaign.lead_ms * 1_000_000
        at = self._time.now_ns() + lead_ns + planned.jitter_ns
        record.trigger_wall_ns = at
        self._favour(record.subject)
        self._start(record.subject, at)
        if self._time.now_ns() >= at:
            fail(record, "the trigger time had passed before the daemon was armed")
        self._time.sleep_until(at)

    def _favour(self, *also: str) -> None:
        """Let the devices that are measured run before the others, if the plan says so."""
        if self._repetition.variant.cpu == "measured-first":
            self._fleet.give_turns([*also, self._monitor, self._tm])

    def _trigger_leave(self, planned: PlannedStep, record: StepRecord) -> None:
        self._fleet.idle()
        self._favour()
        self._time.sleep(planned.jitter_ns / NS_PER_S)
        if record.method == "cut":
            self._cut.append(record.subject)
            record.trigger_wall_ns = self._fleet.cut(record.subject)
        else:
            record.trigger_wall_ns = self._time.now_ns()
            self._fleet.stop(record.subject)
            self._started.remove(record.subject)

    def _await_epoch(self, record: StepRecord) -> None:
        """Wait until every expected device has written one and the same new epoch.

        Traces are written late on purpose, so the daemons are asked; but an answer costs them CPU,
        so with kernel SAs nobody is asked before the kernels have announced SAs everywhere.
        """
        assert record.trigger_wall_ns is not None
        end = record.trigger_wall_ns + self._campaign.deadline_ms * 1_000_000
        unhinted = record.trigger_wall_ns + _UNHINTED_NS * self._kernel
        announced: set[str] = set()
        while True:
            announced |= {
                stamp.device
                for stamp in self._collect_kernel()
                if stamp.point == "xfrm.new" and stamp.wall_ns >= record.trigger_wall_ns
            }
            hinted = announced >= set(record.expected)
            if hinted or self._time.now_ns() >= unhinted:
                epoch = self._common_epoch(record.expected)
                if epoch is not None:
                    record.epoch = self._epoch = epoch
                    break
            self._fleet.check_alive()
            if self._time.now_ns() >= end:
                raise DeadlineError(self._describe(record))
            self._time.sleep(_POLL_S)
        idle = self._fleet.idle()
        record.idle_percent = float(idle.mean_percent)
        record.starved = record.idle_percent < self._campaign.idle_floor_percent

    def _common_epoch(self, devices: Sequence[str]) -> str | None:
        """Return the new epoch that all have written, or None; asks no more than it must."""
        common = None
        for device in devices:
            written = self._fleet.status(device, "idpd").get("epoch")
            if written is None or str(written) == self._epoch:
                return None
            if common is not None and str(written) != common:
                return None
            common = str(written)
        return common

    def _describe(self, record: StepRecord) -> str:
        """Say which epoch each device is at, and what those without a new one did last."""
        self._fleet.flush()
        self._collect()
        texts = []
        for name in record.expected:
            epoch = str(self._fleet.status(name, "idpd").get("epoch"))
            mine = [stamp for stamp in self._stamps if stamp.device == name]
            last = f", last {mine[-1].daemon} {mine[-1].point}" if mine else ""
            texts.append(f"{name} at {epoch}{last if epoch == self._epoch else ''}")
        return f"no common new epoch by the deadline: {'; '.join(texts)}"

    def _check(self, planned: PlannedStep, record: StepRecord) -> None:
        """Read the SADs of all devices back and compare; send one red multicast packet."""
        deadline_s = self._campaign.check_deadline_ms / 1000
        sad = self._fleet.sad_check(record.expected, deadline_s)
        record.spis = sad.spis
        if sad.applicable:
            record.sad_ok = sad.ok
            record.sad_wait_ms = float(sad.elapsed_ms)
            if not sad.ok:
                fail(record, f"SAD check: {sad.reason}")
            elif sad.epoch is not None and sad.epoch != record.epoch:
                record.sad_ok = False
                fail(record, f"SAD check: SADs hold {sad.epoch}, not {record.epoch}")
        record.packet_sender = self._name(planned.packet_sender)
        packet = self._fleet.packet_check(record.expected, [record.packet_sender], deadline_s)
        if packet.applicable:
            record.packet_ok = packet.ok
            record.packet_sendings = max(packet.sendings.values(), default=None)
            times = [t for to in packet.delivered.values() for t in to.values() if t is not None]
            record.packet_ms = max(times, default=None)
            if not packet.ok:
                fail(record, f"packet check: {packet.reason}")

    def _check_members(self, record: StepRecord) -> bool:
        """Ask the TM who is a member; its role is what the next step begins with."""
        status = self._fleet.status(self._tm, "miked")
        self._role = str(status.get("role"))
        members = {str(address) for address in status.get("members", ())}
        expected = {str(self._fleet.addresses[name]) for name in record.expected}
        if members == expected:
            return True
        fail(record, f"members are {len(members)} devices, not the {len(expected)} expected")
        return False

    def _after_leave(self, record: StepRecord) -> None:
        """A cut device is stopped first and plugged in again after that."""
        if record.method == "cut":
            self._fleet.stop(record.subject)
            self._started.remove(record.subject)
            self._fleet.heal(record.subject)
            self._cut.remove(record.subject)

    # --- results ---------------------------------------------------------------------------------

    def _fail_first(self, reason: str) -> None:
        """Put a failure outside any step on the first step that has not run."""
        for record in self._records:
            if record.status == "not-run":
                fail(record, reason)
                self._on_step(record)
                return

    def _note_broken(self, error: Exception) -> None:
        if isinstance(error, DaemonDiedError):
            self._broken = str(error)

    def _collect(self) -> None:
        """Take and keep the trace events written since the last call."""
        self._stamps += [
            Stamp(e.wall_ns, e.mono_ns, e.device, e.daemon, e.point, e.fields)
            for e in self._fleet.events()
        ]

    def _collect_kernel(self) -> list[Stamp]:
        """Take and keep what the kernels have announced since the last call."""
        new = [
            Stamp(e.wall_ns, 0, e.device, "kernel", f"xfrm.{e.kind}", {**e.fields, "spi": e.spi})
            for e in self._fleet.kernel_events()
        ]
        self._stamps += new
        return new

    def _drain(self) -> None:
        """Take what traces and the kernels' observer hold."""
        try:
            self._collect()
            self._collect_kernel()
        except STEP_ERRORS as error:
            self._broken = self._broken or f"traces: {one_line(error)}"

    def _outcome(self, exchanges: Mapping[str, Any]) -> Outcome:
        before, after = exchanges["before"], exchanges["after"]
        for record in self._records:
            if record.status == "not-run" and not record.reason:
                record.reason = "an earlier step of the repetition broke the group"
        names = self._fleet.devices
        bench = Bench(
            monitor=self._monitor,
            addresses={name: str(self._fleet.addresses[name]) for name in names},
            clocks={
                name: combine_offsets((before or {}).get(name), (after or {}).get(name))
                for name in names
            },
            paper_mode=self._repetition.variant.sa_mode == "paper",
            clock_bound_ms=self._campaign.clock_bound_ms,
        )
        about = {
            "campaign": self._campaign.kind,
            "variant": self._repetition.variant.name,
            "repetition": self._repetition.index,
        }
        tables = {
            "events.csv": event_rows(self._records, bench, self._stamps, about),
            "latencies.csv": repetition_rows(self._records, bench, self._stamps, self._tm),
            "steps.csv": [record.row() for record in self._records],
            "clocks.csv": [
                row for when, found in exchanges.items() for row in _clocks(about, when, found)
            ],
        }
        if self._red.active:
            tables["first_packets.csv"] = self._red.rows(self._records, bench)
        if self._unicast.active:
            tables["unicast.csv"] = self._unicast.rows(self._records, bench, self._stamps)
        return Outcome(
            tables=tables,
            steps=self._records,
            broken=self._broken,
            about={**about, "broken": self._broken, "addresses": dict(bench.addresses)},
        )


def _clocks(about: dict[str, Any], when: str, offsets: Any) -> Iterable[dict[str, Any]]:
    for device, offset in (offsets or {}).items():
        yield {
            **about,
            "device": device,
            "when": when,
            "offset_ns": offset.offset_ns,
            "delay_ns": offset.delay_ns,
            "bound_ns": offset.bound_ns,
        }
