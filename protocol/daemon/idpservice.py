"""idpd: IDP's engine with the SAD and SPD, the ESP group, the carrier and the time server."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from protocol.core.engine import Engine
from protocol.core.errors import LocalError
from protocol.daemon.config import ChannelSection
from protocol.daemon.entropy import OsKeySource
from protocol.daemon.idpeffects import IdpEffects
from protocol.daemon.link import LinkWatch
from protocol.daemon.reconcile import remove_own
from protocol.daemon.service import Service
from protocol.daemon.sockets import EspMembership, LocalSocket, interface_index
from protocol.daemon.timeserver import TimeServer
from protocol.identity.identity import Identity
from protocol.idp.engine import IdpEngine
from protocol.idp.events import LinkChanged
from protocol.ipsec.backend import IpsecBackend
from protocol.ipsec.memory import MemoryBackend


class IdpService(Service):
    """The process ``idpd``."""

    daemon = "idpd"

    _backend: IpsecBackend
    _time_server: TimeServer | None = None

    def make_engine(self, identity: Identity) -> Engine:
        """Return the parked engine."""
        return IdpEngine(self.config.idp, identity, self.config.local.secret, OsKeySource())

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
        removed = remove_own(self._backend, config.idp)
        if removed:
            self.log.write("warning", f"removed {removed} SAs and policies of a killed daemon")
        self._esp = EspMembership(
            config.black_interface,
            config.device.address,
            config.idp.sa_group,
            self.known_addresses,
        )
        stack.callback(self._esp.leave)
        effects = IdpEffects(self.runtime, self._backend, self.keys, self.trace, self.log)
        self.runtime.perform_with(effects.table())
        link = LinkWatch(interface_index(config.black_interface), self._on_link)
        stack.callback(link.close)
        self.loop.add_reader(link.fileno(), link.readable)
        if config.responder_port:
            self._time_server = TimeServer(
                config.device.address,
                config.responder_port,
                config.injected_offset_us * 1000,
                config.black_interface,
            )
            stack.callback(self._time_server.close)
            self.loop.add_reader(self._time_server.fileno(), self._time_server.readable)

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

    def arm_more(self) -> None:
        """Become a member of the ESP group."""
        self._esp.join()

    def clean_up(self) -> None:
        """Make sure that no SA or policy of ours is left."""
        self._esp.leave()
        left = remove_own(self._backend, self.config.idp)
        if left:
            self.log.write("warning", f"removed {left} SAs and policies the engine had left")

    def own_counters(self) -> Mapping[str, int]:
        """Return the time server's counters."""
        return {} if self._time_server is None else self._time_server.counters

    def own_status(self) -> dict[str, Any]:
        """Return which backend and SA mode this is."""
        return {"backend": self._backend.name, "sa_mode": self.config.idp.sa_mode.value}
