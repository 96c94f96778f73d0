"""The neighbour table's limits are raised, never lowered; without the right nothing breaks."""

from __future__ import annotations

from pathlib import Path

from testbed.neighbours import WANTED, make_room


def test_limits_are_raised_and_larger_ones_kept(tmp_path: Path) -> None:
    values = {"gc_thresh1": "128\n", "gc_thresh2": "512\n", "gc_thresh3": "100000\n"}
    for name, value in values.items():
        (tmp_path / name).write_text(value)
    assert make_room(tmp_path)
    found = {name: int((tmp_path / name).read_text()) for name in WANTED}
    assert found == WANTED | {"gc_thresh3": 100_000}


def test_another_namespace_has_no_such_setting(tmp_path: Path) -> None:
    assert not make_room(tmp_path)
