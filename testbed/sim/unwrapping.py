"""Can a device unwrap a key that is not meant for it? The part of `testbed.sim.secrecy` for KD.

Everything the TM sends is on the wire: who is in the group with which leaf key, and every wrap. A
thief has some secrets; each may be a leaf's or a TM's distribution secret. From the pairwise keys
that follow it unwraps, level by level, whatever can be unwrapped, in every epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address

from protocol.core.errors import PeerError
from protocol.mike.rekeying import LEAF, ROOT_KEY, Page, Rekey, RekeyAnnouncement
from protocol.mike.roster import Roster
from protocol.mike.schedule import (
    SECRET_LENGTH,
    NodeSecret,
    epoch_keys,
    pairwise_key,
    unwrapped,
)

Number = tuple[bytes, int]
"""A hierarchy's distribution key, and the number of one of its keys."""


@dataclass(slots=True)
class Distributed:
    """An epoch of key distribution mode as the wire shows it.

    Attributes:
        announcement: what the TM decided.
        wraps: (distribution key, under, number, wrapped), each once, in order.
        roster: if the wire shows it.
    """

    announcement: RekeyAnnouncement
    wraps: dict[tuple[bytes, int, int, bytes], None] = field(default_factory=dict)
    roster: Roster | None = None

    def add(self, message: Rekey) -> None:
        """Note what a REKEY brings."""
        for under, wrap in message.wraps.items():
            self.wraps[message.key, under, wrap.key, wrap.wrapped] = None


def with_rosters(
    rekeys: Sequence[Rekey], pages: Sequence[Page], agreed: Mapping[str, Roster]
) -> dict[str, Distributed]:
    """Return every epoch of this mode, by its printed id, with the roster if it is to be had.

    Args:
        rekeys: all that were sent.
        pages: all that were sent.
        agreed: rosters of epochs of key agreement mode.
    """
    epochs: dict[str, Distributed] = {}
    for message in rekeys:
        content = message.announcement
        epochs.setdefault(str(content.epoch), Distributed(content)).add(message)
    by_digest = {roster.digest: roster for roster in agreed.values()}
    for page in pages:
        whole = Roster(page.entries)
        if whole.digest == page.roster:
            by_digest[page.roster] = whole
    rosters = dict(agreed)
    for name, epoch in sorted(epochs.items(), key=lambda item: item[1].announcement.number):
        content = epoch.announcement
        before = rosters.get(str(content.previous))
        if before is not None:
            after = before.changed(content.removed, content.added)
            by_digest.setdefault(after.digest, after)
        epoch.roster = by_digest.get(content.roster)
        if epoch.roster is not None:
            rosters[name] = epoch.roster
    return epochs


class Unwrapper:
    """Unwraps whatever a device's draws and the wire allow.

    Args:
        secret_type: of which kind leaf secrets are.
        draws: in their order.
        all_keys: the keys behind the numbers, as `everything` finds them: a TM knows its own
            hierarchy without unwrapping anything.
    """

    def __init__(
        self,
        secret_type: type[NodeSecret],
        draws: Sequence[bytes],
        all_keys: Mapping[Number, bytes],
    ) -> None:
        self._drawn: dict[bytes, int] = {}
        self._secrets: dict[bytes, tuple[NodeSecret, int]] = {}
        for number, draw in enumerate(draws):
            if len(draw) == SECRET_LENGTH:
                secret = secret_type(draw)
                self._drawn.setdefault(draw, number)
                self._secrets.setdefault(secret.blinded, (secret, number))
        self.known: dict[Number, tuple[bytes, int]] = {
            name: (key, self._drawn[key]) for name, key in all_keys.items() if key in self._drawn
        }
        self.roots: dict[str, dict[bytes, int]] = {}

    def listen(self, epochs: Mapping[str, Distributed]) -> None:
        """Unwrap again and again until nothing new is learnt."""
        while sum(self._unwrap(name, epoch) for name, epoch in epochs.items()):
            pass

    def opens(self, name: str, root: bytes) -> int | None:
        """Return the newest draw needed for this root of an epoch, None if it is out of reach."""
        found = [of.get(root) for of in (self._drawn, self.roots.get(name, {}))]
        return min((number for number in found if number is not None), default=None)

    def first_draw(self, leaf_key: bytes) -> int | None:
        """Return the number of the draw that a leaf key belongs to."""
        known = self._secrets.get(leaf_key)
        return None if known is None else known[1]

    def _unwrap(self, name: str, epoch: Distributed) -> bool:
        learnt = False
        digest = epoch.announcement.digest
        roots = self.roots.setdefault(name, {})
        for hierarchy, under, number, wrapped in epoch.wraps:
            holder = self._key_of(hierarchy, under, epoch.roster)
            if holder is None:
                continue
            key, draw = unwrapped(holder[0], digest, wrapped), holder[1]
            if number == ROOT_KEY:
                if draw < roots.get(key, draw + 1):
                    roots[key] = draw
                    learnt = True
            else:
                known = self.known.get((hierarchy, number))
                if known is None or draw < known[1]:
                    self.known[hierarchy, number] = (key, draw)
                    learnt = True
        return learnt

    def _key_of(
        self, hierarchy: bytes, under: int, roster: Roster | None
    ) -> tuple[bytes, int] | None:
        """Return the key that wraps, and the newest draw that it takes."""
        if not under & LEAF:
            return self.known.get((hierarchy, under))
        if roster is None:
            return None
        who = roster.addresses[under ^ LEAF]
        return self._pairwise(hierarchy, who, roster.keys[who])

    def _pairwise(
        self, hierarchy: bytes, who: IPv6Address, leaf_key: bytes
    ) -> tuple[bytes, int] | None:
        """Return a pairwise key that one of our secrets is half of."""
        ours = [
            (self._secrets[own][1], own, other)
            for own, other in ((leaf_key, hierarchy), (hierarchy, leaf_key))
            if own in self._secrets
        ]
        if not ours:
            return None
        draw, own, other = min(ours)
        try:
            secret = self._secrets[own][0]
            return pairwise_key(secret, other, hierarchy, leaf_key, who), draw
        except PeerError:
            return None


@dataclass(frozen=True, slots=True)
class Truth:
    """What all devices together know.

    Attributes:
        keys: the key behind every number.
        roots: the root secret of every epoch that somebody was told.
    """

    keys: Mapping[Number, bytes] = field(repr=False)
    roots: Mapping[str, bytes] = field(repr=False)


def everything(
    secret_type: type[NodeSecret],
    draws: Sequence[Sequence[bytes]],
    epochs: Mapping[str, Distributed],
    group_keys: Mapping[str, bytes],
) -> Truth:
    """Unwrap with all secrets of all devices."""
    together = Unwrapper(secret_type, [draw for of_one in draws for draw in of_one], {})
    together.listen(epochs)
    roots = {
        name: root
        for name, candidates in together.roots.items()
        for root in candidates
        if epoch_keys(epochs[name].announcement.digest, root).group_key == group_keys.get(name)
    }
    return Truth({name: key for name, (key, _) in together.known.items()}, roots)
