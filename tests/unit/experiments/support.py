"""Small plans and whole synthetic runs for the tests of the experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.plan import Overrides, Plan, load
from experiments.record import RunDirectory
from experiments.runner import Runner
from tests.unit.experiments.fake_fleet import FakeFleet, NullDisplay, World

SESSION = {
    "environment": {
        "environment": "synthetic",
        "accelerator": "none",
        "kernel": "no kernel",
        "cpus": "2",
    }
}


def fake_sa_writes(campaign: Any, seed: int) -> list[dict[str, Any]]:
    """Return rows with known medians: netlink 0.2 ms, command 40 ms per write."""
    cost = {
        "netlink": 0.2,
        "netlink batched": 0.1,
        "pfkey": 0.25,
        "command": 40.0,
        "exec": 30.0,
        "ip -batch": 1.0,
    }
    rows = []
    for repetition in range(1, campaign.repetitions + 1):
        for backend in campaign.backends:
            for operation, factor in (("write", 1.0), ("delete+write", 2.0)):
                value = cost[backend] * factor * (1 + 0.05 * ((repetition * 7) % 5 - 2))
                rows.append(
                    {
                        "backend": backend,
                        "operation": operation,
                        "suite": "aes-cbc-sha256",
                        "repetition": repetition,
                        "sas": 1,
                        "ms_per_sa": value,
                        "ok": True,
                        "reason": None,
                    }
                )
    return rows


def small_plan(name: str = "join", **options: Any) -> Plan:
    values: dict[str, Any] = {"devices": 4, "repetitions": 2, **options}
    return load(name, Overrides(**values))


def runner(run: RunDirectory, world: World, display: NullDisplay | None = None) -> Runner:
    plan = run.plan

    def fleet(repetition: Any, logs: str) -> Any:
        return FakeFleet(world, plan.devices, repetition.variant.sa_mode == "paper")

    return Runner(run, fleet, fake_sa_writes, display or NullDisplay(), world.clock())


def make_run(path: Path, plan: Plan, world: World | None = None) -> RunDirectory:
    """Run a whole plan on fakes."""
    run = RunDirectory.create(path, plan, {"command": ["synthetic"]})
    runner(run, world or World(kernel=not plan.memory)).execute(SESSION)
    run.close()
    return run
