"""Result directories: never overwritten, complete files only, one line when the disk is full."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from testbed.artifacts import ArtifactError, RunDirectory, new_run_id, provenance


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "join", "first")
    run.write_text("a.csv", "1\n")
    with pytest.raises(ArtifactError, match="exists already and is not overwritten"):
        RunDirectory.create(tmp_path, "join", "first")
    assert (run.path / "a.csv").read_text() == "1\n"
    assert run.path == tmp_path / "join" / "first"


def test_ids_differ_and_sort_by_time() -> None:
    first, second = new_run_id(), new_run_id()
    assert first != second
    assert first.rpartition("-")[0] <= second.rpartition("-")[0]


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden"])
def test_a_name_cannot_lead_elsewhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="cannot name"):
        RunDirectory.create(tmp_path, "join" if name else "", name or "x")


def test_a_full_disk_is_one_line_and_keeps_the_old_file(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "join", "x")
    run.write_json("rows.json", [1])
    with file_size_limit(4096), pytest.raises(ArtifactError, match="no space left") as caught:
        run.write_json("rows.json", list(range(10_000)))
    assert "\n" not in str(caught.value)
    assert json.loads((run.path / "rows.json").read_text()) == [1]
    assert [path.name for path in run.path.iterdir()] == ["rows.json"]


def test_a_run_is_continued_only_if_it_is_one(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no run that can be continued"):
        RunDirectory.resume(tmp_path)
    run = RunDirectory.create(tmp_path, "join", "x")
    assert run.manifest() == {}
    run.write_manifest({"seed": 3})
    assert RunDirectory.resume(run.path).manifest() == {"seed": 3}
    (run.path / "manifest.json").write_text("[1]")
    with pytest.raises(ArtifactError, match="not a JSON object"):
        run.manifest()


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot make"):
        RunDirectory.create(tmp_path / "file", "join", "x")


def test_provenance_says_where_results_come_from() -> None:
    found = provenance(["testbed", "run", "join", "a b"])
    assert found["command"] == "testbed run join 'a b'"
    assert set(found) == {"command", "created", "git", "versions", "environment"}
    assert set(found["git"]) == {"commit", "dirty"}
    assert found["versions"]["cryptography"] != "missing"
    assert found["environment"]["kernel"]


def test_results_do_not_name_the_place_of_the_project() -> None:
    from testbed.artifacts import portable
    from testbed.vm.layout import PROJECT

    words = [f"{PROJECT}/experiments/commands.py", "--output", str(PROJECT), "/elsewhere"]
    assert portable(words) == ["experiments/commands.py", "--output", ".", ".../elsewhere"]
    paths = ["--output=/some/where/else/", "--at=1/2", "fd00::/64", "/a"]
    assert portable(paths) == ["--output=.../else", "--at=1/2", "fd00::/64", ".../a"]
