"""Streams while others join and leave: the rate is found, losses belong to events, by mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.outcome import Context, Outcome
from experiments.plan import Overrides, load
from experiments.rekeyloss import run
from testbed.redstreams import StreamSpec
from testbed.spec import Node
from tests.unit.experiments.fake_fleet import FakeFleet, World
from tests.unit.experiments.fake_streams import FakeSurroundings
from topologies.families import star

Losing = Callable[["Lossy", str, str], int]
"""From the fleet, sender and receiver to how many packets are lost now."""


class Lossy:
    """Streams whose senders keep pace up to a rate; what is lost is the test's."""

    def __init__(self, world: World, fleet: FakeFleet, capacity_pps: float, losing: Losing) -> None:
        self.world, self.fleet, self.capacity_pps, self.losing = world, fleet, capacity_pps, losing
        self.senders: list[Sender] = []
        self.closed = False

    def receive(self, node: Node) -> Receiver:
        return Receiver(self, node.name)

    def send(self, node: Node, spec: StreamSpec) -> Sender:
        self.senders.append(Sender(self, node.name, spec, self.world.now))
        return self.senders[-1]

    def close(self) -> None:
        self.closed = True


class Sender:
    def __init__(self, streams: Lossy, device: str, spec: StreamSpec, begun_ns: int) -> None:
        self.streams, self.device, self.spec, self.begun_ns = streams, device, spec, begun_ns
        self.ended = False

    def wait_ready(self) -> None: ...

    def stop(self) -> None:
        self.ended = True

    def last(self) -> int:
        rate = min(self.spec.rate_pps, self.streams.capacity_pps)
        return int((self.streams.world.now - self.begun_ns) / 1e9 * rate)


class Receiver:
    def __init__(self, streams: Lossy, device: str) -> None:
        self.streams, self.device = streams, device
        self.told: dict[int, int] = {}

    def wait_ready(self) -> None: ...

    def ask(self) -> dict[str, Any]:
        found = []
        for sender in self.streams.senders:
            if sender.device == self.device or sender.ended:
                continue
            last, stream = sender.last(), sender.spec.stream
            came = last - self.told.get(stream, 0)
            self.told[stream] = last
            lost = self.streams.losing(self.streams, sender.device, self.device)
            found.append(
                {
                    "stream": stream,
                    "last_sequence": last,
                    "received": came - lost,
                    "duplicated": 0,
                    "reordered": 0,
                    "delay_max_ms": 1.0,
                    "gaps": [{"silent_ms": 7.0}] if lost else [],
                }
            )
        return {"streams": found, "overflow": 0, "foreign": 0}


def measured(
    variant: str, losing: Losing = lambda *_: 0, capacity_pps: float = 1e9
) -> tuple[Outcome, FakeFleet, Lossy]:
    world = World()
    fleet = FakeFleet(world, 7)
    fleet.topology = star(7)
    fleet.sad_check = lambda *_: SimpleNamespace(ok=True, reason="")  # type: ignore[assignment, method-assign]
    streams = Lossy(world, fleet, capacity_pps, losing)
    fleet.surroundings = FakeSurroundings(streams)  # type: ignore[arg-type]
    plan = load("rekey-loss", Overrides(quick=True))
    repetition = next(r for r in plan.repetitions() if r.variant.name == variant)
    campaign = replace(repetition.campaign, rates_pps=(100, 200))
    repetition = replace(repetition, campaign=campaign)
    return run(fleet, repetition, Context(world.clock())), fleet, streams  # type: ignore[arg-type]


def one_loss_per_event(streams: Lossy, sender: str, receiver: str) -> int:
    return int((sender, receiver) == ("d1", "d2") and bool(streams.fleet.running - STAYERS))


STAYERS = {f"d{n}" for n in range(1, 6)}


def test_devices_come_and_go_while_the_others_send() -> None:
    outcome, fleet, streams = measured("per-sender")
    assert [s.status for s in outcome.steps] == ["ok"] * 9
    assert [(s.subject, s.method) for s in outcome.steps[1:5]] == [
        ("d6", "start"),
        ("d7", "start"),
        ("d6", "shutdown"),
        ("d7", "shutdown"),
    ]
    rows = outcome.tables["rekey_loss.csv"]
    assert {row["rate_pps"] for row in rows} == {200}
    assert len(rows) == 9 * 5 * 4
    assert all(row["lost"] == 0 and row["sent"] > 0 for row in rows)
    assert fleet.running == set(), "parked"
    assert streams.closed


def test_the_rate_is_one_that_every_sender_reaches() -> None:
    outcome, _, _ = measured("per-sender", capacity_pps=150)
    rows = outcome.tables["rekey_loss.csv"]
    assert {row["rate_pps"] for row in rows if row["method"] == "steady"} == {100, 200}
    assert {row["rate_pps"] for row in rows if row["method"] != "steady"} == {100}
    assert outcome.about["rate_pps"] == 100


def test_a_machine_that_carries_no_rate_is_named() -> None:
    outcome, _, _ = measured("per-sender", capacity_pps=50)
    assert [s.status for s in outcome.steps][:2] == ["failed", "not-run"]
    assert "does not carry 100 packets/s" in outcome.steps[0].reason


@pytest.mark.parametrize(("variant", "status"), [("per-sender", "failed"), ("paper", "ok")])
def test_a_lost_packet_fails_make_before_break_only(variant: str, status: str) -> None:
    outcome, _, _ = measured(variant, one_loss_per_event)
    lossy = [s for s in outcome.steps if s.method == "start"]
    assert {s.status for s in lossy} == {status}
    if status == "failed":
        assert lossy[0].reason == "1 packets lost and 0 doubled"
    rows = [r for r in outcome.tables["rekey_loss.csv"] if r["lost"]]
    assert {(r["sender"], r["device"], r["gap_max_ms"]) for r in rows} == {("d1", "d2", 7.0)}
