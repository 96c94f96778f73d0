"""One epoch as one member computes it: from its leaf secret up to the root.

A member needs its own leaf secret and the blinded keys beside its key path. What it computed in an
earlier epoch is used again wherever the two keys below a node are still the same, so a membership
event costs one Diffie-Hellman operation per *changed* node of the member's key path.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address

from protocol.mike import duties
from protocol.mike.duties import publisher
from protocol.mike.epochs import Epoch, KeyPair
from protocol.mike.keytree import KeyTree
from protocol.mike.messages import Announcement
from protocol.mike.rules import check_published
from protocol.mike.schedule import NodeSecret, epoch_keys, node_secret
from protocol.mike.treemath import ROOT, NodeName, key_path, level


def _leaves(tree: KeyTree, members: Iterable[IPv6Address]) -> tuple[NodeName, ...]:
    """Return the leaves of these members."""
    return tuple(leaf for leaf in map(tree.leaf_of, members) if leaf is not None)


class Agreement(Epoch):
    """The computation of one epoch at one member.

    Attributes:
        leaf: our leaf secret in this epoch.
        announcement: what the TM decided; None until `bind` (only at the TM that prepares it).
        blinded: all blinded keys known by now.
        root: the root secret, once computed.
    """

    __slots__ = (
        "_at",
        "_earlier",
        "_secret",
        "_spare",
        "_sponsors",
        "_told",
        "announcement",
        "blinded",
        "leaf",
        "root",
        "tree",
    )

    def __init__(
        self,
        own: IPv6Address,
        tree: KeyTree,
        sponsors: Iterable[IPv6Address],
        leaf: NodeSecret,
        earlier: Mapping[KeyPair, NodeSecret],
    ) -> None:
        super().__init__(own)
        name = tree.leaf_of(own)
        assert name is not None
        self.tree = tree
        self.leaf = leaf
        self.announcement: Announcement | None = None
        self.blinded = dict(tree.blinded)
        self.root: NodeSecret | None = None
        self._sponsors = _leaves(tree, sponsors)
        self._earlier = earlier
        self._at = name
        self._secret = leaf
        self._told = 0
        # Each level of ours may cost an exchange, and a sponsor has keys to publish. What is left
        # may be spent on keys that another one publishes as well: they are needed to go on before
        # its PATH is there.
        self._spare = max(0, duties.OPERATIONS_MAX - level(name) - self._work())
        self._publish(name, leaf)

    def bind(self, announcement: Announcement) -> None:
        """Tie the computation to what was announced; the keys depend on it.

        What we published before is in the announcement and needs no PATH.
        """
        self.announcement = announcement
        self.tree = announcement.tree
        self._sponsors = _leaves(announcement.tree, announcement.sponsors)
        self.published = {n: k for n, k in self.published.items() if n not in self.tree.blinded}
        self._told = min(self._told, len(self.published))
        if self.root is not None:
            self.keys = epoch_keys(announcement.digest, self.root.reveal())

    @property
    def content(self) -> Announcement:
        """The announcement of a bound computation."""
        assert self.announcement is not None
        return self.announcement

    @property
    def members(self) -> tuple[IPv6Address, ...]:
        """Members in position order."""
        return self.tree.addresses

    @property
    def leaves(self) -> tuple[NodeSecret, ...]:
        """Our leaf secret."""
        return (self.leaf,)

    @property
    def sponsors(self) -> tuple[IPv6Address, ...]:
        """Who must publish, in the order listed."""
        return tuple(self.tree.members[leaf] for leaf in self._sponsors)

    @property
    def is_complete(self) -> bool:
        """Whether every blinded key is known, so that every member can compute the root."""
        return len(self.blinded) == 2 * len(self.tree) - 2

    @property
    def is_last_sponsor(self) -> bool:
        """Whether we are the last listed sponsor, whose tag confirms the epoch to the others."""
        return bool(self._sponsors) and self._sponsors[-1] == self.tree.leaf_of(self.own)

    def supplement(self) -> dict[NodeName, bytes]:
        """Return the keys learnt since the announcement."""
        announced = self.content.tree.blinded
        return {name: self.blinded[name] for name in self.blinded if name not in announced}

    def known_tree(self) -> KeyTree:
        """Return the tree with all blinded keys known by now."""
        return KeyTree(self.tree.members, self.blinded)

    def take(self, keys: Mapping[NodeName, bytes], sender: IPv6Address | None) -> bool:
        """Add blinded keys; the first one of a node stays. Say whether any was new.

        Args:
            keys: by node.
            sender: the sponsor that published them, or None for the TM's own supplement.

        Raises:
            PeerError: not all of them are the sponsor's to publish (MIKE-7); nothing was added.
        """
        if sender is not None:
            leaf = self.tree.leaf_of(sender)
            check_published(self.content.tree, self._sponsors, leaf, keys)
        fresh = {name: key for name, key in keys.items() if name not in self.blinded}
        self.blinded.update(fresh)
        return bool(fresh)

    def climb(self) -> bool:
        """Compute as far up as the known keys allow. Say whether we have more to publish now.

        Our refreshed leaf counts the first time: the sponsor beside us may wait for nothing else.

        Raises:
            PeerError: a blinded key is of low order (MIKE-6).
        """
        before = self._told
        while self._at != ROOT:
            beside = self.blinded.get(NodeName(self._at ^ 1))
            if beside is None:
                break
            ours = self.blinded.get(self._at)
            if ours is None:
                if self._spare == 0:
                    break
                self._spare -= 1
                ours = self._secret.blinded
            pair = (beside, ours) if self._at & 1 else (ours, beside)
            above = self._earlier.get(pair)
            if above is None:
                above = type(self._secret)(node_secret(self._secret, beside, *pair))
            self.secrets[pair] = above
            self._at = NodeName(self._at >> 1)
            self._secret = above
            self._publish(self._at, above)
        if self._at == ROOT and self.root is None:
            self.root = self._secret
            if self.announcement is not None:
                self.keys = epoch_keys(self.announcement.digest, self.root.reveal())
        if self.root is not None:
            self._earlier = {}
        self._told = len(self.published)
        return self._told > before

    def _work(self) -> int:
        """Return how many blinded keys we have to make: a new leaf's, and what is ours to tell."""
        own = self.tree.leaf_of(self.own)
        if own is None or own not in self._sponsors:
            return 0
        told = duties.duties(self.tree, self._sponsors, own)
        return len(told) + (own in self.tree.blinded)

    def _publish(self, name: NodeName, secret: NodeSecret) -> None:
        """Note an open node's key if it is ours to publish."""
        if name in self.blinded or name == ROOT:
            return
        if publisher(name, self._sponsors) == self.tree.leaf_of(self.own):
            self.blinded[name] = secret.blinded
            self.published[name] = secret.blinded

    def prepare(self) -> None:
        """Have the root's blinded key ready: the next joiner may be put beside the root."""
        if self.root is not None:
            _ = self.root.blinded

    def late_sponsors(self) -> list[IPv6Address]:
        """Return the sponsors that could publish by now and have not, in the order listed.

        A sponsor that waits for another one's key is not late.
        """
        late = []
        for leaf in self._sponsors:
            for name in key_path(leaf):
                if name == ROOT or publisher(name, self._sponsors) != leaf:
                    break
                if name not in self.blinded:
                    late.append(self.tree.members[leaf])
                    break
                if NodeName(name ^ 1) not in self.blinded:
                    break
        return late
