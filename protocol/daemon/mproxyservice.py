"""mproxyd: the multicast proxy's engine with the kernel's routers, MLD, IGMP and the upstream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from protocol.daemon.effects import CommonEffects, Performer
from protocol.daemon.mproxyconfig import MproxyFile
from protocol.daemon.mproxykernel import Ip4Router, Ip6Router, MulticastRouter
from protocol.daemon.mproxylinks import AddressWatch
from protocol.daemon.mproxysockets import IgmpSocket, MldSocket, QuerySocket
from protocol.daemon.mproxyupstream import UpstreamMemberships, check_reverse_path_filter
from protocol.daemon.routerprocess import RouterProcess
from protocol.mproxy.engine import MproxyEngine
from protocol.mproxy.events import (
    InterfaceChanged,
    JoinUpstream,
    LeaveUpstream,
    MessageReceived,
    SendQuery,
    Upcall,
)
from protocol.mproxy.messages import Address, Family


class MproxyService(RouterProcess):
    """The process ``mproxyd``."""

    daemon = "mproxyd"

    def __init__(
        self,
        config: MproxyFile,
        *,
        recording: bool = False,
        exit_with_parent: bool = False,
        log_level: str = "info",
    ) -> None:
        super().__init__(
            config.files,
            config.injected_offset_us,
            recording=recording,
            exit_with_parent=exit_with_parent,
            log_level=log_level,
        )
        self._config = config.config
        self._sockets: dict[Family, QuerySocket] = {}

    def open_all(self, stack: ExitStack) -> None:
        """Take over multicast routing and open MLD and IGMP."""
        config = self._config
        self.engine = MproxyEngine(config)
        self.runtime = self.make_runtime(self.engine)
        self.runtime.perform_with(
            CommonEffects(self.runtime, self.loop, self.trace, self.log, {}).table()
        )
        self.runtime.perform_with(self._table())
        downstreams = [port.interface for port in config.downstreams]
        interfaces = [config.upstream, *downstreams]
        if Family.IPV6 in config.families:
            router6 = Ip6Router(interfaces)
            stack.callback(router6.close)
            mld = MldSocket(downstreams)
            stack.callback(mld.close)
            self._add(Family.IPV6, router6, mld)
            # Upcalls before messages: a packet waits for each.
            self.loop.add_reader(router6.fileno(), lambda: self._deliver(router6.receive))
            self.loop.add_reader(mld.fileno(), lambda: self._deliver(mld.receive))
        if Family.IPV4 in config.families:
            router4 = Ip4Router(interfaces)
            stack.callback(router4.close)
            igmp = IgmpSocket(router4, downstreams)
            self._add(Family.IPV4, router4, igmp)
            self.loop.add_reader(igmp.fileno(), lambda: self._deliver(igmp.receive))
            warning = check_reverse_path_filter(config.upstream)
            if warning:
                self.log.write("warning", warning)
        self._upstream = UpstreamMemberships(config.upstream)
        stack.callback(self._upstream.close)
        self._watch = AddressWatch(downstreams, config.upstream, self._on_address)
        stack.callback(self._watch.close)
        self.loop.add_reader(self._watch.fileno(), self._watch.readable)

    def _add(self, family: Family, router: MulticastRouter, sock: QuerySocket) -> None:
        self.routers[family] = router
        self._sockets[family] = sock

    def begin(self) -> None:
        """Start the engine and tell it the addresses: the start-up queries leave."""
        super().begin()
        self._watch.refresh()

    def _deliver(self, receive: Callable[[], MessageReceived | Upcall | None]) -> None:
        event = receive()
        if event is not None:
            self.runtime.deliver(event)

    def _on_address(self, interface: str, family: Family, address: Address | None) -> None:
        self.runtime.deliver(InterfaceChanged(interface, family, address))

    # Effects.

    def _table(self) -> dict[type[Any], Performer]:
        return {
            **self.routing_table(),
            SendQuery: self._send_query,
            JoinUpstream: self._join_upstream,
            LeaveUpstream: self._leave_upstream,
        }

    def _send_query(self, effect: SendQuery) -> None:
        family = Family.of(effect.destination)
        own = self._watch.known(effect.interface, family)
        if own is not None:
            self._sockets[family].send(effect.interface, own, effect.destination, effect.payload)

    def _join_upstream(self, effect: JoinUpstream) -> None:
        self._upstream.join(effect.group, effect.source)

    def _leave_upstream(self, effect: LeaveUpstream) -> None:
        self._upstream.leave(effect.group, effect.source)

    # Status.

    def more_counters(self) -> Mapping[str, int]:
        """Return what kernel and network refused."""
        counters = Counter(super().more_counters())
        counters.update(self._upstream.counters)
        for sock in self._sockets.values():
            counters.update(sock.counters)
        return counters
