"""One epoch in key distribution mode as one member has it: from its leaf up to the root secret.

The member needs the roster, to know its position and the others, and a chain of wraps from its leaf
or from a key of its path that stayed. It never sees the hierarchy: every wrap names the key that
wraps and the key that is wrapped, and a key is wrapped for the one above it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address

from protocol.core.errors import PeerError
from protocol.mike.epochs import Epoch
from protocol.mike.rekeying import LEAF, ROOT_KEY, Page, Rekey, RekeyAnnouncement, Wrap
from protocol.mike.roster import Entry, Roster
from protocol.mike.rules import check_path, check_roster
from protocol.mike.schedule import NodeSecret, epoch_keys, pairwise_key, unwrapped
from protocol.mike.treemath import NodeName

LEAVES_MAX = 4
"""Leaf secrets of which one may be ours in an epoch whose roster we lack."""


@dataclass(frozen=True, slots=True)
class KeyPath:
    """The keys of a hierarchy that a member has, beside the root secret.

    Attributes:
        distribution_key: the TM's, which names the hierarchy.
        steps: number and key, from the one above our leaf to the topmost.
    """

    distribution_key: bytes = b""
    steps: tuple[tuple[int, bytes], ...] = field(default=(), repr=False)


class Distribution(Epoch):
    """The keys of one epoch at one member.

    Attributes:
        leaf: our leaf secret, once the roster tells which it is.
        roster: once known.
        root: the root secret, once unwrapped; at the TM from the beginning.
        path: the keys of ours that are valid in this epoch; before that, in an earlier one.
        unwrapped: how many keys were unwrapped, to be counted.
    """

    __slots__ = (
        "_announcement",
        "_entries",
        "_key",
        "_leaves",
        "_wraps",
        "leaf",
        "path",
        "root",
        "roster",
        "unwrapped",
    )

    def __init__(
        self,
        own: IPv6Address,
        announcement: RekeyAnnouncement,
        leaves: Iterable[NodeSecret],
        path: KeyPath,
    ) -> None:
        super().__init__(own)
        self.leaf: NodeSecret | None = None
        self.roster: Roster | None = None
        self.root: bytes | None = None
        self.path = path
        self.unwrapped = 0
        self._announcement = announcement
        self._leaves = tuple(dict.fromkeys(leaves))[:LEAVES_MAX]
        self._key = b""
        self._wraps: dict[int, Wrap] = {}
        self._entries: list[Entry] = []

    @property
    def content(self) -> RekeyAnnouncement:
        """What the TM announced."""
        return self._announcement

    @property
    def members(self) -> tuple[IPv6Address, ...]:
        """Members in position order; empty without the roster."""
        return () if self.roster is None else self.roster.addresses

    @property
    def size(self) -> int:
        """Number of members; known without the roster."""
        return self._announcement.members

    @property
    def leaves(self) -> tuple[NodeSecret, ...]:
        """Our leaf secret, or all that it may be."""
        return self._leaves if self.leaf is None else (self.leaf,)

    # The roster.

    def enter(self, roster: Roster) -> bool:
        """Take the roster. Say whether it names us; our leaf is the one it says, if we hold it.

        Raises:
            PeerError: it is not the one that was announced (MIKE-30).
        """
        check_roster(self._announcement, roster)
        self.roster = roster
        key = roster.keys.get(self.own)
        self.leaf = next((leaf for leaf in self._leaves if leaf.blinded == key), None)
        return key is not None

    @property
    def known_entries(self) -> int:
        """How many entries of the roster came in pages, from the first on."""
        return len(self._entries)

    def add_page(self, page: Page) -> Roster | None:
        """Keep a page that goes on where the last one ended; return the roster if it is whole.

        Raises:
            PeerError: the pages make another roster than they name (MIKE-30); they are dropped.
        """
        if page.start != len(self._entries):
            return None
        self._entries += page.entries
        if len(self._entries) < self.size:
            return None
        entries, self._entries = self._entries, []
        roster = Roster(entries)
        check_roster(self._announcement, roster)
        return roster

    # The keys.

    def own_root(self, root: bytes) -> None:
        """As TM: the root secret is our own making."""
        self._have(root)

    def take_wraps(self, message: Rekey) -> bool:
        """Keep what a REKEY of this epoch brings; say whether any of it was new and is needed.

        Wraps of another hierarchy replace the ones kept: a former TM and its successor answer with
        different ones.
        """
        if message.key != self._key:
            self._key = message.key
            self._wraps = {}
        if self.root is not None:
            return False
        before = len(self._wraps)
        self._wraps.update(message.wraps)
        return len(self._wraps) > before

    def climb(self) -> bool:
        """Unwrap from our leaf to the root, if the chain is whole. There is nothing to publish.

        Raises:
            PeerError: a key does not unwrap, or the chain has no end (MIKE-31); the wraps are
                dropped, so that the TM is asked for them.
        """
        if self.root is not None or self.leaf is None or self.roster is None:
            return False
        try:
            root = self._chain(self.leaf, LEAF | self.roster.places[self.own])
        except PeerError:
            self._wraps = {}
            self.path = KeyPath()
            raise
        if root is not None:
            self._have(root)
            self._wraps = {}
        return False

    def _chain(self, leaf: NodeSecret, place: int) -> bytes | None:
        """Follow the keys upwards; None where a wrap is missing."""
        kept = self.path.steps if self.path.distribution_key == self._key else ()
        above = dict(zip([place, *(number for number, _ in kept)], kept, strict=False))
        key: bytes | None = None
        under = place
        steps: list[tuple[int, bytes]] = []
        while True:
            wrap = self._wraps.get(under)
            if wrap is None:
                step = above.get(under)
                if step is None:
                    return None
            else:
                if key is None:
                    key = pairwise_key(leaf, self._key, self._key, leaf.blinded, self.own)
                found = unwrapped(key, self._announcement.digest, wrap.wrapped)
                self.unwrapped += 1
                if wrap.key == ROOT_KEY:
                    self.path = KeyPath(self._key, tuple(steps))
                    return found
                step = (wrap.key, found)
            steps.append(step)
            check_path(steps)
            under, key = step

    def _have(self, root: bytes) -> None:
        self.root = root
        self.keys = epoch_keys(self._announcement.digest, root)

    def may_confirm(self, member: IPv6Address) -> bool:
        """Without the roster, keep the tag of whom we follow."""
        return self.roster is None or member in self.roster.keys

    def take(self, keys: Mapping[NodeName, bytes], sender: IPv6Address | None) -> bool:
        """Refuse blinded keys: nobody has to publish any (MIKE-7)."""
        if keys or sender is not None:
            raise PeerError("MIKE-7", "an epoch of key distribution mode has no sponsor")
        return False
