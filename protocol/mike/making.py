"""How a TM makes epochs, in either mode, and how it tells them.

Key agreement: a tree with open nodes, which sponsors complete. Key distribution: the TM draws new
keys and the epoch is complete when it is announced; a large one is told in several REKEYs, paced.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv6Address

from protocol.core.errors import PeerError
from protocol.core.retransmit import Backoff
from protocol.idpmike import EpochId
from protocol.mike.agreement import Agreement
from protocol.mike.change import Change, difference
from protocol.mike.config import NS_PER_MS, Mode
from protocol.mike.distribution import Distribution, KeyPath
from protocol.mike.electing import Elector
from protocol.mike.epochs import Epoch
from protocol.mike.fragments import body_size_max, parts_of
from protocol.mike.hierarchy import Hierarchy
from protocol.mike.instance import TIMER_BATCH, TIMER_TREE
from protocol.mike.keytree import KeyTree
from protocol.mike.messages import Announcement, Tree
from protocol.mike.receiving import roster_of
from protocol.mike.rekeying import (
    ENTRY_LENGTH,
    LEAF,
    PAGE_OVERHEAD,
    ROOT_KEY,
    Page,
    Rekey,
    RekeyAnnouncement,
    Wrap,
)
from protocol.mike.roster import Entry, Roster
from protocol.mike.rules import EARLY_MAX, changes_max, fits_agreement, next_mode, next_number
from protocol.mike.schedule import SECRET_LENGTH, NodeSecret, wrapped
from protocol.mike.states import State
from protocol.mike.transaction import Carried, Plan, Request, plan, plan_anew, with_work
from protocol.mike.treemath import ROOT

Nonces = tuple[tuple[IPv6Address, bytes], ...]


def mode_of(epoch: Epoch) -> Mode:
    """Return the mode that an epoch was made in."""
    return Mode.KD if isinstance(epoch, Distribution) else Mode.KA


class Maker(Elector):
    """Making and telling epochs."""

    @property
    def is_busy(self) -> bool:
        """Whether our newest epoch is unfinished: a sponsor has still to publish."""
        newest = self.newest
        return newest is self.pending or (newest is not None and not newest.is_complete)

    def mode_is_due(self) -> bool:
        """MIKE-34: say whether the group's size asks for another mode."""
        newest = self.newest
        if newest is None:
            return False
        wanted = next_mode(mode_of(newest), newest.size, self.config)
        return wanted is not mode_of(newest) and roster_of(newest) is not None

    # When.

    def proceed(self, *, urgent: bool = False) -> None:
        """Make the next epoch if there is a reason and no unfinished one (MIKE-10).

        A timer without delay: what has arrived with this event and is not read yet shares the
        epoch. In key distribution mode no epoch is unfinished; what comes soon after one waits
        (MIKE-35).

        Args:
            urgent: the unfinished epoch will not be finished: replace it.
        """
        if self.state is not State.TM:
            return
        self.urgent = self.urgent or urgent
        if self._is_due() and not self.runs(TIMER_BATCH):
            self.after(TIMER_BATCH, 0)

    def _is_due(self) -> bool:
        """Say whether there is a reason for another epoch now."""
        if self.is_busy:
            return self.urgent and not self.work.is_idle
        return not self.work.is_idle or self.mode_is_due()

    def on_batch_timer(self) -> None:
        """MIKE-10, MIKE-35: go on with what could not be made, or sent, at once."""
        if self.state is not State.TM:
            return
        if self.parts_sent < len(self.parts):
            self._send_part()
        elif self._is_due():
            self.next_epoch()

    # Making.

    def next_epoch(self) -> None:
        """Announce an epoch with what waits; it replaces an unfinished one."""
        base = self.newest
        assert base is not None
        self.work.exclusions.pop(self.own, None)
        carried = Carried(nonces=self.granted)
        if self.is_busy:
            carried = Carried(base.content.sponsors, base.content.nonces)
        members = set(base.members) - self.work.exclusions.keys() | self.work.requests.keys()
        roster = roster_of(base)
        mode = next_mode(mode_of(base), len(members), self.config)
        if roster is not None and (mode is Mode.KD or not isinstance(base, Agreement)):
            if mode is Mode.KD:
                self._distribute(base, roster, carried.nonces)
            else:
                requests = self._agreed_requests(base)
                planned = plan_anew(roster, requests, self.work.exclusions, carried)
                self._agree(base, planned, requests)
            return
        assert isinstance(base, Agreement)
        # One sponsor may have published what another one's lost PATH is below of.
        tree = base.known_tree().consistent()
        top_key = None if base.root is None else base.root.blinded
        requests = self._agreed_requests(base)
        planned = plan(tree, top_key, requests, self.work.exclusions, carried)
        self._agree(base, planned, requests)

    def _agreed_requests(self, base: Epoch) -> list[Request]:
        """Return the JOINs that an epoch in key agreement mode has room for (MIKE-20)."""
        granted = []
        size = len(set(base.members) - self.work.exclusions.keys())
        for request in list(self.work.requests.values()):
            size += request.address not in base.members
            if request.address in base.members or fits_agreement(size, self.config):
                granted.append(request)
            else:
                self.counters.count("MIKE-20")
                self.work.refused(request.address)
        return granted

    def _agree(self, base: Epoch, planned: Plan, requests: Sequence[Request]) -> None:
        """Make an epoch in key agreement mode."""
        tree = planned.tree
        name = tree.leaf_of(self.own)
        assert name is not None
        key = tree.blinded.get(name)
        leaf = self.leaf_with(key) if key is not None else self.fresh_secret()
        assert leaf is not None, "the tree has a leaf of ours whose secret we do not hold"
        # Whoever has the epoch that we have needs only what changed (MIKE-39). After one of more
        # sponsors than early PATHs are kept, many may lack some keys that they did not need.
        before = None
        if isinstance(base, Agreement) and not self.is_busy:
            before = base.known_tree() if len(base.content.sponsors) <= EARLY_MAX else None
        if key is None and name != ROOT:
            tree = tree.filled({name: leaf.blinded})
        agreement = Agreement(self.own, tree, planned.sponsors, leaf, self.earlier_secrets())
        agreement.climb()
        claims = [request.highest for request in requests]
        granted = tuple(pair for pair in planned.nonces if pair[0] in self.work.requests)
        self.work.taken()
        self.attempt = None
        self.granted = granted
        self.announce(agreement, base.epoch, claims, planned.nonces, before)

    def announce(
        self,
        agreement: Agreement,
        previous: EpochId,
        claims: list[int],
        nonces: Nonces,
        before: KeyTree | None = None,
    ) -> None:
        """Decide an epoch in key agreement mode, and tell it.

        Args:
            agreement: computed as far as we can.
            previous: the epoch before.
            claims: largest numbers that the joiners have seen.
            nonces: of JOINs granted in this epoch, and in the one before.
            before: the tree of the epoch before, if all its keys are known.
        """
        tree = agreement.known_tree()
        sponsors = with_work(tree, agreement.sponsors)
        number = next_number(self.highest, claims)
        content = Announcement(number, previous, self.own, tree, sponsors, nonces)
        agreement.bind(content)
        self.hierarchy = None
        self._begin(agreement)
        parts = parts_of(len(content.encoded), self.config.datagram_size_max)
        newcomers = tuple(who for who, _ in self.granted if who != self.own)
        if parts >= self.config.change_parts_min and len(newcomers) < 2:
            # Of several newcomers each would need the whole: then all get it.
            self.before, self.newcomers = before, newcomers
        if sponsors:
            self.tell()
        self.wait_for_sponsors()
        self.advance(agreement)

    def _begin(self, epoch: Epoch) -> None:
        """Make our new epoch the newest one."""
        self.highest = epoch.epoch.number
        self.tm = self.own
        self.term = 0
        self.pending = epoch
        self.urgent = False
        self.early.clear()
        self.parts = ()
        self.newcomers = ()
        self.before = None
        self.remember(epoch.epoch)
        self.announced_mono_ns = self.now.mono_ns
        self.tree_repetitions = 0

    def _distribute(self, base: Epoch, roster: Roster, nonces: Nonces) -> None:
        """Make an epoch in key distribution mode of what waits, as much as one may hold."""
        limit = changes_max(self.config)
        excluded = [who for who in self.work.exclusions if who in roster.keys][:limit]
        requests = list(self.work.requests.values())[: limit - len(excluded)]
        if len(excluded) < limit:
            self.work.exclusions.clear()
        for who in excluded:
            self.work.exclusions.pop(who, None)
        for request in requests:
            self.work.refused(request.address)
        own = next((r for r in requests if r.address == self.own), None)
        leaf = self.leaf_with(roster.keys[self.own] if own is None else own.key)
        assert leaf is not None, "the roster has a leaf of ours whose secret we do not hold"
        if own is not None:
            self.attempt = None
            self.hierarchy = None
        self.granted = tuple((request.address, request.nonce) for request in requests)
        all_nonces = dict(nonces) | dict(self.granted)
        self.distribute(
            base.epoch,
            roster,
            leaf,
            requests=requests,
            excluded=excluded,
            nonces=tuple(all_nonces.items()),
        )

    def distribute(
        self,
        previous: EpochId,
        roster: Roster,
        leaf: NodeSecret,
        *,
        requests: Sequence[Request] = (),
        excluded: Sequence[IPv6Address] = (),
        nonces: Nonces = (),
    ) -> None:
        """Decide an epoch in key distribution mode, and tell it.

        Args:
            previous: the epoch before.
            roster: of that epoch.
            leaf: our own leaf secret in the new one.
            requests: JOINs to grant.
            excluded: members to remove.
            nonces: of JOINs granted in this epoch, and in the one before.
        """
        hierarchy = self.hierarchy
        joining = {r.address: r.key for r in requests if r.address != self.own}
        gone = list(excluded)
        if hierarchy is None or hierarchy.epoch != previous:
            hierarchy = Hierarchy(self.fresh_secret(), self._draw)
            others = roster.changed([self.own, *excluded, *joining], ())
            gone += self._put(hierarchy, others.keys.items())
            refused = self._put(hierarchy, joining.items())
            gone += [who for who in refused if who in roster.keys]
        else:
            for who in excluded:
                hierarchy.remove(who)
            refused = self._put(hierarchy, joining.items())
        added = [(r.address, r.key) for r in requests if r.address not in refused]
        after = roster.changed(gone, added)
        hierarchy.renew()
        content = RekeyAnnouncement(
            next_number(self.highest, [request.highest for request in requests]),
            previous,
            self.own,
            len(after),
            after.digest,
            tuple(sorted(gone)),
            tuple(added),
            tuple(sorted(pair for pair in nonces if pair[0] in after.keys)),
        )
        hierarchy.epoch = content.epoch
        self.hierarchy = hierarchy
        epoch = Distribution(self.own, content, (leaf,), KeyPath())
        epoch.enter(after)
        epoch.own_root(hierarchy.root)
        self._begin(epoch)
        self.parts = self._in_parts(epoch, hierarchy)
        self.newcomers = tuple(
            request.address
            for request in requests
            if request.address in after.keys and request.address != self.own
        )
        if len(after) > 1:
            self.after(TIMER_BATCH, self.config.kd_batch_ms)
        self.advance(epoch)

    def _put(self, hierarchy: Hierarchy, entries: Iterable[Entry]) -> list[IPv6Address]:
        """Add members; return those whose leaf key is good for nothing (MIKE-6)."""
        bad = []
        for address, key in entries:
            try:
                hierarchy.put(address, hierarchy.pairwise(address, key))
            except PeerError as error:
                self.refuse(error, str(address))
                bad.append(address)
        return bad

    # Telling.

    def tell(self) -> None:
        """Send the newest epoch to all: of a large tree most need only what changed."""
        if self.before is None:
            self.send_tree()
            return
        for address in self.newcomers:
            self.send_tree(address)
        self.send_change()

    def send_change(self, destination: IPv6Address | None = None) -> None:
        """Send what the newest epoch changed (MIKE-39); the whole if that is no less.

        Args:
            destination: who asked; None: all.
        """
        newest = self.newest
        assert isinstance(newest, Agreement)
        assert self.before is not None
        content = newest.content
        change = Change(
            content.number,
            content.previous,
            content.tm,
            content.digest,
            difference(self.before, content.tree),
            content.sponsors,
            content.nonces,
            self.term,
            newest.supplement(),
            newest.confirmation(),
        )
        if len(change.encode()) < len(content.encoded):
            self.send(change, destination)
        else:
            self.send_tree(destination)

    def send_tree(self, destination: IPv6Address | None = None) -> None:
        """Send the newest epoch: with all that is known of it, or as one member needs it.

        Args:
            destination: who asked; None: all.
        """
        newest = self.newest
        if isinstance(newest, Distribution):
            if destination is None:
                self.parts_sent = 0
                self._send_part()
            else:
                self._send_path(newest, destination)
            return
        assert isinstance(newest, Agreement)
        self.send(
            Tree(newest.content, self.term, newest.supplement(), newest.confirmation()),
            destination,
        )

    def wait_for_sponsors(self) -> None:
        """Set the timer for the next repetition of TREE."""
        limit_ms = self.config.sponsor_timeout_ms
        first_ms = min(self.config.tree_retry_ms, limit_ms)
        backoff = Backoff(first_ms * NS_PER_MS, limit_ms * NS_PER_MS, 0)
        self.after_ns(TIMER_TREE, backoff.delay_ns(self.tree_repetitions))

    def _in_parts(self, epoch: Distribution, hierarchy: Hierarchy) -> tuple[Rekey, ...]:
        """Return the REKEYs that tell an epoch to all: one, unless the wraps are many."""
        assert epoch.roster is not None
        wraps = hierarchy.wraps(epoch.roster.places, epoch.content.digest)
        whole = Rekey(epoch.content, 0, hierarchy.secret.blinded, wraps, epoch.confirmation())
        return whole.in_parts(body_size_max(self.config.datagram_size_max))

    def _send_part(self) -> None:
        """Send the next part of the newest epoch."""
        if self.parts_sent < len(self.parts):
            self.send(self.parts[self.parts_sent])
            self.parts_sent += 1
            self.after(TIMER_BATCH, self.config.kd_batch_ms)

    def _send_path(self, epoch: Distribution, asker: IPv6Address) -> None:
        """MIKE-33: give one member all keys from its leaf to the root.

        Who became TM by a hand-over has no hierarchy with the keys of this epoch: it wraps the root
        alone.
        """
        roster, root = epoch.roster, epoch.root
        if roster is None or root is None:
            return
        if self.hierarchy is None:
            self.hierarchy = Hierarchy(self.fresh_secret(), self._draw)
        hierarchy = self.hierarchy
        digest = epoch.content.digest
        wraps: dict[int, Wrap] = {}
        if hierarchy.epoch == epoch.epoch:
            wraps = hierarchy.path(asker, roster.places, digest)
        elif asker in roster.keys:
            key = hierarchy.pairwise(asker, roster.keys[asker])
            wraps = {LEAF | roster.places[asker]: Wrap(ROOT_KEY, wrapped(key, digest, root))}
        told = Rekey(
            epoch.content, self.term, hierarchy.secret.blinded, wraps, epoch.confirmation()
        )
        self.send(told, asker)

    def send_page(self, start: int, asker: IPv6Address) -> None:
        """Give one device as much of the newest roster, from a position on, as a message holds."""
        newest = self.newest
        if not isinstance(newest, Distribution) or newest.roster is None:
            return
        room = body_size_max(self.config.datagram_size_max) - PAGE_OVERHEAD
        entries = tuple(newest.roster.part(start, room // ENTRY_LENGTH))
        if entries:
            self.send(Page(newest.content.roster, start, entries), asker)

    def _draw(self) -> bytes:
        return self.fresh_bytes(SECRET_LENGTH)
