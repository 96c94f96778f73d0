"""What an event costs in a group of a given size, in either mode of MIKE: counted, and timed.

No engines and no network here: the TM's plan or hierarchy, and the epoch of every single member,
with the real messages between them, none of them lost, and real cryptography. Public-key operations
are X25519 (making a public key, or a shared secret); signatures are one per datagram at the sender
and one per datagram at each receiver, so the number of datagrams says it.

Times are of this thread's processor, so that other processes do not count: what is computed,
encoded and decoded, and a signature or its check for each datagram. They hold for this machine.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from ipaddress import IPv6Address
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.identity.envelope import OVERHEAD
from protocol.idpmike import EpochId
from protocol.mike.agreement import Agreement
from protocol.mike.config import MikeConfig, Mode
from protocol.mike.distribution import Distribution, KeyPath
from protocol.mike.epochs import KeyPair
from protocol.mike.fields import GROUP_MAX, MEMBERS_MAX
from protocol.mike.fragments import body_size_max, split
from protocol.mike.hierarchy import Hierarchy
from protocol.mike.keytree import KeyTree
from protocol.mike.messages import DECODERS, NO_EPOCH, Announcement, Kind, Path, Tree
from protocol.mike.rekeying import (
    ENTRY_LENGTH,
    PAGE_OVERHEAD,
    Page,
    Rekey,
    RekeyAnnouncement,
)
from protocol.mike.roster import Roster
from protocol.mike.schedule import NodeSecret
from protocol.mike.transaction import Carried, Plan, Request, plan, plan_anew, with_work
from testbed.sim.people import address

EVENTS = ("join", "leave", "take-over")
SIZES = {Mode.KA: MEMBERS_MAX, Mode.KD: GROUP_MAX}
"""Largest group of each mode."""


class CountedSecret(NodeSecret):
    """Counts what X25519 would be asked for."""

    __slots__ = ()
    operations = 0

    def shared_with(self, sibling_key: bytes) -> bytes:
        """One operation."""
        CountedSecret.operations += 1
        return super().shared_with(sibling_key)

    def _blind(self) -> bytes:
        CountedSecret.operations += 1
        return super()._blind()


@dataclass(frozen=True, slots=True)
class Cost:
    """What one event costs.

    Attributes:
        mode: ``ka`` or ``kd``.
        event: ``join``, ``leave`` or ``take-over`` (the TM is gone, another member excludes it).
        members: before the event.
        messages: multicast for it, before fragmentation.
        datagrams: of these messages.
        bytes: UDP payload of these datagrams.
        newcomer_bytes: UDP payload of what only the newcomer gets.
        tm_operations: public-key operations of the TM.
        member_operations: of the member that has most.
        all_operations: of TM and all members together.
        unwraps: symmetric, of the member that has most.
        tm_cpu_ms: processor time of the TM.
        member_cpu_ms: of the member that has most.
        all_cpu_ms: of TM and all members together.
    """

    mode: str
    event: str
    members: int
    messages: int
    datagrams: int
    bytes: int
    newcomer_bytes: int
    tm_operations: int
    member_operations: int
    all_operations: int
    unwraps: int
    tm_cpu_ms: float
    member_cpu_ms: float
    all_cpu_ms: float

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def costs(mode: Mode, members: int) -> Iterator[Cost]:
    """Yield the cost of every kind of event in a group of this size."""
    for event in EVENTS:
        group = Agreed(members) if mode is Mode.KA else Distributed(members)
        yield group.cost(event)


class _Draws:
    """Secrets that are all different."""

    def __init__(self) -> None:
        self._number = 0

    def draw(self) -> bytes:
        """Return 32 bytes."""
        self._number += 1
        return hashlib.sha256(b"scale %d" % self._number).digest()

    def secret(self) -> CountedSecret:
        """Return a secret."""
        return CountedSecret(self.draw())


class Work(NamedTuple):
    """What somebody has done: public-key operations, and nanoseconds of processor time."""

    operations: int = 0
    cpu_ns: int = 0

    def plus(self, other: Work) -> Work:
        """Return both together."""
        return Work(self.operations + other.operations, self.cpu_ns + other.cpu_ns)


def _counted(work: Callable[[], object]) -> Work:
    """Do something; return what it took."""
    before, since_ns = CountedSecret.operations, time.thread_time_ns()
    work()
    return Work(CountedSecret.operations - before, time.thread_time_ns() - since_ns)


@cache
def signature_ns() -> tuple[int, int]:
    """Return the processor time of a signature, and of its check, over a full datagram."""
    key, datagram = Ed25519PrivateKey.generate(), bytes(MikeConfig().datagram_size_max)
    public, signature = key.public_key(), key.sign(datagram)
    made = [_counted(lambda: key.sign(datagram)).cpu_ns for _ in range(100)]
    checked = [_counted(lambda: public.verify(signature, datagram)).cpu_ns for _ in range(100)]
    return int(statistics.median(made)), int(statistics.median(checked))


class _Wire:
    """Counts and times what is sent.

    Attributes:
        messages, datagrams, bytes: sent so far.
        sent_ns: processor time of the senders, by sender.
        read_ns: of each receiver of all of it.
    """

    def __init__(self) -> None:
        self.messages = self.datagrams = self.bytes = self.read_ns = 0
        self.sent_ns: dict[IPv6Address, int] = {}

    def send(self, message: Tree | Path | Rekey | Page, sender: IPv6Address) -> None:
        """Count a message."""
        sign_ns, check_ns = signature_ns()
        since_ns = time.thread_time_ns()
        body = message.encode()
        kind, size_max = Kind[type(message).__name__.upper()], MikeConfig().datagram_size_max
        bodies = [body]
        if len(body) + OVERHEAD > size_max:
            bodies = [fragment.encode() for fragment in split(kind, body, size_max)]
            assert bodies, "a message larger than any that may be sent"
        spent_ns = time.thread_time_ns() - since_ns + len(bodies) * sign_ns
        self.sent_ns[sender] = self.sent_ns.get(sender, 0) + spent_ns
        self.messages += 1
        self.datagrams += len(bodies)
        self.bytes += sum(len(one) + OVERHEAD for one in bodies)
        self.read_ns += len(bodies) * check_ns + _counted(lambda: DECODERS[kind](body)).cpu_ns


class _Group:
    """Its members' leaves, and nothing yet of an epoch; the first member is TM."""

    def __init__(self, members: int) -> None:
        self._draws = _Draws()
        self._size = members
        self._number = 0
        self._tm = address(0)
        self._leaves: dict[IPv6Address, NodeSecret] = {
            address(index): self._draws.secret() for index in range(members)
        }
        self._roster = Roster((who, leaf.blinded) for who, leaf in self._leaves.items())

    def _cost(
        self,
        mode: Mode,
        event: str,
        works: Mapping[IPv6Address, Work],
        *,
        wire: _Wire,
        alone: _Wire,
        unwraps: int = 0,
    ) -> Cost:
        """Add up what everybody did, sent and read.

        Args:
            mode: of the group.
            event: what happened.
            works: of TM and members, without what they sent and read.
            wire: what was sent to all.
            alone: what the TM sent to the newcomer.
            unwraps: of the busiest member.
        """
        only_tm = wire.sent_ns.keys() <= {self._tm}
        spent_ns = {
            who: work.cpu_ns
            + wire.sent_ns.get(who, 0)
            + alone.sent_ns.get(who, 0)
            + (0 if who == self._tm and only_tm else wire.read_ns)
            for who, work in works.items()
        }
        members = [who for who in works if who != self._tm]
        return Cost(
            mode.value,
            event,
            self._size,
            wire.messages,
            wire.datagrams,
            wire.bytes,
            alone.bytes,
            works[self._tm].operations,
            max(works[who].operations for who in members),
            sum(work.operations for work in works.values()),
            unwraps,
            spent_ns[self._tm] / 1e6,
            max(spent_ns[who] for who in members) / 1e6,
            (sum(spent_ns.values()) + alone.read_ns) / 1e6,
        )


class Distributed(_Group):
    """A group in key distribution mode; its first member is TM."""

    def __init__(self, members: int) -> None:
        super().__init__(members)
        self._epochs: dict[IPv6Address, Distribution] = {}
        self._hierarchy = self._anew()
        self._announce((), ())

    def _anew(self) -> Hierarchy:
        hierarchy = Hierarchy(self._draws.secret(), self._draws.draw)
        for who, key in self._roster.keys.items():
            if who != self._tm:
                hierarchy.put(who, hierarchy.pairwise(who, key))
        return hierarchy

    def cost(self, event: str) -> Cost:
        """Let an event happen."""
        newcomer = address(self._size)
        wire, alone = _Wire(), _Wire()
        removed: list[IPv6Address] = []
        added: list[tuple[IPv6Address, bytes]] = []
        if event == "join":
            self._leaves[newcomer] = self._draws.secret()
            added = [(newcomer, self._leaves[newcomer].blinded)]
        elif event == "leave":
            removed = [address(self._size // 2)]
        else:
            removed = [self._tm]
            self._tm = address(1)
        self._roster = self._roster.changed(removed, added)
        changed = _counted(lambda: self._change(event, removed, added))
        works, unwraps = self._announce(removed, added, wire)
        works[self._tm] = works[self._tm].plus(changed)
        if event == "join":
            room = body_size_max(MikeConfig().datagram_size_max) - PAGE_OVERHEAD
            step = room // ENTRY_LENGTH
            for start in range(0, len(self._roster), step):
                entries = tuple(self._roster.part(start, step))
                alone.send(Page(self._roster.digest, start, entries), self._tm)
        return self._cost(Mode.KD, event, works, wire=wire, alone=alone, unwraps=unwraps)

    def _change(
        self,
        event: str,
        removed: Sequence[IPv6Address],
        added: Sequence[tuple[IPv6Address, bytes]],
    ) -> None:
        """Do to the hierarchy what the event asks for."""
        if event == "take-over":
            self._hierarchy = self._anew()
            return
        for who in removed:
            self._hierarchy.remove(who)
        for who, key in added:
            self._hierarchy.put(who, self._hierarchy.pairwise(who, key))

    def _announce(
        self,
        removed: Sequence[IPv6Address],
        added: Sequence[tuple[IPv6Address, bytes]],
        wire: _Wire | None = None,
    ) -> tuple[dict[IPv6Address, Work], int]:
        """Make an epoch; let every member enter it. Return everybody's work, and most unwraps."""
        since_ns = time.thread_time_ns()
        self._hierarchy.renew()
        self._number += 1
        content = RekeyAnnouncement(
            self._number,
            EpochId(self._number - 1, bytes(8)),
            self._tm,
            len(self._roster),
            self._roster.digest,
            tuple(sorted(removed)),
            tuple(added),
            tuple((who, bytes(16)) for who, _ in added),
        )
        wraps = self._hierarchy.wraps(self._roster.places, content.digest)
        whole = Rekey(content, 0, self._hierarchy.secret.blinded, wraps, bytes(16))
        parts = whole.in_parts(body_size_max(MikeConfig().datagram_size_max))
        works = {self._tm: Work(0, time.thread_time_ns() - since_ns)}
        for part in parts if wire is not None else ():
            assert wire is not None
            wire.send(part, self._tm)
        epochs: dict[IPv6Address, Distribution] = {}
        unwraps = 0
        for who in self._roster.addresses:
            if who == self._tm:
                continue
            before = self._epochs.get(who)
            path = KeyPath() if before is None else before.path
            epoch = epochs[who] = Distribution(who, content, [self._leaves[who]], path)
            # Of all parts only these can be of use to it; the others cost it a dictionary entry.
            own = self._hierarchy.path(who, self._roster.places, content.digest)
            epoch.take_wraps(replace(whole, wraps={u: wraps[u] for u in own if u in wraps}))
            epoch.enter(self._roster)
            works[who] = _counted(epoch.climb)
            unwraps = max(unwraps, epoch.unwrapped)
            assert epoch.root == self._hierarchy.root, "a member cannot follow"
        self._epochs = epochs
        return works, unwraps


class Agreed(_Group):
    """A group in key agreement mode; its first member is TM."""

    def __init__(self, members: int) -> None:
        super().__init__(members)
        self._epochs: dict[IPv6Address, Agreement] = {}
        self._announce(plan_anew(self._roster, (), (), Carried()))

    def cost(self, event: str) -> Cost:
        """Let an event happen."""
        base = self._epochs[self._tm]
        assert base.root is not None
        _ = base.root.blinded  # made at leisure, with a beacon
        requests: list[Request] = []
        removed: list[IPv6Address] = []
        if event == "join":
            newcomer = address(self._size)
            leaf = self._leaves[newcomer] = self._draws.secret()
            requests = [Request(newcomer, bytes(16), leaf.blinded, 0)]
        elif event == "leave":
            removed = [address(self._size // 2)]
        else:
            removed = [self._tm]
            self._tm = address(1)
            base = self._epochs[self._tm]
        assert base.root is not None
        since_ns = time.thread_time_ns()
        planned = plan(base.known_tree(), base.root.blinded, requests, removed, Carried())
        planning = Work(0, time.thread_time_ns() - since_ns)
        wire = _Wire()
        works = self._announce(planned, wire)
        works[self._tm] = works[self._tm].plus(planning)
        return self._cost(Mode.KA, event, works, wire=wire, alone=_Wire())

    def _announce(self, planned: Plan, wire: _Wire | None = None) -> dict[IPv6Address, Work]:
        """Make an epoch; let every member compute it. Return everybody's work."""
        wire = wire or _Wire()
        tree = planned.tree
        for leaf, who in tree.members.items():
            if leaf not in tree.blinded and self._number:
                self._leaves[who] = self._draws.secret()
        own = tree.leaf_of(self._tm)
        assert own is not None
        tree = tree.filled({own: self._leaves[self._tm].blinded})
        works = dict.fromkeys(tree.addresses, Work())
        epochs = {self._tm: self._begin(self._tm, tree, planned.sponsors)}
        works[self._tm] = _counted(epochs[self._tm].climb)
        tree = epochs[self._tm].known_tree()
        sponsors = with_work(tree, planned.sponsors)
        self._number += 1
        previous = NO_EPOCH if self._number == 1 else EpochId(self._number - 1, bytes(8))
        content = Announcement(self._number, previous, self._tm, tree, sponsors, planned.nonces)
        epochs[self._tm].bind(content)
        wire.send(Tree(content, 0, {}, bytes(16)), self._tm)
        for who in tree.addresses:
            if who != self._tm:
                epochs[who] = self._begin(who, tree, sponsors)
                epochs[who].bind(content)
        talk = [who for who in tree.addresses if self._climbs(epochs[who], works)]
        while talk:
            sender = talk.pop(0)
            told = dict(epochs[sender].published)
            wire.send(Path(content.epoch, told, bytes(16)), sender)
            for who, epoch in epochs.items():
                if who != sender and epoch.take(told, sender) and self._climbs(epoch, works):
                    talk.append(who)
        assert all(epoch.root is not None for epoch in epochs.values()), "a member cannot follow"
        self._epochs = epochs
        return works

    def _begin(self, who: IPv6Address, tree: KeyTree, sponsors: Sequence[IPv6Address]) -> Agreement:
        before = self._epochs.get(who)
        earlier: dict[KeyPair, NodeSecret] = {} if before is None else before.secrets
        return Agreement(who, tree, sponsors, self._leaves[who], earlier)

    @staticmethod
    def _climbs(epoch: Agreement, works: dict[IPv6Address, Work]) -> bool:
        """Climb, count, and say whether there is something to publish."""
        more: list[bool] = []
        work = _counted(lambda: more.append(epoch.climb()))
        works[epoch.own] = works[epoch.own].plus(work)
        return more[0] and epoch.own in epoch.sponsors
