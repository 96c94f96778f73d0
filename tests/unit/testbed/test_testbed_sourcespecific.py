"""Networks with routers use source-specific black groups, everywhere the same."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from testbed import fleet as fleet_module
from testbed import live
from testbed.fleetoptions import FleetOptions
from testbed.guard import BlackChannels, Fence
from testbed.proxies import proxies_of
from testbed.sourcespecific import ESP_GROUP, IDP_GROUP, MIKE_GROUP, source_specific
from testbed.spec import Topology
from topologies.families import coalition, star


def test_groups_are_replaced_and_all_else_stays() -> None:
    options = FleetOptions(idp={"hello_interval_ms": 500}, ipsec={"unicast": "off"})
    topology, changed = source_specific(coalition(2), options)
    assert topology.group.black_group == ESP_GROUP
    assert topology.nodes == coalition(2).nodes
    assert changed.idp == {"hello_interval_ms": 500, "group": IDP_GROUP}
    assert (changed.mike, changed.ipsec) == ({"group": MIKE_GROUP}, options.ipsec)


def test_guard_and_proxies_know_them(tmp_path: Path) -> None:
    topology, options = source_specific(coalition(2), FleetOptions())
    channels = BlackChannels.of(options.idp, options.mike)
    rules = Fence(topology, options.idp, options.mike).rules(topology.node("d1"))
    assert {IDP_GROUP, MIKE_GROUP, str(ESP_GROUP)} <= set(repr(rules).split("'"))
    device = next(p for p in proxies_of(topology, tmp_path, channels=channels) if p.node == "d1")
    for group in (IDP_GROUP, MIKE_GROUP, ESP_GROUP):  # MPROXY-8: they never pass
        assert f'"{group}/128"' in device.config


@pytest.mark.parametrize(("topology", "special"), [(coalition(2), True), (star(2), False)])
def test_a_network_that_is_held_has_them_where_there_are_routers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, topology: Topology, special: bool
) -> None:
    built: list[tuple[Topology, FleetOptions]] = []

    @contextmanager
    def recorded(topology: Topology, options: FleetOptions) -> Any:
        built.append((topology, options))
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(fleet_module, "Fleet", recorded)
    with pytest.raises(KeyboardInterrupt):
        live.hold_here(topology, live.UpOptions(topology.name), tmp_path)
    ((seen, options),) = built
    assert (seen.group.black_group == ESP_GROUP) is special
    assert (options.idp.get("group") == IDP_GROUP) is special
