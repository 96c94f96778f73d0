from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import analysis, summary, summarytext
from experiments.latencies import Bench, ClockError, Stamp, StepRecord, repetition_rows
from experiments.plan import Plan
from experiments.schema import FILES, SUMMARY
from tests.unit.experiments.fake_fleet import World
from tests.unit.experiments.support import make_run, small_plan

ROOT = Path(__file__).resolve().parents[3]


def test_median_interval_holds_the_median_and_is_repeatable() -> None:
    values = np.arange(1.0, 102.0)
    one, two = analysis.median_interval(values, 7), analysis.median_interval(values, 7)
    assert one == two
    assert one["median_ms"] == 51.0
    assert 35 < one["low_ms"] < 51 < one["high_ms"] < 67
    assert (one["n"], one["failed"]) == (101, 0)


def test_failed_steps_count_as_slower_than_all() -> None:
    measured = np.array([1.0, 2.0, 3.0])
    assert analysis.median_interval(np.append(measured, [np.inf, np.inf]), 1)["median_ms"] == 3.0
    mostly = analysis.median_interval(np.append(measured, [np.inf] * 4), 1)
    assert mostly["median_ms"] is None
    assert mostly["failed"] == 4
    assert analysis.median_interval(np.array([]), 1)["n"] == 0


def test_censoring_takes_the_value_of_a_failed_step_away() -> None:
    values = analysis.censored(pd.Series([5.0, 6.0, np.nan]), pd.Series([True, False, True]))
    assert values.tolist() == [5.0, np.inf, np.inf]


def test_slope_is_found_with_its_interval() -> None:
    rows = [
        {"repetition": r, "group_size": n, "total_ms": 100 + 2.5 * n + r % 3, "ok": 1}
        for r in range(10)
        for n in range(3, 11)
    ]
    rows.append({"repetition": 1, "group_size": 10, "total_ms": 9999.0, "ok": 0})
    found = analysis.slope_interval(pd.DataFrame(rows), "total_ms", 3)
    assert found["slope"] == pytest.approx(2.5)
    assert found["low"] <= 2.5 <= found["high"]
    assert found["left_out"] == 1


def test_dispersal_is_last_minus_first_and_needs_every_device() -> None:
    base = {"campaign": "join", "variant": "v", "repetition": 1, "group_size": 3}
    frame = pd.DataFrame(
        [{**base, "step": 1, "total_ms": t, "ok": 1} for t in (10.0, 12.5, 11.0)]
        + [{**base, "step": 2, "total_ms": t, "ok": o} for t, o in ((10.0, 1), (np.nan, 0))]
    )
    found = analysis.dispersal(frame)
    assert found["dispersal_ms"].tolist()[0] == 2.5
    assert found["ok"].tolist() == [1, 0]


def test_a_known_offset_between_two_clocks_is_corrected() -> None:
    ahead = 5_000_000  # the joiner's clock is 5 ms ahead of the monitor's
    at = 1_700_000_000_000_000_000
    stamps = [
        Stamp(at + 20_000_000, 0, "d3", "idpd", "t_signal", {"kind": "JOIN", "peer": "::3"}),
        Stamp(at + 22_000_000, 0, "d3", "miked", "t_mike_in", {"kind": "join", "peer": "::3"}),
        Stamp(at + 30_000_000 - ahead, 0, "d1", "miked", "t_key", {"epoch": "2-a"}),
        Stamp(at + 31_000_000 - ahead, 0, "d1", "idpd", "t_status", {"epoch": "2-a"}),
        Stamp(at + 40_000_000 - ahead, 0, "d1", "idpd", "t_written", {"epoch": "2-a"}),
    ]
    step = StepRecord("join", "v", 1, 1, 3, "d3", "start", ("d1",), "ok", "", "2-a", at, at, at)
    bench = Bench("d1", {"d3": "::3"}, {"d1": ClockError(), "d3": ClockError(ahead)}, False)
    (row,) = repetition_rows([step], bench, stamps, "d2")
    phases = ["idp_startup_ms", "idp_to_mike_ms", "mike_ms", "mike_to_idp_ms", "write_ms"]
    assert [row[p] for p in phases] == [20.0, 2.0, 8.0, 1.0, 9.0]
    assert row["total_ms"] == 40.0
    uncorrected = Bench("d1", {"d3": "::3"}, {"d1": ClockError(), "d3": ClockError(0)}, False)
    assert repetition_rows([step], uncorrected, stamps, "d2")[0]["total_ms"] == 35.0


def test_the_phases_of_every_join_sum_to_its_total(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", small_plan("experiment", devices=5))
    frame = analysis.read_run(run.path).latencies
    joins = frame[frame["campaign"] == "join"]
    total = joins[list(analysis.PHASES)].sum(axis=1)
    assert np.allclose(total, joins["total_ms"], atol=1e-3)


def test_latencies_can_be_made_again_from_the_events(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", small_plan(repetitions=1))
    stamps = [Stamp.from_row(row) for row in run.rows("events.csv")]
    steps = [
        StepRecord(
            row["campaign"],
            row["variant"],
            int(row["repetition"]),
            int(row["step"]),
            int(row["group_size"]),
            row["subject"],
            row["method"],
            tuple(row["expected"].split()),
            row["status"],
            row["reason"],
            row["epoch"],
            int(row["trigger_wall_ns"]),
            int(row["begin_wall_ns"]),
        )
        for row in run.rows("steps.csv")
    ]
    part = json.loads((run.parts()[0] / "part.json").read_text())
    clocks = {name: ClockError() for name in part["addresses"]}
    rows = repetition_rows(steps, Bench("d1", part["addresses"], clocks, False), stamps, "d2")
    stored = [row["total_ms"] for row in run.rows("latencies.csv")]
    assert [f"{row['total_ms']:.6f}".rstrip("0").rstrip(".") for row in rows] == stored


def test_summary_has_exactly_the_documented_keys(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", small_plan("experiment", repetitions=2))
    found = summary.write(run.path)
    assert list(found) == list(SUMMARY)
    assert json.loads((run.path / "summary.json").read_text()) == json.loads(json.dumps(found))
    assert found["complete"]
    assert found["ratios"]["sa_netlink_single_to_command"] == pytest.approx(1 / 200, rel=0.01)
    assert found["ratios"]["join_netlink_to_command"] == pytest.approx(40.1 / 50.1, rel=0.01)
    assert found["kernel_check"]["median_ms"] == pytest.approx(0.05, abs=1e-3)
    assert found["cold_start"][0]["timings_ms"] == {"daemons": 1500.0}
    text = (run.path / "summary.md").read_text()
    assert "about 400 ms" in text
    assert "201 ms" in text


def test_summary_counts_failures_and_incompleteness(tmp_path: Path) -> None:
    plan = small_plan(devices=5, repetitions=3)
    run = make_run(tmp_path / "run", plan, World(faults={"sad_fail_at": 2, "lose_at": 5}))
    found = summary.write(run.path)
    checks = found["checks"]["join"]["netlink+per-sender"]
    assert (checks["planned"], checks["ok"], checks["failed"], checks["not_run"]) == (9, 6, 2, 1)
    assert checks["sad_failed"] == 1
    assert len(found["failures"]) == 3
    by_size = found["join"]["netlink+per-sender"]["monitor"]["by_size"]
    assert [by_size[size]["failed"] for size in ("3", "4", "5")] == [0, 2, 1]
    assert [by_size[size]["n"] for size in ("3", "4", "5")] == [3, 3, 3]


def test_a_memory_run_is_marked(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", small_plan(sa_backend="memory"))
    found = summary.write(run.path)
    assert not found["kernel_sas"]
    assert summarytext.MEMORY_MARK in summarytext.text(found)
    assert summarytext.MEMORY_MARK in (run.path / "summary.md").read_text()


def test_every_column_and_key_is_documented() -> None:
    text = (ROOT / "results" / "README.md").read_text()
    for name, columns in FILES.items():
        assert f"## {name}" in text
        section = text.split(f"## {name}")[1].split("\n## ")[0]
        assert re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE) == list(columns), name
    section = text.split("## summary.json")[1].split("\n## ")[0]
    assert re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE) == list(SUMMARY)


def test_plan_of_a_run_is_read_back(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", small_plan())
    assert isinstance(run.plan, Plan)
