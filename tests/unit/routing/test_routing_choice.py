"""Which way of routing a network gets, and which plans are refused."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest

from testbed.processes import ProcessTable
from testbed.routing import choose
from testbed.routing.base import Routing, RoutingOptions, RoutingReport
from testbed.routing.choose import make_routing
from testbed.routing.frr import FrrRouting, _adjacency
from testbed.routing.kernel import RoutingError
from testbed.routing.plan import RouterPlan
from testbed.routing.programs import Programs, find_frr, find_smcroute
from testbed.routing.static import StaticRouting
from tests.support.routers import router_plans, wires

LAYOUT = wires("r1 r2", "r1 h1")
PLANS = router_plans(LAYOUT, rp="r2")


def made(tmp_path: Path, kind: str = "auto", plans: tuple[RouterPlan, ...] = PLANS) -> Routing:
    return make_routing(
        plans, {}, lambda _: 1, ProcessTable("x"), tmp_path, options=RoutingOptions(kind=kind)
    )


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> dict[str, Programs | None]:
    """What the set-up has made; a test may change it."""
    programs: dict[str, Programs | None] = {
        "frr": Programs(Path("/frr"), "8.4.4-1"),
        "smcroute": Programs(Path("/smcroute"), "2.5.6-1"),
    }
    monkeypatch.setattr(choose, "find_frr", lambda: programs["frr"])
    monkeypatch.setattr(choose, "find_smcroute", lambda: programs["smcroute"])
    return programs


def test_frr_where_it_is_built(
    there: dict[str, Programs | None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    routing = made(tmp_path)
    assert isinstance(routing, FrrRouting)
    assert routing.facts() == {
        "unicast": "OSPFv3 (FRR ospf6d)",
        "multicast": "PIM-SM (FRR pim6d)",
        "version": "8.4.4-1",
        "rendezvous_points": ["r2"],
        "routers": 2,
    }
    assert capsys.readouterr().err == ""


def test_static_routes_where_it_is_not_and_a_line_says_so(
    there: dict[str, Programs | None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there["frr"] = None
    routing = made(tmp_path)
    assert isinstance(routing, StaticRouting)
    assert routing.facts()["multicast"] == "static multicast routes"
    assert "FRR is not built" in routing.facts()["because"]
    line = "testbed: static multicast routes: FRR is not built; 'make setup' builds it\n"
    assert capsys.readouterr().err == line


def test_static_routes_when_chosen(there: dict[str, Programs | None], tmp_path: Path) -> None:
    assert made(tmp_path, "static").facts()["because"] == "they were chosen"


def test_frr_demanded_is_not_replaced(there: dict[str, Programs | None], tmp_path: Path) -> None:
    there["frr"] = None
    with pytest.raises(RoutingError, match="FRR is not built; run 'make setup'"):
        made(tmp_path, "frr")


def test_nothing_to_route_with(there: dict[str, Programs | None], tmp_path: Path) -> None:
    there |= {"frr": None, "smcroute": None}
    with pytest.raises(RoutingError, match="neither FRR nor smcroute"):
        made(tmp_path)


def test_an_unknown_kind_is_refused(there: dict[str, Programs | None], tmp_path: Path) -> None:
    with pytest.raises(RoutingError, match="'quagga' is none of auto, frr, static"):
        made(tmp_path, "quagga")


def test_more_links_than_the_kernel_routes_multicast_on(
    there: dict[str, Programs | None], tmp_path: Path
) -> None:
    edges = [f"r1 h{number}" for number in range(1, 31)]
    made(tmp_path, plans=router_plans(wires(*edges), rp="r1"))
    with pytest.raises(RoutingError, match="router r1 has 31 links"):
        made(tmp_path, plans=router_plans(wires(*edges, "r1 h31"), rp="r1"))


def test_a_rendezvous_point_that_is_no_router(
    there: dict[str, Programs | None], tmp_path: Path
) -> None:
    stray = tuple(replace(plan, rp=IPv6Address("2001:db8::9")) for plan in PLANS)
    with pytest.raises(RoutingError, match="rendezvous point 2001:db8::9 of router r1"):
        made(tmp_path, plans=stray)


def test_an_incomplete_build_is_none(tmp_path: Path) -> None:
    assert find_frr(tmp_path) is None
    (tmp_path / "sbin").mkdir()
    (tmp_path / "version").write_text("8.4.4-1\n")
    for name in ("zebra", "ospf6d"):
        (tmp_path / "sbin" / name).touch()
    assert find_frr(tmp_path) is None
    (tmp_path / "sbin" / "pim6d").touch()
    found = find_frr(tmp_path)
    assert found is not None
    assert found.version == "8.4.4-1"
    assert found.path("sbin/zebra") == str(tmp_path / "sbin" / "zebra")
    assert find_smcroute(tmp_path) is None


@pytest.mark.parametrize(
    ("state", "theirs", "ours", "counts_as"),
    [
        ("Full", "DR", "BDR", "Full"),
        ("Twoway", "DROther", "DROther", "Full"),
        ("Twoway", "DROther", "Waiting", "Twoway"),
        ("Twoway", "DR", "DROther", "Twoway"),
        ("Loading", "DR", "BDR", "Loading"),
    ],
)
def test_only_two_bystanders_of_a_lan_need_no_adjacency(
    state: str, theirs: str, ours: str, counts_as: str
) -> None:
    assert _adjacency({"state": state, "ifState": theirs, "interfaceState": ours}) == counts_as


def test_a_report_is_plain_data() -> None:
    report = RoutingReport("frr", 0.2, 9.0, 14.0, 14.1, {"ff0e::1": 15.0})
    expected: dict[str, Any] = {
        "kind": "frr",
        "daemons_s": 0.2,
        "adjacencies_s": 9.0,
        "routes_s": 14.0,
        "pim_s": 14.1,
        "groups_s": {"ff0e::1": 15.0},
    }
    assert report.as_json() == expected
