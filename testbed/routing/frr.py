"""FRR in the black routers: zebra, ospf6d and pim6d, in the foreground, owned by the run.

Each router's daemons have a private directory (mode 0700) with their configuration, sockets and
logs, so that any number of routers share the machine. They run as root: the run's directory is
root's alone, and FRR drops all capabilities that it does not need (docs/decisions/0006-frr.md).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from ipaddress import IPv6Address
from typing import Any, Final

from protocol.daemon.memberships import is_source_specific
from testbed.errors import TestbedError
from testbed.routing import config
from testbed.routing.base import Routing, RoutingReport
from testbed.routing.kernel import (
    RoutingError,
    keep_addresses,
    multicast_interfaces,
    take_down,
)
from testbed.routing.plan import RouterPlan
from testbed.routing.programs import FRR_DAEMONS
from testbed.routing.vty import Vty, listens

_ROOT: Final = "root"
_STATE_COMMANDS: Final = (
    "show ipv6 pim neighbor",
    "show ipv6 pim upstream",
    "show ipv6 mroute",
    "show ipv6 mld groups",
)


class FrrRouting(Routing):
    """Black routers with FRR; see `testbed.routing.base` for the life of it."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._vtys: dict[tuple[str, str], Vty] = {}
        self._seen_s: dict[str, float] = {}

    # --- life ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start all daemons and configure them."""
        self._since = time.monotonic()
        for plan in self._living():
            keep_addresses(self._namespaces[plan.name])
            home = self._home(plan.name)
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            for daemon, text in (
                ("zebra", config.zebra_config(plan)),
                ("ospf6d", config.ospf6d_config(plan, self.options.timers)),
                ("pim6d", config.pim6d_config(plan)),
            ):
                (home / f"{daemon}.conf").write_text(text, encoding="ascii")
                self._vtys[plan.name, daemon] = Vty(f"{plan.name}/{daemon}", home / f"{daemon}.vty")
            self._start_daemon(plan.name, "zebra")
        # A client that finds no zebra tries again only after ten seconds.
        self._await("zebra", lambda: self._silent("zserv.api", "zebra"))
        for plan in self._living():
            self._start_daemon(plan.name, "ospf6d")
            self._start_daemon(plan.name, "pim6d")
        self._await(
            "FRR", lambda: [gap for d in FRR_DAEMONS for gap in self._silent(f"{d}.vty", d)]
        )
        self._await("pim6d", self._pim6d_gaps)
        for plan in self._living():
            commands = config.pim6d_commands(plan, self.options.timers)
            self._vtys[plan.name, "pim6d"].tell(commands)
        self._daemons_s = round(time.monotonic() - self._since, 3)

    def wait_ready(self, groups: Iterable[IPv6Address] = ()) -> RoutingReport:
        """Wait until adjacencies, routes, PIM and groups are as planned."""
        for stage, gaps in (
            ("OSPF", self._ospf_gaps),
            ("routes", self._route_gaps),
            ("PIM", self._pim_gaps),
        ):
            if stage == "PIM":
                self._require_rp()
            seconds = self._await(stage, gaps)
            self._seen_s.setdefault(stage, seconds)
        groups_s = {str(group): self._await_group(group) for group in groups}
        return RoutingReport(
            "frr",
            daemons_s=self._daemons_s,
            adjacencies_s=self._seen_s["OSPF"],
            routes_s=self._seen_s["routes"],
            pim_s=self._seen_s["PIM"],
            groups_s=groups_s,
        )

    def stop(self) -> None:
        """Stop the daemons; zebra removes its routes, the kernel the multicast routes.

        What PIM knew in the end stays in ``pim.txt``: who looks for lost multicast looks there.
        """
        for name in self.routers if self._vtys else ():
            self._write_state(name)
        for vty in self._vtys.values():
            vty.close()
        self._vtys.clear()
        alive = [name for name in self._own if name in self._processes]
        if alive:
            self._processes.stop(alive)
        self._own.clear()

    def kill_router(self, name: str) -> None:
        """Kill the daemons and take the interfaces down."""
        plan = self._living_or_raise(name)
        for daemon in FRR_DAEMONS:
            self._vtys.pop((name, daemon)).close()
            self._processes.kill(f"{name}/{daemon}")
        take_down(self._namespaces[name], [interface.name for interface in plan.interfaces])
        self._dead.add(name)
        self._since = time.monotonic()
        self._seen_s.clear()

    # --- questions -----------------------------------------------------------------------------

    def vty(self, router: str, daemon: str) -> Vty:
        """Return the connection to a daemon.

        Raises:
            RoutingError: there is no such router, it is dead, or routing has not started.
        """
        self._living_or_raise(router)
        try:
            return self._vtys[router, daemon]
        except KeyError:
            raise RoutingError(f"{router}/{daemon} does not run") from None

    def ospf_neighbours(self, router: str) -> list[dict[str, Any]]:
        """Return a router's OSPF neighbours: ``neighborId``, ``state``, ``interfaceName``, ..."""
        answer = self.vty(router, "ospf6d").ask("show ipv6 ospf6 neighbor")
        return list(answer.get("neighbors", []))

    def pim_neighbours(self, router: str) -> dict[str, int]:
        """Return how many PIM neighbours a router has, per interface."""
        answer = self.vty(router, "pim6d").ask("show ipv6 pim neighbor")
        return {interface: len(neighbours) for interface, neighbours in answer.items()}

    def mroutes(self, router: str) -> dict[str, dict[str, Any]]:
        """Return a router's multicast routes: group, source (``*`` for any), then FRR's fields."""
        return dict(self.vty(router, "pim6d").ask("show ipv6 mroute"))

    def mld_groups(self, router: str) -> dict[str, set[IPv6Address]]:
        """Return the groups that MLD knows, per interface."""
        answer = self.vty(router, "pim6d").ask("show ipv6 mld groups")
        return {
            interface: {IPv6Address(entry["group"]) for entry in value["groups"]}
            for interface, value in answer.items()
            if isinstance(value, dict)
        }

    def group_joined(self, group: IPv6Address) -> dict[str, tuple[str, ...]]:
        """Return the interfaces behind which MLD knows listeners of a group, per router."""
        found = {
            name: tuple(i for i, groups in self.mld_groups(name).items() if group in groups)
            for name in self.routers
        }
        return {name: interfaces for name, interfaces in found.items() if interfaces}

    def describe(self, router: str) -> str:
        """Return how many adjacencies, PIM neighbours and multicast routes it has."""
        adjacencies = [_adjacency(entry) for entry in self.ospf_neighbours(router)]
        routes = sum(
            source != "*" for sources in self.mroutes(router).values() for source in sources
        )
        return (
            f"OSPF {adjacencies.count('Full')} of {len(adjacencies)} Full, "
            f"PIM {sum(self.pim_neighbours(router).values())} neighbours, {routes} (S,G) routes"
        )

    def facts(self) -> dict[str, Any]:
        """Return what routes, its version and how many routers there are."""
        return {
            "unicast": "OSPFv3 (FRR ospf6d)",
            "multicast": "PIM-SM (FRR pim6d)",
            "version": self._programs.version,
            "rendezvous_points": sorted({*self._rps.values(), *self._backups.values()}),
            "routers": len(self._plans),
        }

    # --- what is lacking -----------------------------------------------------------------------

    def _silent(self, socket_name: str, daemon: str) -> list[str]:
        return [
            f"{name}/{daemon} does not listen on {socket_name}"
            for name in self.routers
            if not listens(self._home(name) / socket_name)
        ]

    def _pim6d_gaps(self) -> list[str]:
        """Return where pim6d does not know its interfaces yet.

        zebra tells them in the order of their names, ``pim6reg`` last, which pim6d itself made.
        """
        gaps = []
        for name in self.routers:
            known = self._vtys[name, "pim6d"].ask("show ipv6 pim interface")
            register = known.get("pim6reg", {})
            if register.get("state") != "up" or not register.get("index"):
                gaps.append(f"{name}/pim6d does not know its interfaces")
        return gaps

    def _ospf_gaps(self) -> list[str]:
        gaps = []
        for plan in self._living():
            states: dict[str, list[str]] = {}
            for entry in self.ospf_neighbours(plan.name):
                states.setdefault(entry["interfaceName"], []).append(_adjacency(entry))
            for interface in plan.interfaces:
                wanted, have = self._neighbours(plan, interface), states.get(interface.name, [])
                if wanted != len(have) or any(state != "Full" for state in have):
                    gaps.append(
                        f"{plan.name} wants {wanted} neighbours Full on {interface.name}, "
                        f"has {', '.join(have) or 'none'}"
                    )
        return gaps

    def _pim_gaps(self) -> list[str]:
        gaps = []
        for plan in self._living():
            name = plan.name
            wanted = {i.name for i in plan.interfaces if self._in_use(plan, i)}
            lacking = sorted(wanted - multicast_interfaces(self._namespaces[name]))
            if lacking:
                gaps.append(f"{name}: the kernel routes no multicast on {', '.join(lacking)}")
            have = self.pim_neighbours(name)
            gaps += [
                f"{name} wants {count} PIM neighbours on {interface.name}, "
                f"has {have.get(interface.name, 0)}"
                for interface in plan.interfaces
                if (count := self._neighbours(plan, interface)) != have.get(interface.name, 0)
            ]
            if not self._reaches_rp(plan):
                gaps.append(f"{name} has no path to the rendezvous point {plan.rp}")
        return gaps

    def _reaches_rp(self, plan: RouterPlan) -> bool:
        answer = self.vty(plan.name, "pim6d").ask("show ipv6 pim rp-info")
        entries = answer.get(str(plan.rp), [])
        if plan.backup or self._rps[plan.name] == plan.name:
            return any(entry.get("iAmRP") for entry in entries)
        names = {interface.name for interface in plan.interfaces}
        return any(entry.get("outboundInterface") in names for entry in entries)

    def _write_state(self, router: str) -> None:
        try:
            pim6d = self.vty(router, "pim6d")
            text = "".join(f"# {command}\n{pim6d(command)}\n" for command in _STATE_COMMANDS)
        except TestbedError as error:
            text = f"{error}\n"
        with contextlib.suppress(OSError):  # a full disk is no reason to leave daemons behind
            (self._home(router) / "pim.txt").write_text(text)

    def _require_rp(self) -> None:
        for router in self.routers:
            if self.acting_rp(router) is None:
                backup = self._backups.get(self._plans[router].rp)
                raise RoutingError(
                    f"the rendezvous point {self._rps[router]} is dead and "
                    f"{f'its backup {backup} too' if backup else 'there is no backup'}: "
                    "no group can be joined any more; build the network anew"
                )

    def _await_group(self, group: IPv6Address) -> float:
        return self._await(f"group {group}", lambda: self._group_gaps(group))

    def _group_gaps(self, group: IPv6Address) -> list[str]:
        gaps = []
        for plan in self._living():
            edges = [interface for interface in plan.interfaces if interface.devices]
            known = self.mld_groups(plan.name) if edges else {}
            gaps += [
                f"{plan.name} knows no listener on {edge.name}"
                for edge in edges
                if group not in known.get(edge.name, ())
            ]
            is_rp = self.acting_rp(plan.name) == plan.name
            if (edges or is_rp) and not is_source_specific(group):
                gaps += self._upstream_gaps(plan.name, group)
        return gaps

    def _upstream_gaps(self, router: str, group: IPv6Address) -> list[str]:
        upstream = self.vty(router, "pim6d").ask("show ipv6 pim upstream")
        state = upstream.get(str(group), {}).get("*", {}).get("joinState")
        return [] if state == "Joined" else [f"{router} has not joined it towards the RP: {state}"]

    # --- daemons -------------------------------------------------------------------------------

    def _start_daemon(self, router: str, daemon: str) -> None:
        home = self._home(router)
        command = [
            self._programs.path(f"sbin/{daemon}"),
            *("--config_file", str(home / f"{daemon}.conf")),
            *("--pid_file", str(home / f"{daemon}.pid")),
            *("--socket", str(home / "zserv.api")),
            *("--vty_socket", str(home)),
            *("--vty_port", "0"),
            *("--user", _ROOT, "--group", _ROOT),
            *("--log", "stdout", "--log-level", "informational"),
        ]
        self._launch(router, daemon, command)


def _adjacency(entry: dict[str, Any]) -> str:
    """Return a neighbour's state; two routers that are neither DR nor BDR stay at Twoway."""
    others = {"DROther"}
    if entry["state"] == "Twoway" and {entry["ifState"], entry["interfaceState"]} == others:
        return "Full"
    return str(entry["state"])
