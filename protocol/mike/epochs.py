"""What an epoch is to the engine, whatever its mode: who, which keys, and whether they are right.

The two modes are two ways from an announcement to the root secret: `Agreement` computes it from
blinded keys, `Distribution` unwraps it. All else (whom to follow, confirmation, loss, election,
hand-over) does not ask which.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv6Address

from protocol.idpmike import EpochId
from protocol.mike.messages import Announcement
from protocol.mike.rekeying import RekeyAnnouncement
from protocol.mike.rules import check_confirmation
from protocol.mike.schedule import EpochKeys, NodeSecret
from protocol.mike.treemath import NodeName

Content = Announcement | RekeyAnnouncement
"""What the TM announced."""

KeyPair = tuple[bytes, bytes]
"""Blinded keys of the two children: they determine the node's secret."""


class Epoch:
    """One epoch at one member.

    Attributes:
        own: our black address.
        keys: what the root secret expands to, once we have it.
        confirmed: another member proved to us that it has the same.
        published: blinded keys that we had to publish.
        secrets: node secrets by the pair of keys below them, for the next epoch.
    """

    __slots__ = ("_tags", "confirmed", "keys", "own", "published", "secrets")

    def __init__(self, own: IPv6Address) -> None:
        self.own = own
        self.keys: EpochKeys | None = None
        self.confirmed = False
        self.published: dict[NodeName, bytes] = {}
        self.secrets: dict[KeyPair, NodeSecret] = {}
        self._tags: dict[IPv6Address, bytes] = {}

    @property
    def content(self) -> Content:
        """What the TM announced."""
        raise AssertionError("each mode has its own")

    @property
    def epoch(self) -> EpochId:
        """The epoch's id."""
        return self.content.epoch

    @property
    def members(self) -> tuple[IPv6Address, ...]:
        """Members in position order; empty if they are not known yet."""
        raise AssertionError("each mode has its own")

    @property
    def size(self) -> int:
        """Number of members."""
        return len(self.members)

    @property
    def leaves(self) -> tuple[NodeSecret, ...]:
        """Our leaf secret; several as long as we do not know which of them it is."""
        raise AssertionError("each mode has its own")

    @property
    def is_complete(self) -> bool:
        """Whether no member has anything to publish any more."""
        return True

    @property
    def is_last_sponsor(self) -> bool:
        """Whether we are the sponsor whose tag confirms the epoch to the others."""
        return False

    def climb(self) -> bool:
        """Compute as far towards the root as possible. Say whether we have more to publish now.

        Raises:
            PeerError: what came cannot be right.
        """
        raise AssertionError("each mode has its own")

    def take(self, keys: Mapping[NodeName, bytes], sender: IPv6Address | None) -> bool:
        """Add blinded keys that somebody published. Say whether any was new.

        Raises:
            PeerError: they are not the sender's to publish (MIKE-7).
        """
        raise AssertionError("each mode has its own")

    def late_sponsors(self) -> list[IPv6Address]:
        """Return the sponsors that could publish by now and have not, in the order listed."""
        return []

    def prepare(self) -> None:
        """Compute ahead, at leisure, what the next epoch may need."""

    def confirmation(self) -> bytes | None:
        """Return our tag, or None while we have no root."""
        return None if self.keys is None else self.keys.confirmation(self.own)

    def offer(self, member: IPv6Address, tag: bytes | None) -> None:
        """Keep a member's confirmation tag until the root is computed."""
        if tag is not None and self.may_confirm(member):
            self._tags[member] = tag

    def may_confirm(self, member: IPv6Address) -> bool:
        """Say whether this device's tag means anything in this epoch."""
        return member in self.members

    def check_tags(self) -> None:
        """MIKE-8: verify the tags that came, once we have the keys.

        Raises:
            PeerError: one does not verify: we and its sender computed different roots.
        """
        if self.keys is None:
            return
        tags, self._tags = self._tags, {}
        for member, tag in tags.items():
            check_confirmation(self.keys, member, tag)
            self.confirmed = True
