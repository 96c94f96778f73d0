"""Unicast between red networks: pair SAs, prefix announcements over them, routes.

Driven by the engine, which says which devices are up and which epoch is written; everything else
about pairs happens here. Pair keys are made for each instance and go out with its hellos; the SAs
of a pair follow from them and from the epoch (`protocol.ipsec.pairschedule`), or from the
pre-shared key. Once the SAs are in the kernel, prefixes are announced through them.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Any, NamedTuple

from protocol.core.addresses import text_of
from protocol.core.counters import RuleCounters
from protocol.core.engine import (
    CancelTimer,
    DatagramReceived,
    Effect,
    Event,
    Instant,
    KeySource,
    Report,
    SendDatagram,
    SetTimer,
    TimerExpired,
)
from protocol.core.errors import LocalError, PeerError
from protocol.identity import Identity, Peer
from protocol.idp import pairseal, rules
from protocol.idp.announcing import Announcer
from protocol.idp.config import IdpConfig, Unicast
from protocol.idp.events import PrefixAdded, PrefixRemoved, RoutesApplied, SasApplied
from protocol.idp.judging import PrefixJudge
from protocol.idp.keying import GroupSync
from protocol.idp.messages import PREFIXES_MAX, Hello, PrefixAnnouncement
from protocol.idp.pairkeys import PairKeys, PeerKeys
from protocol.idp.pairplan import LABEL, PairPlan
from protocol.idp.prefixes import PrefixTable
from protocol.ipsec.backend import ByteLimit
from protocol.ipsec.model import Prefix, SaId

CHANNEL = "pair"
"""Channel of the announcements: datagrams that travel inside the pair's SAs."""

TIMER_PAIRS = "idp.pairs"

PEERS_AT_ONCE = 4
"""New peers whose SAs go out without waiting for more: the first of many answer meanwhile."""

NS_PER_MS = 1_000_000


class EngineCalls(NamedTuple):
    """What the engine does for us.

    Attributes:
        refuse: counts and logs what broke a rule.
        rejoin: makes MIKE rejoin.
        answer_early: says hello to new devices that have become members.
        has_epoch: whether a device has said that it has the newest epoch's SAs.
        byte_limit: what an SA that we send with may carry.
    """

    refuse: Callable[[str, PeerError, Instant], list[Effect]]
    rejoin: Callable[[Instant], list[Effect]]
    answer_early: Callable[[Container[IPv6Address], Instant], list[Effect]]
    has_epoch: Callable[[IPv6Address], bool]
    byte_limit: Callable[[], ByteLimit | None]


@dataclass(slots=True)
class _Pair:
    """One device that is up.

    Attributes:
        peer: what its certificate says.
        keys: of the pair.
        version: of its list of prefixes that we have; 0: none.
        announced: that list.
        reads: announcements read since ``reads_since_mono_ns``.
        rejoin_mono_ns: when to rejoin, because the epoch's SAs were installed before (IDP-27).
    """

    peer: Peer
    keys: PeerKeys
    version: int = 0
    announced: tuple[Prefix, ...] = ()
    reads: int = 0
    reads_since_mono_ns: int = 0
    rejoin_mono_ns: int | None = None


class UnicastPairs:
    """Everything about pairs of devices; with ``unicast = "off"`` it does nothing.

    Args:
        config, identity: settings, and who we are.
        keys: where pair keys come from.
        counters: of the engine.
        calls: of the engine.

    Raises:
        LocalError: our own certificate does not authorise a prefix that we shall announce.
    """

    def __init__(
        self,
        config: IdpConfig,
        identity: Identity,
        keys: KeySource,
        counters: RuleCounters,
        calls: EngineCalls,
    ) -> None:
        self._config = config
        self._identity = identity
        self._counters = counters
        self._refuse, self._rejoin, self._answer_early, self._has_epoch, byte_limit = calls
        self._own = identity.me.address
        self.plan = PairPlan(config, self._own, byte_limit)
        self._announcer = announcer = Announcer(config)
        self._judging = PrefixJudge(identity, config.max_routes, lambda: announcer.prefixes)
        settling_ms = config.activation_delay_ms + config.deactivation_delay_ms
        self._settling_ns = settling_ms * NS_PER_MS
        self._keys = PairKeys(config, self._own, keys)
        self._startup_wall_ns = 0
        self._forget()
        for prefix in config.prefixes:
            self._judging.check_own(prefix)

    def _forget(self) -> None:
        self._pairs: dict[IPv6Address, _Pair] = {}
        # Both outlive a pair, which is made anew when its device was lost and is back.
        self._announced_count = 0
        self._heard: dict[IPv6Address, tuple[int, int]] = {}
        self._judging.forget()
        self._installed: dict[IPv6Address, tuple[int, str]] = {}
        self._renewals: dict[IPv6Address, None] = {}
        self._renew_mono_ns = 0
        self._wake_mono_ns: int | None = None

    @property
    def pair_key(self) -> bytes:
        """What our hellos carry."""
        return self._keys.public

    @property
    def _table(self) -> PrefixTable:
        return self._judging.table

    @property
    def _on(self) -> bool:
        return self._config.unicast is not Unicast.OFF

    def epoch_of(self, sa_id: SaId) -> str | None:
        """Return the epoch in which we send, or sent, to a peer with this SA; None: in none."""
        return self.plan.epoch_of(sa_id)

    # Instances.

    def begin(self, startup_wall_ns: int) -> None:
        """Begin an instance: a new pair key, nobody known."""
        self._forget()
        self._announcer.begin()
        self._startup_wall_ns = startup_wall_ns
        self._keys.begin(startup_wall_ns)

    def stop(self) -> list[Effect]:
        """Forget everything; remove it from the kernel."""
        self._forget()
        self._keys.forget()
        self._announcer.begin()
        self._startup_wall_ns = 0
        return [CancelTimer(TIMER_PAIRS), *self.plan.stop()] if self._on else []

    # Who is there.

    def on_up(self, peer: Peer, startup_wall_ns: int, hello: Hello, now: Instant) -> list[Effect]:
        """A device came, restarted or came back.

        If it answers us, then we are new: there is time to agree with it until there is a group
        key. If it is new, its own key agreement with the group comes first.
        """
        if not self._on:
            return []
        self._drop(peer.address)
        self._judging.meet(peer.address)
        keys = PeerKeys(peer.address, startup_wall_ns, hello.pair_key)
        pair = self._pairs[peer.address] = _Pair(peer, keys)
        effects: list[Effect] = []
        try:
            self._keys.meet(keys, agree=hello.triggered)
        except PeerError as error:
            effects += self._refuse(peer.name, error, now)
        effects += self._derive(pair, now)
        if self.plan.differing >= PEERS_AT_ONCE:
            return effects + self._proceed(now)
        if self.plan.differing or pair.rejoin_mono_ns is not None:
            effects += self._proceed_soon(now)
        return effects

    def on_lost(self, address: IPv6Address, now: Instant) -> list[Effect]:
        """A device is down: nothing of it stays in the kernel."""
        if not self._on:
            return []
        self._drop(address)
        return self._reconsider(now) + self._proceed(now)

    def _drop(self, address: IPv6Address) -> None:
        self._pairs.pop(address, None)
        self.plan.remove([address])
        self._announcer.forget(address)
        self._table.assign(address, ())

    # Epochs.

    def follow(self, sync: GroupSync, now: Instant) -> list[Effect]:
        """Take over what became of the group: a new epoch was written, or we are out of it."""
        written = sync.take_written()
        if self._config.unicast is not Unicast.GROUP:
            return []
        effects: list[Effect] = []
        if written is not None:
            self._keys.enter(written)
            effects += self._answer_early(written.members, now)
            effects += self._on_epoch(now)
        elif sync.ended is not None and self._keys.epoch is not None:
            self._keys.leave()
            self.plan.run_out(self.plan.peers, now.mono_ns)
            if sync.ended == "excluded":
                self.plan.remove(self.plan.peers)
        else:
            return []
        return effects + self._proceed(now)

    def on_confirmed(self, sender: IPv6Address, now: Instant) -> list[Effect]:
        """A device has the newest epoch's SAs; its pairs' went out with these."""
        return self._proceed_soon(now) if self._announcer.is_ready(sender, now.mono_ns) else []

    def _on_epoch(self, now: Instant) -> list[Effect]:
        """Make the SAs of new pairs; the others are renewed when the group has settled.

        Those of devices that are no members run out.
        """
        outside = [p for p in self.plan.peers if not self._keys.is_fellow(p)]
        self.plan.run_out(outside, now.mono_ns)
        effects: list[Effect] = []
        if not self._renewals:
            self._renew_mono_ns = now.mono_ns + self._settling_ns
        self._renewals.clear()
        for address, pair in self._pairs.items():
            if pair.version and self.plan.is_written(address):  # SAs that have been of use
                self._renewals[address] = None
            else:
                effects += self._derive(pair, now)
        return effects

    def _renew(self, now: Instant) -> list[Effect]:
        """Renew the SAs of pairs that had some in the epoch before."""
        renewals, self._renewals = self._renewals, {}
        found = (self._pairs.get(address) for address in renewals)
        return [e for pair in found if pair is not None for e in self._derive(pair, now)]

    def _derive(self, pair: _Pair, now: Instant) -> list[Effect]:
        """Let there be the SAs of a pair in the present epoch."""
        epoch, address = self._keys.epoch, pair.peer.address
        pair.rejoin_mono_ns = None
        if epoch is None or pair.keys.unusable or not self._keys.is_fellow(address):
            return []
        installed = (pair.keys.startup_wall_ns, epoch)
        again = rules.was_installed(installed, self._installed.get(address))
        if again and self._config.unicast is Unicast.GROUP:
            self._counters.count("IDP-27")
            dead_interval_ns = self._config.dead_interval_ms * NS_PER_MS
            pair.rejoin_mono_ns = now.mono_ns + dead_interval_ns
            return []
        try:
            outbound, inbound = self._keys.sas(pair.keys)
            rules.check_spi(inbound.spi, self.plan.holder(inbound.id), address)
        except PeerError as error:
            return self._refuse(pair.peer.name, error, now)
        self._installed[address] = installed
        self.plan.install(address, epoch, (outbound, inbound))
        # The link may be a new one: we had left the group, and it had run out.
        self.plan.lead(address, self._table.of(address))
        return []

    # Events.

    def wants(self, event: Event) -> bool:
        """Return whether an event is ours."""
        match event:
            case SasApplied():
                return event.label.startswith(LABEL)
            case DatagramReceived():
                return event.channel == CHANNEL
            case TimerExpired():
                return event.name == TIMER_PAIRS
        return isinstance(event, RoutesApplied | PrefixAdded | PrefixRemoved)

    def handle(self, event: Event, now: Instant) -> list[Effect]:
        """Take one of our events."""
        match event:
            case SasApplied() | RoutesApplied():
                return self._on_applied(event, now)
            case DatagramReceived():
                return self._on_datagram(event, now)
            case PrefixAdded():
                self._announcer.change(add=event.prefix, now=now.mono_ns)
            case PrefixRemoved():
                self._announcer.change(remove=event.prefix, now=now.mono_ns)
                return self._reconsider(now) + self._proceed(now)
            case TimerExpired():
                self._wake_mono_ns = None
                effects = self._renew(now) if now.mono_ns >= self._renew_mono_ns else []
                return [*effects, *self._rejoin_if_due(now), *self._proceed(now)]
        return self._rejoin_if_due(now) + self._proceed(now)

    def _on_applied(self, event: SasApplied | RoutesApplied, now: Instant) -> list[Effect]:
        failures = self.plan.failures
        routes = isinstance(event, RoutesApplied)
        effects = self.plan.applied(event.label, event.outcomes, now.mono_ns, routes=routes)
        for address in self.plan.take_reached():
            pair = self._pairs.get(address)
            if pair is not None:
                # Of two that started at the same moment, one is first all the same.
                first = (self._startup_wall_ns, self._own) > (pair.keys.startup_wall_ns, address)
                ready = self._config.unicast is Unicast.PSK or self._has_epoch(address)
                self._announcer.reach(address, now.mono_ns, first=first, ready=ready)
        if self.plan.failures > failures:
            self._counters.count("IDP-14", self.plan.failures - failures)
        return effects + self._proceed(now)

    def _rejoin_if_due(self, now: Instant) -> list[Effect]:
        """IDP-27: no new epoch came by itself."""
        late = False
        for pair in self._pairs.values():
            if pair.rejoin_mono_ns is not None and pair.rejoin_mono_ns <= now.mono_ns:
                pair.rejoin_mono_ns, late = None, True
        return self._rejoin(now) if late else []

    def _proceed(self, now: Instant) -> list[Effect]:
        """Hand out what is to be done and said now; keep the timer where it is needed next."""
        effects = self.plan.advance(now.mono_ns)
        for address, said in self._announcer.due(now.mono_ns):
            effects += self._announced(self._pairs[address], said)
        wakes = [pair.rejoin_mono_ns for pair in self._pairs.values()]
        wakes += [self._renew_mono_ns] if self._renewals else []
        wakes += [self.plan.wake_mono_ns, self._announcer.wake_mono_ns]
        wake_mono_ns = min([wake for wake in wakes if wake is not None], default=None)
        if wake_mono_ns == self._wake_mono_ns:
            return effects
        self._wake_mono_ns = wake_mono_ns
        if wake_mono_ns is None:
            return [*effects, CancelTimer(TIMER_PAIRS)]
        return [*effects, SetTimer(TIMER_PAIRS, wake_mono_ns)]

    def _proceed_soon(self, now: Instant) -> list[Effect]:
        # What else has arrived is looked at first: fewer, larger batches.
        self._wake_mono_ns = now.mono_ns
        return [SetTimer(TIMER_PAIRS, now.mono_ns)]

    # Announcements.

    def _announced(self, pair: _Pair, announcement: PrefixAnnouncement) -> list[Effect]:
        self._announced_count += 1
        payload = pairseal.seal(
            self._keys.announcements(pair.keys),
            self._own,
            pair.peer.address,
            startup_wall_ns=self._startup_wall_ns,
            sequence=self._announced_count,
            body=announcement.encode(),
        )
        return [SendDatagram(CHANNEL, payload, pair.peer.address)]

    def _on_datagram(self, event: DatagramReceived, now: Instant) -> list[Effect]:
        """Take an announcement: rate, instance, MAC, order, syntax, then prefix by prefix."""
        if not self._on or self._startup_wall_ns == 0:
            return []
        pair = self._pairs.get(event.source)
        name = text_of(event.source) if pair is None else pair.peer.name
        try:
            self._check_source(pair, now)
            assert pair is not None
            sealed = pairseal.Sealed.decode(event.payload)
            rules.check_announcer(pair.keys.startup_wall_ns, sealed.startup_wall_ns)
            key = self._keys.announcements(pair.keys)
            heard = self._heard.get(event.source, (0, 0))
            sealed.check(key, event.source, self._own, heard)
            self._heard[event.source] = sealed.startup_wall_ns, sealed.sequence
            announcement = PrefixAnnouncement.decode(sealed.body)
        except PeerError as error:
            return self._refuse(name, error, now)
        if rules.is_old(announcement.version, pair.version):
            self._counters.count("IDP-19")
            return []
        effects: list[Effect] = []
        if announcement.version > pair.version:
            # Of a first list we do not know what the instance before had.
            shrunk = not pair.version or not set(pair.announced) <= set(announcement.prefixes)
            pair.version, pair.announced = announcement.version, announcement.prefixes
            effects += self._judge(pair, now)
            if shrunk:
                effects += self._reconsider(now, besides=pair)
            fields = {
                "peer": text_of(event.source),
                "version": announcement.version,
                "accepted": len(self._table.of(event.source)),
            }
            effects.append(Report("t_prefixes", fields))
        answer = self._announcer.heard(
            event.source,
            self._startup_wall_ns,
            pair.keys.startup_wall_ns,
            announcement,
            now.mono_ns,
        )
        if answer is not None:
            effects += self._announced(pair, answer)
        # Most announcements only repeat what we have: nothing waits, so nobody need wake us.
        later = self._proceed_soon if self.plan.differing else self._proceed
        return effects + later(now)

    def _check_source(self, pair: _Pair | None, now: Instant) -> None:
        """IDP-18 and IDP-20, before any cryptography."""
        if pair is None:
            rules.check_announcer(None, 0)
            return
        interval_ns = self._config.hello_interval_ms * NS_PER_MS
        if now.mono_ns - pair.reads_since_mono_ns >= interval_ns:
            pair.reads, pair.reads_since_mono_ns = 0, now.mono_ns
        pair.reads += 1
        rules.check_announcement_rate(pair.reads)

    def _judge(self, pair: _Pair, now: Instant) -> list[Effect]:
        """Accept of what a device announced what is allowed; refuse the rest, each by its rule."""
        refused = self._judging.judge(pair.peer, pair.announced)
        self.plan.lead(pair.peer.address, self._table.of(pair.peer.address))
        return [effect for error in refused for effect in self._refuse(pair.peer.name, error, now)]

    def _reconsider(self, now: Instant, besides: _Pair | None = None) -> list[Effect]:
        """Prefixes became free: who was refused one may have it now."""
        return [
            effect
            for pair in list(self._pairs.values())
            if pair is not besides and len(pair.announced) > len(self._table.of(pair.peer.address))
            for effect in self._judge(pair, now)
        ]

    # Our own prefixes.

    def check_addition(self, prefix: Prefix) -> None:
        """Say whether `PrefixAdded` may come.

        Raises:
            LocalError: others would refuse the prefix, or we do not announce any.
        """
        if not self._on:
            raise LocalError('prefixes are not announced: unicast = "off"')
        if prefix not in self._announcer.prefixes and (
            len(self._announcer.prefixes) >= PREFIXES_MAX
        ):
            raise LocalError(f"{PREFIXES_MAX} prefixes are announced already")
        self._judging.check_own(prefix)

    def check_removal(self, prefix: Prefix) -> None:
        """Say whether `PrefixRemoved` may come.

        Raises:
            LocalError: we do not announce the prefix.
        """
        if prefix not in self._announcer.prefixes:
            raise LocalError(f"{prefix} is not announced")

    # Status.

    def status(self) -> dict[str, Any]:
        """Return our part of ``idpd status``; never keys."""
        return {
            "unicast": self._config.unicast.value,
            "own_prefixes": [text_of(prefix) for prefix in self._announcer.prefixes],
            "announcing_to": self._announcer.busy,
            "prefixes": [
                {"prefix": text_of(prefix), "peer": text_of(owner)}
                for prefix, owner in self._table.items()
            ],
        }

    def describe(self, address: IPv6Address) -> dict[str, Any]:
        """Return what belongs to one peer in ``idpd status``."""
        return {
            "prefixes": [text_of(prefix) for prefix in self._table.of(address)],
            "unicast": self.plan.describe(address),
        }
