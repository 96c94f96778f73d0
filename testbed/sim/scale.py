"""What an event costs in a group of a given size, in either mode of MIKE: counted, and timed.

No engines and no network here: the TM's plan or hierarchy, and the epoch of every single member,
with the real messages between them, none of them lost, and real cryptography. Public-key operations
are X25519 (making a public key, or a shared secret); signatures are one per datagram at the sender
and one per datagram at each receiver, so the number of datagrams says it.

Times are of this thread's processor, so that other processes do not count: what is computed,
encoded and decoded, and a signature or its check for each datagram. They hold for this machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv6Address

from protocol.idpmike import EpochId
from protocol.mike.agreement import Agreement
from protocol.mike.change import Change, changed, difference
from protocol.mike.config import MikeConfig, Mode
from protocol.mike.distribution import Distribution, KeyPath
from protocol.mike.epochs import Epoch, KeyPair
from protocol.mike.fields import GROUP_MAX, MEMBERS_MAX
from protocol.mike.fragments import body_size_max, parts_of
from protocol.mike.hierarchy import Hierarchy
from protocol.mike.keytree import KeyTree
from protocol.mike.messages import NO_EPOCH, Announcement, Path, Tree
from protocol.mike.rekeying import (
    ENTRY_LENGTH,
    PAGE_OVERHEAD,
    Page,
    Rekey,
    RekeyAnnouncement,
)
from protocol.mike.schedule import NodeSecret, node_secret
from protocol.mike.transaction import Carried, Plan, Request, plan, plan_anew, with_work
from protocol.mike.treemath import inner_nodes, left, right
from testbed.sim.costing import EVENTS, Cost, CountedSecret, Group, Wire, Work, counted
from testbed.sim.people import address

SIZES = {Mode.KA: MEMBERS_MAX, Mode.KD: GROUP_MAX}
"""Largest group of each mode."""


def costs(mode: Mode, members: int) -> Iterator[Cost]:
    """Yield the cost of every kind of event in a group of this size."""
    for event in EVENTS:
        group = Agreed(members) if mode is Mode.KA else Distributed(members)
        yield group.cost(event)


class Distributed(Group):
    """A group in key distribution mode; its first member is TM."""

    def __init__(self, members: int) -> None:
        super().__init__(members)
        self._epochs: dict[IPv6Address, Distribution] = {}
        self._hierarchy = self._anew()
        self._announce((), ())

    @property
    def hierarchy(self) -> Hierarchy:
        """The keys that the TM distributes."""
        return self._hierarchy

    def established(self) -> dict[IPv6Address, Epoch]:
        """Return the present epoch as every member has it, the TM too."""
        content = next(iter(self._epochs.values())).content
        own = Distribution(self._tm, content, [self._leaves[self._tm]], KeyPath())
        own.enter(self._roster)
        own.own_root(self._hierarchy.root)
        own.climb()
        self._hierarchy.epoch = content.epoch
        return {self._tm: own, **self._epochs}

    def _anew(self) -> Hierarchy:
        hierarchy = Hierarchy(self._draws.secret(), self._draws.draw)
        for who, key in self._roster.keys.items():
            if who != self._tm:
                hierarchy.put(who, hierarchy.pairwise(who, key))
        return hierarchy

    def cost(self, event: str) -> Cost:
        """Let an event happen."""
        newcomer = address(self._size)
        wire, alone = Wire(), Wire()
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
        changed = counted(lambda: self._change(event, removed, added))
        works, unwraps = self._announce(removed, added, wire)
        works[self._tm] = works[self._tm].plus(changed)
        if event == "join":
            works[newcomer] = works[newcomer].plus(Work(1))  # its leaf key, made with its JOIN
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
        wire: Wire | None = None,
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
            works[who] = counted(epoch.climb)
            unwraps = max(unwraps, epoch.unwrapped)
            assert epoch.root == self._hierarchy.root, "a member cannot follow"
        self._epochs = epochs
        return works, unwraps


class Agreed(Group):
    """A group in key agreement mode; its first member is TM."""

    def __init__(self, members: int) -> None:
        super().__init__(members)
        self._epochs: dict[IPv6Address, Agreement] = {}
        anew = plan_anew(self._roster, (), (), Carried()).tree
        # How the group came about is not counted: all keys are there, whoever published them.
        self._announce(Plan(_completed(anew, self._leaves), (), ()), Wire(), Wire())

    def established(self) -> dict[IPv6Address, Epoch]:
        """Return the present epoch as every member has it."""
        return dict(self._epochs)

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
        before = base.known_tree()
        planned = plan(before, base.root.blinded, requests, removed, Carried())
        planning = Work(0, time.thread_time_ns() - since_ns)
        wire, alone = Wire(), Wire()
        works = self._announce(planned, wire, alone, before)
        works[self._tm] = works[self._tm].plus(planning)
        if requests:
            # Its leaf key was made with its JOIN.
            works[newcomer] = works[newcomer].plus(Work(1))
        return self._cost(Mode.KA, event, works, wire=wire, alone=alone)

    def _announce(
        self, planned: Plan, wire: Wire, alone: Wire, before: KeyTree | None = None
    ) -> dict[IPv6Address, Work]:
        """Make an epoch; let every member compute it. Return everybody's work.

        Args:
            planned: what the TM decided.
            wire: what is sent to all.
            alone: what is sent to a newcomer.
            before: the tree of the epoch before, which all but a newcomer have.
        """
        tree = planned.tree
        for leaf, who in tree.members.items():
            if leaf not in tree.blinded and self._number:
                self._leaves[who] = self._draws.secret()
        own = tree.leaf_of(self._tm)
        assert own is not None
        works = dict.fromkeys(tree.addresses, Work())
        since_ns, operations = time.thread_time_ns(), CountedSecret.operations
        tree = tree.filled({own: self._leaves[self._tm].blinded})
        epochs = {self._tm: self._begin(self._tm, tree, planned.sponsors)}
        epochs[self._tm].climb()
        tree = epochs[self._tm].known_tree()
        sponsors = with_work(tree, planned.sponsors)
        self._number += 1
        previous = NO_EPOCH if self._number == 1 else EpochId(self._number - 1, bytes(8))
        content = Announcement(self._number, previous, self._tm, tree, sponsors, planned.nonces)
        epochs[self._tm].bind(content)
        done = CountedSecret.operations - operations
        works[self._tm] = Work(done, time.thread_time_ns() - since_ns)
        self._tell(content, wire, alone, before)
        for who in tree.addresses:
            if who != self._tm:
                operations = CountedSecret.operations
                epochs[who] = self._begin(who, tree, sponsors)
                epochs[who].bind(content)
                works[who] = Work(CountedSecret.operations - operations)
        talk = [who for who in tree.addresses if self._climbs(epochs[who], works)]
        while talk:
            sender = talk.pop(0)
            told = dict(epochs[sender].published)
            wire.send(Path(content.epoch, told, bytes(16)), sender)
            for who, epoch in epochs.items():
                if who != sender and epoch.take(told, sender) and self._climbs(epoch, works):
                    talk.append(who)
        roots = {epoch.root.reveal() for epoch in epochs.values() if epoch.root is not None}
        assert all(epoch.root is not None for epoch in epochs.values()), "a member cannot follow"
        assert len(roots) == 1, "members have different keys"
        self._epochs = epochs
        return works

    def _tell(self, content: Announcement, wire: Wire, alone: Wire, before: KeyTree | None) -> None:
        """Send an epoch as its TM does: whole, or what changed to those who have the one before."""
        config = MikeConfig()
        whole = Tree(content, 0, {}, bytes(16))
        parts = parts_of(len(content.encoded), config.datagram_size_max)
        if before is None or parts < config.change_parts_min:
            wire.send(whole, self._tm)
            return
        for _ in content.nonces:
            alone.send(whole, self._tm)
        since_ns = time.thread_time_ns()
        change = Change(
            content.number,
            content.previous,
            content.tm,
            content.digest,
            difference(before, content.tree),
            content.sponsors,
            content.nonces,
            confirmation=bytes(16),
        )
        made_ns = time.thread_time_ns() - since_ns
        wire.send(change, self._tm)
        wire.sent_ns[self._tm] += made_ns
        wire.read_ns += counted(lambda: self._read(change, before, content)).cpu_ns

    @staticmethod
    def _read(change: Change, before: KeyTree, content: Announcement) -> None:
        """Do what every member does with a CHANGE."""
        tree = changed(before, change.pieces)
        made = Announcement(
            change.number, change.previous, change.tm, tree, change.sponsors, change.nonces
        )
        assert made.digest == change.digest
        assert Announcement.decode(made.encoded) == content

    def _begin(self, who: IPv6Address, tree: KeyTree, sponsors: Sequence[IPv6Address]) -> Agreement:
        before = self._epochs.get(who)
        earlier: dict[KeyPair, NodeSecret] = {} if before is None else before.secrets
        return Agreement(who, tree, sponsors, self._leaves[who], earlier)

    @staticmethod
    def _climbs(epoch: Agreement, works: dict[IPv6Address, Work]) -> bool:
        """Climb, count, and say whether there is something to publish."""
        more: list[bool] = []
        work = counted(lambda: more.append(epoch.climb()))
        works[epoch.own] = works[epoch.own].plus(work)
        return more[0] and epoch.own in epoch.sponsors


def _completed(tree: KeyTree, leaves: Mapping[IPv6Address, NodeSecret]) -> KeyTree:
    """Return a tree of known leaves with the keys of all its nodes, computed from below."""
    secrets = {leaf: leaves[who] for leaf, who in tree.members.items()}
    keys = dict(tree.blinded)
    for name in reversed(inner_nodes(tree.members)):
        pair = keys[left(name)], keys[right(name)]
        secrets[name] = CountedSecret(node_secret(secrets[left(name)], pair[1], *pair))
        keys[name] = secrets[name].blinded
    return KeyTree(tree.members, keys)
