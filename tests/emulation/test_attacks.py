"""An attacker on the black switch of real daemons: short, and without kernel SAs."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments import analysis, summary
from experiments.commands import _native
from experiments.plan import Overrides, load
from experiments.record import RunDirectory
from testbed import session

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces"),
]

ATTACKS = ("hello-flood-fake", "tm-ex-member", "decrypt-after-exclusion", "esp-replay")


@pytest.fixture(autouse=True)
def private_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTBED_RUN_BASE", str(tmp_path / "runs"))


def test_attacks_on_a_small_group_achieve_nothing(tmp_path: Path) -> None:
    def inside() -> dict[str, Any]:
        plan = load("attacks", Overrides(devices=5, sa_backend="memory", quick=True))
        # What a join costs is not for a test to judge on a machine that others use.
        campaign = replace(plan.campaigns[0], attacks=ATTACKS, window_ms=700, join_ratio_max=1e9)
        plan = replace(plan, campaigns=(campaign,))
        with RunDirectory.create(tmp_path / "run", plan, {}) as directory:
            assert _native(directory) == 0
            directory.merge()
        found: dict[str, Any] = summary.summarise(analysis.read_run(tmp_path / "run"))["attacks"]
        return found

    found = session.call(inside)
    assert found["ok"], found["violations"]
    assert found["successes"] == 0
    assert found["not_run"] == ["esp-replay"]
    attacks = found["attacks"]
    assert attacks["hello-flood-fake"]["refused"] > 100
    assert attacks["tm-ex-member"]["refused"] > 100
    assert attacks["decrypt-after-exclusion"]["tried"] > 0
