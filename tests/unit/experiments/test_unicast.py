"""Unicast beside multicast: rows from traces, summary, figure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments import unicastsummary
from experiments.analysis import read_run
from experiments.outcome import Context
from experiments.plots import draw_all
from experiments.record import RunDirectory
from experiments.runner import Runner
from experiments.steps import run
from tests.unit.experiments.fake_fleet import MS, FakeFleet, NullDisplay, World
from tests.unit.experiments.support import SESSION, fake_sa_writes, small_plan


class UnicastFleet(FakeFleet):
    """Its devices write their pairs' SAs 4 ms after the group's, and routes 6 ms after these."""

    silent = ""
    restless = 0

    def status(self, device: str, daemon: str = "idpd") -> dict[str, Any]:
        asked = super().status(device, daemon)
        if daemon == "idpd":
            self.restless = max(0, self.restless - 1)
            asked["announcing_to"] = int(self.restless > 0)
        return asked

    def _finish(self, signalled: float, lost: str | None) -> None:
        super()._finish(signalled, lost)
        others = len(self.members) - 1
        for device in self.members:
            at, epoch = self.written[device][-1]
            self._emit(
                at - 2 * MS, device, "idpd", "sas.begin", label=f"write:{epoch}", operations=5
            )
            self._emit(at - 0.5 * MS, device, "idpd", "sas.end", label=f"write:{epoch}", failed=0)
            if device == self.silent:
                continue
            self._batch(device, at + 2 * MS, "pairs:1", 2, "sas", 4 * others)
            self._say(device, at + 4 * MS, epoch, peers=others, routes=0)
            self._batch(device, at + 7 * MS, "pairs:2", 1, "sas", 3 * others)
            self._batch(device, at + 8 * MS, "pairs:2", 1, "routes", others)
            self._say(device, at + 10 * MS, "", peers=others, routes=others)

    def _batch(self, device: str, at: float, label: str, ms: int, kind: str, count: int) -> None:
        self._emit(at, device, "idpd", f"{kind}.begin", label=label, operations=count)
        self._emit(at + ms * MS, device, "idpd", f"{kind}.end", label=label, failed=0)

    def _say(self, device: str, at: float, epoch: str, **there: int) -> None:
        self._emit(at, device, "idpd", "t_unicast_written", epoch=epoch, **there)

    def await_event(self, point: str, devices: list[str], **_: Any) -> dict[str, Any]:
        assert point == "t_unicast_written"
        if devices == [self.silent]:
            from testbed.errors import DeadlineError

            raise DeadlineError("nothing")
        return {}


def measured(fleet: UnicastFleet, unicast: str = "group") -> Any:
    repetition = small_plan("join").repetitions()[0]
    variant = replace(repetition.variant, unicast=unicast)
    world = fleet.world
    world.kernel = True
    return run(
        fleet,  # type: ignore[arg-type]
        replace(repetition, variant=variant),
        Context(world.clock()),
    )


def test_a_row_for_each_device_with_what_came_when() -> None:
    world = World(offsets_ns={"d3": 5 * MS, "d1": -3 * MS})
    outcome = measured(UnicastFleet(world, 4))
    rows = outcome.tables["unicast.csv"]
    assert [(r["step"], r["device"], r["role"]) for r in rows] == [
        (1, "d1", "monitor"),
        (1, "d2", "member"),
        (1, "d3", "joiner"),
        (2, "d1", "monitor"),
        (2, "d2", "member"),
        (2, "d3", "member"),
        (2, "d4", "joiner"),
    ]
    totals = {(r["step"], r["device"]): r["total_ms"] for r in outcome.tables["latencies.csv"]}
    for row in rows:
        assert row["ok"]
        assert row["multicast_ms"] == pytest.approx(totals[row["step"], row["device"]])
        assert row["sas_ms"] - row["multicast_ms"] == pytest.approx(4, abs=0.001)
        assert row["complete_ms"] - row["multicast_ms"] == pytest.approx(10, abs=0.001)
        assert row["multicast_batch_ms"] == pytest.approx(1.5, abs=0.001)
        assert row["pair_batch_ms"] == pytest.approx(3, abs=0.001)
        assert row["route_batch_ms"] == pytest.approx(1, abs=0.001)
        assert row["pair_batches"] == 2
        others = row["group_size"] - 1
        assert row["pair_operations"] == 8 * others


def test_a_device_without_unicast_is_a_row_that_does_not_count() -> None:
    fleet = UnicastFleet(World(), 4)
    fleet.silent = "d2"
    outcome = measured(fleet)
    rows = outcome.tables["unicast.csv"]
    assert {(r["device"], r["ok"]) for r in rows if r["device"] == "d2"} == {("d2", False)}
    assert all(r["complete_ms"] is None for r in rows if r["device"] == "d2")
    assert [s.status for s in outcome.steps] == ["ok", "ok"], "the multicast join is measured"


def test_a_join_begins_when_nobody_announces_any_more() -> None:
    fleet = UnicastFleet(World(), 4)
    fleet.restless = 6
    outcome = measured(fleet)
    assert fleet.restless == 0
    assert [s.status for s in outcome.steps] == ["ok", "ok"]


def test_no_table_where_the_variant_makes_no_unicast_sas() -> None:
    assert "unicast.csv" not in measured(UnicastFleet(World(), 4), "off").tables


def whole_run(path: Path) -> RunDirectory:
    plan = small_plan("unicast")
    world = World()
    made = RunDirectory.create(path, plan, {"command": ["synthetic"]})

    def fleet(repetition: Any, logs: str) -> Any:
        return UnicastFleet(world, plan.devices)

    Runner(made, fleet, fake_sa_writes, NullDisplay(), world.clock()).execute(SESSION)
    made.close()
    return made


def test_summary_and_figure(tmp_path: Path) -> None:
    made = whole_run(tmp_path / "run")
    found = unicastsummary.summarise(read_run(made.path))
    assert set(found) == {"group", "psk"}
    assert found["group"]["largest"] == "4"
    for place in ("joiner", "last"):
        four = found["group"][place]["4"]
        extra = four["complete"]["median_ms"] - four["multicast"]["median_ms"]
        assert extra == pytest.approx(10, abs=0.001)
    assert found["group"]["batches"]["pair_batch_ms"] == pytest.approx(3, abs=0.001)
    (line, _) = unicastsummary.text(found)
    assert line.count("within the paper's 1.5") == 2
    assert unicastsummary.markdown({}) == []
    files = draw_all(made.path)
    assert {f.suffix for f in files if f.stem == "unicast"} == {".png", ".pdf"}
