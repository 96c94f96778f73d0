"""One simulated gateway: the engine of gatewayd between the legs, which are devices like others.

What the daemon does around the engine is modelled: it asks each leg's idpd how it is, tells it what
to announce for as long as it lives, and owns routes and multicast routes of the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv6Address

from protocol.core.agenda import NS_PER_MS
from protocol.core.engine import DatagramReceived, SendDatagram
from protocol.daemon.gatewayidp import read_view
from protocol.gateway.config import GatewayConfig, Leg, Network
from protocol.gateway.engine import GatewayEngine
from protocol.gateway.events import (
    AnnouncePrefix,
    DeleteRoute,
    FetchKey,
    KeyFetched,
    LegPolled,
    SetRoute,
    WithdrawPrefix,
)
from protocol.identity import Identity
from protocol.mproxy.events import (
    CountersRead,
    DeleteMfc,
    FlowCount,
    FlowKey,
    ReadCounters,
    SetMfc,
    Upcall,
)
from protocol.mproxy.messages import Address
from testbed.sim.daemon import LOCAL_DELAY_NS, Daemon
from testbed.sim.device import Device
from testbed.sim.gateways.checkers import GatewayView
from testbed.sim.people import Crypto

POLL_NS = 500 * NS_PER_MS
"""``poll_interval_ms`` of gatewayd."""


@dataclass(slots=True)
class Mfc:
    """A multicast route of the kernel.

    Attributes:
        accepts: the partition from which packets are taken.
        outs: the partitions where they go.
        packets, refused: as of `FlowCount`.
    """

    accepts: str
    outs: tuple[str, ...]
    packets: int = 0
    refused: int = 0


class Gatewayd(Daemon):
    """The process gatewayd on a machine whose clock, pauses and power its legs share.

    Args:
        name: of the gateway.
        legs: by partition.
        crypto: real or modelled.
        say: sends a datagram to all in a partition.

    Attributes:
        routes: red prefixes to the partition by whose leg they are reached.
        mfc: the kernel's multicast routes.
        wanted: whether it shall run.
        killed: whether it was killed and has not been started since.
    """

    def __init__(
        self,
        name: str,
        legs: Mapping[str, Device],
        crypto: Crypto,
        say: Callable[[Gatewayd, str, bytes], None],
    ) -> None:
        super().__init__(next(iter(legs.values())), name)
        self.legs = legs
        self.routes: dict[Network, str] = {}
        self.mfc: dict[FlowKey, Mfc] = {}
        self._crypto = crypto
        self._identities: dict[str, Identity] = {}
        self._revoked: dict[str, set[int]] = {partition: set() for partition in legs}
        self._held: dict[str, set[Network]] = {partition: set() for partition in legs}
        self._newest_wall_ns = 0
        self.wanted = False
        self.killed = False
        self.perform_with(
            {
                SendDatagram: lambda effect: say(self, effect.channel, effect.payload),
                FetchKey: self._fetch_key,
                AnnouncePrefix: self._announce,
                WithdrawPrefix: self._withdraw,
                SetRoute: self._set_route,
                DeleteRoute: self._delete_route,
                SetMfc: self._set_mfc,
                DeleteMfc: self._delete_mfc,
                ReadCounters: self._read_counters,
            }
        )

    # Life.

    def power_on(self) -> None:
        """Start a new process."""
        self.wanted, self.killed = True, False
        self.routes.clear()  # a killed one's are removed at the start
        for partition, leg in self.legs.items():
            revoked = self._revoked[partition]
            self._identities[partition] = leg.people.identity(
                leg.index, self._crypto, revoked=revoked
            )
        config = GatewayConfig(
            tuple(Leg(name, leg.address, tunnel(name)) for name, leg in self.legs.items())
        )
        self.boot(GatewayEngine(config, self._identities))
        self.killed = False
        self._start()

    def _start(self) -> None:
        """Start, but not with an earlier time-stamp than the last (`Device.start_daemon`)."""
        if self.engine is None or self.running or not self.wanted:
            return
        wall_ns = self.device.now().wall_ns
        wait_ns = self._newest_wall_ns - wall_ns
        if wait_ns >= 0:
            self.device.agenda.after(wait_ns + NS_PER_MS, self._start)
            return
        self._newest_wall_ns = wall_ns
        self.start()
        self._poll(self.engine)

    def kill(self) -> None:
        """Kill -9: the legs' idpds see their connection end, the kernel its multicast socket."""
        super().kill()
        self.killed = True
        self.mfc.clear()
        for partition, held in self._held.items():
            for prefix in held:
                self.legs[partition].withdraw(prefix)
            held.clear()

    def end(self, *, orderly: bool) -> None:
        """Stop in order, or lose power."""
        self.wanted = False
        if orderly:
            self.stop()
        self.kill()
        self.routes.clear()

    @property
    def lives(self) -> bool:
        """Whether it and its legs run."""
        return self.running and all(leg.alive for leg in self.legs.values())

    def look(self) -> GatewayView:
        """Return what it has."""
        assert self.engine is not None
        known = self.engine.status(self.device.now())["partitions"]
        addresses = {name: leg.address for name, leg in self.legs.items()}
        return GatewayView(self.name, addresses, known, dict(self.routes))

    def distrust(self, partition: str, index: int) -> None:
        """Read a list that revokes the certificate of a device in a partition."""
        self._revoked[partition].add(index)
        identity = self._identities.get(partition)
        if identity is not None:
            people = self.legs[partition].people
            identity.trust(people.known(self._crypto, self._revoked[partition]))

    # The legs.

    def _poll(self, engine: object) -> None:
        """Ask every leg's idpd how it is; the answer comes a little later."""
        if self.engine is not engine or not self.running:
            return
        agenda = self.device.agenda
        agenda.after(POLL_NS, self._poll, engine)
        if self.device.paused:
            return
        for partition, leg in self.legs.items():
            idpd = leg.idpd.engine
            view = None if idpd is None else read_view(idpd.status(leg.now()))
            agenda.after(LOCAL_DELAY_NS, self._answered, engine, LegPolled(partition, view))

    def _answered(self, engine: object, answer: LegPolled) -> None:
        if self.engine is engine and self.running:
            self.notify(answer)

    def hear(self, partition: str, event: DatagramReceived) -> None:
        """A datagram came to a leg."""
        if self.running:
            self.notify(DatagramReceived(partition, event.source, event.payload))

    def _fetch_key(self, effect: FetchKey) -> None:
        key = self.legs[effect.leg].keys.get(str(effect.epoch))
        self.deliver(KeyFetched(effect.leg, effect.epoch, key))

    def _announce(self, effect: AnnouncePrefix) -> None:
        engine = self.engine

        def command() -> None:
            if self.engine is engine:
                self._held[effect.leg].add(effect.prefix)
                self.legs[effect.leg].announce(effect.prefix)

        self.device.agenda.after(LOCAL_DELAY_NS, command)

    def _withdraw(self, effect: WithdrawPrefix) -> None:
        self._held[effect.leg].discard(effect.prefix)
        withdraw = partial(self.legs[effect.leg].withdraw, effect.prefix)
        self.device.agenda.after(LOCAL_DELAY_NS, withdraw)

    # The kernel.

    def _set_route(self, effect: SetRoute) -> None:
        self.routes[effect.prefix] = effect.leg

    def _delete_route(self, effect: DeleteRoute) -> None:
        self.routes.pop(effect.prefix, None)

    def _set_mfc(self, effect: SetMfc) -> None:
        accepts, outs = partition_of(effect.interface), tuple(map(partition_of, effect.outs))
        known = self.mfc.get(effect.key)
        if known is None:
            self.mfc[effect.key] = Mfc(accepts, outs)
        else:
            known.accepts, known.outs = accepts, outs

    def _delete_mfc(self, effect: DeleteMfc) -> None:
        self.mfc.pop(effect.key, None)

    def _read_counters(self, effect: ReadCounters) -> None:
        counts = {
            key: FlowCount(entry.packets, entry.refused)
            for key in effect.keys
            if (entry := self.mfc.get(key)) is not None
        }
        self.deliver(CountersRead(counts))

    def forward(self, partition: str, source: Address, group: IPv6Address) -> tuple[str, ...]:
        """Return the partitions into which a red multicast packet from this one goes."""
        key = FlowKey(source, group)
        if key not in self.mfc and self.running and not self.device.paused:
            self.deliver(Upcall(tunnel(partition), source, group))
        entry = self.mfc.get(key)
        if entry is None:
            return ()
        entry.packets += 1
        if entry.accepts != partition:
            entry.refused += 1
            return ()
        return entry.outs


def tunnel(partition: str) -> str:
    """Return the name of the xfrm interface of a leg."""
    return f"xfrm-{partition}"


def partition_of(interface: str) -> str:
    """Return the partition of a leg's xfrm interface."""
    return interface.removeprefix("xfrm-")
