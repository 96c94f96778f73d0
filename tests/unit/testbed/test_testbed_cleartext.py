"""Clear text is never had by accident, and everything of it goes through a tunnel of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.cleartext import CLEAR
from testbed.errors import TestbedError
from testbed.fleetoptions import FleetOptions
from testbed.network import XFRM
from testbed.proxies import proxies_of
from topologies.families import coalition


@pytest.mark.parametrize(
    ("backend", "guard"), [("netlink", False), ("memory", True), ("netlink", True)]
)
def test_clear_text_is_refused_beside_sas_or_a_guard(backend: str, guard: bool) -> None:
    with pytest.raises(TestbedError, match="clear text needs the memory backend and no guard"):
        FleetOptions(sa_backend=backend, guard=guard, clear_text=True)


def test_the_tunnel_of_a_fleet() -> None:
    assert FleetOptions(sa_backend="netlink").tunnel == XFRM
    assert FleetOptions(sa_backend="memory").tunnel == ""
    assert FleetOptions(sa_backend="memory", guard=False, clear_text=True).tunnel == CLEAR


def test_proxies_forward_to_the_tunnel_that_there_is(tmp_path: Path) -> None:
    topology = coalition(2)
    of_devices = [
        proxy for proxy in proxies_of(topology, tmp_path, tunnel=CLEAR) if proxy.node[0] == "d"
    ]
    assert len(of_devices) == 2
    assert all(f'upstream = "{CLEAR}"' in proxy.config for proxy in of_devices)
    assert proxies_of(topology, tmp_path, tunnel="") == []
