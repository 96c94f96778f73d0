"""A member's part: follow the TM's epochs, publish as sponsor, notice and repair losses."""

from __future__ import annotations

from ipaddress import IPv6Address

from protocol.core.errors import PeerError
from protocol.idpmike import EpochId
from protocol.mike.agreement import Agreement
from protocol.mike.distribution import Distribution, KeyPath
from protocol.mike.epochs import Epoch
from protocol.mike.instance import (
    TIMER_BATCH,
    TIMER_ELECTION,
    TIMER_FOUND,
    TIMER_HANDOVER,
    TIMER_HELD,
    TIMER_JOIN,
    TIMER_REJOIN,
    TIMER_REKEY,
    TIMER_REPAIR,
    TIMER_SILENCE,
    TIMER_STATUS,
    TIMER_TREE,
)
from protocol.mike.membership import GroupFigures
from protocol.mike.messages import (
    MESSAGE_ID_LENGTH,
    NO_EPOCH,
    Announcement,
    Path,
    Repair,
    Status,
    Tree,
)
from protocol.mike.receiving import Receiver
from protocol.mike.rekeying import Page, Rekey
from protocol.mike.rules import (
    EARLY_MAX,
    Authority,
    authority,
    check_announcement,
    check_number,
    check_sender,
    grants,
    leaves_out_too_many,
)
from protocol.mike.states import Held, State

REPAIRS_MAX = 8
"""Unanswered REPAIRs; the next STATUS starts anew."""


class Member(Receiver):
    """Following, publishing, repairing."""

    # Following.

    def on_tree(self, message: Tree | Rekey, sender: IPv6Address) -> None:
        """Follow, complete, hold or refuse a TREE or REKEY."""
        content = message.announcement
        for agreement in (self.pending, self.current):
            if agreement is not None and content.epoch == agreement.epoch:
                self.on_known_tree(message, agreement, sender)
                return
        entering = grants(content, self.own, self.view().nonce)
        if self.tm is None and not entering:
            self.note_group()
            return
        check_number(content.number, self.highest, entering=entering)
        check_sender(content, message.term, sender)
        match authority(self.view(), content, sender):
            case Authority.FOLLOW:
                if isinstance(content, Announcement):
                    check_announcement(content)
                self.follow(message, sender)
            case Authority.HOLD:
                self._hold(message, sender)
            case Authority.REFUSE:
                raise PeerError("MIKE-3", f"{sender} is not our TM")

    def on_known_tree(
        self,
        message: Tree | Rekey,
        agreement: Epoch,
        sender: IPv6Address,
        *,
        again: bool = True,
    ) -> None:
        """Take what the TM learnt meanwhile; say again what it has not heard of us.

        Args:
            message: what it says of an epoch that we have.
            agreement: that epoch.
            sender: who says it.
            again: it repeats what it said to us.
        """
        if sender != self.tm:
            raise PeerError("MIKE-3", f"{sender} is not our TM")
        self.term = max(self.term, message.term)
        if agreement is self.pending:
            if self.suspect == agreement.epoch:
                agreement = self._recomputed(agreement)
            if self._take_told(message, agreement) and self.missing_asked == 0:
                # A part of a REKEY: the rest may be under way (MIKE-35).
                self.after_ns(TIMER_REPAIR, self.spread_ns(self.config.repair_delay_ms))
            agreement.offer(sender, message.confirmation)
        told = message.keys.keys() if isinstance(message, Tree) else frozenset()
        lacking = agreement.published.keys() - told
        untold = agreement.is_last_sponsor and message.confirmation is None
        sent = agreement is self.pending and self.advance(agreement)
        if (lacking or untold) and again and not sent:
            self.send_path(agreement)

    def _take_told(self, message: Tree | Rekey, epoch: Epoch) -> bool:
        """Add what comes with an announcement; say whether it is a new part of a REKEY."""
        if isinstance(message, Tree):
            epoch.take(message.keys, None)
            return False
        return isinstance(epoch, Distribution) and epoch.take_wraps(message)

    def _recomputed(self, epoch: Epoch) -> Epoch:
        """Compute an epoch from the leaf alone, trusting nothing computed or heard before."""
        anew: Epoch
        if isinstance(epoch, Distribution):
            anew = Distribution(self.own, epoch.content, epoch.leaves, KeyPath())
            if epoch.roster is not None:
                anew.enter(epoch.roster)
        else:
            assert isinstance(epoch, Agreement)
            content = epoch.content
            anew = Agreement(self.own, content.tree, content.sponsors, epoch.leaf, {})
            anew.bind(content)
        self.pending = anew
        return anew

    def _hold(self, message: Tree | Rekey, sender: IPv6Address) -> None:
        """MIKE-14: keep one TREE of a member that may be the next TM."""
        self.counters.count("MIKE-14")
        if self.held is None:
            self.after(TIMER_HELD, self.config.takeover_grace_ms)
            self.ask_tm(self.config.tm_answer_ms)
        elif self.held.sender != sender:
            return
        self.held = Held(message, sender)

    def retry_held(self, *, force: bool = False) -> bool:
        """Judge the held TREE again after news about the TM; say whether it was followed.

        Args:
            force: our own turn has come, yet somebody acted before: follow rather than compete.
        """
        held = self.held
        if held is None or held.sender in self.gone():
            return False
        content = held.message.announcement
        if content.number <= self.highest:
            self.held = None
            return False
        verdict = authority(self.view(), content, held.sender)
        if verdict is not Authority.FOLLOW and not (
            force and not leaves_out_too_many(content, held.sender, self.members, self.gone())
        ):
            return False
        self.held = None
        try:
            if isinstance(content, Announcement):
                check_announcement(content)
            self.follow(held.message, held.sender)
        except PeerError as error:
            self.refuse(error, str(held.sender))
            return False
        return True

    def follow(self, message: Tree | Rekey, sender: IPv6Address) -> None:
        """Enter a newer epoch of a TM that may act as such."""
        content = message.announcement
        view = self.view()
        agreement: Epoch | None
        if isinstance(message, Tree):
            agreement = self._agreement(message, sender)
        else:
            agreement = self.distribution(message, sender)
        if agreement is None:
            return
        agreement.offer(sender, message.confirmation)
        if grants(content, self.own, view.nonce):
            self.entered = content.epoch
            self.attempt = None
            self.stop(TIMER_JOIN, TIMER_FOUND, TIMER_REJOIN)
            # It answered us just now: an earlier LEAVE of it is out of date.
            self.liveness.heard(sender)
        if self.state is State.TM:
            self.step_down()
        self.tm, self.deposed = sender, None
        for address, _ in content.nonces:
            self.liveness.grant(address, self.now.mono_ns)
        heard = self.heard.get(sender)
        self.tm_startup = None if heard is None else (sender, heard[0])
        self.term = message.term
        self.gave = None
        self.highest = content.number
        self.remember(content.previous)
        self.remember(content.epoch)
        self.pending = agreement
        self.missing = None
        self.held = None
        self.stop(TIMER_HANDOVER, TIMER_HELD, TIMER_ELECTION)
        self.expect_tm()
        self._take_early(agreement)
        if self.pending is agreement:
            self.advance(agreement)
        if self.pending is agreement:
            self.lack(agreement.epoch, sender)

    def _agreement(self, message: Tree, sender: IPv6Address) -> Agreement | None:
        """Return the epoch that a TREE announces; None if it excludes us.

        Raises:
            PeerError: it names us with a leaf key that is not ours (MIKE-5); we join anew.
        """
        content = message.announcement
        name = content.tree.leaf_of(self.own)
        if name is None:
            self.excluded(content, content.tree.addresses)
            return None
        key = content.tree.blinded.get(name, message.keys.get(name))
        leaf = self.leaf_with(key) if key is not None else self.fresh_secret()
        if leaf is None:
            self.highest = content.number
            self.tm = self.tm or sender
            self.join()
            raise PeerError("MIKE-5", f"epoch {content.epoch} has a leaf key that is not ours")
        agreement = Agreement(
            self.own, content.tree, content.sponsors, leaf, self.earlier_secrets()
        )
        agreement.bind(content)
        agreement.take(message.keys, None)
        return agreement

    def on_page(self, message: Page, sender: IPv6Address) -> None:
        """MIKE-30: a part of the roster of the epoch that we are about to enter."""
        pending = self.pending
        if (
            not isinstance(pending, Distribution)
            or pending.roster is not None
            or message.roster != pending.content.roster
        ):
            if self.attempt is not None or sender == self.tm:
                self.early_page = (sender, message)
                self.counters.count("MIKE-23")
            return
        if sender != self.tm:
            raise PeerError("MIKE-30", f"{sender} is not our TM")
        roster = pending.add_page(message)
        if roster is None:
            unasked = self.missing != pending.epoch or not self.missing_asked
            self.missing, self.missing_from, self.missing_asked = pending.epoch, sender, 0
            if unasked and self.state is State.JOINING:
                # The page that a newcomer gets unasked goes to it alone, so nobody else asks now.
                self.on_repair_timer()
            else:
                self.after_ns(TIMER_REPAIR, self.spread_ns(self.config.repair_delay_ms))
        elif self.settle(pending, roster, sender):
            self.advance(pending)

    def _take_early(self, agreement: Epoch) -> None:
        """Use the PATHs that overtook their TREE, or the page that overtook its REKEY."""
        if self.early_page is not None and isinstance(agreement, Distribution):
            sender, page = self.early_page
            if sender == self.tm:
                self.on_page(page, sender)
        for sender, path in list(self.early.items()):
            if path.epoch == agreement.epoch:
                del self.early[sender]
                self._take_path(path, agreement, sender)

    def _take_path(self, path: Path, agreement: Epoch, sender: IPv6Address) -> None:
        """Add a sponsor's keys and tag."""
        agreement.take(path.keys, sender)
        agreement.offer(sender, path.confirmation)

    def on_path(self, message: Path, sender: IPv6Address) -> None:
        """Add what a sponsor publishes, now or when its TREE comes (MIKE-23)."""
        pending = self.pending
        if pending is not None and message.epoch == pending.epoch:
            self._take_path(message, pending, sender)
            self.advance(pending)
        elif self.current is not None and message.epoch == self.current.epoch:
            if not self.current.is_complete:
                self._take_path(message, self.current, sender)
        elif message.epoch.number > self.highest:
            if sender in self.early or len(self.early) < EARLY_MAX:
                self.early[sender] = message
                self.counters.count("MIKE-23")
            if self.tm is not None:
                self.lack(message.epoch, self.tm)

    def advance(self, agreement: Epoch) -> bool:
        """Compute what can be computed; publish, establish. Say whether a PATH was sent."""
        unreached = agreement.keys is None
        try:
            more = agreement.climb()
        except PeerError:
            self.lack(agreement.epoch, self.tm)
            raise
        told = unreached and agreement.keys is not None and agreement.is_last_sponsor
        try:
            agreement.check_tags()
        except PeerError as error:
            self._doubt(agreement, error)
            return False
        sponsored = agreement.is_last_sponsor or self._answers_for(agreement)
        if agreement.keys is not None and (agreement.confirmed or sponsored):
            self._enter(agreement)
            return more or told
        if more or told:
            self.send_path(agreement)
        return more or told

    def _answers_for(self, agreement: Epoch) -> bool:
        """Say whether we announced a complete epoch ourselves: nobody could confirm it to us."""
        return agreement.content.tm == self.own and not agreement.content.sponsors

    def _enter(self, agreement: Epoch) -> None:
        """Establish an epoch in the role we have in it."""
        if self.state is State.JOINING and self.tm != self.own:
            self.move(State.MEMBER)
        self.establish(agreement)

    def _doubt(self, agreement: Epoch, error: PeerError) -> None:
        """MIKE-8: another member has another root. Compute anew once, then join anew."""
        self.refuse(error, str(self.tm))
        if self.suspect == agreement.epoch:
            self.suspect = None
            self.join()
            return
        self.suspect = agreement.epoch
        self.lack(agreement.epoch, self.tm)

    def send_path(self, agreement: Epoch) -> None:
        """Publish all that is ours to publish, with our tag if we have the root."""
        if not agreement.content.sponsors or self.own not in agreement.content.sponsors:
            return
        self.send(Path(agreement.epoch, agreement.published, agreement.confirmation()))

    def send_keys(self, agreement: Epoch) -> None:
        """As last sponsor, publish and confirm before anything else.

        Another sponsor has published by now: without its keys nobody could have confirmed.
        """
        if agreement.is_last_sponsor:
            self.send_path(agreement)

    def step_down(self) -> None:
        """Stop what only a TM does."""
        self.work.taken()
        self.hierarchy = None
        self.parts = ()
        self.before = None
        self.stop(TIMER_TREE, TIMER_STATUS, TIMER_HANDOVER, TIMER_REKEY, TIMER_BATCH)
        self.move(State.MEMBER)
        self.keep_asking()

    # The beacon.

    def on_status(self, message: Status, sender: IPv6Address) -> None:
        """Learn that the TM lives, that we miss an epoch, or that another group is there."""
        if self.state is State.JOINING and self.pending is None:
            self.note_group()
            return
        if sender == self.tm and sender != self.deposed:
            self._on_own_status(message, sender)
        elif message.epoch == self.held_epoch():
            if message.term > self.term:
                self.lack(message.epoch, None)
            elif message.term == self.term and (self.pending or self.state is State.TM):
                # Elected beside our TM, by members that cannot finish both epochs (MIKE-16).
                self._on_foreign_status(message, sender)
        elif self.current is not None:
            self._on_foreign_status(message, sender)

    def _on_own_status(self, message: Status, sender: IPv6Address) -> None:
        """The beacon of our TM."""
        held = self.held_epoch()
        ours = message.epoch == held or message.epoch in self.recent
        followed = self.pending is not None and self.pending.content.tm == sender
        if message.epoch.number <= held.number and not ours and not followed:
            # It restarted before we heard it as TM, and has another group now (MIKE-22).
            self.lose_tm()
            return
        self.expect_tm()
        if self.silent == sender:
            self.silent = None
            self.liveness.heard(sender)
        if self.gave is not None and self.gave.successor == sender:
            self.stop(TIMER_HANDOVER)
        if self.pending is not None and message.epoch == self.pending.epoch:
            self.pending.offer(sender, message.confirmation)
            self.advance(self.pending)
            if self.pending is not None:
                self.lack(message.epoch, sender)
        elif self.current is not None and message.epoch == self.current.epoch:
            self._confirm_current(message, sender)
        elif message.epoch.number > self.highest:
            self.lack(message.epoch, sender)

    def _confirm_current(self, message: Status, sender: IPv6Address) -> None:
        """The last sponsor's own key is confirmed to it only now."""
        assert self.current is not None
        self.term = max(self.term, message.term)
        self.current.offer(sender, message.confirmation)
        try:
            self.current.check_tags()
        except PeerError as error:
            self.refuse(error, str(sender))
            self.join()

    def _on_foreign_status(self, message: Status, sender: IPv6Address) -> None:
        """Another TM beacons: a successor whose TREE we missed, or another group (MIKE-16).

        Its group is another one, too, if it was elected in the epoch that we have ourselves.
        """
        current = self.current
        assert current is not None
        assert self.tm is not None
        newest = self.pending or current
        ours = GroupFigures(newest.size, current.epoch.number, self.tm)
        theirs = GroupFigures(message.members, message.epoch.number, sender)
        if theirs.outranks(ours):
            self.dissolve(theirs)
        elif (
            sender in current.members
            and sender != self.deposed
            and message.epoch.number > self.highest
        ):
            self.lack(message.epoch, sender)

    def expect_tm(self) -> None:
        """MIKE-22: the TM was heard, or has just become TM; wait for its next STATUS."""
        self.tm_heard_mono_ns = self.now.mono_ns
        self.began = None
        self.after(TIMER_SILENCE, self.config.tm_silence_ms // 2)

    # Repair.

    def lack(self, epoch: EpochId, whom: IPv6Address | None) -> None:
        """Note that we lack an epoch, and ask for it after a short while."""
        if self.state is State.TM:
            return
        self.missing_from = whom
        if self.missing == epoch and self.runs(TIMER_REPAIR):
            return
        self.missing = epoch
        self.missing_asked = 0
        self.after_ns(TIMER_REPAIR, self.spread_ns(self.config.repair_delay_ms))

    def on_repair_timer(self) -> None:
        """Ask for what is still missing, with back-off, a bounded number of times."""
        missing = self.missing
        if missing is None or self.missing_asked >= REPAIRS_MAX:
            return
        if self.current is not None and missing.number < self.current.epoch.number:
            self.missing = None
            return
        whom = self.missing_from
        if self.assemblies.waits_for(whom):
            # Part of it came; the missing fragments are asked for already.
            self.after_ns(TIMER_REPAIR, self.spread_ns(self.config.repair_delay_ms))
            return
        self.send(self._question(missing), None if whom == self.own else whom)
        self.missing_asked += 1
        self.after_ns(TIMER_REPAIR, self.repair_backoff_ns(self.missing_asked))

    def _question(self, missing: EpochId) -> Repair:
        """Ask for an epoch; if a part of its roster came already, for the next part of that."""
        pending = self.pending
        if isinstance(pending, Distribution) and pending.epoch == missing:
            known = pending.known_entries
            if known:
                name = pending.content.roster[:MESSAGE_ID_LENGTH]
                return Repair(NO_EPOCH, self.held_epoch(), name, known + 1)
        return Repair(missing, NO_EPOCH if missing == self.useless else self.held_epoch())

    def lose_tm(self) -> None:
        """MIKE-22: the TM does not serve us any more; the layer above knows what follows."""

    def ask_tm(self, delay_ms: int = 0) -> None:
        """MIKE-37: ask the TM whether it is TM still; the layer above knows how."""

    def on_held_timer(self) -> None:
        """MIKE-14: nobody confirmed that the old TM is gone."""
        self.held = None
