"""How much red multicast gets through: a stream from one client to all others, faster and faster.

All devices join; then one client sends at rising rates, one level after the other, and a client in
every other red LAN counts what arrives. The sender has a processor for itself and the network has
another, else it would send no faster than the network forwards (`RedStreams.steer`). Receivers read
only after the sender has ended: what they take of the processors would be taken from those that
forward. The kernel stamps each arrival and keeps it until then.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from experiments.campaign import Repetition
from experiments.latencies import StepRecord
from experiments.outcome import Context, Outcome
from experiments.streamsteps import StreamSteps
from testbed.errors import TestbedError
from testbed.redstreams import Part, RedStreams, StreamSpec, streams_by_source
from testbed.spec import Node
from testbed.surroundings import lans

if TYPE_CHECKING:
    from testbed.fleet import Fleet

GROUP_DEADLINE_S = 60.0
OPENING_STREAM = 1_000_000
OPENING_RATE_PPS = 10
READ_LATE_MS = 600_000
"""Receivers read when they are asked."""

SENDER_SLACK_S = 30.0
_PAUSE_S = 0.2
_SILENT = 2
"""A path is empty when its receiver has had nothing to report so often, a pause apart."""

SENDERS_CPU, NETWORKS_CPU = 0, 1
_COUNTED = ("received", "duplicated", "reordered")


def run(fleet: Fleet, repetition: Repetition, context: Context) -> Outcome:
    """Run one repetition; only KeyboardInterrupt and errors of ours pass through."""
    return _Throughput(fleet, repetition, context).run()


class _Throughput(StreamSteps):
    table = "throughput.csv"

    def __init__(self, fleet: Fleet, repetition: Repetition, context: Context) -> None:
        super().__init__(fleet, repetition, context)
        self._lans = {name: clients for name, clients in lans(fleet.topology).items() if clients}
        self._receivers: dict[str, Part] = {}

    def measure(self) -> None:
        """Start all devices, send at every level."""
        fleet = self.fleet
        if len(self._lans) < 2:
            raise TestbedError(
                f"{fleet.topology.name} has no clients behind two devices: name a topology that has"
            )
        if (os.cpu_count() or 1) <= NETWORKS_CPU:
            raise TestbedError("throughput needs two processors: the sender's and the network's")
        for device in fleet.devices:
            fleet.start(device)
        fleet.await_members(list(fleet.devices), deadline_s=GROUP_DEADLINE_S)
        fleet.surroundings.wait_group(fleet.topology.group.black_group)
        streams = fleet.surroundings.streams(fleet.processes)
        try:
            self._send_all(streams)
        finally:
            self._receivers.clear()
            streams.close()

    def _send_all(self, streams: RedStreams) -> None:
        source, *others = self._lans
        sender = self._lans[source][0]
        for device in others:
            self._receivers[device] = streams.receive(self._lans[device][-1], pause_ms=READ_LATE_MS)
        for part in self._receivers.values():
            part.wait_ready()
        streams.steer(sender, NETWORKS_CPU)
        size = None
        for record, level in zip(self.records, self.campaign.levels(), strict=True):
            if level[0] != size:  # what was lost at the last rates may have been routing's too
                size = level[0]
                self._open_path(streams, sender, record.step)
            record.begin_wall_ns = self.clock.now_ns()
            self._level(streams, sender, record, level)
            self.finish(record)

    def _open_path(self, streams: RedStreams, sender: Node, step: int) -> None:
        """Send slowly until every receiver has heard something: all routes are there then."""
        opening = streams.send(sender, StreamSpec(OPENING_STREAM + step, OPENING_RATE_PPS))
        silent = dict(self._receivers)
        limit = self.clock.now_ns() + self.campaign.check_deadline_ms * 1_000_000
        while silent:
            for device, part in list(silent.items()):
                if any(n >= OPENING_STREAM for n, _ in streams_by_source(part.ask())):
                    del silent[device]
            self.fleet.check_alive()
            if silent and self.clock.now_ns() >= limit:
                raise TestbedError(
                    f"nothing of {sender.name}'s stream reaches the red LANs of {', '.join(silent)}"
                )
            self.clock.sleep(_PAUSE_S)
        opening.stop()

    def _level(
        self, streams: RedStreams, sender: Node, record: StepRecord, level: tuple[int, int]
    ) -> None:
        size, rate = level
        count = max(1, rate * self.campaign.stream_ms // 1000)
        part = streams.send(sender, StreamSpec(record.step, rate, size, count))
        part.pin(SENDERS_CPU)
        part.wait_ready()
        self.fleet.idle()
        record.trigger_wall_ns = self.clock.now_ns()
        sent = part.finish(self.campaign.stream_ms / 1000 + SENDER_SLACK_S)
        idle = float(self.fleet.idle().mean_percent)
        record.idle_percent = idle
        for device, receiver in self._receivers.items():
            counts = self._collect(receiver, record.step)
            self.rows.append(
                self._row(record, level, sent, device, counts) | {"idle_percent": idle}
            )
        self.fleet.check_alive()

    def _collect(self, receiver: Part, stream: int) -> dict[str, Any]:
        """Ask until nothing of the stream comes any more; return the counts added up."""
        total: dict[str, Any] = {**dict.fromkeys(_COUNTED, 0), "overflow": 0}
        silent = 0
        while silent < _SILENT:
            self.clock.sleep(_PAUSE_S)
            report = receiver.ask()
            total["overflow"] += report["overflow"]
            news = [counts for number, counts in streams_by_source(report) if number == stream]
            for counts in news:
                for name in _COUNTED:
                    total[name] += counts[name]
                for name, choose in (("delay_min_ms", min), ("delay_max_ms", max)):
                    total[name] = choose(total.get(name, counts[name]), counts[name])
            silent = 0 if news else silent + 1
        return total

    def _row(
        self,
        record: StepRecord,
        level: tuple[int, int],
        sent: Mapping[str, Any],
        device: str,
        counts: Mapping[str, Any],
    ) -> dict[str, Any]:
        size, rate = level
        source = next(iter(self._lans))
        return {
            "campaign": record.campaign,
            "variant": record.variant,
            "repetition": record.repetition,
            "step": record.step,
            "protection": self.variant.protection,
            "size_bytes": size,
            "rate_pps": rate,
            "sent_pps": float(sent["rate_pps"]),
            "sent": sent["sent"],
            "refused": sum(sent["refused"].values()),
            "sender": self._lans[source][0].name,
            "device": device,
            "receiver": self._lans[device][-1].name,
            "lost_percent": 100.0 * (1 - counts["received"] / sent["sent"])
            if sent["sent"]
            else None,
            **counts,
            "ok": bool(sent["sent"]),
            "reason": "" if sent["sent"] else "the sender could send nothing",
        }
