"""gatewayd: the gateway's engine with the legs' idpd, the black channels, multicast routing."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from protocol.core.engine import DatagramReceived
from protocol.daemon.config import DeviceConfig
from protocol.daemon.controlclient import ControlClient
from protocol.daemon.effects import CommonEffects, Performer
from protocol.daemon.gatewayconfig import ROUTE_METRIC, GatewayFile
from protocol.daemon.gatewayidp import TIMEOUT_MS, LegIdpd
from protocol.daemon.gatewaytrust import LegTrust
from protocol.daemon.groupsocket import GroupSocket
from protocol.daemon.keys import KeyDirectory
from protocol.daemon.mproxykernel import Ip4Router, Ip6Router
from protocol.daemon.mproxysockets import IgmpSocket
from protocol.daemon.ownidentity import identity_files, read_identity
from protocol.daemon.reconcile import remove_own_routes
from protocol.daemon.routerprocess import RouterProcess
from protocol.daemon.routes import GATEWAY_PROTOCOL, KernelRoutes, MemoryRoutes, Routes
from protocol.daemon.sockets import interface_index
from protocol.daemon.sourcefilter import program
from protocol.gateway.engine import GatewayEngine
from protocol.gateway.events import (
    AnnouncePrefix,
    DeleteRoute,
    FetchKey,
    KeyFetched,
    LegPolled,
    LegView,
    SetRoute,
    WithdrawPrefix,
)
from protocol.gateway.messages import KIND_TABLE
from protocol.identity.envelope import KIND_OFFSET, PROTOCOL_IDP, VERSION
from protocol.identity.identity import Identity
from protocol.idp.events import AddRoute, RemoveRoute, RouteOperation
from protocol.mproxy.events import (
    Upcall,
)
from protocol.mproxy.messages import Family

_POLL = "gatewayd.poll"
_UDP_HEADER_BYTES = 8


def kind_filter() -> array[int]:
    """Return a classic BPF program (linux/filter.h) that passes gateways' messages only.

    What is malformed is idpd's to count: it has the same port.
    """
    load_half, load_byte, jump_if_equal, give = 0x28, 0x30, 0x15, 0x06
    lines = [
        (load_half, 0, 0, _UDP_HEADER_BYTES),
        (jump_if_equal, 0, 3, VERSION << 8 | PROTOCOL_IDP),
        (load_byte, 0, 0, _UDP_HEADER_BYTES + KIND_OFFSET),
        (jump_if_equal, 0, 1, KIND_TABLE),
        (give, 0, 0, 0xFFFFFFFF),
        (give, 0, 0, 0),
    ]
    return program(lines)


class GatewayService(RouterProcess):
    """The process ``gatewayd``."""

    daemon = "gatewayd"

    def __init__(
        self,
        config: GatewayFile,
        *,
        recording: bool = False,
        exit_with_parent: bool = False,
        log_level: str = "info",
    ) -> None:
        first = next(iter(config.legs.values()))
        super().__init__(
            config.files,
            first.injected_offset_us,
            recording=recording,
            exit_with_parent=exit_with_parent,
            log_level=log_level,
        )
        self._file = config
        self._identities: dict[str, Identity] = {}
        self._channels: dict[str, GroupSocket] = {}
        self._idpds: dict[str, LegIdpd] = {}
        self._keys: dict[str, KeyDirectory] = {}
        self._routes: dict[str, Routes] = {leg: MemoryRoutes() for leg in config.legs}
        self._failed: Counter[str] = Counter()

    def open_all(self, stack: ExitStack) -> None:
        """Open every leg's channel and control socket, and take over multicast routing."""
        for partition, leg in self._file.legs.items():
            self._open_leg(partition, leg, stack)
        self._trust = LegTrust(
            {leg: partial(self._reread, leg) for leg in self._idpds},
            {leg: idpd.reread_trust for leg, idpd in self._idpds.items()},
            self.log.write,
        )
        self.engine = GatewayEngine(self._file.config, self._identities)
        self.runtime = self.make_runtime(self.engine)
        common = CommonEffects(self.runtime, self.loop, self.trace, self.log, self._channels)
        self.runtime.perform_with(common.table())
        self.runtime.perform_with(self._table())
        if self._file.tunnels:
            self._open_routers(stack)
        for partition, channel in self._channels.items():
            self.loop.add_reader(channel.fileno(), self._reader(partition, channel))

    def _open_leg(self, partition: str, leg: DeviceConfig, stack: ExitStack) -> None:
        identity = read_identity(leg, self.clock.now(), self.log)
        self._identities[partition] = identity
        channel = GroupSocket(
            leg.black_interface,
            leg.device.address,
            leg.idp_channel,
            leg.multicast_hops,
            lambda: [peer.address for peer in identity.trusted_peers()],
            group_only=True,
        )
        stack.callback(channel.close)
        channel.attach_filter(kind_filter())
        channel.join()
        self._channels[partition] = channel
        client = ControlClient(
            leg.device.control_socket("idpd"), self.loop, f"gatewayd.ask.{partition}", TIMEOUT_MS
        )
        idpd = LegIdpd(client, self._teller(partition), self.log.write)
        stack.callback(idpd.close)
        self._idpds[partition] = idpd
        self._keys[partition] = KeyDirectory(leg.key_directory)

    def _open_routers(self, stack: ExitStack) -> None:
        for leg in self._file.config.legs:
            routes = KernelRoutes(interface_index(leg.tunnel), ROUTE_METRIC, GATEWAY_PROTOCOL)
            stack.callback(routes.close)
            remove_own_routes(routes)  # of a killed gatewayd
            self._routes[leg.partition] = routes
        tunnels = [leg.tunnel for leg in self._file.config.legs]
        router6 = Ip6Router(tunnels)
        stack.callback(router6.close)
        self.routers[Family.IPV6] = router6
        self.loop.add_reader(router6.fileno(), self._upcalls(router6))
        if self._file.ipv4:
            router4 = Ip4Router(tunnels)
            stack.callback(router4.close)
            self.routers[Family.IPV4] = router4
            # The socket of IPv4's router is also that of IGMP, of which a tunnel carries none.
            self.loop.add_reader(router4.fileno(), self._upcalls(IgmpSocket(router4, ())))

    # The loop's callbacks.

    def _reader(self, partition: str, channel: GroupSocket) -> Callable[[], None]:
        def readable() -> None:
            received = channel.receive()
            if received is not None and self.running:
                self.runtime.deliver(DatagramReceived(partition, received.source, received.payload))

        return readable

    def _teller(self, partition: str) -> Callable[[LegView | None], None]:
        def tell(view: LegView | None) -> None:
            if self.running:
                if view is not None:
                    known = self._identities[partition].peer_by_address
                    strangers = any(known(member.address) is None for member in view.up)
                    now = self.clock.now()
                    self._trust.on_view(partition, view, strangers=strangers, now=now)
                self.runtime.deliver(LegPolled(partition, view))

        return tell

    def _reread(self, partition: str) -> None:
        """Read a leg's certificates and revocation lists again.

        Raises:
            LocalError: one of them is malformed; nothing was changed.
        """
        from protocol.identity.certificates import reload_trust

        files = identity_files(self._file.legs[partition])
        reload_trust(self._identities[partition], files, self.clock.now().wall_ns)

    def _upcalls(self, router: Ip6Router | IgmpSocket) -> Callable[[], None]:
        def readable() -> None:
            event = router.receive()
            if isinstance(event, Upcall):
                self.runtime.deliver(event)

        return readable

    def _poll(self, _name: str) -> None:
        for idpd in self._idpds.values():
            idpd.poll()
        next_ns = self.clock.now().mono_ns + self._file.poll_interval_ms * 1_000_000
        self.loop.set_timer(_POLL, next_ns, self._poll)

    # Life.

    def begin(self) -> None:
        """Start the engine, and ask the legs."""
        super().begin()
        self._poll(_POLL)

    def end(self) -> None:
        """Withdraw what was announced, and remove every route."""
        self.loop.cancel_timer(_POLL)
        super().end()

    # Effects.

    def _table(self) -> dict[type[Any], Performer]:
        return {
            FetchKey: self._fetch_key,
            AnnouncePrefix: lambda effect: self._idpds[effect.leg].announce(effect.prefix),
            WithdrawPrefix: lambda effect: self._idpds[effect.leg].withdraw(effect.prefix),
            SetRoute: lambda effect: self._route(effect.leg, AddRoute(effect.prefix)),
            DeleteRoute: lambda effect: self._route(effect.leg, RemoveRoute(effect.prefix)),
            **self.routing_table(),
        }

    def _fetch_key(self, effect: FetchKey) -> None:
        group_key = self._keys[effect.leg].fetch(str(effect.epoch))
        self.runtime.deliver(KeyFetched(effect.leg, effect.epoch, group_key))

    def _route(self, leg: str, operation: RouteOperation) -> None:
        (outcome,) = self._routes[leg].apply([operation])
        if not outcome.ok:
            self._failed["gateway.route_failed"] += 1
            self.log.write("warning", f"route {operation.prefix} by leg {leg}: {outcome.text}")

    # Status.

    def more_counters(self) -> Mapping[str, int]:
        """Return what sockets, kernel and the legs' idpd refused."""
        counters = Counter(super().more_counters())
        counters.update(self._failed)
        parts = (self._channels, self._idpds)
        for source in [part.counters for table in parts for part in table.values()]:
            counters.update(source)
        return counters
