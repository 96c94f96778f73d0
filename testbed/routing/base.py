"""What both ways of routing have in common: FRR's daemons, or static routes where it is not built.

Use::

    routing = make_routing(router_plans(topology), namespaces, network.pid, processes, directory)
    routing.start()                              # right after the network is built
    ...                                          # time for other work: the protocols converge
    report = routing.wait_ready()                # RoutingReport, or an error naming who lacks what
    ...                                          # the devices start and join
    routing.wait_ready(groups=[black_group])     # and MLD knows them wherever there are devices
    routing.stop()
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path
from typing import Any, Final

from testbed.errors import TestbedError
from testbed.namespaces import NetNamespace
from testbed.processes import ProcessTable
from testbed.routing.config import RoutingTimers
from testbed.routing.kernel import MIFS_MAX, RoutingError, as_listed, routed
from testbed.routing.plan import RouterInterface, RouterPlan
from testbed.routing.programs import Programs
from testbed.routing.vty import VtyLostError
from testbed.wait import wait_until

_PAUSE_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class RoutingOptions:
    """How the black routers route.

    Attributes:
        kind: ``auto`` (FRR if it is built, else static), ``frr`` or ``static``.
        timers: of the routing protocols.
        deadline_s: longest time that each stage of starting and converging may take.
    """

    kind: str = "auto"
    timers: RoutingTimers = field(default_factory=RoutingTimers)
    deadline_s: float = 60.0


@dataclass(frozen=True, slots=True)
class RoutingReport:
    """When the routers were seen ready, in seconds since ``start`` or the last ``kill_router``.

    Attributes:
        kind: ``frr`` or ``static``.
        daemons_s: until all daemons answered and had their configuration; since ``start`` always.
        adjacencies_s: until all OSPF adjacencies were Full; None without OSPF.
        routes_s: until every router's kernel had a route to every prefix.
        pim_s: until the kernel routed multicast on all interfaces, all PIM neighbours were there
            and every router had a route to the rendezvous point.
        groups_s: per group asked for, until MLD and PIM knew it wherever there are devices.
    """

    kind: str
    daemons_s: float
    adjacencies_s: float | None
    routes_s: float
    pim_s: float
    groups_s: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values for a manifest."""
        return asdict(self) | {"groups_s": dict(self.groups_s)}


class Routing(ABC):
    """The black routers of a run.

    Args:
        plans: what each router must be told.
        namespaces: by router's name; may hold more.
        pid_of: returns the process that holds a node's namespaces.
        processes: of the run; the daemons are added as ``<router>/<daemon>``.
        directory: of the run; each router gets a private directory in it, which keeps its logs.
        programs: that do it.
        options: how.

    Raises:
        RoutingError: the plans cannot be carried out.
    """

    def __init__(
        self,
        plans: Sequence[RouterPlan],
        namespaces: Mapping[str, NetNamespace],
        pid_of: Callable[[str], int],
        processes: ProcessTable,
        directory: Path,
        *,
        programs: Programs,
        options: RoutingOptions,
    ) -> None:
        self.options = options
        self._programs = programs
        self._plans = {plan.name: plan for plan in plans}
        self._namespaces = namespaces
        self._pid_of = pid_of
        self._processes = processes
        self._directory = directory
        self._dead: set[str] = set()
        self._own: list[str] = []
        self._since = 0.0
        self._daemons_s = 0.0
        loopbacks = {plan.loopback.ip: plan.name for plan in plans if plan.loopback}
        for plan in plans:
            # One MIF is PIM's register interface, one the loopback's.
            if len(plan.interfaces) > MIFS_MAX - 2:
                raise RoutingError(
                    f"router {plan.name} has {len(plan.interfaces)} links; the kernel routes "
                    f"multicast on {MIFS_MAX - 2} at most: share the devices among more routers"
                )
            if plan.rp not in loopbacks:
                raise RoutingError(
                    f"the rendezvous point {plan.rp} of router {plan.name} is no router's loopback"
                )
        self._rps = {plan.name: loopbacks[plan.rp] for plan in plans}
        self._backups = {plan.rp: plan.name for plan in plans if plan.backup}

    @abstractmethod
    def start(self) -> None:
        """Start routing; returns when the daemons have their configuration.

        Raises:
            TestbedError: a daemon cannot be started, died or refused its configuration.
        """

    @abstractmethod
    def wait_ready(self, groups: Iterable[IPv6Address] = ()) -> RoutingReport:
        """Wait until unicast and multicast routing has converged among the living routers.

        Args:
            groups: the same must hold for these: every wire with devices has a listener.

        Raises:
            TestbedError: a daemon died, or the deadline passed; names routers and what they lack.
        """

    @abstractmethod
    def group_joined(self, group: IPv6Address) -> dict[str, tuple[str, ...]]:
        """Return the interfaces behind which a group is wanted, per router that has any."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return what a manifest says about routing."""

    @abstractmethod
    def stop(self) -> None:
        """Stop the daemons and remove their routes; logs stay. Idempotent."""

    @abstractmethod
    def kill_router(self, name: str) -> None:
        """Fault injection: the router loses its power; its daemons die and its interfaces go down.

        It stays dead. The others find ways around it if there are any; wires that only it served
        are cut off, and so are all groups if it was the rendezvous point and there is no backup.

        Raises:
            RoutingError: there is no such router, or it is dead already.
        """

    @abstractmethod
    def describe(self, router: str) -> str:
        """Return in a few words how a living router is doing.

        Raises:
            TestbedError: it does not answer.
        """

    # --- for both ------------------------------------------------------------------------------

    @property
    def routers(self) -> tuple[str, ...]:
        """Return the names of the living routers."""
        return tuple(name for name in self._plans if name not in self._dead)

    def acting_rp(self, router: str) -> str | None:
        """Return the router that is a router's rendezvous point now, None if all are dead."""
        candidates = (self._rps[router], self._backups.get(self._plans[router].rp))
        return next((name for name in candidates if name in self.routers), None)

    def summary(self) -> dict[str, str]:
        """Return in a few words how every router is doing, by name."""
        return {name: self._brief(name) for name in self._plans}

    def _brief(self, router: str) -> str:
        if router in self._dead:
            return "dead"
        try:
            return self.describe(router)
        except TestbedError as error:
            return str(error)

    def _living(self) -> list[RouterPlan]:
        return [plan for name, plan in self._plans.items() if name not in self._dead]

    def _living_or_raise(self, name: str) -> RouterPlan:
        if name not in self._plans:
            known = ", ".join(self._plans) or "none"
            raise RoutingError(f"there is no router {name!r} in this network; there are: {known}")
        if name in self._dead:
            raise RoutingError(f"router {name} is dead already")
        return self._plans[name]

    def _home(self, router: str) -> Path:
        return self._directory / router

    def _launch(self, router: str, daemon: str, command: Sequence[str]) -> None:
        name = f"{router}/{daemon}"
        output = self._home(router) / f"{daemon}.log"
        self._processes.start(name, command, output=output, node_pid=self._pid_of(router))
        self._own.append(name)

    def _prefixes(self, plans: Iterable[RouterPlan]) -> set[IPv6Network]:
        """Return what these routers have to announce."""
        found = set()
        for plan in plans:
            if plan.loopback is not None:
                found.add(plan.loopback.network)
            if plan.backup:
                found.add(IPv6Network(plan.rp))
            for interface in plan.interfaces:
                if self._in_use(plan, interface):
                    found.update(address.network for address in interface.addresses)
        return found

    def _in_use(self, plan: RouterPlan, interface: RouterInterface) -> bool:
        """Return whether a wire is of use: a cable to a dead router has no carrier."""
        return bool(interface.devices or not interface.routers or self._neighbours(plan, interface))

    def _neighbours(self, plan: RouterPlan, interface: RouterInterface) -> int:
        """Return how many living routers share an interface's wire."""
        networks = {address.network for address in interface.addresses}
        return sum(
            any(networks.intersection(a.network for a in other.addresses))
            for living in self._living()
            if living.name != plan.name
            for other in living.interfaces
        )

    def _route_gaps(self) -> list[str]:
        """Return what is wrong with the routers' unicast routes."""
        wanted = self._prefixes(self._living())
        # A living router may go on announcing its end of a cable to a dead one.
        living = {
            a.network for plan in self._living() for i in plan.interfaces for a in i.addresses
        }
        gone = self._prefixes(self._plans[name] for name in self._dead) - wanted - living
        gaps = []
        for plan in self._living():
            present = routed(self._namespaces[plan.name])
            lacking = sorted(network for network in wanted if as_listed(network) not in present)
            stale = sorted(network for network in gone if as_listed(network) in present)
            if lacking:
                gaps.append(f"{plan.name} has no route to {_few(lacking)}")
            if stale:
                gaps.append(f"{plan.name} still has a route to {_few(stale)}")
        return gaps

    def _await(self, stage: str, gaps: Callable[[], list[str]]) -> float:
        """Wait until nothing is lacking; return the seconds since the start."""

        def lacking() -> list[str]:
            self._processes.check()
            try:
                return gaps()
            except VtyLostError as error:  # if the daemon has died, the next check says so
                return [str(error)]

        wait_until(
            lambda: not lacking(),
            self.options.deadline_s,
            lambda: f"{stage}: {'; '.join(lacking()) or 'complete, but too late'}",
            pause_s=_PAUSE_S,
        )
        return round(time.monotonic() - self._since, 3)


def _few(networks: Sequence[IPv6Network]) -> str:
    shown = ", ".join(map(str, networks[:3]))
    return shown + (f" and {len(networks) - 3} more" if len(networks) > 3 else "")
