"""Red streams without a network: what arrives, and when, is an input of the test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Any

from testbed.redstreams import StreamSpec
from testbed.spec import Node
from tests.unit.experiments.fake_fleet import MS, World

Heard = Callable[[str, str, StreamSpec], dict[str, Any] | None]
"""From receiver, sender and stream to what a report says of it, None: nothing arrived."""


def counts(received: int, arrival_ns: int = 0, sent_ns: int = 0, **more: Any) -> dict[str, Any]:
    """Return a stream's entry in a report."""
    return {
        "received": received,
        "duplicated": 0,
        "reordered": 0,
        "first_arrival_wall_ns": arrival_ns,
        "first_arrival_sent_wall_ns": sent_ns,
        "delay_min_ms": 1.0,
        "delay_max_ms": 2.0,
        **more,
    }


@dataclass
class FakePart:
    """A sender, or a receiver that reports every stream once."""

    streams: FakeStreams
    client: str
    spec: StreamSpec | None = None
    told: set[int] = field(default_factory=set)
    ended: bool = False

    def wait_ready(self) -> None: ...

    def ask(self) -> dict[str, Any]:
        found = []
        for sender in self.streams.senders:
            assert sender.spec is not None
            if sender.spec.stream in self.told:
                continue
            heard = self.streams.heard(self.client, sender.client, sender.spec)
            if heard is not None:
                self.told.add(sender.spec.stream)
                found.append({"stream": sender.spec.stream, "source": sender.client, **heard})
        return {"streams": found, "overflow": 0, "foreign": 0}

    def finish(self, _deadline_s: float) -> dict[str, Any]:
        assert self.spec is not None
        assert self.spec.count is not None
        self.ended = True
        self.streams.world.now += int(self.spec.count / self.spec.rate_pps * 1e9)
        return {"sent": self.spec.count, "refused": {}, "rate_pps": self.spec.rate_pps}

    def pin(self, _cpu: int) -> None: ...

    def stop(self) -> dict[str, Any]:
        self.ended = True
        return {}

    def abandon(self) -> None:
        self.ended = True


@dataclass
class FakeStreams:
    world: World
    heard: Heard
    senders: list[FakePart] = field(default_factory=list)
    receivers: list[FakePart] = field(default_factory=list)
    closed: bool = False

    def receive(self, client: Node, *, version: int = 6, pause_ms: int = 0) -> FakePart:
        self.receivers.append(FakePart(self, client.name))
        return self.receivers[-1]

    def send(self, client: Node, spec: StreamSpec, *, version: int = 6) -> FakePart:
        self.world.now += 300 * MS  # a process starts
        self.senders.append(FakePart(self, client.name, spec))
        return self.senders[-1]

    def steer(self, client: Node, cpu: int) -> None:
        assert (client.name, cpu) == ("c1a", 1)

    def close(self) -> None:
        self.closed = True


@dataclass
class FakeSurroundings:
    """Gives the same streams to whoever asks."""

    given: FakeStreams
    groups: list[IPv6Address] = field(default_factory=list)

    def streams(self, _processes: Any) -> FakeStreams:
        return self.given

    def wait_group(self, group: IPv6Address) -> None:
        self.groups.append(group)
