"""The multicast flows of a gateway: from the leg that leads to the source to where we speak."""

from __future__ import annotations

from protocol.core.engine import Effect, Instant, Report
from protocol.core.errors import PeerError
from protocol.gateway import rules
from protocol.gateway.config import GatewayConfig
from protocol.gateway.reach import Reach
from protocol.mproxy.events import CountersRead, DeleteMfc, FlowKey, ReadCounters, SetMfc, Upcall
from protocol.mproxy.flows import Flow, FlowTable
from protocol.mproxy.rules import is_idle

_NS_PER_MS = 1_000_000


class Forwarding:
    """Decides of every flow where it comes from and where it goes.

    Attributes:
        flows: those that the kernel has a route for.
    """

    def __init__(self, config: GatewayConfig) -> None:
        self.flows = FlowTable(config)
        self._config = config
        self._tunnels = {leg.partition: leg.tunnel for leg in config.legs}
        self._partitions = {leg.tunnel: leg.partition for leg in config.legs}

    def upcall(
        self, event: Upcall, reach: Reach, now: Instant, out: list[Effect]
    ) -> PeerError | None:
        """Give a waiting packet its route, first of all; return what is wrong with it.

        The route is the right one for its source, wherever the packet came in: the kernel then
        drops a stray one itself, and never holds back the proper packets of the flow.
        """
        key = FlowKey(event.source, event.group)
        interface, outs = self._route(key, reach, event.interface)
        passes = rules.passes(event.group, self._config)
        strayed = interface != event.interface
        out.append(SetMfc(key, interface, outs))
        known = self.flows.get(key)
        if known is None:
            lost = reach.owners.find(event.source) is None
            flow = Flow(key, interface, outs, now.mono_ns, suspect=strayed or lost or not passes)
            out += [DeleteMfc(victim.key) for victim in self.flows.add(flow)]
        else:
            known.interface, known.outs = interface, outs
        if strayed:
            return PeerError("GATE-15", f"source on {event.interface}, is behind {interface}")
        if not passes:
            return PeerError("GATE-16", f"{event.group} does not cross")
        if reach.owners.find(event.source) is None:
            return PeerError("GATE-15", "source of no partition that we know")
        self._report(key, interface, outs, out)
        return None

    def _route(self, key: FlowKey, reach: Reach, arrived: str) -> tuple[str, tuple[str, ...]]:
        """Return from which interface a flow is accepted, and where it goes."""
        origin = reach.owners.find(key.source)
        leg = reach.leg_of(origin)
        if leg is None or origin is None or not rules.passes(key.group, self._config):
            return (arrived if leg is None else self._tunnels[leg]), ()
        spoken = (name for name in self._tunnels if origin in reach.spoken.get(name, {}))
        outs = rules.outs_of(leg, leg, spoken)
        return self._tunnels[leg], tuple(self._tunnels[name] for name in outs)

    def refit(self, reach: Reach, out: list[Effect]) -> None:
        """Change the routes that other ways have changed."""
        for flow in list(self.flows):
            interface, outs = self._route(flow.key, reach, flow.interface)
            if (interface, outs) != (flow.interface, flow.outs):
                flow.interface, flow.outs = interface, outs
                out.append(SetMfc(flow.key, interface, outs))
                self._report(flow.key, interface, outs, out)

    @staticmethod
    def _report(key: FlowKey, interface: str, outs: tuple[str, ...], out: list[Effect]) -> None:
        fields = {
            "group": str(key.group),
            "source": str(key.source),
            "in": interface,
            "outs": list(outs),
        }
        out.append(Report("gateway.forward", fields))

    def sweep(self) -> list[Effect]:
        """Ask which flows still carry something."""
        return [ReadCounters(tuple(flow.key for flow in self.flows))]

    def counted(self, event: CountersRead, now: Instant, out: list[Effect]) -> int:
        """Remove idle flows; return how many packets came in from where they do not belong."""
        strayed = 0
        idle_ns = self._config.flow_idle_ms * _NS_PER_MS
        for flow in list(self.flows):
            count = event.counts.get(flow.key)
            if count is None:
                self.flows.remove(flow)
                continue
            strays = count.refused - flow.count.refused
            proper = count.packets - flow.count.packets - strays
            flow.count = count
            strayed += max(strays, 0)
            if proper > 0:
                self.flows.touch(flow, now.mono_ns)
            if is_idle(flow.active_mono_ns, now.mono_ns, idle_ns):
                self.flows.remove(flow)
                out.append(DeleteMfc(flow.key))
        return strayed

    def end(self) -> list[Effect]:
        """Remove every route."""
        return [DeleteMfc(flow.key) for flow in self.flows]
