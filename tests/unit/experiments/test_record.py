from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments import record
from experiments.errors import RecordError
from experiments.plan import load
from experiments.record import MEMORY_SUFFIX, RunDirectory, cell, latest, new_run_id
from tests.unit.experiments.support import small_plan

KEY = "join--netlink+per-sender--001"
ROW = {"campaign": "join", "variant": "netlink+per-sender", "repetition": 1, "step": 1}


def test_a_part_is_never_overwritten(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run", small_plan(), {}) as run:
        run.write_part(KEY, {"steps.csv": [ROW]}, {})
        before = (run.path / "parts" / KEY / "steps.csv").read_bytes()
        with pytest.raises(RecordError, match="not overwritten"):
            run.write_part(KEY, {"steps.csv": []}, {})
        assert (run.path / "parts" / KEY / "steps.csv").read_bytes() == before


def test_a_run_directory_is_never_taken_twice(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run", small_plan(), {}).close()
    with pytest.raises(RecordError, match="--resume"):
        RunDirectory.create(tmp_path / "run", small_plan(), {})


def test_an_interrupted_write_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunDirectory.create(tmp_path / "run", small_plan(), {}) as run:

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_text", full)
        with pytest.raises(RecordError, match="No space left"):
            run.write_part(KEY, {"steps.csv": [ROW]}, {})
        monkeypatch.undo()
        assert not run.has(KEY)
        assert list((run.path / "parts").iterdir()) == []


def test_what_a_killed_process_left_is_swept_and_finished_parts_stay(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", small_plan(), {})
    run.write_part(KEY, {"steps.csv": [ROW]}, {})
    half = run.path / "parts" / f".tmp-{KEY[:-1]}2"
    half.mkdir()
    (half / "steps.csv").write_text("half a l")
    run.close()
    with RunDirectory.open(run.path) as again:
        assert not half.exists()
        assert [p.name for p in again.parts()] == [KEY]


def test_only_one_process_writes(tmp_path: Path) -> None:
    with (
        RunDirectory.create(tmp_path / "run", small_plan(), {}) as run,
        pytest.raises(RecordError, match="another process"),
    ):
        RunDirectory.open(run.path)
    RunDirectory.open(run.path).close()


def test_merging_follows_the_plan_and_can_be_repeated(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run", small_plan(), {}) as run:
        for number in (2, 1):
            key = f"{KEY[:-1]}{number}"
            run.write_part(key, {"steps.csv": [{**ROW, "repetition": number}]}, {})
        run.merge()
        run.merge()
    lines = (run.path / "steps.csv").read_text().splitlines()
    assert [line.split(",")[3] for line in lines] == ["repetition", "1", "2"]
    assert not list(run.path.glob(".*.tmp"))


def test_undocumented_columns_are_refused(tmp_path: Path) -> None:
    with (
        RunDirectory.create(tmp_path / "run", small_plan(), {}) as run,
        pytest.raises(RecordError, match="undocumented column 'colour'"),
    ):
        run.write_part(KEY, {"steps.csv": [{**ROW, "colour": 1}]}, {})


def test_the_manifest_says_what_was_planned(tmp_path: Path) -> None:
    plan = small_plan("experiment")
    RunDirectory.create(tmp_path / "run", plan, {"command": ["x"]}).close()
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["seed"] == 2008
    assert manifest["topology"] == "measurement, 4 devices"
    assert any("backend command, mode paper" in line for line in manifest["sa"])
    with RunDirectory.open(tmp_path / "run") as run:
        assert run.plan == plan


@pytest.mark.parametrize("content", [None, "{", '{"schema": 99}'])
def test_what_is_no_run_is_refused_in_one_line(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(RecordError) as caught:
        RunDirectory.open(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_run_without_kernel_sas_says_so_in_its_name() -> None:
    assert new_run_id(small_plan(sa_backend="memory")).endswith(MEMORY_SUFFIX)
    assert MEMORY_SUFFIX not in new_run_id(load("join"))


def test_latest_run(tmp_path: Path) -> None:
    for name in ("20260101-000000-s1", "20260102-000000-s1"):
        RunDirectory.create(tmp_path / "join" / name, small_plan(), {}).close()
    assert latest(tmp_path, "join").name == "20260102-000000-s1"
    with pytest.raises(RecordError):
        latest(tmp_path, "leave")


def test_cells() -> None:
    assert [cell(v) for v in (None, True, False, 1.5, 3, "a")] == ["", "1", "0", "1.5", "3", "a"]
    assert cell(0.1 + 0.2) == "0.3"
    assert record.cell({"a": 1}) == '{"a":1}'
