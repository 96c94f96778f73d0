"""Large groups as engines: what they do is counted, what they need is checked, times are not."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from protocol.mike.config import Mode
from testbed.cli import command_line
from testbed.errors import TestbedError
from testbed.sim import crowd
from testbed.sim.crowd import Crowd, delay
from testbed.sim.scale import costs


@pytest.mark.parametrize("mode", list(Mode)[:2])
@pytest.mark.parametrize("size", [3, 10, 60])
def test_engines_do_what_was_counted_on_epochs_alone(mode: Mode, size: int) -> None:
    """But for the JOIN itself, and the key that a newcomer makes for the next epoch, at leisure."""
    for counted in costs(mode, size):
        found = delay(mode, size, counted.event)
        newcomer = counted.event == "join"
        assert found.engines == size + (1 if newcomer else -1)
        assert found.datagrams == counted.datagrams + newcomer
        assert found.member_operations == counted.member_operations
        assert found.tm_operations == counted.tm_operations
        assert 0 <= found.newcomer_operations - counted.newcomer_operations <= 1
        assert (found.newcomer_ms is not None) is newcomer
        assert 0 < found.tm_ms <= found.last_ms
        assert found.median_ms <= found.last_ms


@pytest.mark.slow
def test_a_leave_among_six_hundred_engines_has_a_relief() -> None:
    """TREE or CHANGE, the sponsor's PATH, its relief's: nobody has more than 15 operations."""
    found = delay(Mode.KA, 600, "leave")
    assert found.engines == 599
    assert found.datagrams == 3
    assert found.tm_operations <= 3
    assert found.member_operations == 15


@pytest.mark.slow
def test_a_newcomer_to_two_thousand_gets_the_roster_page_by_page() -> None:
    group = Crowd(Mode.KD, 2_000)
    engines = len(group.seats)
    assert crowd.SAMPLE <= engines <= crowd.SAMPLE + 3
    found = group.happen("join")
    assert found.engines == engines + 1
    assert found.newcomer_bytes > 2_000 * 48
    assert found.member_operations <= 1
    assert found.datagrams == 2 + 2  # JOIN, REKEY, and a question for each further page


def test_the_same_seed_says_the_same_on_the_wire() -> None:
    first, second = (delay(Mode.KA, 20, "join", seed=3) for _ in range(2))
    assert (first.datagrams, first.bytes) == (second.datagrams, second.bytes)


def test_who_never_gets_the_key_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "LIMIT_MS", 50)
    group = Crowd(Mode.KA, 4)
    monkeypatch.setattr(group, "transmit", lambda sender, effect: None)
    with pytest.raises(TestbedError, match=r"0 of 5 devices have the new key 50 ms after the join"):
        group.happen("join")


def test_the_command_writes_rows_and_a_figure(tmp_path: Path) -> None:
    words = ["delay", "--members", "3,5", "--mode", "kd", "--runs", "2", "--json"]
    done = CliRunner().invoke(command_line, [*words, "--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 2 * 3 * 2
    with (tmp_path / "mike_scale.csv").open(encoding="utf-8") as file:
        assert [int(row["members"]) for row in csv.DictReader(file)] == [
            row["members"] for row in rows
        ]
    assert (tmp_path / "mike_scale.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--mode", "ka", "--members", "1024"], "mode ka at most 1023"),
        (["--members", "20000"], "no mode has groups of 20000 members"),
        (["--members", "two"], "are no sizes of at least 3"),
    ],
)
def test_sizes_that_no_group_has_are_refused(words: list[str], complaint: str) -> None:
    done = CliRunner().invoke(command_line, ["delay", *words])
    assert done.exit_code == 2
    assert complaint in done.stderr
