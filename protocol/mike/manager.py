"""The transaction manager's (TM) part: found, plan and announce epochs, answer, hand over.

A TM has one unfinished epoch at a time (MIKE-10). Requests that come meanwhile wait and share the
next epoch; only news about a sponsor of the unfinished epoch replaces it at once.
"""

from __future__ import annotations

from ipaddress import IPv6Address

from protocol.core.engine import Report
from protocol.core.errors import PeerError
from protocol.core.retransmit import Backoff
from protocol.identity import Opened
from protocol.mike.agreement import Agreement
from protocol.mike.answers import To
from protocol.mike.config import NS_PER_MS, Mode
from protocol.mike.distribution import Distribution
from protocol.mike.epochs import Epoch
from protocol.mike.fragments import bit_of
from protocol.mike.instance import (
    TIMER_ELECTION,
    TIMER_FOUND,
    TIMER_HANDOVER,
    TIMER_HELD,
    TIMER_JOIN,
    TIMER_REPAIR,
    TIMER_SILENCE,
    TIMER_STATUS,
    TIMER_TREE,
)
from protocol.mike.keytree import KeyTree
from protocol.mike.making import Maker
from protocol.mike.membership import GroupFigures, absent
from protocol.mike.messages import (
    MESSAGE_ID_LENGTH,
    NO_EPOCH,
    Handover,
    Join,
    Path,
    Repair,
    Status,
)
from protocol.mike.roster import Roster
from protocol.mike.rules import check_beacon, check_join, founds_before, may_grow, next_mode
from protocol.mike.schedule import NodeSecret
from protocol.mike.states import State
from protocol.mike.transaction import Request
from protocol.mike.treemath import ROOT

LEAVING_COPIES = 2
"""HANDOVERs sent at once by a TM that leaves: it will not be there to repeat one."""


class Manager(Maker):
    """The TM's role."""

    # Into the role.

    def found(self) -> None:
        """MIKE-17: nobody answered: make a group of one."""
        if self.state is not State.JOINING or self.attempt is None or self.pending is not None:
            return
        leaf = self.attempt.leaf
        # The nonce makes the id of this epoch unlike that of any other group of one that we found.
        nonces = ((self.own, self.attempt.nonce),)
        self.attempt = None
        self.stop(TIMER_JOIN)
        if next_mode(Mode.KA, 1, self.config) is Mode.KD:
            roster = Roster([(self.own, leaf.blinded)])
            self._founded()
            self.distribute(NO_EPOCH, roster, leaf, nonces=nonces)
        else:
            self._found_agreement(leaf, nonces)
        if not self.work.is_idle:
            self.proceed()

    def _founded(self) -> None:
        """Become the TM of a new group."""
        self.current = None
        self.move(State.TM)
        self.emit(Report("mike.founded", {}))

    def _found_agreement(
        self, leaf: NodeSecret, nonces: tuple[tuple[IPv6Address, bytes], ...]
    ) -> None:
        """Found in key agreement mode."""
        agreement = Agreement(self.own, KeyTree({ROOT: self.own}, {}), (), leaf, {})
        agreement.climb()
        self._founded()
        self.announce(agreement, NO_EPOCH, [], nonces)

    def take_role(self) -> None:
        """Become TM of the group we are in, and exclude at once whoever is gone."""
        gone = self.gone()
        self.tm, self.deposed = self.own, None
        self.silent = None
        self.held = None
        self.gave = None
        self.missing = None
        self.stop(TIMER_SILENCE, TIMER_ELECTION, TIMER_HELD, TIMER_REPAIR, TIMER_HANDOVER)
        self.move(State.TM)
        self.hierarchy = None
        pending = self.pending
        if isinstance(pending, Distribution) and pending.roster is None:
            # We cannot go on from an epoch of whose members we do not know all.
            self.pending = None
        self.work.taken()
        for address in absent(self.members, gone):
            self.work.exclude(address)
        if self.attempt is not None:
            self.ask_for_ourselves()
        finished = pending is None and not self.is_busy
        if finished and self.work.is_idle and not self.mode_is_due():
            self._beacon()
        else:
            # The beacon goes on while the epoch is unfinished: members must not take us for lost.
            self.after(TIMER_STATUS, self.config.status_interval_ms)
            self.next_epoch()

    def ask_for_ourselves(self) -> None:
        """A forced rejoin of the TM: its own leaf is refreshed by the next epoch."""
        attempt = self.attempt
        assert attempt is not None
        self.stop(TIMER_JOIN, TIMER_FOUND)
        self.work.requests[self.own] = Request(
            self.own, attempt.nonce, attempt.leaf.blinded, self.highest
        )

    # Requests.

    def on_join(self, message: Join, opened: Opened) -> None:
        """MIKE-12: grant a JOIN, or repeat the TREE that granted it."""
        check_join(message)
        sender = opened.peer.address
        if not self.liveness.outlived(sender, opened.sent_wall_ns):
            raise PeerError("MIKE-12", "a JOIN made before the device left")
        order = (opened.startup_wall_ns, opened.sequence)
        request = Request(sender, message.nonce, message.key, message.highest)
        if self.state is State.JOINING:
            self._on_rival(request, order)
            return
        newest = self.newest
        assert newest is not None
        content = newest.content
        if (sender, message.nonce) in content.nonces and message.highest < content.number:
            self._answer(sender)
            return
        grown = newest.size + len(self.work.requests) + 1
        if sender not in newest.members and not may_grow(grown, self.config):
            self.counters.count("MIKE-20")
            return
        interval_ns = self.config.rekey_interval_min_ms * NS_PER_MS
        if sender in newest.members and not self.work.may_renew(
            sender, order, self.now.mono_ns, interval_ns
        ):
            self.counters.count("MIKE-25")
            return
        if self.work.ask(request, order):
            self.liveness.heard(sender)
            self.proceed(urgent=sender in content.sponsors)

    def _on_rival(self, request: Request, order: tuple[int, int]) -> None:
        """MIKE-17: another joiner asks too; whoever started first founds."""
        assert self.identity.startup_wall_ns is not None
        ours = (self.identity.startup_wall_ns, self.own)
        self.work.ask(request, order)
        if self.runs(TIMER_FOUND) and not founds_before(ours, (order[0], request.address)):
            self.listen_before_founding(group_heard=False)

    def exclude(self, address: IPv6Address) -> None:
        """IDP reported a LEAVE to us, the TM."""
        newest = self.newest
        assert newest is not None
        self.work.refused(address)
        if address in newest.members:
            self.work.exclude(address)
            self.proceed(urgent=address in newest.content.sponsors)

    # Telling an epoch.

    def send_keys(self, agreement: Epoch) -> None:
        """What the others wait for: the TREE of a complete epoch, or our PATH in it."""
        if self.state is State.TM and not agreement.content.sponsors:
            if len(agreement.members) > 1:
                self.tell()
                for address in self.newcomers:
                    self.send_page(0, address)
            return
        super().send_keys(agreement)

    def establish(self, agreement: Epoch) -> None:
        """Beside what every member does: beacon, and go on with what waits."""
        super().establish(agreement)
        if self.state is not State.TM:
            return
        # Who lost the only message of a complete epoch learns of it by nothing else.
        rest_ms = max(len(self.parts) - 1, 0) * self.config.kd_batch_ms
        self.after(TIMER_STATUS, self.config.status_after_epoch_ms + rest_ms)
        self._finished()

    def on_path(self, message: Path, sender: IPv6Address) -> None:
        """Beside what every member does: an unfinished epoch may be finished now."""
        super().on_path(message, sender)
        if self.state is State.TM and self.pending is None:
            self._finished()

    def _finished(self) -> None:
        """Go on if the newest epoch is complete."""
        if self.is_busy:
            return
        self.stop(TIMER_TREE)
        if self.give_to is not None:
            self.hand_over(self.give_to)
        else:
            self.proceed()

    # Repetition, sponsors that stay silent.

    def on_tree_timer(self) -> None:
        """Repeat an unfinished epoch's TREE, then exclude its silent sponsors (MIKE-11)."""
        newest = self.newest
        if self.state is not State.TM or newest is None or not self.is_busy:
            return
        waited_ns = self.now.mono_ns - self.announced_mono_ns
        if waited_ns < self.config.sponsor_timeout_ms * NS_PER_MS:
            self.tree_repetitions += 1
            self.tell()
            self.wait_for_sponsors()
            return
        content = newest.content
        late = [who for who in newest.late_sponsors() if who != self.own]
        late = late or [who for who in content.sponsors[-1:] if who != self.own]
        late = late or [who for who in content.sponsors if who != self.own]
        self.counters.count("MIKE-11", len(late))
        for who in late:
            self.emit(Report("mike.sponsor_silent", {"member": str(who)}))
            self.work.exclude(who)
        self.next_epoch()

    # Questions and beacons.

    def _answer(self, asker: IPv6Address) -> None:
        """MIKE-18: repeat the TREE for one device, at a bounded rate."""
        if self._may_answer(asker):
            self.send_tree(asker)
            self.send_page(0, asker)

    def _may_answer(self, asker: IPv6Address) -> bool:
        """Say whether this device may be answered now."""
        interval_ns = self.config.repeat_interval_min_ms * NS_PER_MS
        allowed = self.answers.may_answer(asker, self.now.mono_ns, interval_ns)
        if not allowed:
            self.counters.count("MIKE-18")
        return allowed

    def on_repair(self, message: Repair, sender: IPv6Address) -> None:
        """Give a device what it lacks: TREE, fragments, or the news that we are no longer TM."""
        if self.newest is None:
            return
        if self.state is State.TM:
            self._answer_repair(message, sender)
        elif self.gave is not None and self._may_answer(sender):
            term, self.term = self.term, self.gave.term - 1
            self.send_tree(sender)
            self.send_page(0, sender)
            self.term = term
            self.send(self.gave, sender)

    def _answer_repair(self, message: Repair, sender: IPv6Address) -> None:
        """Answer the asker, or all if several devices lost the same (MIKE-28)."""
        if not self._may_answer(sender):
            return
        if self.pending is None and message.wanted == message.held == self.held_epoch():
            # It lacks nothing but our beacons (MIKE-36).
            self._say_status(sender)
            return
        if self._answer_of_roster(message, sender):
            return
        fragments = self.split.get(message.message)
        newest = self.newest
        assert newest is not None
        changes = self.before is not None and message.held == newest.content.previous
        subject = f"{message.wanted}{' change' if changes else ''}".encode()
        if fragments is not None:
            subject = message.message
        window_ns = 2 * self.config.repair_delay_ms * NS_PER_MS
        whom, missing = self.answers.to_whom(
            subject, sender, message.missing, self.now.mono_ns, window_ns
        )
        if whom is To.NOBODY:
            self.counters.count("MIKE-28")
            return
        destination = None if whom is To.ALL else sender
        if fragments is not None:
            lost = (fragment for fragment in fragments if missing & bit_of(fragment.index))
            self.send_fragments(lost, destination)
        elif changes:
            self.send_change(destination)
        else:
            self.send_tree(destination)

    def _answer_of_roster(self, message: Repair, sender: IPv6Address) -> bool:
        """Give a device its own keys, or (more of) the roster, if that is what it needs.

        Who has the epoch before needs what all others got; that may be told to all.
        """
        newest = self.newest
        if not isinstance(newest, Distribution):
            return False
        if message.message == newest.content.roster[:MESSAGE_ID_LENGTH]:
            self.send_page(message.missing - 1, sender)
            return True
        if message.message in self.split:
            return False
        foreign = self.hierarchy is None or self.hierarchy.epoch != newest.epoch
        if message.held == newest.content.previous and not foreign:
            return False
        self.send_tree(sender)
        self.send_page(0, sender)
        return True

    def _beacon(self) -> None:
        """Send STATUS now, and again after an interval."""
        current = self.current
        if current is None:
            return
        self._say_status(None)
        # Not in step with anything: a link that flips with our period would lose every beacon.
        self.after_ns(TIMER_STATUS, self.spread_ns(self.config.status_interval_ms))
        current.prepare()

    def _say_status(self, whom: IPv6Address | None) -> None:
        """Send STATUS to one device, or to all."""
        current = self.current
        assert current is not None
        tag = current.confirmation()
        assert tag is not None
        newest = self.pending or current
        self.send(Status(current.epoch, self.term, newest.size, tag), whom)

    def on_status_timer(self) -> None:
        """The beacon is due."""
        if self.state is State.TM:
            self._beacon()

    def on_status(self, message: Status, sender: IPv6Address) -> None:
        """Beside what every member does: a TM yields to the one it handed over to after all."""
        keys = None if self.current is None else self.current.keys
        if keys is not None and message.epoch == self.held_epoch() and sender != self.tm:
            check_beacon(keys, sender, message.confirmation)
        if (
            self.state is State.TM
            and message.epoch == self.held_epoch()
            and message.term > self.term
            and sender in self.members
        ):
            if self.pending is not None:
                # What we announced will not be finished, and others may have followed it: our
                # JOIN makes the next epoch's number larger than those (MIKE-16).
                self.dissolve(GroupFigures(message.members, message.epoch.number, sender))
                return
            self.tm = sender
            self.term = message.term
            self.step_down()
            self.expect_tm()
            return
        super().on_status(message, sender)

    # Out of the role.

    def request_hand_over(self, to: IPv6Address) -> None:
        """The operator wants another TM; done as soon as no epoch is unfinished."""
        if self.state is not State.TM or to not in self.members or to == self.own:
            self.log("warning", f"no hand-over to {to}: we are not TM, or it is not another member")
            return
        self.give_to = to
        if not self.is_busy:
            self.hand_over(to)

    def hand_over(self, to: IPv6Address) -> None:
        """Give the role away, and repeat it until the new TM is heard (MIKE-15)."""
        self.give_to = None
        if to not in self.members:
            return
        self.gave = Handover(self.held_epoch(), to, self.term + 1, self.highest, leaving=False)
        self.gave_tries = 0
        self.tm = to
        self.term += 1
        self.step_down()
        self.expect_tm()
        self.emit(Report("mike.tm", {"tm": str(to), "epoch": str(self.held_epoch())}))
        self.on_handover_timer()

    def on_handover_timer(self) -> None:
        """Say it (again); take the role back if the successor stays silent."""
        gave = self.gave
        if gave is None or self.state is not State.MEMBER or self.tm != gave.successor:
            return
        if self.gave_tries >= self.config.handover_tries:
            self.log("warning", f"{gave.successor} did not take over as TM")
            self.take_role()
            self.term = gave.term + 1
            return
        self.send(gave)
        backoff = Backoff(self.config.handover_retry_ms * NS_PER_MS, 3_600_000 * NS_PER_MS, 0)
        self.after_ns(TIMER_HANDOVER, backoff.delay_ns(self.gave_tries))
        self.gave_tries += 1

    def leave(self) -> None:
        """IDP shuts down, or we are stopped: a TM names its successor, then all is dropped."""
        if self.state is State.TM and self.current is not None:
            gone = {*self.liveness.gone, *self.work.exclusions, self.own}
            heir = next((who for who in self.members if who not in gone), None)
            if heir is not None:
                epoch = self.held_epoch()
                for _ in range(LEAVING_COPIES):
                    self.send(Handover(epoch, heir, self.term + 1, self.highest, leaving=True))
        self.retire_all()
