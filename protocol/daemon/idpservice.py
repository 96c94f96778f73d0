"""idpd: IDP's engine with the SAD and SPD, the ESP group, the carrier and the time server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from protocol.core.engine import DatagramReceived, Engine
from protocol.core.errors import LocalError
from protocol.daemon.config import ChannelSection
from protocol.daemon.control import Handler
from protocol.daemon.idpeffects import IdpEffects
from protocol.daemon.kernelwatch import KernelWatch, watch_routes, watch_xfrm
from protocol.daemon.link import LinkWatch
from protocol.daemon.pairsocket import PairSocket
from protocol.daemon.reconcile import read_own, remove_own, remove_own_routes
from protocol.daemon.routes import KernelRoutes, MemoryRoutes, Routes
from protocol.daemon.service import Service, State
from protocol.daemon.sockets import EspMembership, LocalSocket, interface_index
from protocol.daemon.sourcefilter import of_form
from protocol.daemon.timeserver import TimeServer
from protocol.daemon.trustcache import TrustCache
from protocol.identity import PROTOCOL_IDP
from protocol.identity.envelope import kind_of
from protocol.identity.identity import Identity
from protocol.idp import lighthello, notice, pairseal
from protocol.idp.config import Unicast
from protocol.idp.engine import IdpEngine
from protocol.idp.events import (
    DropTrust,
    KeepTrust,
    KernelChanged,
    LinkChanged,
    PrefixAdded,
    PrefixRemoved,
    SaExpired,
    TrustReread,
)
from protocol.idp.messages import MessageKind
from protocol.idp.unicast import CHANNEL as PAIR
from protocol.ipsec.backend import IpsecBackend
from protocol.ipsec.memory import MemoryBackend
from protocol.ipsec.model import Prefix
from protocol.ipsec.pairpolicy import link_local

if TYPE_CHECKING:
    from protocol.daemon.saexpiry import SaExpiryWatch

READ_AT_ONCE = 16
"""Hellos, or announcements, that are read before timers get their turn: a newcomer is answered by
all at once, and what follows from the answers goes into one batch."""


WITHOUT_ENVELOPE = (notice.PREAMBLE, pairseal.PREAMBLE)
"""How the messages begin that IDP sends without one; light hellos besides."""

LOOK_TIMER = "daemon.look"
LOOK_NS = 60_000_000_000
"""Between two readings of the kernel when it has announced nothing."""


@runtime_checkable
class WithPort(Protocol):
    """An SA backend whose changes the kernel announces under one netlink port."""

    port: int


class IdpService(Service):
    """The process ``idpd``."""

    daemon = "idpd"
    read_at_once = READ_AT_ONCE
    form = of_form(
        PROTOCOL_IDP, (MessageKind.PREFIXES, MessageKind.LIGHT_HELLO, MessageKind.NOTICE)
    )

    _backend: IpsecBackend
    _time_server: TimeServer | None = None
    _pair: PairSocket | None = None
    _expiry: SaExpiryWatch | None = None

    def make_engine(self, identity: Identity) -> Engine:
        """Return the parked engine."""
        config = self.config
        self._held: dict[Prefix, int] = {}
        self._idp = IdpEngine(
            config.idp, identity, config.local.secret, self.make_key_source(), self.policy
        )
        return self._idp

    def channel(self) -> ChannelSection:
        """Return group and port of IDP."""
        return self.config.idp_channel

    def open_local(self) -> LocalSocket:
        """Open the channel to miked."""
        return LocalSocket(self.config.local.idp_port, self.config.local.mike_port)

    def prepare(self, stack: ExitStack) -> None:
        """Open backend, ESP group, carrier watch and time server; remove a dead daemon's SAs."""
        config = self.config
        self._backend = self._open_backend()
        stack.callback(self._backend.close)
        self._open_pair_channel(stack)
        self._remove_own("of a killed daemon")
        self._esp = EspMembership(
            config.black_interface,
            config.device.address,
            config.idp.sa_group,
            self.known_addresses,
        )
        stack.callback(self._esp.leave)
        effects = IdpEffects(
            self.runtime,
            self._backend,
            self._routes,
            keys=self.keys,
            trace=self.trace,
            log=self.log,
            read=lambda: read_own(self._backend, self._routes, config.idp),
            recorded=self.recorded,
        )
        self.runtime.perform_with(effects.table())
        self._watch_kernel(stack)
        cache = TrustCache(config.identity.cache, self.log)
        self.runtime.perform_with({KeepTrust: cache.keep, DropTrust: cache.drop})
        self._watch_expiry(stack)
        self._link = LinkWatch(interface_index(config.black_interface), self._on_link)
        stack.callback(self._link.close)
        self.loop.add_reader(self._link.fileno(), self._link.readable)
        if config.responder_port:
            self._time_server = TimeServer(
                config.device.address,
                config.responder_port,
                config.injected_offset_us * 1000,
                config.black_interface,
            )
            stack.callback(self._time_server.close)
            self.loop.add_reader(self._time_server.fileno(), self._time_server.readable)

    def _watch_expiry(self, stack: ExitStack) -> None:
        """Have the kernel tell us when an SA has carried the bytes of its limit."""
        wanted = self.config.idp.sa_lifetime_bytes
        if not wanted and self.config.policy is None:
            return
        if not self._backend.kernel:
            if wanted:
                text = "sa_lifetime_bytes: without kernel SAs nobody counts bytes"
                self.log.write("warning", text)
            return
        from protocol.daemon.saexpiry import SaExpiryWatch

        watch = SaExpiryWatch(lambda sa_id, hard: self.runtime.deliver(SaExpired(sa_id, hard)))
        stack.callback(watch.close)
        self.loop.add_reader(watch.fileno(), watch.readable)
        self._expiry = watch

    def _watch_kernel(self, stack: ExitStack) -> None:
        """Learn what others change in the SAD, the SPD and the routing table; look now and then.

        Only with our own netlink backend: what a command or PF_KEY changes for us cannot be told
        from what others do.
        """
        self._watches: list[KernelWatch] = []
        if not isinstance(self._backend, WithPort):
            return
        self._watches.append(watch_xfrm(self._backend.port, self._on_kernel))
        if isinstance(self._routes, KernelRoutes):
            self._watches.append(watch_routes(self._routes.port, self._on_kernel))
        for watch in self._watches:
            stack.callback(watch.close)
            self.loop.add_reader(watch.fileno(), watch.readable)
        self._look_later()

    def _look_later(self) -> None:
        at_mono_ns = self.clock.now().mono_ns + LOOK_NS
        self.loop.set_timer(LOOK_TIMER, at_mono_ns, self._on_look)

    def _on_look(self, _name: str) -> None:
        self._on_kernel()
        self._look_later()

    def _on_kernel(self) -> None:
        if self.state is State.RUNNING:
            self.runtime.deliver(KernelChanged())

    def _open_pair_channel(self, stack: ExitStack) -> None:
        """Open the way to the other devices inside their pairs' SAs, and the routing table.

        With the memory backend there is no IPsec and no xfrm interface: announcements travel on
        the black channel, signed but in clear, and routes are kept in memory.
        """
        config = self.config
        self._routes: Routes = MemoryRoutes()
        if config.idp.unicast is Unicast.OFF:
            return
        if not self._backend.kernel:
            self.common.add_channel(PAIR, self.group.send)
            return
        kernel = KernelRoutes(interface_index(config.xfrm_interface), config.route_metric)
        self._routes = kernel
        stack.callback(kernel.close)
        kernel.add_address(link_local(config.device.address))
        self._pair = PairSocket(
            config.xfrm_interface,
            config.device.address,
            config.idp_channel.port,
            self.known_addresses,
        )
        stack.callback(self._pair.close)
        self.common.add_channel(PAIR, self._pair.send)
        self.loop.add_reader(self._pair.fileno(), self._pair_readable)

    def _pair_readable(self) -> None:
        assert self._pair is not None
        for _ in range(READ_AT_ONCE):
            received = self._pair.receive()
            if received is None:
                return
            if self.state is State.RUNNING:
                self.runtime.deliver(DatagramReceived(PAIR, received.source, received.payload))

    def channel_of(self, payload: bytes) -> str:
        """Return the pairs' channel for announcements that came in clear, for lack of IPsec."""
        clear = not self._backend.kernel and kind_of(payload) == MessageKind.PREFIXES
        return PAIR if clear else super().channel_of(payload)

    def may_follow(self, payload: bytes) -> bool:
        """Let notices go first: each costs a MAC, not a signature, and others wait for them."""
        return not payload.startswith(notice.PREAMBLE)

    def shedder(self) -> Callable[[bytes, int], bool]:
        """Return `sheds`."""
        return self.sheds

    def sheds(self, payload: bytes, mono_ns: int) -> bool:
        """Say so of envelopes and light hellos; other messages are cheap to check."""
        if payload.startswith(lighthello.HEADER):
            return self._idp.followers.sheds(payload, mono_ns)
        return not payload.startswith(WITHOUT_ENVELOPE) and self.identity.sheds(payload, mono_ns)

    def _remove_own(self, whose: str) -> None:
        removed = remove_own(self._backend, self.config.idp)
        if removed:
            self.log.write("warning", f"removed {removed} SAs and policies {whose}")
        removed = remove_own_routes(self._routes)
        if removed:
            self.log.write("warning", f"removed {removed} routes {whose}")

    def own_commands(self) -> dict[str, Handler]:
        """Return the commands that change what we announce."""
        return {
            "prefix_add": lambda request: self._on_prefix(request, add=True),
            "prefix_remove": lambda request: self._on_prefix(request, add=False),
        }

    def _on_prefix(self, request: dict[str, Any], *, add: bool) -> dict[str, Any]:
        try:
            prefix = ip_network(str(request.get("prefix")))
        except ValueError as error:
            raise LocalError(f"prefix: {error}") from error
        if add:
            self._idp.unicast.check_addition(prefix)
            self.runtime.deliver(PrefixAdded(prefix))
        else:
            self._idp.unicast.check_removal(prefix)
            self.runtime.deliver(PrefixRemoved(prefix))
        self._held.pop(prefix, None)
        if add and request.get("while_connected") is True:
            self._held[prefix] = self.control.client
            self.control.on_gone = self._on_gone
        status = self._idp.unicast.status()
        return {"prefix": str(prefix), "own_prefixes": status["own_prefixes"]}

    def _on_gone(self, client: int) -> None:
        """Withdraw what a gatewayd wanted announced: it has ended, and another speaks now."""
        for prefix in [one for one, holder in self._held.items() if holder == client]:
            del self._held[prefix]
            try:
                self._idp.unicast.check_removal(prefix)
            except LocalError:
                continue  # withdrawn already, or a new instance that never announced it
            self.log.write("info", f"{prefix} is withdrawn: who announced it has gone")
            self.runtime.deliver(PrefixRemoved(prefix))

    def _open_backend(self) -> IpsecBackend:
        if self.config.backend == "memory":
            return MemoryBackend()
        from protocol.xfrm.backends import make_backend

        backend = make_backend(self.config.backend, None, self.config.idp.suite)
        if self.config.idp.if_id is not None:
            try:
                interface_index(self.config.xfrm_interface)
            except LocalError:
                backend.close()
                raise
        return backend

    def _on_link(self, up: bool) -> None:
        self.trace.report("daemon.link", {"up": up})
        self.runtime.deliver(LinkChanged(up))

    def on_reread(self, event: TrustReread) -> None:
        """Hand what was read to the engine, which tells MIKE and the others."""
        self.runtime.deliver(event)

    def arm_more(self) -> None:
        """Become a member of the ESP group."""
        self._esp.join()

    def clean_up(self) -> None:
        """Make sure that no SA or policy of ours is left."""
        self._esp.leave()
        self._remove_own("that the engine had left")

    def own_counters(self) -> Mapping[str, int]:
        """Return the counters of the pairs' channel, the time server and the watches."""
        counters: Counter[str] = Counter()
        more_counters = (self._pair, self._time_server, self._expiry, self._link, *self._watches)
        for more in more_counters:
            if more is not None:
                counters.update(more.counters)
        return counters

    def own_status(self) -> dict[str, Any]:
        """Return which backend and SA mode this is."""
        return {"backend": self._backend.name, "sa_mode": self.config.idp.sa_mode.value}
