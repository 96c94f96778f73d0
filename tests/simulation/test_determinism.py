"""One seed, one run: whatever the process, its hash seed, and what ran before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.sim.people import Crypto
from testbed.sim.run import run
from testbed.sim.scenario import draw

ROOT = Path(__file__).resolve().parents[2]
SEEDS = range(1, 6)


def digests_in_a_process(hash_seed: str, mode: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "testbed.cli", "sim", "--seeds", "1..5", "--mode", mode, "--json"],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line)["digest"] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("mode", ["ka", "auto"])
def test_two_processes_with_other_hash_seeds_give_the_same_trace(mode: str) -> None:
    first = digests_in_a_process("0", mode)
    assert len(set(first)) == len(SEEDS)
    assert digests_in_a_process("4711", mode) == first
    assert [run(draw(seed, mode=mode)).digest for seed in SEEDS] == first


def test_real_and_modelled_cryptography_see_the_same_scenario() -> None:
    modelled, real = draw(11), draw(11, crypto=Crypto.REAL)
    assert modelled.faults == real.faults
    assert run(modelled).digest != run(real).digest


def test_a_fault_less_leaves_the_draws_of_the_others_alone() -> None:
    scenario = draw(3)
    assert len(scenario.faults) > 2
    changed = scenario.with_faults(scenario.faults[:-1])
    assert run(changed).digest == run(changed).digest
    assert (changed.starts_ms, changed.link_us) == (scenario.starts_ms, scenario.link_us)
