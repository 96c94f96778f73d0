"""What joins and leaves cost in large groups: counted, so that the numbers hold on any machine."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from protocol.mike.config import Mode
from testbed.cli import command_line
from testbed.sim.crossing import MEASURES, Crossover, crossovers
from testbed.sim.scale import SIZES, Agreed, Distributed, costs


@pytest.mark.slow
@pytest.mark.parametrize("event", ["join", "leave"])
def test_key_distribution_at_ten_thousand_members(event: str) -> None:
    """One rekey of at most 64 KiB, at most 20 unwraps at any member; every member follows."""
    found = Distributed(10_000).cost(event)
    assert found.messages == 1
    assert found.bytes <= 2_000
    assert found.unwraps <= math.ceil(math.log2(10_000)) + 1 <= 20
    assert found.tm_operations <= 1
    assert found.member_operations <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "messages", "at_most"), [("join", 2, 11), ("leave", 3, 15), ("take-over", 2, 15)]
)
def test_key_agreement_at_a_thousand_members(event: str, messages: int, at_most: int) -> None:
    """At most 15 operations at a member, who sponsors a leave and a new TM among them.

    For that the sponsor has a relief, whose PATH is one datagram more for all.
    """
    found = Agreed(1_000).cost(event)
    assert (found.messages, found.datagrams) == (messages, messages)
    assert found.bytes <= 1_000
    assert found.tm_operations <= (15 if event == "take-over" else 3)
    assert found.member_operations <= at_most
    assert found.mean_operations < 2.5
    assert found.newcomer_operations <= 20


@pytest.mark.slow
def test_a_join_at_the_deepest_leaf_is_within_the_bound_of_operations() -> None:
    """Of 1023 leaves one is a level higher: the newcomer sits at level 10, and so does its sibling.

    That one could compute ten exchanges and nine keys; it leaves the keys above to the newcomer.
    """
    found = Agreed(1_023).cost("join")
    assert found.newcomer_operations == 20
    assert found.member_operations == 15


def test_a_take_over_costs_each_member_one_operation_and_the_tm_one_for_each() -> None:
    found = Distributed(600).cost("take-over")
    assert found.tm_operations == 599
    assert found.member_operations == 1
    assert found.unwraps <= 11
    assert found.messages == 2
    assert found.bytes <= 600 * 120


@pytest.mark.parametrize("size", [3, 10, 50, 128])
def test_key_agreement_costs_a_path_of_operations(size: int) -> None:
    for event in ("join", "leave", "take-over"):
        found = Agreed(size).cost(event)
        height = (size - 1).bit_length() + 1
        assert found.member_operations <= 2 * height
        assert found.tm_operations <= 2 * height
        assert found.mean_operations <= 3
        assert found.newcomer_operations <= 2 * height
        assert found.messages <= 2
        assert found.unwraps == 0


def test_the_modes_cross_where_a_tree_no_longer_fits_into_a_datagram() -> None:
    """A join: in KA the bytes grow with the group, in KD with its logarithm."""
    small, large = 5, 50
    agreed = {size: Agreed(size).cost("join").bytes for size in (small, large)}
    distributed = {size: Distributed(size).cost("join") for size in (small, large)}
    told = {size: found.bytes + found.newcomer_bytes for size, found in distributed.items()}
    assert agreed[large] > 4 * agreed[small]
    assert told[large] < agreed[large]


def counted(line: dict[str, Any]) -> dict[str, Any]:
    """Leave out what was timed."""
    return {name: value for name, value in line.items() if not name.endswith("_cpu_ms")}


def test_the_command_prints_what_was_counted() -> None:
    done = CliRunner().invoke(command_line, ["cost", "--mode", "kd", "--members", "5,9", "--json"])
    assert done.exit_code == 0
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    again = [cost.as_json() for size in (5, 9) for cost in costs(Mode.KD, size)]
    assert [counted(line) for line in lines] == [counted(line) for line in again]
    assert all(0 < line["member_cpu_ms"] <= line["all_cpu_ms"] for line in lines)
    table = CliRunner().invoke(command_line, ["cost", "--mode", "ka", "--members", "4"])
    assert table.exit_code == 0
    assert len(table.stdout.splitlines()) == 4


def test_both_modes_are_on_one_figure_and_sizes_that_one_lacks_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIZES, Mode.KA, 9)
    folder = tmp_path / "cost"
    command = ["cost", "--members", "5,12", "--output", str(folder)]
    assert CliRunner().invoke(command_line, command).exit_code == 0
    assert {path.name for path in folder.iterdir()} == {
        "crossover.csv",
        "mike_cost.csv",
        "mike_cost.png",
        "mike_cost.pdf",
    }
    with (folder / "mike_cost.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = {(row["mode"], row["members"]) for row in rows}
    assert found == {("ka", "5"), ("kd", "5"), ("kd", "12")}
    with (folder / "crossover.csv").open(encoding="utf-8") as file:
        places = list(csv.DictReader(file))
    assert {row["event"] for row in places} == {"join", "leave", "take-over"}
    blocked = tmp_path / "file"
    blocked.write_text("")
    wrong = CliRunner().invoke(command_line, [*command[:-1], str(blocked / "x")])
    assert wrong.exit_code == 1
    assert "cannot write" in str(wrong.output) + str(wrong.exception)


@pytest.mark.parametrize("wrong", [["--members", "2"], ["--members", "x"], ["--members", "1024"]])
def test_wrong_sizes_are_refused(wrong: list[str]) -> None:
    assert CliRunner().invoke(command_line, ["cost", "--mode", "ka", *wrong]).exit_code == 2


def test_the_modes_cross_where_kd_costs_less_at_every_larger_size() -> None:
    """What only one mode was measured at does not count, nor a single size below."""

    def row(mode: str, members: int, value: int) -> dict[str, Any]:
        names = ("newcomer_bytes", "tm_cpu_ms", "member_cpu_ms", "newcomer_cpu_ms")
        values = {**dict.fromkeys(MEASURES, value), **dict.fromkeys(names, 0)}
        return {"mode": mode, "event": "join", "members": members, **values}

    rows = [row("ka", size, size) for size in (3, 10, 50, 100)]
    rows += [row("kd", 3, 1), row("kd", 10, 20), row("kd", 50, 20), row("kd", 100, 20)]
    rows.append(row("kd", 1000, 9999))
    found = {(one.event, one.measure): one for one in crossovers(rows)}
    assert found["join", "bytes"] == Crossover("join", "bytes", 50, (3, 10, 50, 100))
    assert found["join", "path_cpu_ms"].members is None
    assert found["leave", "bytes"] == Crossover("leave", "bytes", None, ())
