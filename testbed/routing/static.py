"""Static routes in the black routers, for networks without FRR.

Unicast follows shortest paths. Multicast is flooded along one tree by smcroute, whether anybody has
joined or not. Nothing reacts to a fault: what a dead router or cable carried stays cut off.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from ipaddress import IPv6Address
from typing import Any, Final

from testbed.network_batch import batch
from testbed.routing.base import Routing, RoutingReport
from testbed.routing.config import GROUPS
from testbed.routing.kernel import (
    RoutingError,
    keep_addresses,
    multicast_interfaces,
    take_down,
)
from testbed.routing.tree import multicast_tree, unicast_routes

_DAEMON: Final = "smcrouted"


class StaticRouting(Routing):
    """Black routers with static routes; see `testbed.routing.base` for the life of it.

    Attributes:
        because: why not FRR.
    """

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.because = "they were chosen"
        if self.options.kind == "auto":
            self.because = "FRR is not built; 'make setup' builds it"
        plans = list(self._plans.values())
        self._tree = multicast_tree(plans)
        self._routes = {
            name: [f"{r.destination} via {r.via} dev {r.interface} proto static" for r in routes]
            for name, routes in unicast_routes(plans).items()
        }

    def start(self) -> None:
        """Set all routes and start smcroute."""
        self._since = time.monotonic()
        for plan in self._living():
            namespace = self._namespaces[plan.name]
            keep_addresses(namespace)
            with namespace.entered():
                batch("ip", [f"route add {route}" for route in self._routes[plan.name]], plan.name)
            home = self._home(plan.name)
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = home / f"{_DAEMON}.conf"
            file.write_text(smcroute_config(self._tree.interfaces[plan.name]), encoding="ascii")
            command = [self._programs.path(f"usr/sbin/{_DAEMON}"), "-n", "-N", "-f", str(file)]
            command += ["-P", str(home / f"{_DAEMON}.pid"), "-u", str(home / f"{_DAEMON}.sock")]
            self._launch(plan.name, _DAEMON, command)
        self._daemons_s = round(time.monotonic() - self._since, 3)

    def wait_ready(self, groups: Iterable[IPv6Address] = ()) -> RoutingReport:
        """Wait until the kernels have all routes; groups need no joining here."""
        if self._dead:
            raise RoutingError(
                f"static routes find no way around the dead {', '.join(sorted(self._dead))}; "
                "with FRR they would: run 'make setup'"
            )
        routes_s = self._await("routes", self._route_gaps)
        pim_s = self._await("multicast routing", self._multicast_gaps)
        return RoutingReport(
            "static",
            daemons_s=self._daemons_s,
            adjacencies_s=None,
            routes_s=routes_s,
            pim_s=pim_s,
            groups_s={str(group): pim_s for group in groups},
        )

    def group_joined(self, group: IPv6Address) -> dict[str, tuple[str, ...]]:
        """Return all wires with devices: every group is forwarded there, joined or not."""
        del group
        found = {
            plan.name: tuple(
                interface.name
                for interface in plan.interfaces
                if interface.devices and interface.name in self._tree.interfaces[plan.name]
            )
            for plan in self._living()
        }
        return {name: interfaces for name, interfaces in found.items() if interfaces}

    def describe(self, router: str) -> str:
        """Return that nothing can change by itself."""
        self._living_or_raise(router)
        return "static routes"

    def facts(self) -> dict[str, Any]:
        """Return that routes are static, and why."""
        return {
            "unicast": "static routes",
            "multicast": "static multicast routes",
            "version": f"smcroute {self._programs.version}",
            "because": self.because,
            "routers": len(self._plans),
        }

    def stop(self) -> None:
        """Stop smcroute, whose routes go with it, and remove the unicast routes."""
        alive = [name for name in self._own if name in self._processes]
        if alive:
            self._processes.stop(alive)
            for name in self.routers:
                with self._namespaces[name].entered():
                    batch("ip", [f"route del {route}" for route in self._routes[name]], name)
        self._own.clear()

    def kill_router(self, name: str) -> None:
        """Kill smcroute and take the interfaces down; the others' routes stay as they are."""
        plan = self._living_or_raise(name)
        self._processes.kill(f"{name}/{_DAEMON}")
        take_down(self._namespaces[name], [interface.name for interface in plan.interfaces])
        self._dead.add(name)
        self._since = time.monotonic()

    def _multicast_gaps(self) -> list[str]:
        gaps = []
        for name in self.routers:
            wanted = set(self._tree.interfaces[name])
            lacking = sorted(wanted - multicast_interfaces(self._namespaces[name]))
            if lacking:
                gaps.append(f"{name}: the kernel routes no multicast on {', '.join(lacking)}")
        return gaps


def smcroute_config(interfaces: Iterable[str]) -> str:
    """Return ``smcroute.conf``: what comes in on one of the interfaces goes out on the others."""
    names = list(interfaces)
    lines = [f"phyint {name} enable" for name in names]
    for name in names:
        others = [other for other in names if other != name]
        if others:
            lines.append(f"mroute from {name} group {GROUPS} to {' '.join(others)}")
    return "\n".join(lines) + "\n"
