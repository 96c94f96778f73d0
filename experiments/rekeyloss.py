"""Red streams from every sender while others join and leave: what is lost, doubled or overtaken.

The first devices of the group stay; each sends a stream of its own multicast and counts those of
the others. The last ones come and go, one at a time. A stream's packets are numbered, so what is
lost is known exactly, and to which event it belongs by the last number before it.

The rate is the highest of the plan's that the machine carries without any event: where no packet is
lost, every sender reaches it, and the processors are not fully busy. Its rows have method `steady`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from experiments.campaign import PlannedStep, Repetition
from experiments.latencies import StepRecord
from experiments.outcome import Context, Outcome, fail
from experiments.streamsteps import StreamSteps
from testbed.errors import TestbedError
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


class _RekeyLoss(StreamSteps):
    table = "rekey_loss.csv"

    def __init__(self, fleet: Fleet, repetition: Repetition, context: Context) -> None:
        stay = len(fleet.devices) - repetition.campaign.churners
        self._stayers = fleet.devices[:stay]
        self._members = list(self._stayers)
        self._senders: dict[str, Part] = {}
        self._receivers: dict[str, Part] = {}
        self._last: dict[tuple[str, int], int] = {}
        self._rate_pps = self._level = 0
        super().__init__(fleet, repetition, context)

    def expected(self, step: PlannedStep) -> Iterable[str]:
        """Those that stay."""
        return self._stayers

    def about(self) -> dict[str, Any]:
        """The rate that was found."""
        return {"rate_pps": self._rate_pps}

    def measure(self) -> None:
        """Form the group, find the rate, let devices come and go."""
        fleet = self.fleet
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
            for planned, record in zip(self.repetition.steps, self.records, strict=True):
                record.begin_wall_ns = self.clock.now_ns()
                if record.method == STEADY:
                    self._find_rate(streams, record)
                else:
                    self._event(planned, record)
                self.finish(record)
        finally:
            self._receivers.clear()
            self._senders.clear()
            streams.close()

    @property
    def _deadline_s(self) -> float:
        return self.campaign.deadline_ms / 1000

    # The rate.

    def _find_rate(self, streams: RedStreams, record: StepRecord) -> None:
        """Try the rates from the highest on; keep the senders of the first that is carried."""
        nodes = {node.name: node for node in self.fleet.topology.devices}
        for level, rate in enumerate(sorted(self.campaign.rates_pps, reverse=True)):
            for number, device in enumerate(self._stayers):
                stream = 100 * level + number
                spec = StreamSpec(stream, rate, SIZE_BYTES)
                self._senders[device] = streams.send(nodes[device], spec)
            for part in self._senders.values():
                part.wait_ready()
            self._open(level)
            self.fleet.idle()
            begun_ns = self.clock.now_ns()
            self.clock.sleep(self.campaign.stream_ms / 1000)
            idle = float(self.fleet.idle().mean_percent)
            seconds = (self.clock.now_ns() - begun_ns) / 1e9
            rows = self._read(record, rate, level)
            expected = sum(row["sent"] for row in rows)
            lost = sum(row["lost"] for row in rows)
            reached = expected / len(rows) / seconds / rate
            for row in rows:
                row["idle_percent"] = idle
            if not lost and reached >= REACHED and idle >= self.campaign.idle_floor_percent:
                self._rate_pps, self._level = rate, level
                return
            for part in self._senders.values():
                part.stop()
            self._senders.clear()
        raise TestbedError(
            f"the machine does not carry {min(self.campaign.rates_pps)} packets/s from each of "
            f"{len(self._stayers)} senders even without an event: give lower rates_pps"
        )

    def _open(self, level: int) -> None:
        """Wait until everybody hears everybody; what was sent before does not count."""
        limit_ns = self.clock.now_ns() + int(OPENING_S * 1e9)
        while True:
            self.clock.sleep(SETTLE_S / 2)
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
            self.fleet.check_alive()
            if self.clock.now_ns() >= limit_ns:
                raise TestbedError(f"nothing is heard of {', '.join(missing)}")

    # Events.

    def _event(self, planned: PlannedStep, record: StepRecord) -> None:
        """Let one device come or go, wait until all of it is over, count."""
        fleet, device = self.fleet, record.subject
        self.clock.sleep(planned.jitter_ns / 1e9)
        fleet.idle()
        record.trigger_wall_ns = self.clock.now_ns()
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
            check = fleet.sad_check(self._members, self.campaign.check_deadline_ms / 1000)
            record.sad_ok, reason = check.ok, check.reason
        finally:
            self.clock.sleep(SETTLE_S)
            rows = self._read(record, self._rate_pps, self._level)
        idle = float(fleet.idle().mean_percent)
        record.idle_percent = idle
        record.starved = idle < self.campaign.idle_floor_percent
        for row in rows:
            row["idle_percent"] = idle
        lost, doubled = (sum(row[name] for row in rows) for name in ("lost", "duplicated"))
        if reason:
            fail(record, reason)
        if (lost or doubled) and self.variant.sa_mode == "per-sender":
            fail(record, f"{lost} packets lost and {doubled} doubled")
        fleet.check_alive()

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
        self.rows += rows
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
            "sa_mode": self.variant.sa_mode,
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
