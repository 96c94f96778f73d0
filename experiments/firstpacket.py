"""When the first red multicast packet gets through to the LAN of a joiner, and out of it.

While a device joins, two streams run: one from a client behind the monitor, and one from a client
behind the joiner. In every LAN another client listens. Before the join nothing can pass between the
joiner's LAN and the others (no SA, and the guard); the first arrival after the trigger is that of
the first packet that IPsec, the black routers and the multicast proxies let through. Arrivals carry
the kernel's receive stamp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from experiments.campaign import Repetition
from experiments.latencies import NS_PER_MS, Bench, StepRecord
from experiments.outcome import NS_PER_S, Time
from testbed.redstreams import Part, RedStreams, StreamSpec, streams_by_source
from testbed.spec import Node
from testbed.surroundings import lans

if TYPE_CHECKING:
    from testbed.fleet import Fleet

MONITOR_STREAM = 1
RECEIVER_PAUSE_MS = 100
"""Receivers read that often; stamps are the kernel's, so it only spares the processors."""

TO_JOINER, FROM_JOINER = "to-joiner", "from-joiner"


class FirstPackets:
    """The red streams of one repetition; does nothing where there are no clients, or no tunnel.

    Args:
        fleet: loaded.
        repetition: of kind join.
        monitor: name of the device behind which the permanent sender is.
        clock: the orchestrator's.
    """

    def __init__(self, fleet: Fleet, repetition: Repetition, monitor: str, clock: Time) -> None:
        self._time = clock
        campaign = repetition.campaign
        self._interval_ms = campaign.red_interval_ms if campaign.kind == "join" else 0
        self._deadline_ms = campaign.check_deadline_ms
        self._lans: dict[str, tuple[Node, ...]] = {}
        if self._interval_ms and repetition.variant.sa_backend != "memory":
            found = lans(fleet.topology)
            self._lans = {device: clients for device, clients in found.items() if clients}
        self._fleet = fleet
        self._monitor = monitor
        self._streams: RedStreams | None = None
        self._receivers: dict[str, Part] = {}
        self._sender: Part | None = None
        self._found: dict[int, dict[tuple[str, int], dict[str, Any]]] = {}

    @property
    def active(self) -> bool:
        """Return whether there is anything to measure: clients behind the monitor and another."""
        return self._monitor in self._lans and len(self._lans) > 1

    def open(self) -> None:
        """Start all receivers and the monitor's stream.

        Raises:
            TestbedError: one of them could not start.
        """
        if not self.active:
            return
        self._streams = self._fleet.surroundings.streams(self._fleet.processes)
        for device, clients in self._lans.items():
            part = self._streams.receive(clients[-1], pause_ms=RECEIVER_PAUSE_MS)
            self._receivers[device] = part
        for part in self._receivers.values():
            part.wait_ready()
        self._send(self._monitor, MONITOR_STREAM).wait_ready()

    def before(self, step: StepRecord) -> None:
        """Start the stream from the LAN of the device that is about to join."""
        if self.active and step.subject in self._lans:
            self._sender = self._send(step.subject, _stream_of(step))
            self._sender.wait_ready()

    def after(self, step: StepRecord) -> None:
        """Wait until both streams have got through, or time is up.

        Raises:
            TestbedError: a receiver or a daemon has died.
        """
        if self._sender is None:
            return
        wanted = set(self._wanted(step))
        found = self._found.setdefault(step.step, {})
        limit = self._time.now_ns() + self._deadline_ms * (NS_PER_S // 1000)
        while True:
            for device in {device for device, stream in wanted if (device, stream) not in found}:
                for stream, counts in streams_by_source(self._receivers[device].ask()):
                    if (device, stream) in wanted:
                        found.setdefault((device, stream), counts)
            if wanted <= set(found) or self._time.now_ns() >= limit:
                return
            self._fleet.check_alive()
            self._time.sleep(RECEIVER_PAUSE_MS / 1000)

    def end_step(self) -> None:
        """End the stream from the joiner's LAN; idempotent."""
        sender, self._sender = self._sender, None
        if sender is not None:
            sender.abandon()

    def close(self) -> None:
        """End all streams; idempotent."""
        self._receivers.clear()
        self._sender = None
        if self._streams is not None:
            self._streams.close()
            self._streams = None

    def rows(self, steps: list[StepRecord], bench: Bench) -> list[dict[str, Any]]:
        """Return the rows of first_packets.csv of the repetition."""
        if not self.active:
            return []
        rows = []
        for step in steps:
            if step.subject not in self._lans:
                continue
            for device, stream in self._wanted(step):
                counts = self._found.get(step.step, {}).get((device, stream))
                rows.append(self._row(step, device, stream, counts, bench))
        return rows

    def _send(self, device: str, stream: int) -> Part:
        assert self._streams is not None
        spec = StreamSpec(stream, 1000 / self._interval_ms)
        return self._streams.send(self._lans[device][0], spec)

    def _wanted(self, step: StepRecord) -> list[tuple[str, int]]:
        """Return who must hear which stream: the joiner the monitor's, all others the joiner's."""
        others = [name for name in step.expected if name in self._lans and name != step.subject]
        return [(step.subject, MONITOR_STREAM), *((name, _stream_of(step)) for name in others)]

    def _row(
        self,
        step: StepRecord,
        device: str,
        stream: int,
        counts: dict[str, Any] | None,
        bench: Bench,
    ) -> dict[str, Any]:
        incoming = stream == MONITOR_STREAM
        source = self._monitor if incoming else step.subject
        row: dict[str, Any] = {
            "campaign": step.campaign,
            "variant": step.variant,
            "repetition": step.repetition,
            "step": step.step,
            "group_size": step.group_size,
            "subject": step.subject,
            "direction": TO_JOINER if incoming else FROM_JOINER,
            "sender_device": source,
            "device": device,
            "sender": self._lans[source][0].name,
            "receiver": self._lans[device][-1].name,
            "interval_ms": self._interval_ms,
            "ok": False,
        }
        if counts is None or step.trigger_wall_ns is None:
            return row | {"reason": "nothing arrived" if step.trigger_wall_ns else "no join"}
        trigger = step.trigger_wall_ns - bench.clock(step.subject).offset_ns
        arrived, sent = counts["first_arrival_wall_ns"], counts["first_arrival_sent_wall_ns"]
        row["first_ms"] = (arrived - trigger) / NS_PER_MS
        row["sent_ms"] = (sent - trigger) / NS_PER_MS
        early = arrived < trigger
        row["ok"] = step.status == "ok" and not early
        row["reason"] = "it came before the trigger" if early else step.reason
        return row


def _stream_of(step: StepRecord) -> int:
    """Return the number of a joiner's stream, a new one in each step."""
    return MONITOR_STREAM + step.step
