"""What all parts of the engine share: the instance's state, its effects, its timers.

The engine is one object in layers, each a file: `Instance` (this one), `Assembler` (messages in
fragments), `Joiner`, `Receiver` (key distribution), `Member` (follow, repair), `Elector`, `Maker`
(epochs), `Manager` (the TM's role), `Renewer`, `MikeEngine` (events in, effects out). The
state of the protocol changes only through `Instance.move` and its table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from ipaddress import IPv6Address

from protocol.core.addresses import text_of
from protocol.core.counters import RefusalLog, RuleCounters
from protocol.core.engine import (
    CancelTimer,
    Effect,
    Instant,
    KeySource,
    Log,
    Report,
    SendDatagram,
    SetTimer,
)
from protocol.core.errors import PeerError
from protocol.identity import PROTOCOL_MIKE, Identity, Opened
from protocol.identity.envelope import OVERHEAD
from protocol.idpmike import EpochId, GroupStatus, LocalLink, Side
from protocol.mike.answers import Answers
from protocol.mike.config import NS_PER_MS, MikeConfig
from protocol.mike.epochs import Epoch, KeyPair
from protocol.mike.events import PublishKey, RetireKey
from protocol.mike.fragments import Assemblies, split
from protocol.mike.hierarchy import Hierarchy
from protocol.mike.keytree import KeyTree
from protocol.mike.membership import Liveness
from protocol.mike.messages import FRAGMENTED, NO_EPOCH, Fragment, Handover, Kind, Message, Path
from protocol.mike.rekeying import Page, Rekey
from protocol.mike.rules import View
from protocol.mike.schedule import SECRET_LENGTH, NodeSecret
from protocol.mike.states import Attempt, Held, Prepared, State, may_move
from protocol.mike.transaction import Transaction

CHANNEL = "group"

TIMER_JOIN = "mike.join"
TIMER_FOUND = "mike.found"
TIMER_RIVALS = "mike.rivals"
TIMER_REJOIN = "mike.rejoin"
TIMER_REPAIR = "mike.repair"
TIMER_HELD = "mike.held"
TIMER_SILENCE = "mike.silence"
TIMER_ELECTION = "mike.election"
TIMER_TREE = "mike.tree"
TIMER_STATUS = "mike.status"
TIMER_HANDOVER = "mike.handover"
TIMER_REKEY = "mike.rekey"
TIMER_FRAGMENTS = "mike.fragments"
TIMER_BATCH = "mike.batch"
TIMERS = (
    TIMER_JOIN,
    TIMER_FOUND,
    TIMER_RIVALS,
    TIMER_REJOIN,
    TIMER_REPAIR,
    TIMER_HELD,
    TIMER_SILENCE,
    TIMER_ELECTION,
    TIMER_TREE,
    TIMER_STATUS,
    TIMER_HANDOVER,
    TIMER_REKEY,
    TIMER_FRAGMENTS,
    TIMER_BATCH,
)

RECENT_MAX = 8
"""Epoch ids remembered as our group's: a TM that beacons another one of that age is not ours."""

HEARD_MAX = 256
"""Devices whose newest message is remembered; only devices with a certificate get in."""

SPLIT_MAX = 2
"""Messages sent in fragments that are kept, to repeat fragments: the newest TREE and one more."""


class Instance:
    """State and effects of one MIKE instance.

    Attributes:
        config: timers and limits.
        identity: who we are, whom we trust.
        state: see `protocol.mike.states`.
        tm: whom we take for the TM.
        term: hand-overs since the epoch was announced.
        highest: largest epoch number that this device has used or seen, over restarts (MIKE-29).
        current: the established epoch.
        pending: a newer epoch that is not established yet.
        attempt: our unanswered JOIN.
        prepared: our first JOIN, made before IDP asked for it.
        liveness: what our IDP says about the members.
        work: what we do, or will do, as TM.
        hierarchy: as TM in key distribution mode: the keys that we distribute.
        urgent: as TM: the unfinished epoch will not be finished.
        parts: the REKEYs of the newest such epoch, and how many of them were sent.
        entered: the epoch that granted our last JOIN.
        newcomers: who has to be told the roster, or the tree, of that epoch.
        before: in key agreement mode: the tree of the epoch before, if the newest one is told to
            those who have it by a CHANGE.
        useless: an epoch whose CHANGE does not help us: we need its TREE.
        assemblies: messages of which fragments are missing.
        decoded: the last message that was put together: its bytes, and what they say.
        split: our last messages that went out in fragments, by name.
        answers: which questions were answered lately.
        key_since: when the established epoch was established here.
        share_since: when our leaf secret in it was first part of an established epoch.
    """

    def __init__(
        self,
        config: MikeConfig,
        identity: Identity,
        local_secret: bytes,
        keys: KeySource,
        secret_type: type[NodeSecret] = NodeSecret,
    ) -> None:
        self.config = config
        self.identity = identity
        self.own = identity.me.address
        self.state = State.PARKED
        self.link = LocalLink(local_secret, Side.MIKE)
        self.counters = RuleCounters()
        self.refused = RefusalLog()
        self._keys = keys
        self._secret_type = secret_type
        self._effects: list[Effect] = []
        self._running: set[str] = set()
        self.now = Instant(0, 0)
        self.published: list[str] = []
        self.highest = 0
        self.clear()

    def clear(self) -> None:
        """Forget everything about groups, except that numbers only grow."""
        self.tm: IPv6Address | None = None
        self.term = 0
        self.current: Epoch | None = None
        self.pending: Epoch | None = None
        self.attempt: Attempt | None = None
        self.prepared: Prepared | None = None
        self.held: Held | None = None
        self.early: dict[IPv6Address, Path] = {}
        self.early_page: tuple[IPv6Address, Page] | None = None
        self.heard: dict[IPv6Address, tuple[int, int]] = {}
        self.recent: list[EpochId] = []
        self.suspect: EpochId | None = None
        self.entered: EpochId | None = None
        self.missing: EpochId | None = None
        self.missing_from: IPv6Address | None = None
        self.missing_asked = 0
        self.useless: EpochId | None = None
        self.silent: IPv6Address | None = None
        self.deposed: IPv6Address | None = None
        self.began: IPv6Address | None = None
        self.tm_startup: tuple[IPv6Address, int] | None = None
        self.tm_heard_mono_ns = 0
        self.gave: Handover | None = None
        self.gave_tries = 0
        self.give_to: IPv6Address | None = None
        self.urgent = False
        self.announced_mono_ns = 0
        self.tree_repetitions = 0
        self.hierarchy: Hierarchy | None = None
        self.parts: tuple[Rekey, ...] = ()
        self.parts_sent = 0
        self.newcomers: tuple[IPv6Address, ...] = ()
        self.before: KeyTree | None = None
        self.granted: tuple[tuple[IPv6Address, bytes], ...] = ()
        self.key_since: Instant | None = None
        self.share_since: Instant | None = None
        self.assemblies = Assemblies()
        self.decoded: tuple[bytes, Message] | None = None
        self.split: dict[bytes, tuple[Fragment, ...]] = {}
        self.answers = Answers()
        self.liveness = Liveness()
        self.work = Transaction(self.config.members_max)

    # Effects.

    def emit(self, effect: Effect) -> None:
        """Add an effect."""
        self._effects.append(effect)

    def drain(self) -> list[Effect]:
        """Return the effects collected, and start anew."""
        effects, self._effects = self._effects, []
        return effects

    def after(self, timer: str, delay_ms: int) -> None:
        """(Re)start a timer."""
        self.after_ns(timer, delay_ms * NS_PER_MS)

    def after_ns(self, timer: str, delay_ns: int) -> None:
        """(Re)start a timer."""
        self._running.add(timer)
        self.emit(SetTimer(timer, self.now.mono_ns + delay_ns))

    def stop(self, *timers: str) -> None:
        """Stop timers that run."""
        for timer in timers:
            if timer in self._running:
                self._running.discard(timer)
                self.emit(CancelTimer(timer))

    def expired(self, timer: str) -> bool:
        """Note that a timer ran out; say whether it was still wanted."""
        if timer not in self._running:
            return False
        self._running.discard(timer)
        return True

    def runs(self, timer: str) -> bool:
        """Say whether a timer runs."""
        return timer in self._running

    def log(self, level: str, text: str) -> None:
        """Add a line to the daemon's log."""
        self.emit(Log(level, text))

    def refuse(self, error: PeerError, peer: str) -> None:
        """Count a refusal under its rule; log the first of a minute."""
        self.counters.count(error.rule)
        if self.refused.note(peer, error.rule, error.reason, self.now):
            self.log("warning", f"refused a message of {peer}: {error.reason} ({error.rule})")

    def send(self, message: Message, destination: IPv6Address | None = None) -> bool:
        """Sign and send a message, in fragments if it is large (MIKE-26).

        Returns:
            False if it is larger than we may build (MIKE-20).
        """
        body = message.encode()
        kind = Kind[type(message).__name__.upper()]
        if len(body) + OVERHEAD <= self.config.datagram_size_max:
            self.emit(SendDatagram(CHANNEL, self.sealed(kind, body, destination), destination))
            return True
        fragments = split(kind, body, self.config.datagram_size_max) if kind in FRAGMENTED else ()
        if not fragments:
            self.counters.count("MIKE-20")
            self.log("error", f"{kind.name} of {len(body)} bytes is too large to be sent")
            return False
        self.split.pop(fragments[0].message, None)
        self.split[fragments[0].message] = fragments
        while len(self.split) > SPLIT_MAX:
            del self.split[next(iter(self.split))]
        self.send_fragments(fragments, destination)
        return True

    def send_fragments(
        self, fragments: Iterable[Fragment], destination: IPv6Address | None
    ) -> None:
        """Sign and send fragments."""
        for fragment in fragments:
            datagram = self.sealed(Kind.FRAGMENT, fragment.encode(), destination)
            self.emit(SendDatagram(CHANNEL, datagram, destination))

    def sealed(self, kind: Kind, body: bytes, to: IPv6Address | None = None) -> bytes:
        """Sign a message that fits into a datagram, for one device or for all."""
        return self.identity.seal(PROTOCOL_MIKE, kind, body, self.now, to)

    # Chance.

    def fresh_secret(self) -> NodeSecret:
        """Return a new leaf secret."""
        return self._secret_type(self._keys.random_bytes(SECRET_LENGTH))

    def fresh_bytes(self, length: int) -> bytes:
        """Return unpredictable bytes."""
        return self._keys.random_bytes(length)

    def spread_ns(self, delay_ms: int) -> int:
        """Return a random time of 0.5 to 1.5 of a delay, in nanoseconds."""
        delay_ns = delay_ms * NS_PER_MS
        return delay_ns // 2 + int.from_bytes(self._keys.random_bytes(6), "big") % delay_ns

    # State.

    def move(self, after: State) -> None:
        """Change the state; a move that the table does not have is a bug."""
        before = self.state
        if before is after:
            return
        assert may_move(before, after), f"{before} to {after}"
        self.state = after
        self.emit(Report("mike.state", {"from": before.value, "to": after.value}))

    @property
    def members(self) -> tuple[IPv6Address, ...]:
        """Members of the established epoch, in position order."""
        return () if self.current is None else self.current.members

    @property
    def newest(self) -> Epoch | None:
        """The newest epoch we have the TREE or REKEY of."""
        return self.pending or self.current

    def view(self) -> View:
        """Return what we know, to judge a TREE by."""
        return View(
            own=self.own,
            tm=self.tm,
            members=self.members,
            gone=self.gone(),
            passed=self.liveness.passed,
            nonce=None if self.attempt is None else self.attempt.nonce,
            highest=self.highest,
            tm_deposed=self.tm is not None and self.tm == self.deposed,
        )

    def gone(self) -> Collection[IPv6Address]:
        """Return who left, and who began anew and is not in again, even if our IDP hears it.

        A TM that began anew is asked first: perhaps only its IDP did.
        """
        gone, anew = self.liveness.gone, self.liveness.anew
        if self.deposed is None and not anew:
            return gone
        found = {*gone, *(who for who in anew if who != self.tm)}
        return found if self.deposed is None else {*found, self.deposed}

    def leaf_with(self, key: bytes | None) -> NodeSecret | None:
        """Return our leaf secret with this blinded key, if we hold it."""
        return next((leaf for leaf in self.leaves() if leaf.blinded == key), None)

    def leaves(self) -> list[NodeSecret]:
        """Return the leaf secrets that we hold, the newest first."""
        held = [] if self.attempt is None else [self.attempt.leaf]
        for epoch in (self.pending, self.current):
            held += [] if epoch is None else epoch.leaves
        return held

    def earlier_secrets(self) -> Mapping[KeyPair, NodeSecret]:
        """Return the node secrets that a new epoch may use again."""
        known: dict[KeyPair, NodeSecret] = {}
        for holder in (self.current, self.pending):
            if holder is not None:
                known.update(holder.secrets)
        return known

    def remember(self, epoch: EpochId) -> None:
        """Note an epoch as one of our group's."""
        self.recent.append(epoch)
        del self.recent[:-RECENT_MAX]

    def is_in_order(self, opened: Opened) -> bool:
        """Say whether this is the newest TREE, STATUS or HANDOVER of its sender, and note it.

        A STATUS that was overtaken tells about a past state; judged as present (MIKE-16) it could
        dissolve a group in favour of one that is no more.
        """
        sender = opened.peer.address
        order = (opened.startup_wall_ns, opened.sequence)
        if order <= self.heard.get(sender, (-1, -1)):
            return False
        self.heard.pop(sender, None)
        self.heard[sender] = order
        while len(self.heard) > HEARD_MAX:
            del self.heard[next(iter(self.heard))]
        return True

    def establish(self, agreement: Epoch) -> None:
        """Make an epoch the current one: report, publish, tell IDP.

        Our PATH or TREE goes out before the key is written: it costs this device one send, and all
        others wait for it.
        """
        first = self.current is not agreement
        if first:
            self.key_since = self.now
        if self.current is None or self.current.leaves != agreement.leaves:
            self.share_since = self.now
        self.current = agreement
        self.pending = None
        self.suspect = None
        pointer = str(agreement.epoch)
        assert agreement.keys is not None
        self.emit(
            Report(
                "t_key",
                {"epoch": pointer, "tm": text_of(self.tm), "members": len(agreement.members)},
            )
        )
        self.send_keys(agreement)
        self.emit(PublishKey(pointer, agreement.keys.group_key))
        self.tell_idp(agreement)
        if first:
            self.published.append(pointer)
        for old in self.published[: -self.config.keys_kept]:
            self.emit(RetireKey(old))
        del self.published[: -self.config.keys_kept]
        self.liveness.settled()
        self.held = None
        self.early.clear()
        self.early_page = None
        self.missing = None
        self.stop(TIMER_REPAIR, TIMER_HELD, TIMER_ELECTION, TIMER_FOUND, TIMER_RIVALS)

    def send_keys(self, agreement: Epoch) -> None:
        """Send what the others wait for; a layer above knows what that is."""

    def tell_idp(self, agreement: Epoch) -> None:
        """Send a status with the pointer to the key over the local interface."""
        status = GroupStatus(
            serial=0,
            epoch=agreement.epoch,
            pointer=str(agreement.epoch),
            members=agreement.members,
            tm=self.tm if self.tm in agreement.members else agreement.content.tm,
            sent_wall_ns=self.now.wall_ns,
        )
        self._effects += self.link.send(status, self.now)

    def retire_all(self) -> None:
        """Drop every key and all secrets."""
        for pointer in self.published:
            self.emit(RetireKey(pointer))
        self.published.clear()
        self.current = None
        self.pending = None

    def held_epoch(self) -> EpochId:
        """Return the id of the established epoch, or `NO_EPOCH`."""
        return NO_EPOCH if self.current is None else self.current.epoch
