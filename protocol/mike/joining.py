"""Into a group, and out of one: JOIN, dissolution of the smaller group, exclusion."""

from __future__ import annotations

from ipaddress import IPv6Address

from protocol.core.engine import Report, SendDatagram
from protocol.core.retransmit import Backoff
from protocol.idpmike import GroupStatus
from protocol.mike.assembling import Assembler
from protocol.mike.config import NS_PER_MS
from protocol.mike.epochs import Content
from protocol.mike.fields import NONCE_LENGTH
from protocol.mike.instance import (
    CHANNEL,
    TIMER_BATCH,
    TIMER_ELECTION,
    TIMER_FOUND,
    TIMER_HANDOVER,
    TIMER_HELD,
    TIMER_JOIN,
    TIMER_REJOIN,
    TIMER_REKEY,
    TIMER_REPAIR,
    TIMER_RIVALS,
    TIMER_SILENCE,
    TIMER_STATUS,
    TIMER_TREE,
)
from protocol.mike.membership import GroupFigures
from protocol.mike.messages import Join, Kind
from protocol.mike.states import Attempt, Prepared, State

DIRECTED_MAX = 3
"""Copies of a JOIN that go to one TM only. If every TM of a network that was cut granted it, each
but one would wait in vain for the joiner's keys, and could not finish its epoch (MIKE-16)."""

PREPARED_NS_MAX = 100_000_000
"""A JOIN that was signed longer ago is made anew: our IDP did not start with us."""


class Joiner(Assembler):
    """Entering and leaving groups."""

    def join(self, whom: IPv6Address | None = None) -> None:
        """Ask to be put (again) into the group, with a fresh leaf and a fresh nonce.

        Args:
            whom: the TM to ask first; None: whoever is TM.
        """
        if self.attempt is not None:
            return
        ready, self.prepared = self.prepared, None
        if ready is not None and whom is None and self._is_of_use(ready):
            self.attempt = ready.attempt
            self.emit(SendDatagram(CHANNEL, ready.datagram))
            self._repeat_later(ready.attempt)
        else:
            self.attempt = Attempt(self.fresh_bytes(NONCE_LENGTH), self.fresh_secret(), whom)
            self._send_join()
        self.after(TIMER_RIVALS, self.config.join_retry_ms // 2)
        self.stop(TIMER_REJOIN)
        self.emit(Report("t_join_sent", {"highest": self.highest}))

    def prepare(self) -> None:
        """Make our first JOIN at start: IDP, started by the same trigger, asks for it at once."""
        attempt = Attempt(self.fresh_bytes(NONCE_LENGTH), self.fresh_secret())
        join = Join(attempt.nonce, attempt.leaf.blinded, self.highest)
        datagram = self.sealed(Kind.JOIN, join.encode())
        self.prepared = Prepared(attempt, datagram, self.now.mono_ns, self.highest)

    def _is_of_use(self, ready: Prepared) -> bool:
        """Say whether a prepared JOIN is still as good as a new one.

        It must not look older than a LEAVE that was reported since (MIKE-12).
        """
        age_ns = self.now.mono_ns - ready.made_mono_ns
        return self.highest == ready.highest and age_ns <= PREPARED_NS_MAX

    def _send_join(self) -> None:
        """Send our request once, and set the timer for its repetition."""
        attempt = self.attempt
        assert attempt is not None
        whom = attempt.whom if attempt.repetitions < DIRECTED_MAX else None
        self.send(Join(attempt.nonce, attempt.leaf.blinded, self.highest), whom)
        self._repeat_later(attempt)

    def _repeat_later(self, attempt: Attempt) -> None:
        backoff = Backoff(
            self.config.join_retry_ms * NS_PER_MS, self.config.join_retry_max_ms * NS_PER_MS, 0
        )
        # By chance, so that devices that were switched on together do not ask together for ever.
        self.after_ns(
            TIMER_JOIN, self.spread_ns(backoff.delay_ns(attempt.repetitions) // NS_PER_MS)
        )

    def keep_asking(self) -> None:
        """A TM that gives up its role asks the new one for what it meant to do itself."""
        if self.attempt is not None:
            self._send_join()

    def on_join_timer(self) -> None:
        """Repeat an unanswered JOIN."""
        if self.attempt is not None:
            self.attempt.repetitions += 1
            self._send_join()

    def listen_before_founding(self, *, group_heard: bool) -> None:
        """MIKE-17: found a group only after this silence."""
        delay_ms = self.config.founding_delay_ms
        if group_heard:
            delay_ms += 2 * self.config.status_interval_ms
        self.after(TIMER_FOUND, delay_ms)

    def note_group(self) -> None:
        """A group was heard while we are in none: do not found another one yet."""
        if self.runs(TIMER_FOUND):
            self.listen_before_founding(group_heard=True)

    def leave_group(self) -> None:
        """Stop being in any group; the published keys stay until a new one is there."""
        self.tm = self.deposed = None
        self.tm_startup = None
        self.pending = None
        self.held = None
        self.gave = None
        self.give_to = None
        self.suspect = None
        self.missing = None
        self.early_page = None
        self.hierarchy = None
        self.parts = ()
        self.before = None
        self.work.taken()
        self.stop(
            TIMER_BATCH,
            TIMER_RIVALS,
            TIMER_SILENCE,
            TIMER_ELECTION,
            TIMER_TREE,
            TIMER_STATUS,
            TIMER_REKEY,
            TIMER_HANDOVER,
            TIMER_HELD,
            TIMER_REPAIR,
        )
        self.move(State.JOINING)

    def dissolve(self, winner: GroupFigures) -> None:
        """MIKE-16: leave the smaller of two groups and ask to be put into the other."""
        self.counters.count("MIKE-16")
        self.emit(Report("mike.dissolve", {"winner": str(winner.tm), "number": winner.number}))
        self.leave_group()
        self.attempt = None
        self.listen_before_founding(group_heard=True)
        self.join(winner.tm)

    def excluded(self, announcement: Content, members: tuple[IPv6Address, ...] = ()) -> None:
        """MIKE-21: drop all keys, tell IDP, ask again after a random time.

        Args:
            announcement: of the epoch without us.
            members: of that epoch, as far as known.
        """
        self.counters.count("MIKE-21")
        self.emit(Report("mike.excluded", {"epoch": str(announcement.epoch)}))
        self.highest = max(self.highest, announcement.number)
        if self.state is State.TM:
            self.attempt = None
        self.leave_group()
        self.retire_all()
        status = GroupStatus(0, announcement.epoch, "", members, announcement.tm)
        self._effects += self.link.send(status, self.now)
        if self.attempt is None:
            self.after_ns(TIMER_REJOIN, self.spread_ns(self.config.rejoin_backoff_ms))
        else:
            self.listen_before_founding(group_heard=True)

    def on_rejoin_timer(self) -> None:
        """Ask again after an exclusion."""
        if self.state is State.JOINING:
            self.listen_before_founding(group_heard=False)
            self.join()
