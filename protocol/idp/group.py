"""What MIKE says of the group, and what follows: keys fetched, SAs planned, members looked for.

Owned and driven by the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv6Address

from protocol.core.counters import RuleCounters
from protocol.core.engine import (
    CancelTimer,
    DatagramReceived,
    Effect,
    Instant,
    Log,
    Report,
    SetTimer,
)
from protocol.core.errors import PeerError
from protocol.idp import rules
from protocol.idp.absentees import Absentees
from protocol.idp.auditing import Audit
from protocol.idp.config import IdpConfig
from protocol.idp.confirming import IsLost
from protocol.idp.connectivity import PeerEntry
from protocol.idp.events import KernelRead, KeyFetched, SaExpired, SasApplied
from protocol.idp.followers import Refuse
from protocol.idp.keying import GroupSync
from protocol.idp.lifetimes import Lifetimes
from protocol.idp.news import News
from protocol.idp.signalling import Signalling
from protocol.idp.unicast import UnicastPairs
from protocol.idpmike import GroupStatus, SignalKind

NS_PER_MS = 1_000_000

TIMER_PLAN = "idp.plan"
TIMER_ABSENT = "idp.absent"

Up = Callable[[], set[IPv6Address]]
"""Returns the devices that are up."""

Doubt = Callable[[bytes, Instant], None]
"""Notes that something in the name of the device with this fingerprint did not verify."""

Rejoin = Callable[[Instant], list[Effect]]
"""Has MIKE make us a member anew."""


class Group:
    """The group whose member we are.

    Args:
        config: settings.
        own: our black address.
        counters: count what rules say.
        mike: the interface to MIKE.
        news: what waits to be signalled.
        unicast: the pairs of devices; they follow the group.
        lifetimes: of the group's SAs.
        refuse: the engine's.
        doubt: the identity's.
        rejoin: the engine's.
        up: the engine's.
        is_lost: the engine's.

    Attributes:
        sync: the epoch, its key and its SAs.
        audit: compares the kernel with what we wrote.
    """

    def __init__(
        self,
        config: IdpConfig,
        own: IPv6Address,
        *,
        counters: RuleCounters,
        mike: Signalling,
        news: News,
        unicast: UnicastPairs,
        lifetimes: Lifetimes,
        refuse: Refuse,
        doubt: Doubt,
        rejoin: Rejoin,
        up: Up,
        is_lost: IsLost,
    ) -> None:
        self._own = own
        self._members_max = config.max_peers + 1
        self._counters = counters
        self._mike = mike
        self._news = news
        self._unicast = unicast
        self._lifetimes = lifetimes
        self._refuse = refuse
        self._doubt = doubt
        self._rejoin = rejoin
        self._up = up
        self._absentees = Absentees(own, config.dead_interval_ms * NS_PER_MS)
        self.sync = GroupSync(config, own, counters, is_lost, lifetimes.byte_limit)
        self.audit = Audit(self.sync.plan, unicast.plan, counters, rejoin)
        self.forget()

    def forget(self) -> None:
        """Begin anew with an instance; the plan of the SAs knows itself what is installed."""
        self._plan_wake_mono_ns: int | None = None
        self._absentees.forget()
        self._lifetimes.forget()
        self.audit.forget()

    def absent(self, up: set[IPv6Address]) -> tuple[IPv6Address, ...]:
        """Return the members that are not up."""
        return self._absentees.absent(up)

    def on_status(self, status: GroupStatus, now: Instant) -> list[Effect]:
        """MIKE has a group key, or we are no member any more."""
        effects: list[Effect] = [
            Report("t_status", {"epoch": str(status.epoch), "members": len(status.members)}, now)
        ]
        try:
            rules.check_status(status.members, status.tm, self._members_max)
        except PeerError as error:
            return effects + self._refuse("MIKE", error, now)
        look_ns = self._absentees.on_status(status.members, self._up(), now.mono_ns)
        if look_ns is not None:
            effects.append(SetTimer(TIMER_ABSENT, look_ns))
        return effects + self._planned(self.sync.on_status(status, now.mono_ns), now)

    def on_absent_due(self, now: Instant) -> list[Effect]:
        """IDP-40: tell MIKE of members that are not there, until it knows."""
        absent, again_ns = self._absentees.look(self._up(), now.mono_ns)
        effects: list[Effect] = []
        for address in absent:
            self._counters.count("IDP-40")
            self._news.drop(address)
            effects += self._mike.signal(SignalKind.LEAVE, address, 0, now)
        if again_ns is not None:
            effects.append(SetTimer(TIMER_ABSENT, again_ns))
        return effects

    def on_key_due(self, _now: Instant) -> list[Effect]:
        """It is time to fetch a key once more."""
        return self.sync.on_key_due()

    def on_key_fetched(self, event: KeyFetched, now: Instant) -> list[Effect]:
        """A key was read from its file, or is not there."""
        try:
            return self._planned(self.sync.on_key(event.pointer, event.group_key, now.mono_ns), now)
        except PeerError as error:
            effects = self._refuse("MIKE", error, now)
            return effects + self._planned(self.sync.on_key(event.pointer, None, now.mono_ns), now)

    def on_applied(self, event: SasApplied, now: Instant) -> list[Effect]:
        """A batch of SAs was written."""
        return self._planned(self.sync.on_applied(event.label, event.outcomes, now.mono_ns), now)

    def on_notice(self, event: DatagramReceived, whose: PeerEntry, now: Instant) -> list[Effect]:
        """A device that is up says that it has an epoch's SAs."""
        knew = self.sync.is_confirmed_by(event.source)
        try:
            effects = self.sync.on_notice(event.payload, event.source, now.mono_ns)
        except PeerError as error:
            self._doubt(whose.fingerprint, now)
            return self._refuse(whose.name, error, now)
        # All but the last of an epoch's notices change nothing here.
        effects = self._planned(effects, now) if effects else []
        # A repeated one, or one of another epoch, says nothing of a device that has confirmed.
        if not knew and self.sync.is_confirmed_by(event.source):
            effects += self._unicast.on_confirmed(event.source, now)
        return effects

    def on_notice_due(self, now: Instant) -> list[Effect]:
        """It is time to say that we have the SAs, or to ask who has not said so."""
        return self.sync.on_notice_due(now.mono_ns)

    def on_lost(self, now: Instant) -> list[Effect]:
        """Devices are down: they are not waited for any more."""
        return self._planned(self.sync.reconsider(now.mono_ns), now)

    def on_plan_due(self, now: Instant) -> list[Effect]:
        """The plan wanted to be woken."""
        self._plan_wake_mono_ns = None
        return self._planned(self.sync.on_plan_due(now.mono_ns), now)

    def on_kernel_read(self, event: KernelRead, now: Instant) -> list[Effect]:
        """What the kernel holds under our marks was read back."""
        effects = self.audit.read(event, now)
        return self._planned(effects + self._unicast.handle(event, now), now)

    def on_lifetime_due(self, now: Instant) -> list[Effect]:
        """IDP-61, IDP-62: the SAs' time is running out, or is over."""
        over, effects = self._lifetimes.on_due(now)
        if over:
            return effects + self._planned(self.sync.expire(now.mono_ns), now)
        return effects + self._rejoin(now) if effects else []

    def on_sa_expired(self, event: SaExpired, now: Instant) -> list[Effect]:
        """IDP-63: an SA that we send with has carried much, or all that it may."""
        epoch = self.sync.plan.epoch_of(event.id) or self._unicast.epoch_of(event.id)
        if epoch is None:
            return []
        fields = {"spi": event.id.spi, "epoch": str(epoch), "hard": event.hard}
        effects: list[Effect] = [Report("idp.sa_worn", fields)]
        if event.hard:
            text = f"SA {event.id.spi:#010x} of epoch {epoch} has carried all that it may"
            effects.append(Log("error", f"{text}: nothing is sent with it any more"))
        if str(epoch) != str(self.sync.epoch):
            return effects  # the next one is on its way into the SAD
        self._counters.count("IDP-63")
        return effects + self.on_worn_due(now)

    def on_worn_due(self, now: Instant) -> list[Effect]:
        """IDP-63: ask for a new epoch, as long as there is none."""
        return self._lifetimes.on_worn(now) + self._rejoin(now)

    def _planned(self, effects: list[Effect], now: Instant) -> list[Effect]:
        """Keep the plan's timer where the plan wants to be woken; pairs follow the group."""
        effects = [*effects, *self._unicast.follow(self.sync, now)]
        effects += self._lifetimes.follow(self.sync.epoch, self.sync.tm == self._own, now)
        wake_mono_ns = self.sync.wake_mono_ns
        if wake_mono_ns != self._plan_wake_mono_ns:
            self._plan_wake_mono_ns = wake_mono_ns
            if wake_mono_ns is None:
                return [*effects, CancelTimer(TIMER_PLAN)]
            return [*effects, SetTimer(TIMER_PLAN, wake_mono_ns)]
        return effects
