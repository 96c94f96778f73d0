"""A delivery repetition on a fake red side: what must be delivered, and what must be noticed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments import summary, summarytext
from experiments.analysis import read_run
from experiments.errors import ExperimentError
from experiments.plan import Overrides, Plan, load
from experiments.plots import draw_all
from experiments.record import RunDirectory
from experiments.redside import places_of
from experiments.runner import Runner, failed_steps
from tests.unit.experiments.fake_fleet import NullDisplay, World
from tests.unit.experiments.fake_red import FakeCoalition, Medium, replace_kernel
from tests.unit.experiments.support import SESSION, fake_sa_writes
from topologies.families import coalition, star

VARIANT = "source-specific"


def plan_of(repetitions: int = 1) -> Plan:
    plan = load("coalition-multicast", Overrides(devices=3, repetitions=repetitions))
    (delivery,) = (c for c in plan.campaigns if c.kind == "delivery")
    data = plan.as_json() | {
        "campaigns": [c for c in plan.as_json()["campaigns"] if c["kind"] == delivery.kind]
    }
    return Plan.from_json(data)


@pytest.fixture
def medium(monkeypatch: pytest.MonkeyPatch) -> Medium:
    made = Medium(World())
    replace_kernel(monkeypatch, made)
    return made


@pytest.fixture
def measure(tmp_path: Path, medium: Medium) -> Callable[..., RunDirectory]:
    def go(repetitions: int = 1) -> RunDirectory:
        run = RunDirectory.create(tmp_path / "run", plan_of(repetitions), {})

        def load_fleet(repetition: Any, logs: str) -> Any:
            medium.ends.clear()
            medium.wires.clear()
            medium.esp.clear()
            return FakeCoalition(medium, coalition(3))

        clock = medium.world.clock()
        Runner(run, load_fleet, fake_sa_writes, NullDisplay(), clock).execute(SESSION)
        run.close()
        return run

    return go


def rows(run: RunDirectory, name: str, **equal: str) -> list[dict[str, str]]:
    return [r for r in run.rows(name) if all(r[k] == v for k, v in equal.items())]


def status(run: RunDirectory) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in run.rows("steps.csv"):
        found.setdefault(row["method"], []).append(row["status"])
    return found


def test_everything_delivered_is_all_ok(measure: Callable[..., RunDirectory]) -> None:
    run = measure()
    assert failed_steps(run) == 0, [r["reason"] for r in run.rows("steps.csv")]
    assert status(run)["matrix"] == ["ok"] * 3
    cells = rows(run, "deliveries.csv", phase="matrix", must_arrive="1", sender_kind="client")
    # Each of 3 senders, in 2 families: 1 client of its own LAN, 4 of the others, 2 devices.
    assert len(cells) == 3 * 2 * 7
    assert all(r["received"] == r["sent"] == "20" for r in cells)
    assert {r["first_arrival_ms"] for r in cells} == {"3"}
    own = rows(run, "deliveries.csv", phase="matrix", sender_kind="device")
    assert len(own) == 3 * 2 * 6


def test_what_tshark_counts_is_what_was_sent_per_epoch_and_device(
    measure: Callable[..., RunDirectory],
) -> None:
    run = measure()
    leaver = rows(run, "steps.csv", method="member")[0]["subject"]
    whole, without, again = (
        {r["device"]: r for r in run.rows("witness.csv") if r["epoch"] == epoch}
        for epoch in dict.fromkeys(r["epoch"] for r in run.rows("witness.csv") if r["epoch"])
    )
    for epoch in (whole, without, again):
        for r in epoch.values():
            assert int(r["red"]) == int(r["sent"]) + int(r["sent_early"]) == int(r["packets"])
    # Two families: a packet or more to begin with, from client and device, then streams of 20.
    assert all(int(r["sent_early"]) >= 2 * 2 for r in whole.values())
    assert all(int(r["sent"]) >= 2 * 2 * 20 for r in whole.values())
    sender = rows(run, "steps.csv", method="member")[0]["packet_sender"]
    assert sorted(int(r["sent"]) for r in without.values()) == [0, 0, 40]
    assert {d for d, r in again.items() if r["sent"] == "40"} == {leaver, f"d{sender[1]}"}


@pytest.mark.parametrize("family", [6, 4])
def test_a_lost_cell_is_recorded_as_failed(
    measure: Callable[..., RunDirectory], medium: Medium, family: int
) -> None:
    medium.lose.add(("c1a", "c3b", family))
    run = measure()
    cells = rows(run, "deliveries.csv", phase="matrix", sender="c1a", receiver="c3b")
    assert {r["family"]: r["delivered"] for r in cells} == {
        "6": "0" if family == 6 else "1",
        "4": "0" if family == 4 else "1",
    }
    bad = rows(run, "steps.csv", method="matrix", subject="d1")[0]
    assert bad["status"] == "failed"
    assert "c3b 0" in bad["reason"]
    assert bad["packet_ok"] == "0"
    found = summary.write(run.path)["delivery"][VARIANT]
    assert not found["all_delivered"]
    (cell,) = (
        m
        for m in found["matrix"]
        if m["sender_lan"] == "d1"
        and m["family"] == family
        and m["receiver_lan"] == "d3"
        and m["receiver_kind"] == "client"
        and m["sender_kind"] == "client"
    )
    assert (cell["received"], cell["sent"], cell["delivered"], cell["streams"]) == (20, 40, 1, 2)
    assert cell["first_arrival_ms"] is None
    text = summarytext.text(summary.summarise(read_run(run.path)))
    assert "NOT ALL DELIVERED" in text
    assert "20/40!" in text
    assert ("IPv6 never" in text, "IPv4 never" in text) == (family == 6, family == 4)


def test_copies_are_counted(measure: Callable[..., RunDirectory], medium: Medium) -> None:
    medium.copies.add(("c2a", "c1a", 6))
    run = measure()
    (cell,) = rows(run, "deliveries.csv", phase="matrix", sender="c2a", receiver="c1a", family="6")
    assert (cell["received"], cell["duplicates"], cell["delivered"]) == ("20", "20", "1")


def test_a_lan_whose_listeners_left_must_be_silent(
    measure: Callable[..., RunDirectory], medium: Medium
) -> None:
    assert status(measure())["listeners"] == ["ok"]


def test_a_stream_that_does_not_stop_is_noticed(
    measure: Callable[..., RunDirectory], medium: Medium
) -> None:
    medium.unstoppable |= {"d1", "d2", "d3"}
    run = measure()
    left = rows(run, "listeners.csv", stage="left")
    assert {(r["frames"], r["expected_frames"], r["ok"]) for r in left} == {("20", "0", "0")}
    assert status(run)["listeners"] == ["failed"]
    assert all(r["frames"] == "0" for r in rows(run, "listeners.csv", stage="member-left"))


def test_a_member_that_left_gets_nothing_and_everything_when_it_is_back(
    measure: Callable[..., RunDirectory],
) -> None:
    run = measure()
    for stage, frames in (("member-left", "0"), ("member-back", "20")):
        found = rows(run, "listeners.csv", stage=stage)
        assert [r["frames"] for r in found] == [frames] * 2
        assert all(r["others_received_min"] == "20" and r["ok"] == "1" for r in found)


def test_one_leak_fails_the_campaign(measure: Callable[..., RunDirectory], medium: Medium) -> None:
    medium.leaks = 1
    run = measure()
    assert status(run)["leaks"] == ["failed"]
    assert failed_steps(run) == 1
    assert summary.write(run.path)["delivery"][VARIANT]["leaks"]["leaks"] == 3


def test_a_packet_that_tshark_cannot_read_is_not_equal(
    measure: Callable[..., RunDirectory], medium: Medium
) -> None:
    medium.unread["d2"] = 1
    run = measure()
    assert status(run)["witness"] == ["failed"]
    assert {r["device"] for r in run.rows("witness.csv") if r["equal"] == "0"} == {"d2"}


def test_a_refused_packet_is_no_delivery(
    measure: Callable[..., RunDirectory], medium: Medium
) -> None:
    medium.refuse.add("c2a")
    run = measure()
    reasons = rows(run, "steps.csv", method="matrix", subject="d2")[0]["reason"]
    assert "Operation not permitted" in reasons
    cells = rows(run, "deliveries.csv", phase="matrix", sender="c2a")
    assert {(r["sent"], r["delivered"]) for r in cells} == {("0", "0")}


def test_each_repetition_has_a_network_of_its_own_and_other_leavers(
    measure: Callable[..., RunDirectory], medium: Medium
) -> None:
    run = measure(repetitions=3)
    assert medium.world.loads == 3
    leavers = {r["subject"] for r in rows(run, "steps.csv", method="member")}
    assert len(leavers) == 3
    found = summary.write(run.path)["delivery"][VARIANT]
    assert found["repetitions"] == 3
    assert found["convergence"]["routing-pim"] == {
        "since": "routers started",
        "median_s": 9.9,
        "max_s": 9.9,
        "n": 3,
    }
    assert found["convergence"]["first-packet-ipv6"]["max_s"] < 120


def test_a_group_that_does_not_form_is_recorded_and_judged_all_the_same(
    measure: Callable[..., RunDirectory], medium: Medium
) -> None:
    medium.world.faults["no_group"] = True
    run = measure()
    found = status(run)
    assert found["first"] == ["failed"]
    assert found["matrix"] == ["not-run"] * 3
    assert found["leaks"] == ["ok"]
    assert failed_steps(run) == 6
    summary.write(run.path)
    assert "members never agreed" in (run.path / "summary.md").read_text()


def test_a_topology_without_red_lans_is_refused() -> None:
    with pytest.raises(ExperimentError, match=r"d1 of star.* has no red LAN"):
        places_of(star(3))


def test_the_matrix_is_drawn_from_the_files_alone(
    measure: Callable[..., RunDirectory], medium: Medium
) -> None:
    medium.lose.add(("d2", "c1a", 4))
    files = draw_all(measure().path)
    assert {file.name for file in files} == {"delivery.png", "delivery.pdf"}
    assert all(file.stat().st_size > 5000 for file in files)
