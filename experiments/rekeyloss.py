"""Red streams from every sender while others join and leave: what is lost, doubled or overtaken.

The first devices of the group stay; each sends a stream of its own multicast and counts those of
the others. The last ones come and go, one at a time. A stream's packets are numbered, so what is
lost is known exactly, and to which event it belongs by the last number before it.

The rate is the highest of the plan's that the machine carries without any event: where no packet is
lost, every sender reaches it, and the processors are not fully busy. Its rows have method `steady`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from experiments.campaign import PlannedStep, Repetition
from experiments.latencies import StepRecord
from experiments.outcome import Context, Outcome, fail
from testbed.errors import DaemonDiedError, TestbedError
from testbed.redstreams import Part, RedStreams, StreamSpec, streams_by_source

if TYPE_CHECKING:
    from testbed.fleet import Fleet

SETTLE_S = 1.0
"""Between two readings without an event: packets under way have arrived by then."""

OPENING_S = 20.0
REACHED = 0.98
"""A sender that reaches less of the rate is held up by the machine."""

SIZE_BYTES = 100
STEADY = "steady"


def run(fleet: Fleet, repetition: Repetition, context: Context) -> Outcome:
    """Run one repetition; only KeyboardInterrupt and errors of ours pass through."""
    return _RekeyLoss(fleet, repetition, context).run()


class _RekeyLoss:
    def __init__(self, fleet: Fleet, repetition: Repetition, context: Context) -> None:
        self._fleet = fleet
        self._repetition = repetition
        self._campaign = repetition.campaign
        self._variant = repetition.variant
        self._context = context
        self._clock = context.clock
        self._rows: list[dict[str, Any]] = []
        self._broken = ""
        stay = len(fleet.devices) - self._campaign.churners
        self._stayers = fleet.devices[:stay]
        self._members = list(self._stayers)
        self._senders: dict[str, Part] = {}
        self._receivers: dict[str, Part] = {}
        self._last: dict[tuple[str, int], int] = {}
        self._rate_pps = 0
        self._records = [self._blank(step) for step in repetition.steps]

    def _blank(self, step: PlannedStep) -> StepRecord:
        return StepRecord(
            campaign=self._campaign.kind,
            variant=self._variant.name,
            repetition=self._repetition.index,
            step=step.index,
            group_size=step.group_size,
            subject=self._fleet.devices[step.subject - 1],
            method=step.method,
            expected=tuple(self._stayers),
        )

    def run(self) -> Outcome:
        """Form the group, find the rate, let devices come and go, park all."""
        fleet = self._fleet
        try:
            self._measure()
        except TestbedError as error:
            self._broken = str(error) if isinstance(error, DaemonDiedError) else ""
            self._give_up(str(error))
        try:
            for device in reversed(fleet.devices):
                fleet.stop(device)
        except TestbedError as error:
            self._broken = self._broken or f"parking: {error}"
        about = {
            "campaign": self._campaign.kind,
            "variant": self._variant.name,
            "repetition": self._repetition.index,
            "broken": self._broken,
            "rate_pps": self._rate_pps,
        }
        tables = {
            "rekey_loss.csv": self._rows,
            "steps.csv": [record.row() for record in self._records],
        }
        return Outcome(tables, self._records, self._broken, about)

    def _measure(self) -> None:
        fleet = self._fleet
        for device in self._stayers:
            fleet.start(device)
        fleet.await_members(self._members, deadline_s=self._deadline_s)
        streams = fleet.surroundings.streams(fleet.processes)
        nodes = {node.name: node for node in fleet.topology.devices}
        try:
            for device in self._stayers:
                self._receivers[device] = streams.receive(nodes[device])
            for part in self._receivers.values():
                part.wait_ready()
            for planned, record in zip(self._repetition.steps, self._records, strict=True):
                record.begin_wall_ns = self._clock.now_ns()
                if record.method == STEADY:
                    self._find_rate(streams, record)
                else:
                    self._event(planned, record)
                record.status = "ok" if record.status == "not-run" else record.status
                record.end_wall_ns = self._clock.now_ns()
                self._context.on_step(record)
        finally:
            self._receivers.clear()
            self._senders.clear()
            streams.close()

    @property
    def _deadline_s(self) -> float:
        return self._campaign.deadline_ms / 1000

    # The rate.

    def _find_rate(self, streams: RedStreams, record: StepRecord) -> None:
        """Try the rates from the highest on; keep the senders of the first that is carried."""
        nodes = {node.name: node for node in self._fleet.topology.devices}
        for level, rate in enumerate(sorted(self._campaign.rates_pps, reverse=True)):
            for number, device in enumerate(self._stayers):
                stream = 100 * level + number
                spec = StreamSpec(stream, rate, SIZE_BYTES)
                self._senders[device] = streams.send(nodes[device], spec)
            for part in self._senders.values():
                part.wait_ready()
            self._open(level)
            self._fleet.idle()
            begun_ns = self._clock.now_ns()
            self._clock.sleep(self._campaign.stream_ms / 1000)
            idle = float(self._fleet.idle().mean_percent)
            seconds = (self._clock.now_ns() - begun_ns) / 1e9
            rows = self._read(record, rate, level)
            expected = sum(row["sent"] for row in rows)
            lost = sum(row["lost"] for row in rows)
            reached = expected / len(rows) / seconds / rate
            for row in rows:
                row["idle_percent"] = idle
            if not lost and reached >= REACHED and idle >= self._campaign.idle_floor_percent:
                self._rate_pps = rate
                return
            for part in self._senders.values():
                part.stop()
            self._senders.clear()
        raise TestbedError(
            f"the machine does not carry {min(self._campaign.rates_pps)} packets/s from each of "
            f"{len(self._stayers)} senders even without an event: give lower rates_pps"
        )

    def _open(self, level: int) -> None:
        """Wait until everybody hears everybody; what was sent before does not count."""
        limit_ns = self._clock.now_ns() + int(OPENING_S * 1e9)
        while True:
            self._clock.sleep(SETTLE_S / 2)
            missing = []
            for device, part in self._receivers.items():
                found = dict(streams_by_source(part.ask()))
                for number, sender in enumerate(self._stayers):
                    stream = 100 * level + number
                    if stream in found:
                        self._last[device, stream] = found[stream]["last_sequence"]
                    elif sender != device:
                        missing.append(f"{sender} at {device}")
            if not missing:
                return
            self._fleet.check_alive()
            if self._clock.now_ns() >= limit_ns:
                raise TestbedError(f"nothing is heard of {', '.join(missing)}")

    # Events.

    def _event(self, planned: PlannedStep, record: StepRecord) -> None:
        """Let one device come or go, wait until all of it is over, count."""
        fleet, device = self._fleet, record.subject
        self._clock.sleep(planned.jitter_ns / 1e9)
        fleet.idle()
        record.trigger_wall_ns = self._clock.now_ns()
        reason = ""
        try:
            if record.method == "start":
                fleet.start(device)
                self._members.append(device)
            else:
                self._members.remove(device)
                fleet.stop(device)
            fleet.await_members(self._members, deadline_s=self._deadline_s)
            # Until the older epoch's SAs are deleted something can still be lost.
            check = fleet.sad_check(self._members, self._campaign.check_deadline_ms / 1000)
            record.sad_ok, reason = check.ok, check.reason
        finally:
            self._clock.sleep(SETTLE_S)
            rows = self._read(record, self._rate_pps, self._level)
        idle = float(fleet.idle().mean_percent)
        record.idle_percent = idle
        record.starved = idle < self._campaign.idle_floor_percent
        for row in rows:
            row["idle_percent"] = idle
        lost, doubled = (sum(row[name] for row in rows) for name in ("lost", "duplicated"))
        if reason:
            fail(record, reason)
        if (lost or doubled) and self._variant.sa_mode == "per-sender":
            fail(record, f"{lost} packets lost and {doubled} doubled")
        fleet.check_alive()

    @property
    def _level(self) -> int:
        return sorted(self._campaign.rates_pps, reverse=True).index(self._rate_pps)

    def _read(self, record: StepRecord, rate: int, level: int) -> list[dict[str, Any]]:
        """Take what has arrived since the last reading; return a row per receiver and sender."""
        rows = []
        for device, part in self._receivers.items():
            report = part.ask()
            found = dict(streams_by_source(report))
            for number, sender in enumerate(self._stayers):
                if sender != device:
                    stream = 100 * level + number
                    counts = found.get(stream)
                    rows.append(self._row(record, rate, (sender, device, stream), counts))
                    rows[-1]["overflow"] = report["overflow"]
        self._rows += rows
        return rows

    def _row(
        self,
        record: StepRecord,
        rate: int,
        way: tuple[str, str, int],
        counts: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        sender, device, stream = way
        before = self._last[device, stream]
        last = before if counts is None else int(counts["last_sequence"])
        received = 0 if counts is None else int(counts["received"])
        self._last[device, stream] = last
        return {
            "campaign": record.campaign,
            "variant": record.variant,
            "repetition": record.repetition,
            "step": record.step,
            "method": record.method,
            "subject": record.subject,
            "sa_mode": self._variant.sa_mode,
            "rate_pps": rate,
            "sender": sender,
            "device": device,
            "sent": last - before,
            "received": received,
            "lost": last - before - received,
            "duplicated": 0 if counts is None else counts["duplicated"],
            "reordered": 0 if counts is None else counts["reordered"],
            "gap_max_ms": max((gap["silent_ms"] for gap in counts["gaps"]), default=0.0)
            if counts
            else None,
            "delay_max_ms": None if counts is None else counts["delay_max_ms"],
        }

    def _give_up(self, reason: str) -> None:
        """Put a failure on the first step that has not been measured, and leave out the rest."""
        for record in self._records:
            if record.status == "not-run":
                fail(record, reason)
                self._context.on_step(record)
                return
