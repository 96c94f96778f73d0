"""First red packets of joins: which streams run, which arrivals count, what a silent LAN costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from experiments import analysis, firstsummary
from experiments.outcome import Context, Outcome
from experiments.steps import run
from testbed.redstreams import StreamSpec
from tests.unit.experiments.fake_fleet import MS, FakeFleet, World
from tests.unit.experiments.fake_streams import FakeStreams, FakeSurroundings, counts
from tests.unit.experiments.support import small_plan
from topologies.families import coalition, star


def measured(heard: Any, world: World | None = None) -> tuple[Outcome, FakeStreams]:
    """Run a repetition of joins of four devices with clients; ``heard`` decides what arrives."""
    world = world or World()
    fleet = FakeFleet(world, 4)
    fleet.topology = coalition(4)
    streams = FakeStreams(world, lambda *what: heard(fleet, *what))
    fleet.surroundings = FakeSurroundings(streams)
    fleet.processes = None
    repetition = small_plan("join").repetitions()[0]
    outcome = run(fleet, repetition, Context(world.clock()))  # type: ignore[arg-type]
    return outcome, streams


def joined(fleet: FakeFleet, client: str) -> bool:
    return f"d{client[1]}" in fleet.members


def passes(fleet: FakeFleet, receiver: str, sender: str, _spec: StreamSpec) -> Any:
    """What reaches a LAN once its device and the sender's are members, 40 ms after the trigger."""
    if receiver[1] == sender[1] or not (joined(fleet, receiver) and joined(fleet, sender)):
        return None
    trigger = max(s for s in fleet.world.triggers)
    return counts(1, arrival_ns=trigger + 40 * MS, sent_ns=trigger + 39 * MS)


def test_a_row_for_the_joiners_lan_and_one_for_each_lan_that_hears_the_joiner() -> None:
    outcome, streams = measured(passes)
    rows = outcome.tables["first_packets.csv"]
    seen = [(r["step"], r["direction"], r["sender"], r["receiver"], r["ok"]) for r in rows]
    assert seen == [
        (1, "to-joiner", "c1a", "c3b", True),
        (1, "from-joiner", "c3a", "c1b", True),
        (1, "from-joiner", "c3a", "c2b", True),
        (2, "to-joiner", "c1a", "c4b", True),
        (2, "from-joiner", "c4a", "c1b", True),
        (2, "from-joiner", "c4a", "c2b", True),
        (2, "from-joiner", "c4a", "c3b", True),
    ]
    assert {round(r["first_ms"], 6) for r in rows} == {40.0}
    assert {round(r["sent_ms"], 6) for r in rows} == {39.0}
    assert streams.closed
    assert [s.client for s in streams.senders] == ["c1a", "c3a", "c4a"]
    assert all(s.ended for s in streams.senders[1:]), "a joiner's stream ends with its step"


def test_the_trigger_is_put_on_the_reference_clock() -> None:
    """The joiner's own clock, 5 ms ahead, released it 5 ms early: uncorrected it would be 35 ms."""
    world = World(offsets_ns={"d3": 5 * MS})
    outcome, _ = measured(passes, world)
    first = [r["first_ms"] for r in outcome.tables["first_packets.csv"] if r["subject"] == "d3"]
    assert {round(value, 6) for value in first} == {40.0}


def test_a_lan_that_never_hears_is_recorded_and_costs_no_more_than_the_deadline() -> None:
    def heard(fleet: FakeFleet, receiver: str, sender: str, spec: StreamSpec) -> Any:
        return None if receiver == "c2b" else passes(fleet, receiver, sender, spec)

    outcome, _ = measured(heard)
    rows = outcome.tables["first_packets.csv"]
    silent = [r for r in rows if not r["ok"]]
    assert [(r["step"], r["receiver"], r["reason"]) for r in silent] == [
        (1, "c2b", "nothing arrived"),
        (2, "c2b", "nothing arrived"),
    ]
    assert [s.status for s in outcome.steps] == ["ok", "ok"], "the join itself is measured"


def test_a_packet_from_before_the_trigger_does_not_count() -> None:
    def heard(fleet: FakeFleet, receiver: str, sender: str, spec: StreamSpec) -> Any:
        found = passes(fleet, receiver, sender, spec)
        return found and found | {"first_arrival_wall_ns": max(fleet.world.triggers) - 1 * MS}

    outcome, _ = measured(heard)
    rows = outcome.tables["first_packets.csv"]
    assert {r["reason"] for r in rows} == {"it came before the trigger"}
    assert not any(r["ok"] for r in rows)


def test_no_streams_without_clients_or_when_the_plan_says_so() -> None:
    world = World()
    fleet = FakeFleet(world, 4)
    fleet.topology = star(4)
    repetition = small_plan("join").repetitions()[0]
    context = Context(world.clock())
    assert "first_packets.csv" not in run(fleet, repetition, context).tables  # type: ignore[arg-type]
    fleet.topology = coalition(4)
    silent = replace(repetition, campaign=replace(repetition.campaign, red_interval_ms=0))
    assert "first_packets.csv" not in run(fleet, silent, context).tables  # type: ignore[arg-type]


def test_the_last_lan_counts_and_one_silent_lan_fails_the_join() -> None:
    rows = analysis.pd.DataFrame(
        [
            {"variant": "v", "direction": "from-joiner", "repetition": 1, "step": 1} | values
            for values in (
                {"group_size": 4, "first_ms": 30.0, "ok": "1"},
                {"group_size": 4, "first_ms": 80.0, "ok": "1"},
            )
        ]
    )
    steps = firstsummary.per_step(rows)
    assert steps["first_ms"].tolist() == [80.0]
    assert steps["ok"].tolist() == [1.0]
    rows.loc[0, "ok"] = "0"
    assert firstsummary.per_step(rows)["ok"].tolist() == [0.0]
