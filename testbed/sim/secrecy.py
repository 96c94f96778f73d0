"""Can a device compute a key that is not meant for it? Tried, with all it ever knew.

Take a device, every secret its key source ever gave it and every datagram of MIKE on the black
network, its own and others', earlier and later. Whatever MIKE computes with them is computed: each
tree's node secrets from whatever leaf, up to the root and the group key, and in key distribution
mode all that can be unwrapped (`testbed.sim.unwrapping`). Then no epoch may be open to it

* that does not name it as a member: so an excluded device gets no later key, and a new one no
  earlier one;
* that names it, with the secrets it had before the leaf it has in that epoch: so whoever took its
  state before it joined (again) is out, too.

The engines are not asked: key source and wire are enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from protocol.core.errors import PeerError
from protocol.identity import PROTOCOL_MIKE, envelope
from protocol.mike.change import Change, changed
from protocol.mike.keytree import KeyTree
from protocol.mike.messages import DECODERS, Announcement, Fragment, Kind, Path, Tree
from protocol.mike.rekeying import Page, Rekey
from protocol.mike.roster import Roster
from protocol.mike.schedule import SECRET_LENGTH, NodeSecret, epoch_keys, node_secret
from protocol.mike.treemath import ROOT, NodeName, inner_nodes
from testbed.sim.checkers import Checker
from testbed.sim.history import Evidence
from testbed.sim.unwrapping import Unwrapper, everything, with_rosters

Known = dict[bytes, tuple[NodeSecret, int]]
"""Blinded key to its secret, and the newest of the device's draws that it takes (the smallest)."""


@dataclass(slots=True)
class Overheard:
    """An epoch as the wire shows it.

    Attributes:
        announcement: what the TM decided.
        inner: its inner nodes without the root, the deepest first.
        keys: all blinded keys ever said for a node of it.
    """

    announcement: Announcement
    inner: tuple[NodeName, ...]
    keys: dict[NodeName, dict[bytes, None]] = field(default_factory=dict)

    def add(self, keys: Mapping[NodeName, bytes]) -> None:
        """Note what somebody published."""
        for name, key in keys.items():
            self.keys.setdefault(name, {})[key] = None

    def tree(self) -> KeyTree:
        """Return its tree with the keys that were said first."""
        said = {name: next(iter(keys)) for name, keys in self.keys.items()}
        return KeyTree(self.announcement.tree.members, said)

    def roster(self) -> Roster:
        """Return the members with the leaf keys that were said first."""
        members = self.announcement.tree.members
        return Roster(
            (who, next(iter(self.keys.get(leaf, {b"": None})))) for leaf, who in members.items()
        )


class Secrecy(Checker):
    """No device computes a key that it is not meant to have."""

    name = "secrecy"

    def conclude(self, evidence: Evidence) -> str | None:
        """Try, as every device."""
        heard = Heard(evidence.datagrams)
        epochs = overheard(heard)
        return self._computed(evidence, epochs) or self._unwrapped(evidence, heard)

    def _computed(self, evidence: Evidence, epochs: Mapping[str, Overheard]) -> str | None:
        """Try in key agreement mode."""
        nodes: dict[tuple[bytes, bytes], NodeSecret] = {}
        for device, (address, draws) in enumerate(evidence.draws):
            thief = Thief(evidence.secret_type, draws, nodes)
            thief.listen(epochs)
            for pointer, epoch in epochs.items():
                group_key = evidence.keys.get(pointer)
                opened = None if group_key is None else thief.opens(epoch, group_key)
                if opened is None:
                    continue
                leaf = epoch.announcement.tree.leaf_of(address)
                if leaf is None:
                    return f"d{device + 1}, no member of epoch {pointer}, can compute its key"
                own = thief.first_draw(epoch.keys.get(leaf, {}))
                if own is not None and opened < own:
                    return f"d{device + 1} can compute the key of {pointer} without its leaf in it"
        return None

    def _unwrapped(self, evidence: Evidence, heard: Heard) -> str | None:
        """Try in key distribution mode.

        Who is in an epoch follows from the one before, which is not on the wire if its TM had no
        carrier; so rosters are taken from all that was said, wraps from what could be heard.
        """
        said = Heard([*evidence.datagrams, *evidence.unheard])
        rosters = {pointer: epoch.roster() for pointer, epoch in overheard(said).items()}
        complete = with_rosters(said.rekeys, said.pages, rosters)
        epochs = with_rosters(heard.rekeys, heard.pages, rosters)
        for pointer, epoch in epochs.items():
            epoch.roster = complete[pointer].roster
        all_draws = [draws for _, draws in evidence.draws]
        truth = everything(evidence.secret_type, all_draws, epochs, evidence.keys)
        for device, (address, draws) in enumerate(evidence.draws):
            thief = Unwrapper(evidence.secret_type, draws, truth.keys)
            thief.listen(epochs)
            for pointer, root in truth.roots.items():
                opened = thief.opens(pointer, root)
                if opened is None:
                    continue
                roster = epochs[pointer].roster
                leaf_key = None if roster is None else roster.keys.get(address)
                if leaf_key is None:
                    return f"d{device + 1}, no member of epoch {pointer}, can unwrap its key"
                own = thief.first_draw(leaf_key)
                if own is not None and opened < own:
                    return f"d{device + 1} can unwrap the key of {pointer} without its leaf in it"
        return None


class Thief:
    """Computes whatever a device's draws and the wire allow.

    Args:
        secret_type: of which kind node secrets are.
        draws: in their order.
        nodes: node secrets by the keys below them; shared, because they do not depend on who asks.
    """

    def __init__(
        self,
        secret_type: type[NodeSecret],
        draws: Sequence[bytes],
        nodes: dict[tuple[bytes, bytes], NodeSecret],
    ) -> None:
        self._secret_type = secret_type
        self._nodes = nodes
        self._unsaid: dict[tuple[bytes, int], dict[bytes, None]] = {}
        self.known: Known = {}
        for number, draw in enumerate(draws):
            if len(draw) == SECRET_LENGTH:
                secret = secret_type(draw)
                self.known.setdefault(secret.blinded, (secret, number))

    def first_draw(self, keys: Mapping[bytes, None]) -> int | None:
        """Return the number of the draw that one of these blinded keys belongs to."""
        return min((self.known[key][1] for key in keys if key in self.known), default=None)

    def listen(self, epochs: Mapping[str, Overheard]) -> None:
        """Climb every tree again and again until nothing new is learnt."""
        while sum(self._climb(epoch) for epoch in epochs.values()):
            pass

    def opens(self, epoch: Overheard, group_key: bytes) -> int | None:
        """Return the newest draw needed for this key of the epoch, None if it is out of reach."""
        digest = epoch.announcement.digest
        return min(
            (
                number
                for secret, number in self._secrets_at(epoch, ROOT)
                if epoch_keys(digest, secret.reveal()).group_key == group_key
            ),
            default=None,
        )

    def _climb(self, epoch: Overheard) -> bool:
        """Compute the secrets of all nodes in reach; say whether anything is new."""
        learnt = False
        for name in epoch.inner:
            for secret, number in self._secrets_at(epoch, name):
                key = secret.blinded
                if key not in epoch.keys.get(name, ()):
                    self._unsaid.setdefault((epoch.announcement.digest, name), {})[key] = None
                known = self.known.get(key)
                if known is None or number < known[1]:
                    self.known[key] = (secret, number)
                    learnt = True
        return learnt

    def _keys_of(self, epoch: Overheard, name: int) -> Mapping[bytes, None]:
        """Return every blinded key that this node may have: said on the wire, or computed."""
        said = epoch.keys.get(NodeName(name), {})
        unsaid = self._unsaid.get((epoch.announcement.digest, name))
        return said if unsaid is None else {**said, **unsaid}

    def _secrets_at(self, epoch: Overheard, name: int) -> list[tuple[NodeSecret, int]]:
        """Return every secret that this node may have and that we can compute from below it."""
        known = self.known
        found = []
        for left in self._keys_of(epoch, 2 * name):
            for right in self._keys_of(epoch, 2 * name + 1):
                ways = [
                    (known[ours][1], ours, theirs)
                    for ours, theirs in ((left, right), (right, left))
                    if ours in known
                ]
                if not ways:
                    continue
                number, ours, theirs = min(ways)
                secret = self._above(known[ours][0], theirs, (left, right))
                if secret is not None:
                    found.append((secret, number))
        return found

    def _above(
        self, child: NodeSecret, beside: bytes, pair: tuple[bytes, bytes]
    ) -> NodeSecret | None:
        """Return the secret above two children; None if a key is of low order."""
        secret = self._nodes.get(pair)
        if secret is None:
            try:
                secret = self._secret_type(node_secret(child, beside, *pair))
            except PeerError:
                return None
            self._nodes[pair] = secret
        return secret


class Heard:
    """What MIKE said on the wire that keys depend on; fragments are put together.

    Attributes:
        trees, changes, paths, rekeys, pages: in the order in which they were (completely) sent.
    """

    def __init__(self, datagrams: Sequence[bytes]) -> None:
        self.trees: list[Tree] = []
        self.changes: list[Change] = []
        self.paths: list[Path] = []
        self.rekeys: list[Rekey] = []
        self.pages: list[Page] = []
        parts: dict[bytes, dict[int, bytes]] = {}
        for datagram in datagrams:
            outer = envelope.decode(datagram)
            if outer.protocol != PROTOCOL_MIKE:
                continue
            if outer.kind != Kind.FRAGMENT:
                self._add(Kind(outer.kind), outer.body)
                continue
            fragment = Fragment.decode(outer.body)
            known = parts.setdefault(fragment.message, {})
            whole = len(known) == fragment.count
            known[fragment.index] = fragment.part
            if len(known) == fragment.count and not whole:
                self._add(fragment.kind, b"".join(known[n] for n in range(fragment.count)))

    def _add(self, kind: Kind, body: bytes) -> None:
        match DECODERS[kind](body):
            case Tree() as tree:
                self.trees.append(tree)
            case Change() as change:
                self.changes.append(change)
            case Path() as path:
                self.paths.append(path)
            case Rekey() as rekey:
                self.rekeys.append(rekey)
            case Page() as page:
                self.pages.append(page)


def overheard(heard: Heard) -> dict[str, Overheard]:
    """Return every epoch of key agreement mode that was announced, by its printed id."""
    epochs: dict[str, Overheard] = {}
    paths: dict[str, list[Path]] = {}
    for path in heard.paths:
        paths.setdefault(str(path.epoch), []).append(path)

    def note(content: Announcement, keys: Mapping[NodeName, bytes]) -> None:
        pointer = str(content.epoch)
        epoch = epochs.get(pointer)
        if epoch is None:
            inner = sorted(inner_nodes(content.tree.members), reverse=True)
            epoch = epochs[pointer] = Overheard(content, tuple(inner))
            epoch.add(content.tree.blinded)
            for path in paths.get(pointer, ()):
                epoch.add(path.keys)
        epoch.add(keys)

    for tree in heard.trees:
        note(tree.announcement, tree.keys)
    for change in sorted(heard.changes, key=lambda change: change.number):
        before = epochs.get(str(change.previous))
        known = epochs.get(str(change.epoch))
        content = None if known is None else known.announcement
        if content is None and before is not None:
            content = announced(change, before.tree())
        if content is not None:
            note(content, change.keys)
    return epochs


def announced(change: Change, before: KeyTree) -> Announcement | None:
    """Return the announcement that a CHANGE names; None if it cannot be made of what was said.

    The TM itself may have had keys that its carrier lost: such an epoch is not judged.
    """
    try:
        tree = changed(before, change.pieces)
    except PeerError:
        return None
    made = Announcement(
        change.number, change.previous, change.tm, tree, change.sponsors, change.nonces
    )
    return made if made.digest == change.digest else None
