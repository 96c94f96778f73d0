"""The TM's work: collect requests, plan the next epoch. Plans are pure functions of their input.

A plan removes first, then refreshes, then inserts, and at last moves members of a tree grown too
high. Whatever it changes, it keeps one invariant (MIKE-19, MIKE-9): every node whose secret an
outsider may know, and every node whose children changed, is open, and below every open node there
is a sponsor whose own leaf is fresh.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address

from protocol.mike.answers import remember
from protocol.mike.duties import relieved
from protocol.mike.keytree import KeyTree, height_max
from protocol.mike.roster import Roster
from protocol.mike.rules import is_newer_request
from protocol.mike.treemath import ROOT, balanced_levels, key_path, leaves_from_levels

ASKED_MAX = 1024
"""Devices whose last request is remembered (MIKE-12, MIKE-25)."""


@dataclass(frozen=True, slots=True)
class Request:
    """A JOIN that waits for its epoch.

    Attributes:
        address: who asks.
        nonce: echoed in the announcement.
        key: its fresh blinded leaf key.
        highest: largest epoch number it has seen.
    """

    address: IPv6Address
    nonce: bytes
    key: bytes
    highest: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The content of the next epoch, before the TM's own keys are in it.

    Attributes:
        tree: members and the blinded keys that stay valid.
        sponsors: those whose fresh leaf makes open nodes computable, in position order, each
            followed by its relief if it has one.
        nonces: (member, nonce) of the requests granted, in position order.
    """

    tree: KeyTree
    sponsors: tuple[IPv6Address, ...]
    nonces: tuple[tuple[IPv6Address, bytes], ...]


@dataclass(frozen=True, slots=True)
class Carried:
    """What an unfinished epoch leaves to the one that replaces it (MIKE-10).

    Attributes:
        sponsors: of the unfinished epoch.
        nonces: of the unfinished epoch: their joiners may have missed its TREE.
    """

    sponsors: tuple[IPv6Address, ...] = ()
    nonces: tuple[tuple[IPv6Address, bytes], ...] = ()


def plan(
    tree: KeyTree,
    top_key: bytes | None,
    requests: Sequence[Request],
    excluded: Iterable[IPv6Address],
    carried: Carried,
) -> Plan:
    """Return the next epoch's content.

    Args:
        tree: of the present epoch, finished or not.
        top_key: blinded key of its root secret, None if unknown.
        requests: JOINs to grant, in order of arrival.
        excluded: members to remove; the TM itself is never among them.
        carried: of the present epoch if it is not finished.
    """
    refresh: dict[IPv6Address, None] = {}
    for address in excluded:
        if tree.leaf_of(address) is None:
            continue
        tree, top = tree.removed(address)
        refresh[tree.members[tree.rightmost(top)]] = None
    joining = {request.address: request for request in requests}
    for address in refresh:
        leaf = tree.leaf_of(address)
        if leaf is not None and address not in joining:
            tree = tree.refreshed(leaf, None)
            top_key = None
    # A member in `refresh` that was removed later left its work to the sponsor of that removal.
    for request in requests:
        leaf = tree.leaf_of(request.address)
        if leaf is None:
            tree, _ = tree.inserted(request.address, request.key, top_key)
        else:
            tree = tree.refreshed(leaf, request.key)
        top_key = None
    tree, moved = _balanced(tree)
    if moved:
        top_key = None
    refresh.update(moved)
    nonces = dict(carried.nonces)
    nonces.update({request.address: request.nonce for request in requests})
    at_work = {*carried.sponsors, *refresh, *joining}
    sponsors = tuple(who for who in tree.addresses if who in at_work)
    return Plan(
        tree,
        relieved(tree, sponsors, joining),
        tuple((who, nonces[who]) for who in tree.addresses if who in nonces),
    )


def plan_anew(
    roster: Roster,
    requests: Sequence[Request],
    excluded: Iterable[IPv6Address],
    carried: Carried,
) -> Plan:
    """Return the content of the epoch that takes a group back to key agreement mode.

    A new tree with known leaves and no known node above them. Whoever sits on the right in a pair
    of leaves is sponsor: there is such a pair below every open node.

    Args:
        roster: of the present epoch.
        requests: JOINs to grant, in order of arrival.
        excluded: members to remove; the TM itself is never among them.
        carried: of the present epoch.
    """
    after = roster.changed(excluded, [(request.address, request.key) for request in requests])
    levels = balanced_levels(len(after))
    leaves = leaves_from_levels(levels)
    assert leaves is not None
    members = dict(zip(leaves, after.addresses, strict=True))
    blinded = {leaf: after.keys[who] for leaf, who in members.items() if leaf != ROOT}
    nonces = dict(carried.nonces) | {request.address: request.nonce for request in requests}
    return Plan(
        KeyTree(members, blinded),
        tuple(who for leaf, who in members.items() if leaf & 1 and leaf ^ 1 in members),
        tuple((who, nonces[who]) for who in after.addresses if who in nonces),
    )


def _balanced(tree: KeyTree) -> tuple[KeyTree, dict[IPv6Address, None]]:
    """Return the tree with its deepest members moved up, and those who choose a new leaf secret.

    A move is an exclusion and a new entry in one: the member's leaf is open at its new place, and
    whoever sponsors its removal refreshes as after an exclusion. So what holds of the plan's
    removals and insertions (MIKE-9, MIKE-19) holds of moves.
    """
    refresh: dict[IPv6Address, None] = {}
    limit = height_max(len(tree))
    while tree.height > limit:
        mover = tree.members[tree.deepest()]
        tree, top = tree.removed(mover)
        heir = tree.rightmost(top)
        refresh[tree.members[heir]] = None
        tree = tree.refreshed(heir, None)
        tree, _ = tree.inserted(mover, None, None, limit)
        refresh[mover] = None
    return tree, refresh


def with_work(tree: KeyTree, sponsors: Iterable[IPv6Address]) -> tuple[IPv6Address, ...]:
    """Return the sponsors that have an open node on their key path."""
    found = []
    for who in sponsors:
        leaf = tree.leaf_of(who)
        if leaf is not None and any(
            name not in tree.blinded for name in key_path(leaf) if name != ROOT
        ):
            found.append(who)
    return tuple(found)


class Transaction:
    """What the TM has been asked for and has not done yet.

    Attributes:
        requests: newest JOIN per device, in order of first arrival.
        exclusions: members to remove.
    """

    __slots__ = ("_order", "_renewed", "_requests_max", "exclusions", "requests")

    def __init__(self, requests_max: int) -> None:
        self._requests_max = requests_max
        self._order: dict[IPv6Address, tuple[int, int]] = {}
        self._renewed: dict[IPv6Address, tuple[int, int]] = {}
        self.requests: dict[IPv6Address, Request] = {}
        self.exclusions: dict[IPv6Address, None] = {}

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits."""
        return not self.requests and not self.exclusions

    def ask(self, request: Request, order: tuple[int, int]) -> bool:
        """Note a JOIN unless a newer one of its device was handled (MIKE-12); say whether noted."""
        if not is_newer_request(order, self._order.get(request.address)):
            return False
        if len(self.requests) >= self._requests_max and request.address not in self.requests:
            return False
        remember(self._order, request.address, order, ASKED_MAX)
        self.requests[request.address] = request
        self.exclusions.pop(request.address, None)
        return True

    def exclude(self, address: IPv6Address) -> None:
        """Note a LEAVE; a JOIN that the device made before is void."""
        self.requests.pop(address, None)
        self.exclusions[address] = None

    def refused(self, address: IPv6Address) -> None:
        """Drop a request that cannot be granted."""
        self.requests.pop(address, None)

    def taken(self) -> None:
        """Forget what the epoch just announced contains."""
        self.requests.clear()
        self.exclusions.clear()

    def may_renew(
        self, address: IPv6Address, order: tuple[int, int], mono_ns: int, interval_ns: int
    ) -> bool:
        """MIKE-25: say whether a member may renew its share now, and note that it does.

        A restarted instance (larger start-up time-stamp) does not renew: it has nothing left.
        """
        last = self._renewed.get(address)
        if last is not None and order[0] <= last[0] and mono_ns - last[1] < interval_ns:
            return False
        remember(self._renewed, address, (order[0], mono_ns), ASKED_MAX)
        return True
