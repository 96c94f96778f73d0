"""The multicast proxy (RFC 4605) as a sans-I/O engine: docs/mproxy.md is its specification."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from protocol.core.counters import RefusalLog, RuleCounters
from protocol.core.engine import (
    CancelTimer,
    Effect,
    Event,
    Instant,
    Log,
    Report,
    SetTimer,
    Started,
    Stopped,
    TimerExpired,
)
from protocol.core.errors import PeerError
from protocol.mproxy import rules
from protocol.mproxy.config import MproxyConfig
from protocol.mproxy.events import (
    CountersRead,
    DeleteMfc,
    FlowCount,
    FlowKey,
    InterfaceChanged,
    JoinUpstream,
    LeaveUpstream,
    MessageReceived,
    ReadCounters,
    SendQuery,
    SetMfc,
    Upcall,
)
from protocol.mproxy.flows import Flow, FlowTable
from protocol.mproxy.listeners import Group
from protocol.mproxy.messages import Address, Family, Query, Record
from protocol.mproxy.port import NS_PER_MS, Port, PortState
from protocol.mproxy.status import describe, source_names

_SWEEP = "mproxy.sweep"
_QUERIER = "mproxy.querier"
_GROUP = "mproxy.group"

_NONE: frozenset[Address] = frozenset()


class MproxyEngine:
    """Listeners, flows and upstream memberships of one proxy."""

    def __init__(self, config: MproxyConfig) -> None:
        self._config = config
        self._running = False
        self._counters = RuleCounters()
        self._refusals = RefusalLog()
        self._addresses: dict[tuple[str, Family], Address] = {}
        self._clear()

    def _clear(self) -> None:
        self._ports = {
            (downstream.interface, family): Port(downstream, family, self._config)
            for downstream in self._config.downstreams
            for family in self._config.families
        }
        self._flows = FlowTable(self._config)
        self._joined: dict[Address, frozenset[Address] | None] = {}

    def handle(self, event: Event, now: Instant) -> Sequence[Effect]:
        """Consume one event; return what is to be done, in order."""
        out: list[Effect] = []
        if isinstance(event, InterfaceChanged):
            self._interface_changed(event, now, out)
        elif isinstance(event, Started):
            self._start(now, out)
        elif not rules.may_act(self._running):
            return out
        elif isinstance(event, Upcall):
            self._upcall(event, now, out)
        elif isinstance(event, MessageReceived):
            self._message(event, now, out)
        elif isinstance(event, TimerExpired):
            self._timer(event.name, now, out)
        elif isinstance(event, CountersRead):
            self._counted(event, now, out)
        elif isinstance(event, Stopped):
            self._stop(out)
        return out

    # Life.

    def _start(self, now: Instant, out: list[Effect]) -> None:
        assert not self._running
        self._running = True
        out.append(SetTimer(_SWEEP, now.mono_ns + self._config.sweep_interval_ms * NS_PER_MS))
        for place, address in self._addresses.items():
            self._port_up(self._ports[place], address, now, out)

    def _stop(self, out: list[Effect]) -> None:
        """MPROXY-14: leave nothing behind."""
        out += [DeleteMfc(flow.key) for flow in self._flows]
        for group, sources in self._joined.items():
            out += [LeaveUpstream(group, source) for source in _memberships(sources)]
        out.append(CancelTimer(_SWEEP))
        for port in self._ports.values():
            out.append(CancelTimer(_querier_timer(port)))
            out += [CancelTimer(_group_timer(port, group.group)) for group in port.listeners]
        self._running = False
        self._clear()

    def _interface_changed(self, event: InterfaceChanged, now: Instant, out: list[Effect]) -> None:
        place = (event.interface, event.family)
        port = self._ports.get(place)
        if port is None:
            return
        if event.address is None:
            self._addresses.pop(place, None)
        else:
            self._addresses[place] = event.address
        if not rules.may_act(self._running):
            return
        if port.state is not PortState.DOWN:
            port.down()
            out.append(CancelTimer(_querier_timer(port)))
            self._role_changed(port, out)
        if event.address is not None:
            self._port_up(port, event.address, now, out)

    def _port_up(self, port: Port, address: Address, now: Instant, out: list[Effect]) -> None:
        port.up(address, now.mono_ns)
        self._querier_due(port, now, out)
        self._role_changed(port, out)

    # MLD and IGMP.

    def _message(self, event: MessageReceived, now: Instant, out: list[Effect]) -> None:
        family = Family.of(event.source)
        port = self._ports.get((event.interface, family))
        if port is None or port.state is PortState.DOWN:
            self._counters.count("mproxy.ignored_port_down")
            return
        if event.source == port.address:
            return
        try:
            self._check_rate(port, event.source, now)
            rules.check_on_link(event.hop_limit, event.router_alert, family.number)
            rules.check_sender(event.source, port.prefixes)
            message = port.decode(event.payload)
        except PeerError as error:
            self._refuse(event.source, error, now, out)
            return
        if isinstance(message, Query):
            self._query(port, message, event.source, now, out)
            return
        for position, record in enumerate(message.records):
            if not rules.may_pass(record.group, self._config):
                continue
            try:
                if position:
                    self._check_rate(port, event.source, now)
                self._record(port, record, event.source, now, out)
            except PeerError as error:
                self._refuse(event.source, error, now, out)

    @staticmethod
    def _check_rate(port: Port, host: Address, now: Instant) -> None:
        host_allows = port.buckets.host_allows(host, now.mono_ns)
        rules.check_rate(host_allows, host_allows and port.buckets.lan_allows(now.mono_ns))

    def _refuse(self, source: Address, error: PeerError, now: Instant, out: list[Effect]) -> None:
        self._counters.count(error.rule)
        if self._refusals.note(str(source), error.rule, error.reason, now):
            out.append(Log("warning", f"refused {source}: {error}"))

    def _query(
        self, port: Port, query: Query, source: Address, now: Instant, out: list[Effect]
    ) -> None:
        before = port.state
        if not port.heard(query, source, now.mono_ns):
            return
        out.append(SetTimer(_querier_timer(port), port.wake_mono_ns))
        if port.state is not before:
            self._role_changed(port, out)
        group = port.listeners.asked_by_querier(query, port.times, now.mono_ns)
        if group is not None:
            self._settle(port, group, group.wanted, now, out)

    def _record(
        self, port: Port, record: Record, host: Address, now: Instant, out: list[Effect]
    ) -> None:
        listeners = port.listeners
        before = listeners.wish(record.group)
        group = listeners.take(record, host, port.times, now.mono_ns, asking=port.serves)
        if group is not None:
            self._settle(port, group, before, now, out)

    def _settle(
        self,
        port: Port,
        group: Group,
        before: frozenset[Address] | None,
        now: Instant,
        out: list[Effect],
    ) -> None:
        """Draw the consequences of a change, or of time, for one group of a LAN."""
        listeners, address = port.listeners, group.group
        listeners.expire(group, now.mono_ns)
        after = listeners.wish(address)
        if after != before:
            self._refit(self._flows.of_group(address), out)
            self._fit_upstream(address, out)
            fields = {
                "interface": port.interface,
                "group": str(address),
                "sources": source_names(after),
            }
            out.append(Report("mproxy.listeners", fields))
        if listeners.get(address) is None:
            out.append(CancelTimer(_group_timer(port, address)))
            return
        questions = listeners.questions(group, port.times, now.mono_ns, asking=port.serves)
        for question in questions:
            self._send(port, question, out)
        # A report that only prolongs does not touch the timer: it fires, looks, and is set again.
        wake_mono_ns = group.wake_mono_ns
        if not group.timer_mono_ns or wake_mono_ns < group.timer_mono_ns:
            group.timer_mono_ns = wake_mono_ns
            out.append(SetTimer(_group_timer(port, address), wake_mono_ns))

    def _send(self, port: Port, query: Query, out: list[Effect]) -> None:
        destination, payload = port.query_bytes(query)
        self._counters.count("mproxy.queries_sent")
        out.append(SendQuery(port.interface, destination, payload))

    def _timer(self, name: str, now: Instant, out: list[Effect]) -> None:
        if name == _SWEEP:
            interval_ns = self._config.sweep_interval_ms * NS_PER_MS
            out.append(SetTimer(_SWEEP, now.mono_ns + interval_ns))
            if len(self._flows):
                out.append(ReadCounters(tuple(flow.key for flow in self._flows)))
            return
        kind, interface, subject = name.split(" ")
        if kind == _QUERIER:
            self._querier_due(self._ports[(interface, Family(int(subject)))], now, out)
            return
        address = ip_address(subject)
        port = self._ports[(interface, Family.of(address))]
        group = port.listeners.get(address)
        if group is not None:
            group.timer_mono_ns = 0
            self._settle(port, group, group.wanted, now, out)

    def _querier_due(self, port: Port, now: Instant, out: list[Effect]) -> None:
        before = port.state
        query = port.due(now.mono_ns)
        if query is not None:
            self._send(port, query, out)
        if port.state is not before:
            self._role_changed(port, out)
        if port.wake_mono_ns:
            out.append(SetTimer(_querier_timer(port), port.wake_mono_ns))

    def _role_changed(self, port: Port, out: list[Effect]) -> None:
        """MPROXY-4: begin or cease to forward to a LAN."""
        fields = {
            "interface": port.interface,
            "family": port.family.number,
            "state": port.state.value,
            "querier": None if port.querier is None else str(port.querier),
        }
        out.append(Report("mproxy.querier", fields))
        self._refit([f for f in self._flows if Family.of(f.key.group) is port.family], out)

    # Upstream.

    def _fit_upstream(self, group: Address, out: list[Effect]) -> None:
        """MPROXY-13: join first and leave afterwards, so that nothing is missed in between."""
        ports = [port for port in self._ports.values() if port.family is Family.of(group)]
        wishes = [port.listeners.wish(group) for port in ports]
        wish = rules.upstream_wish(wishes, self._config.signal_upstream)
        joined = self._joined.get(group, _NONE)
        if wish == joined:
            return
        new, old = _memberships(wish), _memberships(joined)
        out += [JoinUpstream(group, source) for source in new if source not in old]
        out += [LeaveUpstream(group, source) for source in old if source not in new]
        if wish == _NONE:
            self._joined.pop(group, None)
        else:
            self._joined[group] = wish

    # Forwarding.

    def _upcall(self, event: Upcall, now: Instant, out: list[Effect]) -> None:
        """Give the waiting packet its route, first of all; then say what was wrong with it.

        The route is always the right one for its source and group, wherever the packet came in: the
        kernel then drops the packet itself, and never holds back proper packets of the flow.
        """
        key = FlowKey(event.source, event.group)
        interface = rules.rpf_interface(event.source, self._config)
        passes = rules.may_pass(event.group, self._config)
        strayed = interface != event.interface
        outs = self._outs(key, interface)
        out.append(SetMfc(key, interface, outs))
        known = self._flows.get(key)
        if known is not None:
            known.outs = outs
        else:
            flow = Flow(key, interface, outs, now.mono_ns, suspect=strayed or not passes)
            for victim in self._flows.add(flow):
                self._counters.count("MPROXY-11")
                out.append(DeleteMfc(victim.key))
        if strayed:
            reason = f"source on {event.interface}, belongs to {interface}"
            self._refuse(event.source, PeerError("MPROXY-9", reason), now, out)
        elif not passes:
            reason = f"{event.group} is not forwarded"
            self._refuse(event.source, PeerError("MPROXY-8", reason), now, out)
        else:
            self._report_flow(key, interface, outs, out)

    def _outs(self, key: FlowKey, interface: str) -> tuple[str, ...]:
        """MPROXY-4, MPROXY-8 and MPROXY-10: where a flow goes."""
        if not rules.may_pass(key.group, self._config):
            return ()
        family = Family.of(key.group)
        listening = [
            port.interface
            for port in self._ports.values()
            if port.family is family and port.serves and port.listeners.wants(*key)
        ]
        return rules.outs_of(interface, listening, self._config.upstream)

    def _refit(self, flows: Sequence[Flow], out: list[Effect]) -> None:
        """Change the routes that listeners, or our role on a LAN, have changed."""
        for flow in flows:
            outs = self._outs(flow.key, flow.interface)
            if outs != flow.outs:
                flow.outs = outs
                out.append(SetMfc(flow.key, flow.interface, outs))
                self._report_flow(flow.key, flow.interface, outs, out)

    @staticmethod
    def _report_flow(
        key: FlowKey, interface: str, outs: tuple[str, ...], out: list[Effect]
    ) -> None:
        fields = {
            "group": str(key.group),
            "source": str(key.source),
            "in": interface,
            "outs": list(outs),
        }
        out.append(Report("mproxy.forward", fields))

    def _counted(self, event: CountersRead, now: Instant, out: list[Effect]) -> None:
        """MPROXY-12: see which flows still carry something."""
        idle_ns = self._config.flow_idle_ms * NS_PER_MS
        for flow in list(self._flows):
            count = event.counts.get(flow.key)
            if count is None:
                self._flows.remove(flow)
                continue
            self._take_count(flow, count, now)
            if rules.is_idle(flow.active_mono_ns, now.mono_ns, idle_ns):
                self._flows.remove(flow)
                fields = {"group": str(flow.key.group), "source": str(flow.key.source)}
                out += [DeleteMfc(flow.key), Report("mproxy.expire", fields)]

    def _take_count(self, flow: Flow, count: FlowCount, now: Instant) -> None:
        strays = count.refused - flow.count.refused
        proper = count.packets - flow.count.packets - strays
        flow.count = count
        if strays > 0:
            self._counters.count("MPROXY-9", strays)
        if proper > 0 and rules.may_pass(flow.key.group, self._config):
            self._flows.touch(flow, now.mono_ns)

    # Status.

    def status(self, now: Instant) -> dict[str, Any]:
        """Describe the present state as plain JSON values."""
        return describe(self._config, self._ports.values(), self._flows, self._joined, now) | {
            "counters": self._counters.as_dict(),
            "refused": [refusal.as_dict() for refusal in self._refusals.recent()],
        }


def _memberships(wish: frozenset[Address] | None) -> list[Address | None]:
    """Return the single memberships of a wish, in order."""
    return [None] if wish is None else [*sorted(wish)]


def _querier_timer(port: Port) -> str:
    return f"{_QUERIER} {port.interface} {port.family.number}"


def _group_timer(port: Port, group: Address) -> str:
    return f"{_GROUP} {port.interface} {group}"
