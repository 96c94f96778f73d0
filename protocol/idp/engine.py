"""The engine of IDP: the only place where the state of an instance changes.

Parked until `Started`, then: JOIN of ourselves to MIKE, hello, policies. From there on it keeps the
connectivity table, tells MIKE of every change, and turns MIKE's statuses into SAs. Normative
description: docs/idp.md.

Absent on purpose: a good-bye on the wire.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from protocol.core.addresses import text_of
from protocol.core.counters import RefusalLog, RuleCounters
from protocol.core.engine import (
    CancelTimer,
    DatagramReceived,
    Effect,
    Event,
    Instant,
    KeySource,
    Log,
    Report,
    SetTimer,
    Started,
    Stopped,
    TimerExpired,
)
from protocol.core.errors import PeerError
from protocol.core.transitions import StateCell
from protocol.identity import (
    PROTOCOL_IDP,
    Identity,
    Opened,
    RefusedError,
    UnknownCertificateError,
)
from protocol.idp import exchange, notice, rules
from protocol.idp.auditing import TIMER_AUDIT
from protocol.idp.config import IdpConfig
from protocol.idp.confirming import TIMER_NOTICE
from protocol.idp.connectivity import Change, ChangeKind, ConnectivityTable, PeerState
from protocol.idp.events import (
    KernelChanged,
    KernelRead,
    KeyFetched,
    LinkChanged,
    SaExpired,
    SasApplied,
    TrustReread,
)
from protocol.idp.expiry import TIMER_EXPIRY, Expiry
from protocol.idp.followers import Followers, Heard
from protocol.idp.group import TIMER_ABSENT, TIMER_PLAN, Group
from protocol.idp.hellos import GROUP, TIMER_ANSWER, TIMER_ASK, TIMER_HELLO, Around, Hellos
from protocol.idp.instance import INSTANCE, EngineState
from protocol.idp.keying import NS_PER_MS, TIMER_KEY
from protocol.idp.lifetimes import TIMER_LIFETIME, TIMER_WORN, Lifetimes
from protocol.idp.lighthello import HEADER as LIGHT
from protocol.idp.messages import Hello, MessageKind
from protocol.idp.news import TIMER_NEWS, News
from protocol.idp.policykeeper import OwnPolicy
from protocol.idp.signalling import Signalling
from protocol.idp.unicast import EngineCalls, UnicastPairs
from protocol.idpmike import CHANNEL as LOCAL
from protocol.idpmike import TIMER as LOCAL_TIMER
from protocol.idpmike import GroupStatus, LinkOpened, SignalKind

TIMER_BEGIN = "idp.begin"
TIMERS = (
    TIMER_BEGIN,
    TIMER_HELLO,
    TIMER_ANSWER,
    TIMER_ASK,
    TIMER_EXPIRY,
    TIMER_KEY,
    TIMER_PLAN,
    TIMER_NOTICE,
    TIMER_NEWS,
    TIMER_ABSENT,
    TIMER_LIFETIME,
    TIMER_WORN,
    TIMER_AUDIT,
    *exchange.TIMERS,
)

WANTED = frozenset({MessageKind.HELLO, *exchange.KINDS})


class IdpEngine:
    """One device's IDP, driven by events and the time.

    Args:
        config: settings.
        identity: who we are, how we sign, whom we trust.
        local_secret: the per-device secret of the interface to MIKE.
        keys: where unpredictable bytes come from (hash chains, jitter, pair keys).

    Raises:
        LocalError: on construction: our certificate does not authorise what we shall announce.
    """

    def __init__(
        self,
        config: IdpConfig,
        identity: Identity,
        local_secret: bytes,
        keys: KeySource,
        policy: OwnPolicy | None = None,
    ) -> None:
        self._config = config
        self._identity = identity
        self._me = identity.me.address
        self._hellos = Hellos(config, identity, keys, self._own_hello, self._around)
        self._mike = Signalling(local_secret)
        news_delay_ns = config.news_delay_ms * NS_PER_MS
        self._news = News(self._me, news_delay_ns, self._mike, lambda: self._group.sync.tm)
        self._counters = RuleCounters()
        self._refusals = RefusalLog()
        self._exchange = exchange.Exchange(
            config,
            identity,
            counters=self._counters,
            keys=keys,
            mike=self._mike,
            refuse=self._refuse,
            policy=policy,
        )
        self._state = StateCell(INSTANCE)
        self._startup_wall_ns = 0
        self._begins = False
        lifetimes = Lifetimes(config, self._exchange.policy, self._hellos.random_below)
        calls = EngineCalls(
            refuse=self._refuse,
            rejoin=self._rejoin,
            answer_early=self._hellos.answer_early,
            has_epoch=lambda address: self._group.sync.is_confirmed_by(address),  # noqa: PLW0108
            byte_limit=lifetimes.byte_limit,
        )
        self.unicast = UnicastPairs(config, identity, keys, self._counters, calls)
        self._group = Group(
            config,
            self._me,
            counters=self._counters,
            mike=self._mike,
            news=self._news,
            unicast=self.unicast,
            lifetimes=lifetimes,
            refuse=self._refuse,
            doubt=self._identity.shedding.in_vain,
            rejoin=self._rejoin,
            up=lambda: self._table.addresses_up(),  # noqa: PLW0108 - the table is replaced
            is_lost=lambda address: address in self._table and not self._table.is_up(address),
        )
        self._timer_handlers = self._handlers()
        self._reset()

    def _reset(self) -> None:
        """Drop everything that belongs to one instance, except what must outlive it."""
        self._table = ConnectivityTable(self._config.max_peers)
        interval_ns = self._config.hello_interval_ms * NS_PER_MS
        self._expiry = Expiry(self._table, interval_ns, self._counters)
        self._hellos.forget()
        self.followers = Followers(self._identity, self._counters, self._refuse)
        self._news.forget()
        self._group.forget()
        self._exchange.forget()

    # The two entries.

    def handle(self, event: Event, now: Instant) -> list[Effect]:
        """Consume one event; return what is to be done, in order."""
        match event:
            case DatagramReceived() if event.channel == GROUP:
                return self._on_group(event, now)
            case DatagramReceived() if event.channel == LOCAL:
                return self._on_local(event, now)
            case _ if self.unicast.wants(event):
                return self.unicast.handle(event, now)
            case TimerExpired():
                return self._on_timer(event.name, now)
            case SasApplied():
                return self._group.on_applied(event, now)
            case SaExpired():
                return self._group.on_sa_expired(event, now) if self._running else []
            case KeyFetched():
                return self._group.on_key_fetched(event, now)
            case KernelChanged():
                return self._group.audit.changed(now) if self._running else []
            case KernelRead():
                return self._group.on_kernel_read(event, now) if self._running else []
            case LinkChanged():
                return self._on_link_changed(event.up, now)
            case TrustReread():
                effects = self._exchange.on_reread(event, now, running=self._running)
                return effects + self._trust_changed(now)
            case Started():
                return self._on_started(event, now)
            case Stopped():
                return self._on_stopped(now)
        return []

    def status(self, now: Instant) -> dict[str, Any]:
        """Describe the present state as plain JSON values; never key material."""
        counters = RuleCounters()
        for source in (self._counters.as_dict(), self._identity.counters):
            for name, amount in source.items():
                counters.count(name, amount)
        recent = [entry.as_dict() for entry in self._refusals.recent()]
        return {
            "daemon": "idpd",
            "device": self._identity.me.name,
            "address": text_of(self._me),
            "state": self._state.state.value,
            "startup_wall_ns": self._startup_wall_ns,
            "counters": counters.as_dict(),
            "refused": [*recent, *self._identity.recent_refusals],
            "peers": [
                entry.describe(now.mono_ns) | self.unicast.describe(entry.address)
                for entry in self._table.entries()
            ],
            **self.unicast.status(),
            "hello_interval_ms": self._hellos.interval_ms,
            "link_up": self._hellos.link_up,
            "cut_off": self._hellos.cut_off,
            "local": self._mike.status(),
            "sa_mode": self._config.sa_mode.value,
            **self._exchange.status(),
            **self._group.sync.status(),
        }

    # Start and stop.

    @property
    def _running(self) -> bool:
        return self._state.state is EngineState.RUNNING

    def _on_started(self, event: Started, now: Instant) -> list[Effect]:
        """Begin an instance; our JOIN comes first, because latency starts here.

        MIKE's part takes longest and waits for nothing else of ours: it begins while we sign our
        hello.
        """
        if self._running:
            return [Log("warning", "start ignored: already running")]
        self._state.move(EngineState.RUNNING)
        self._reset()
        self._startup_wall_ns = self._identity.startup_after(event.trigger_wall_ns)
        self._identity.begin(self._startup_wall_ns)
        self.unicast.begin(self._startup_wall_ns)
        effects: list[Effect] = [Report("t_start", {"trigger_wall_ns": event.trigger_wall_ns})]
        # Without an xfrm interface only the policies keep red traffic from leaving in clear.
        if self._config.if_id is None:
            effects += self._group.sync.start()
        effects += self._mike.begin(self._me, self._startup_wall_ns, now)
        effects.append(SetTimer(TIMER_BEGIN, now.mono_ns))
        self._begins = True
        return effects

    def _on_begin_due(self, now: Instant) -> list[Effect]:
        """Say hello for the first time, write policies; a MIKE that lives on may be quicker."""
        if not self._begins:
            return []
        self._begins = False
        effects = self._hellos.first(now)
        effects.append(Report("t_hello"))
        if self._config.if_id is not None:
            effects += self._group.sync.start()
        effects.append(self._hellos.next_timer())
        return effects

    def _on_stopped(self, now: Instant) -> list[Effect]:
        """Leave in order: tell MIKE, remove SAs and policies. Others notice by our silence."""
        if not self._running:
            return []
        self._state.move(EngineState.PARKED)
        effects = self._mike.signal(SignalKind.LEAVE, self._me, self._startup_wall_ns, now)
        effects += [self._group.sync.stop(), *self.unicast.stop()]
        effects += [CancelTimer(name) for name in TIMERS]
        self._reset()
        return effects

    # Hellos.

    def _own_hello(self) -> Hello:
        """Return what a hello of ours says now."""
        config = self._config
        interval_ms = rules.paced_interval_ms(
            config.hello_interval_ms, self._table.up_count + 1, config.hello_budget_per_s
        )
        return self._exchange.own_hello(
            interval_ms, config.dead_factor, self._group.sync.epoch, self.unicast.pair_key
        )

    def _around(self, now: Instant) -> Around:
        """Return how the others are, for our next hello."""
        up = self._table.addresses_up()
        return Around(
            up=len(up),
            lost=len(self._table) - len(up),
            to_ask=self._table.falling_silent(self._expiry.heard_until(now))
            + self._group.absent(up),
        )

    def _on_group(self, event: DatagramReceived, now: Instant) -> list[Effect]:
        """Take a datagram of the black network: authenticate, decode, check, then act."""
        if not rules.may_read(self._running):
            self._counters.count("IDP-15")
            return []
        other_wait = event.waited_ns != self._expiry.behind_ns
        if other_wait and self._identity.peer_by_address(event.source):
            self._expiry.behind_ns = event.waited_ns  # strangers have a socket of their own
        arrived = event.arrived(now)
        if event.payload.startswith(LIGHT):
            heard, effects = self.followers.read_light(event, self._table, arrived, now)
            if heard is None:
                return effects + self._exchange.on_light(event, now)
            return self._on_hello(heard, arrived, now)
        if event.payload.startswith(notice.PREAMBLE):
            return self._on_notice(event, now)
        try:
            opened = self._identity.open(
                event.payload, PROTOCOL_IDP, event.source, arrived, wanted=WANTED
            )
        except UnknownCertificateError as unknown:
            return unknown.effects + self._on_unknown(unknown, event, now)
        except RefusedError as refused:
            return refused.effects
        if opened is None:
            return []
        try:
            rules.check_not_own_address(opened.peer.address, self._me)
            if opened.kind in exchange.KINDS:
                return self._exchange.on_message(opened, now) + self._trust_changed(now)
            hello = Hello.decode(opened.body)
            rules.check_hello(hello)
            return self._on_signed(opened, hello, arrived, now)
        except PeerError as error:
            return self._refuse(opened.peer.name, error, now)

    def _on_notice(self, event: DatagramReceived, now: Instant) -> list[Effect]:
        """A device says that it has an epoch's SAs; only those that are up are listened to."""
        entry = self._table.get(event.source)
        if entry is None or not self._table.is_up(event.source):
            self._counters.count("idp.notice_unknown")
            return []
        return self._group.on_notice(event, entry, now)

    def _on_signed(
        self, opened: Opened, hello: Hello, arrived: Instant, now: Instant
    ) -> list[Effect]:
        """A device has signed that it is there."""
        self.followers.check_signed(opened, hello, arrived)
        peer = opened.peer
        heard = peer, opened.startup_wall_ns, hello, self._table.get(peer.address)
        effects = self._on_hello(heard, arrived, now)
        self.followers.take_signed(opened, hello, arrived)
        if hello.asking:
            effects += self._hellos.answer_later(opened.peer.address, now, asked=True)
        return effects

    def _on_hello(self, heard: Heard, arrived: Instant, now: Instant) -> list[Effect]:
        """A device is there."""
        peer, startup_wall_ns, hello, entry = heard
        up = entry is not None and entry.state is PeerState.UP
        refusal = self._exchange.refused_policy(peer, hello, now, up=up)
        if refusal is not None:
            return refusal
        change = self._table.heard(peer, startup_wall_ns, hello, arrived.mono_ns, entry)
        entry = entry or self._table.get(peer.address)
        assert entry is not None
        effects: list[Effect] = []
        if self._hellos.is_reconnected(entry.first_mono_ns):
            effects += self._rejoin(now)
        if change is not None:
            effects += self._news.detected(change, now, in_group=hello.epoch is not None)
            effects += self.unicast.on_up(peer, startup_wall_ns, hello, now)
            if not hello.triggered:
                effects += self._hellos.answer_later(peer.address, now)
        effects += self._expiry.heard(entry)
        return effects + self._exchange.on_hello(peer, hello, now)

    # Trust.

    def _on_unknown(
        self, unknown: UnknownCertificateError, event: DatagramReceived, now: Instant
    ) -> list[Effect]:
        """Ask who has no certificate with us for it; read what it said once we have it."""
        effects = self._exchange.on_unknown(unknown, event, now, in_use=self._table)
        effects += self._trust_changed(now)
        for held in self._exchange.released():
            effects += self._on_group(held, now)
        for address in self._exchange.met():
            effects += self._hellos.ask(address, now)
        return effects

    def _trust_changed(self, now: Instant) -> list[Effect]:
        """IDP-56: whose certificate is not acceptable any more is excluded at once."""
        if not self._exchange.changed:
            return []
        self._exchange.changed = False
        problem_with = self._identity.problem_with
        changes = self._table.remove(lambda whose: problem_with(whose, now) is not None)
        self._counters.count("IDP-56", len(changes))
        return self._gone(changes, now)

    # Changes of the connectivity table.

    def _gone(self, changes: list[Change], now: Instant) -> list[Effect]:
        """Act upon devices that have left."""
        effects: list[Effect] = []
        for change in changes:
            effects += self._news.detected(change, now) + self.unicast.on_lost(change.address, now)
        return effects + self._group.on_lost(now) if changes else []

    def _rejoin(self, now: Instant) -> list[Effect]:
        """Have MIKE make us a member anew."""
        own = (self._me, self._identity.me.name, self._startup_wall_ns)
        return self._news.detected(Change(ChangeKind.RESTORE, *own), now)

    def _on_expiry_due(self, now: Instant) -> list[Effect]:
        """IDP-7: devices are down."""
        changes = self._expiry.due(now)
        effects = self._gone(changes, now)
        if changes and self._table.up_count == 0:
            self._hellos.note_alone(now)
        return effects + self._expiry.timer()

    def _on_link_changed(self, up: bool, now: Instant) -> list[Effect]:
        """The black interface lost or found its carrier."""
        if up == self._hellos.link_up:
            return []
        self._hellos.link_up = up
        if not self._running:
            return []
        return [Report("idp.link", {"up": up}), *(self._hellos.on_link_up(now) if up else ())]

    # The interface to MIKE.

    def _on_local(self, event: DatagramReceived, now: Instant) -> list[Effect]:
        """Take a datagram of the local interface."""
        if not rules.may_read(self._running or self._mike.waits):
            self._counters.count("IDP-15")
            return []
        try:
            message, effects = self._mike.handle(event, now)
        except PeerError as error:
            return self._refuse(str(event.source), error, now)
        if isinstance(message, GroupStatus) and self._running:
            effects += self._on_begin_due(now)
            return effects + self._group.on_status(message, now)
        if isinstance(message, LinkOpened) and self._running:
            own = (self._me, self._startup_wall_ns)
            effects += self._exchange.repeat(now)
            return effects + self._mike.repeat(own, self._table.instances_up(), now)
        return effects

    # Timers and refusals.

    def _on_timer(self, name: str, now: Instant) -> list[Effect]:
        if name == LOCAL_TIMER:
            given_up, effects = self._mike.on_timer(name, now)
            if given_up:
                self._counters.count("idp.signal_given_up", given_up)
            return effects
        if not rules.may_read(self._running):
            return []
        handler = self._timer_handlers.get(name)
        return [] if handler is None else handler(now)

    def _handlers(self) -> dict[str, Callable[[Instant], list[Effect]]]:
        """Return who handles which timer."""
        return {
            TIMER_HELLO: self._hellos.on_due,
            TIMER_ANSWER: self._hellos.on_answer_due,
            TIMER_ASK: self._hellos.on_ask_due,
            TIMER_EXPIRY: self._on_expiry_due,
            TIMER_KEY: self._group.on_key_due,
            TIMER_PLAN: self._group.on_plan_due,
            TIMER_BEGIN: self._on_begin_due,
            TIMER_NEWS: self._news.on_due,
            TIMER_ABSENT: self._group.on_absent_due,
            TIMER_NOTICE: self._group.on_notice_due,
            TIMER_LIFETIME: self._group.on_lifetime_due,
            TIMER_WORN: self._group.on_worn_due,
            TIMER_AUDIT: self._group.audit.due,
            **dict.fromkeys(exchange.TIMERS, self._exchange.on_timer),
        }

    def _refuse(self, peer: str, error: PeerError, now: Instant) -> list[Effect]:
        """Count what broke a rule; one line in the log per peer, rule and minute."""
        self._counters.count(error.rule)
        if not self._refusals.note(peer, error.rule, error.reason, now):
            return []
        return [Log("warning", f"refused a message of {peer}: {error.reason} ({error.rule})")]
