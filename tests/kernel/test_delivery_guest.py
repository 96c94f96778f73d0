"""A whole delivery repetition: routers, IPsec, red LANs, captures, tshark; then one red packet."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.campaign import Campaign, Repetition, Variant
from experiments.kinds import KINDS, draw_steps
from experiments.outcome import Context, Outcome, Time
from testbed import session
from testbed.fleet import Fleet, FleetOptions
from tests.support.netns import require_esp
from topologies.families import coalition

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

PACKETS = 5


@pytest.fixture(autouse=True)
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    require_esp()
    monkeypatch.setenv("TESTBED_RUN_BASE", str(tmp_path / "runs"))


def measure(keep: Path) -> dict[str, Any]:
    campaign = Campaign("delivery", 1, (Variant("v"),), packets=PACKETS)
    steps = draw_steps(campaign, 2, 1, random.Random(1))
    repetition = Repetition(campaign, campaign.variants[0], 1, steps)
    run: Callable[..., Outcome] = KINDS["delivery"].load()
    clock = Time()
    began = clock.now_ns()
    options = FleetOptions(keep=keep, capture=True, ipsec={"deactivation_delay_ms": 500})
    with Fleet(coalition(2, 1, 1), options) as fleet:
        outcome = run(fleet, repetition, Context(clock=clock, load_began_ns=began))
    assert outcome.after is not None
    outcome.after()
    return {
        **outcome.tables,
        "broken": outcome.broken,
        "pcaps": [p.name for p in keep.rglob("*.pcap")],
    }


def test_all_arrives(tmp_path: Path) -> None:
    """Everything is delivered, nothing leaks, and tshark counts what was sent."""
    seen = session.call(lambda: measure(tmp_path))
    assert seen["broken"] == ""
    reasons = {step["method"]: step["reason"] for step in seen["steps.csv"]}
    assert {step["status"] for step in seen["steps.csv"]} == {"ok"}, reasons
    cells = [r for r in seen["deliveries.csv"] if r["phase"] == "matrix" and r["must_arrive"]]
    # From each of 2 clients to the other LAN's client and device, and the same from 2 devices.
    assert len(cells) == 2 * 2 * 2 * 2
    assert {r["family"] for r in cells} == {4, 6}
    assert {(r["sent"], r["received"]) for r in cells} == {(PACKETS, PACKETS)}
    assert {r["traffic"] for r in seen["leaks.csv"]} >= {"ESP", "IDP", "MIKE", "OSPFv3", "PIM"}
    assert all(r["sent"] <= r["red"] <= r["sent"] + r["sent_early"] for r in seen["witness.csv"])
    assert sum(r["sent"] for r in seen["witness.csv"]) > 2 * 2 * 2 * PACKETS
    stages = {r["stage"]: r["seconds"] for r in seen["convergence.csv"]}
    assert 0 < stages["loaded"] < stages["first-packet-ipv6"] < 120
    assert stages["first-packet-ipv4"] < 120
    assert seen["pcaps"] == []
