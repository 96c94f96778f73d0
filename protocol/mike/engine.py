"""MIKE's engine: one event and the time in, a list of effects out (docs/mike.md).

This file sorts events to the handlers of the layers below it (`Instance` lists them), whose one
object it is. No clock, no socket, no chance but the `KeySource`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from ipaddress import IPv6Address
from typing import Any

from protocol.core.addresses import text_of
from protocol.core.engine import (
    DatagramReceived,
    Effect,
    Event,
    Instant,
    Report,
    Started,
    Stopped,
    TimerExpired,
)
from protocol.core.errors import PeerError
from protocol.identity import PROTOCOL_MIKE, Opened, RefusedError
from protocol.identity.envelope import kind_of
from protocol.idpmike import TIMER as TIMER_LINK
from protocol.idpmike import (
    Credential,
    CredentialKind,
    LinkOpened,
    Signal,
    SignalKind,
    Standing,
)
from protocol.mike.change import Change
from protocol.mike.config import NS_PER_MS
from protocol.mike.events import (
    Attend,
    EpochMarkFound,
    HandoverRequested,
    KeepEpochMark,
    RekeyRequested,
)
from protocol.mike.instance import (
    CHANNEL,
    TIMER_BATCH,
    TIMER_ELECTION,
    TIMER_FOUND,
    TIMER_FRAGMENTS,
    TIMER_HANDOVER,
    TIMER_HELD,
    TIMER_JOIN,
    TIMER_REJOIN,
    TIMER_REKEY,
    TIMER_REPAIR,
    TIMER_RIVALS,
    TIMER_SILENCE,
    TIMER_STATUS,
    TIMER_TREE,
    TIMERS,
)
from protocol.mike.making import mode_of
from protocol.mike.messages import (
    DECODERS,
    Fragment,
    Handover,
    Join,
    Kind,
    Message,
    Path,
    Repair,
    Status,
    Tree,
)
from protocol.mike.rekeying import Page, Rekey
from protocol.mike.renewal import Renewer
from protocol.mike.rules import began_anew, is_elder, wanted
from protocol.mike.states import STANDING, State


class MikeEngine(Renewer):
    """One device's MIKE.

    Constructed as ``MikeEngine(config, identity, local_secret, keys)``; starts parked.
    """

    _attended: frozenset[Kind] = frozenset()
    _marked = 0

    def handle(self, event: Event, now: Instant) -> Sequence[Effect]:
        """Consume one event; return what is to be done, in order."""
        self.now = now
        match event:
            case DatagramReceived(channel="local"):
                self._on_local(event)
            case DatagramReceived():
                self._on_black(event)
            case TimerExpired(name=name):
                self._on_timer(name)
            case Started():
                self._on_started(event)
            case Stopped():
                self._on_stopped()
            case HandoverRequested(to=to):
                self.request_hand_over(to)
            case RekeyRequested():
                self.request_rekey()
            case EpochMarkFound(number=number):
                self.highest = self._marked = max(self.highest, number)
            case _:
                self.log("error", f"{type(event).__name__} is no event of MIKE")
        self._keep_mark()
        self._attend()
        return self.drain()

    def _keep_mark(self) -> None:
        """MIKE-29: the number of an epoch is on the disk before anybody hears of it from us."""
        if self.highest > self._marked:
            self._marked = self.highest
            self._effects.insert(0, KeepEpochMark(self.highest))

    def _attend(self) -> None:
        """Say which kinds of message matter, whenever that changes.

        Before anything is sent: the answer may come before the next effect is performed.
        """
        kinds = self._wanted()
        if kinds is not self._attended and kinds != self._attended:
            self._effects.insert(0, Attend(tuple(sorted(kinds))))
        self._attended = kinds

    def _wanted(self) -> frozenset[Kind]:
        return wanted(
            STANDING[self.state],
            handed_over=self.gave is not None,
            may_found=not self.liveness.elders and not self.runs(TIMER_RIVALS),
        )

    # Start and stop.

    def _on_started(self, event: Started) -> None:
        """Become a new instance."""
        if self.state is not State.PARKED:
            self._on_stopped()
        self.identity.begin(self.identity.startup_after(event.trigger_wall_ns))
        self.clear()
        self.move(State.IDLE)
        self._effects += self.link.begin(self.now)
        self.prepare()

    def _on_stopped(self) -> None:
        """Leave the group and return to the parked state."""
        if self.state is State.PARKED:
            return
        self._leave(State.PARKED)

    def _leave(self, after: State) -> None:
        """Drop all keys and everything known about groups."""
        self.leave()
        self.stop(*TIMERS)
        self.clear()
        self.move(after)

    # From IDP.

    def _on_local(self, event: DatagramReceived) -> None:
        """A datagram of the local interface; it is acknowledged after it was acted upon."""
        if self.state is State.PARKED:
            return
        try:
            message, effects = self.link.handle(event, self.now)
        except PeerError as error:
            self.refuse(error, "the local interface")
            return
        match message:
            case Signal():
                self._on_signal(message)
            case Credential():
                self._on_credential(message)
            case Standing():
                self.identity.bar(message.peer, message.reason or None)
            case LinkOpened():
                self.identity.bar_nobody()  # a new instance of IDP says anew who is barred
                if self.current is not None and self.state is not State.JOINING:
                    self.tell_idp(self.current)
        self._effects += effects

    def _on_signal(self, signal: Signal) -> None:
        """JOIN, LEAVE or RESTORE of a device; JOIN and RESTORE act only at the device itself."""
        self.emit(
            Report(
                "t_mike_in",
                {
                    "kind": signal.kind.name,
                    "peer": text_of(signal.peer),
                    "serial": signal.serial,
                    "sent_wall_ns": signal.sent_wall_ns,
                },
                at=self.now,
            )
        )
        if signal.kind is SignalKind.LEAVE:
            self._on_leave(signal.peer)
        elif signal.peer == self.own:
            self._on_join_self()
        else:
            self.liveness.heard(signal.peer)
            before = None
            if signal.kind is SignalKind.JOIN:
                before = self._note_instance(signal)
                if began_anew(signal.startup_wall_ns, before):
                    self.liveness.began_anew(signal.peer, self.now.mono_ns)
            if signal.peer == self.tm and self.state in (State.MEMBER, State.JOINING):
                self.look_at_tm()
                if began_anew(signal.startup_wall_ns, before):
                    self.on_tm_began()

    def _note_instance(self, signal: Signal) -> int | None:
        """Note when a device began; return when its instance before began, None if unknown."""
        own_ns = self.identity.startup_wall_ns
        assert own_ns is not None
        delay_ns = self.config.founding_delay_ms * NS_PER_MS
        elder = is_elder(signal.startup_wall_ns, own_ns, delay_ns)
        return self.liveness.began(signal.peer, signal.startup_wall_ns, elder=elder)

    def _on_credential(self, credential: Credential) -> None:
        """IDP learned a certificate or a revocation list: it counts here too if it is good."""
        store = self.identity.store
        if store is None:
            return
        try:
            if credential.kind is CredentialKind.CERTIFICATE:
                store.learn((credential.der,), self.now.wall_ns)
            else:
                store.learn_revocations(credential.der, self.now.wall_ns)
        except PeerError as error:
            self.refuse(error, "the local interface")
            return
        self.identity.trust(store.devices())

    def _on_join_self(self) -> None:
        """JOIN or RESTORE of this device: (re)join, with a renewed key even if we are a member."""
        if self.state is State.TM:
            self.renew()
            return
        if self.state is State.IDLE:
            self.move(State.JOINING)
        self.join()
        if self.state is State.JOINING and self.pending is None and not self.runs(TIMER_FOUND):
            self.listen_before_founding(group_heard=False)

    def _on_leave(self, peer: IPv6Address) -> None:
        """LEAVE: of this device, of the TM, or of another member."""
        if peer == self.own:
            if self.state is not State.IDLE:
                self._leave(State.IDLE)
            return
        self.liveness.lost(peer, self.now.wall_ns)
        if self.state is State.JOINING:
            self.work.refused(peer)
            if peer == self.tm:
                self.lose_tm()
        if self.state is State.TM:
            self.exclude(peer)
        elif self.state is State.MEMBER and (peer == self.tm or self.runs(TIMER_ELECTION)):
            self.elect()

    # From other devices.

    def _on_black(self, event: DatagramReceived) -> None:
        """A datagram of the black network: open, decode, act; refuse with a count."""
        if event.channel != CHANNEL:
            return
        kinds = self._wanted()
        if not kinds:
            return
        if kind_of(event.payload) == Kind.FRAGMENT and self.is_spare(event.payload):
            return
        try:
            opened = self.identity.open(
                event.payload, PROTOCOL_MIKE, event.source, self.now, wanted=kinds
            )
        except RefusedError as error:
            self._effects += error.effects
            return
        if opened is None:
            return
        try:
            self._on_message(opened)
        except PeerError as error:
            self.refuse(error, opened.peer.name)

    def _on_message(self, opened: Opened) -> None:
        """Decode an authenticated body and act on it."""
        sender = opened.peer.address
        message: Message | None = DECODERS[Kind(opened.kind)](opened.body)
        self.check_instance(sender, opened.startup_wall_ns)
        if isinstance(message, Fragment):
            message = self.gather(message, opened)
        match message:
            case Join():
                self.on_join(message, opened)
            case Tree() | Rekey():
                self.is_in_order(opened)
                self.on_tree(message, sender)
            case Change():
                self.is_in_order(opened)
                self.on_change(message, sender)
            case Page():
                self.on_page(message, sender)
            case Path():
                self.on_path(message, sender)
            case Status():
                if self.is_in_order(opened):
                    self.on_status(message, sender)
            case Repair():
                self.on_repair(message, sender)
            case Handover():
                self.is_in_order(opened)
                self.on_handover(message, sender)

    # Timers.

    def _on_timer(self, name: str) -> None:
        """A timer ran out."""
        if name == TIMER_LINK:
            self._effects += self.link.on_timer(name, self.now)
            return
        if not self.expired(name):
            return
        self._handlers[name]()

    @cached_property
    def _handlers(self) -> dict[str, Callable[[], None]]:
        """Who handles which timer."""
        return {
            TIMER_JOIN: self.on_join_timer,
            TIMER_FOUND: self.found,
            TIMER_RIVALS: lambda: None,  # `_wanted` sees that it ran out
            TIMER_REJOIN: self.on_rejoin_timer,
            TIMER_REPAIR: self.on_repair_timer,
            TIMER_HELD: self.on_held_timer,
            TIMER_SILENCE: self.on_silence_timer,
            TIMER_ELECTION: self.on_election_timer,
            TIMER_TREE: self.on_tree_timer,
            TIMER_STATUS: self.on_status_timer,
            TIMER_HANDOVER: self.on_handover_timer,
            TIMER_REKEY: self.on_rekey_timer,
            TIMER_FRAGMENTS: self.on_fragments_timer,
            TIMER_BATCH: self.on_batch_timer,
        }

    # For people.

    def status(self, now: Instant) -> dict[str, Any]:
        """Describe the present state as plain JSON values; no key material."""
        role = "idle" if self.state is State.PARKED else self.state.value
        counters = {**self.counters.as_dict(), **self.identity.counters}
        refused = [entry.as_dict() for entry in self.refused.recent()]
        return {
            "address": text_of(self.own),
            "role": role,
            "parked": self.state is State.PARKED,
            "epoch": None if self.current is None else str(self.current.epoch),
            "members": [text_of(member) for member in self.members],
            "tm": None if self.tm is None else text_of(self.tm),
            "term": self.term,
            "mode": None if self.current is None else mode_of(self.current).value,
            "pending": None if self.pending is None else str(self.pending.epoch),
            "joining": self.attempt is not None,
            "rekey": self.rekey_status(now),
            "gone": [text_of(address) for address in self.liveness.gone],
            "startup_wall_ns": self.identity.startup_wall_ns,
            "counters": dict(sorted(counters.items())),
            "refused": refused + self.identity.recent_refusals,
            "link": self.link.status(),
            "at_wall_ns": now.wall_ns,
        }
