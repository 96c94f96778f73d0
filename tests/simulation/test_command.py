"""``testbed sim``: what it prints, what it refuses, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from testbed import cli
from testbed.sim.faults import Fault, Kind
from testbed.sim.gateways.draws import draw_gateways
from testbed.sim.scenario import Theme, draw
from testbed.sim.schedules import SETTLED_MS

FLAPPED = draw(1, members=3, theme=Theme.FLAP)
GOOD = FLAPPED.with_faults(())
BAD = FLAPPED.with_faults((Fault(Kind.CARRIER, SETTLED_MS, 6_000, (0,)),))


def sim(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main(["sim", *arguments])
    output = capsys.readouterr()
    code = caught.value.code
    return code if isinstance(code, int) else 0, output.out, output.err


def test_one_seed_prints_every_drawn_parameter_and_the_verdict(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, _ = sim(capsys, "--seed", "5", "--members", "3")
    assert code == 0
    scenario = draw(5, members=3)
    for line in scenario.describe():
        assert line in out
    for fault in scenario.faults:
        assert str(fault) in out
    assert "agreed after" in out
    assert "1 runs" in out


def test_many_seeds_as_json_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = sim(capsys, "--seeds", "5..7", "--members", "2", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [line["seed"] for line in lines] == [5, 6, 7]
    assert all(line["ok"] and line["members"] == 2 and line["left_out"] == [] for line in lines)


def test_several_processes_give_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--seeds", "5..7", "--members", "2", "--json")
    assert sim(capsys, *arguments, "--jobs", "2")[:2] == sim(capsys, *arguments)[:2]


def test_the_theme_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = sim(capsys, "--seed", "5", "--members", "3", "--theme", "death", "--json")
    assert json.loads(out)["theme"] == "death"


def test_gateways_between_partitions(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--seed", "5", "--members", "3", "--topology", "gateways")
    code, out, _ = sim(capsys, *arguments)
    assert code == 0
    assert f"topology = {draw_gateways(5, members=3).topology}" in out
    assert "agreed after" in out


def test_a_failure_prints_trace_and_scenario_and_ends_with_1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "scenarios"
    file.write_text(f"# why\n\n{GOOD.to_json()}\n{BAD.to_json()}\n")
    code, out, err = sim(capsys, "--replay", str(file))
    assert code == 1
    assert "1 faults became 1" in out
    assert out.splitlines()[-1] == BAD.to_json()
    assert err.splitlines()[-1].startswith("testbed: error: no-rekey at d")
    assert "seeds that fail: 1" in err


def test_the_trace_of_a_run_that_is_fine(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "scenarios"
    file.write_text(GOOD.to_json())
    code, out, _ = sim(capsys, "--replay", str(file), "--trace")
    assert code == 0
    assert "mike.founded" in out
    assert "nothing is wrong" in out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "give one of"),
        (("--seed", "1", "--seeds", "1..2"), "give one of"),
        (("--seeds", "2..1"), "no range of seeds"),
        (("--seeds", "x"), "no range of seeds"),
        (("--seeds", "1..2", "--trace"), "--trace goes with"),
        (("--seed", "1", "--members", "1"), "--members"),
        (("--seed", "1", "--theme", "peace"), "--theme"),
        (("--replay", "/nowhere"), "does not exist"),
        (("--seed", "1", "--topology", "gateways", "--members", "2"), "at least 3 members"),
        (("--seed", "1", "--topology", "gateways", "--theme", "flap"), "any or death"),
    ],
)
def test_wrong_usage_is_exit_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], text: str
) -> None:
    code, out, err = sim(capsys, *arguments)
    assert (code, out) == (2, "")
    assert text in err


@pytest.mark.parametrize(
    "line",
    ["nonsense", "{}", "[]", GOOD.to_json().replace('"faults": []', '"faults": ["quake 1+2"]')],
)
def test_a_file_that_holds_no_scenario_is_one_line_and_exit_1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, line: str
) -> None:
    file = tmp_path / "scenarios"
    file.write_text(line)
    code, out, err = sim(capsys, "--replay", str(file))
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
