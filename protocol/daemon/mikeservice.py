"""miked: MIKE's engine with the key directory."""

from __future__ import annotations

from contextlib import ExitStack
from ipaddress import IPv6Address
from typing import Any

from protocol.core.engine import Engine
from protocol.core.errors import LocalError
from protocol.daemon.config import ChannelSection
from protocol.daemon.control import Handler
from protocol.daemon.mikeeffects import MikeEffects
from protocol.daemon.service import Service, State
from protocol.daemon.sockets import LocalSocket
from protocol.daemon.sourcefilter import of_form
from protocol.identity import PROTOCOL_MIKE
from protocol.identity.identity import Identity
from protocol.mike.engine import MikeEngine
from protocol.mike.events import EpochMarkFound, HandoverRequested, RekeyRequested
from protocol.mike.messages import Kind

READ_AT_ONCE = 16
"""JOINs and LEAVEs that wait in the sockets together share one epoch (MIKE-10)."""


class MikeService(Service):
    """The process ``miked``."""

    daemon = "miked"
    read_at_once = READ_AT_ONCE
    form = of_form(PROTOCOL_MIKE)
    asking = (Kind.JOIN,)

    def make_engine(self, identity: Identity) -> Engine:
        """Return the parked engine."""
        secret = self.config.local.secret
        return MikeEngine(self.config.mike, identity, secret, self.make_key_source())

    def channel(self) -> ChannelSection:
        """Return group and port of MIKE."""
        return self.config.mike_channel

    def open_local(self) -> LocalSocket:
        """Open the channel to idpd."""
        return LocalSocket(self.config.local.mike_port, self.config.local.idp_port)

    def prepare(self, _stack: ExitStack) -> None:
        """Make the key directory and remove keys that a killed daemon left."""
        self.keys.create()
        removed = self.keys.clean()
        if removed:
            self.log.write("warning", f"removed {removed} keys of a killed daemon")
        effects = MikeEffects(self.keys, self.log, self.group, self.memory)
        self.runtime.perform_with(effects.table())
        self.runtime.deliver(EpochMarkFound(self.memory.recall_epochs()))

    def clean_up(self) -> None:
        """Make sure that no key of ours is left."""
        self.keys.clean()
        self.memory.settle()

    def arm_more(self) -> None:
        """Have numbers of epochs in reserve."""
        self.memory.reserve_epochs()

    def own_commands(self) -> dict[str, Handler]:
        """Return the hand-over of the role of transaction manager, and the renewal of the key."""
        return {"handover": self._on_handover, "rekey": self._on_rekey}

    def _on_rekey(self, _request: dict[str, Any]) -> dict[str, Any]:
        status = self.engine.status(self.clock.now())
        if self.state is not State.RUNNING or status["role"] not in ("member", "tm"):
            raise LocalError("this device is in no group: there is no key to renew")
        wait_ms = status["rekey"]["wait_ms"]
        if wait_ms:
            raise LocalError(f"our share was renewed only just now: try again in {wait_ms} ms")
        self.runtime.deliver(RekeyRequested())
        return {"role": status["role"], "epoch": status["epoch"]}

    def _on_handover(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            to = IPv6Address(str(request.get("to")))
        except ValueError as error:
            raise LocalError("to must be the black address of a member") from error
        status = self.engine.status(self.clock.now())
        if self.state is not State.RUNNING or status.get("role") != "tm":
            raise LocalError("this device is not the transaction manager: nothing to hand over")
        if str(to) not in status.get("members", []):
            raise LocalError(f"{to} is not a member of the group")
        self.runtime.deliver(HandoverRequested(to))
        return {"to": str(to)}
