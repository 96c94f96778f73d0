"""Who is TM, as seen by those who are not: hand-over, silence, election."""

from __future__ import annotations

from ipaddress import IPv6Address

from protocol.core.engine import Report
from protocol.mike.changing import Changer
from protocol.mike.config import NS_PER_MS
from protocol.mike.instance import TIMER_ELECTION, TIMER_SILENCE
from protocol.mike.membership import candidate
from protocol.mike.messages import Handover, Repair
from protocol.mike.rules import check_handover, may_ask
from protocol.mike.states import State


class Elector(Changer):
    """The change of the TM."""

    def on_handover(self, message: Handover, sender: IPv6Address) -> None:
        """MIKE-15: the TM names its successor."""
        epoch = None if self.current is None else self.current.epoch
        if (message.epoch, message.successor, message.term) == (epoch, self.tm, self.term):
            return
        check_handover(message, sender, self.view(), epoch, self.term)
        if epoch != message.epoch:
            # The number is not noted: it would make us refuse the TREE that we lack (MIKE-4).
            self.lack(message.epoch, None)
            if message.successor == self.own:
                return
        else:
            self.highest = max(self.highest, message.highest)
            if self.missing == epoch:
                self.missing = None
        self.tm, self.deposed = message.successor, None
        self.term = message.term
        self.emit(Report("mike.tm", {"tm": str(self.tm), "epoch": str(message.epoch)}))
        if message.successor == self.own:
            if message.leaving:
                self.liveness.lost(sender, self.now.wall_ns)
            self.take_role()
            return
        self.expect_tm()
        self.retry_held()

    def take_role(self) -> None:
        """Become TM; the layer above knows how."""

    def elect(self) -> None:
        """MIKE-13: the TM is gone. Follow whoever acted already, act, or wait for who must."""
        if self.state is not State.MEMBER or self.current is None:
            return
        if self.retry_held():
            return
        first = candidate(self.members, self.gone(), self.liveness.passed)
        if first is None:
            self.liveness.passed.clear()
            first = candidate(self.members, self.gone())
        if first == self.own:
            if not self.retry_held(force=True):
                self.emit(Report("mike.elected", {"instead_of": str(self.tm)}))
                self.tm = self.own
                self.take_role()
        elif not self.runs(TIMER_ELECTION):
            self.after(TIMER_ELECTION, self.config.election_timeout_ms)

    def on_election_timer(self) -> None:
        """The first candidate did nothing: its turn has passed."""
        if self.tm not in self.gone():
            return
        first = candidate(self.members, self.gone(), self.liveness.passed)
        if first is not None and first != self.own:
            self.liveness.turn_passed(first)
        self.elect()

    def on_silence_timer(self) -> None:
        """MIKE-22, MIKE-36: the TM was not heard for long: it is asked, then taken for gone.

        Again and again, at random: a link that flips loses each question with some chance.
        """
        if self.tm is None:
            return
        left_ns = self.tm_heard_mono_ns + self.config.tm_silence_ms * NS_PER_MS - self.now.mono_ns
        if left_ns <= 0:
            self.lose_tm()
            return
        if may_ask(
            member=self.state is State.MEMBER,
            established=self.current is not None,
            unfinished=self.pending is not None,
        ):
            self.send(Repair(self.held_epoch(), self.held_epoch()), self.tm)
        again_ns = self.spread_ns(self.config.status_interval_ms // 4 or 1)
        self.after_ns(TIMER_SILENCE, min(left_ns, again_ns))

    def look_at_tm(self) -> None:
        """MIKE-22: IDP hears the TM that we took for gone; it must show that it is TM still.

        It may have left and come back as a member of a group that we have missed.
        """
        if not self.runs(TIMER_SILENCE):
            self.expect_tm()

    def on_tm_began(self) -> None:
        """MIKE-37: the TM's device began anew: does its MIKE still serve us?

        It may be only its IDP that did. A TM that lives answers at once.
        """
        self.began = self.tm
        self.ask_tm()

    def ask_tm(self, delay_ms: int = 0) -> None:
        """Ask the TM whether it is TM still, now or soon; without an answer then it is lost."""
        answer_ms = self.config.tm_answer_ms
        silence_ns = (self.config.tm_silence_ms - answer_ms - delay_ms) * NS_PER_MS
        self.tm_heard_mono_ns = min(self.tm_heard_mono_ns, self.now.mono_ns - silence_ns)
        if delay_ms:
            self.after(TIMER_SILENCE, delay_ms)
            return
        if self.tm is not None and self.current is not None:
            self.send(Repair(self.held_epoch(), self.held_epoch()), self.tm)
        self.after(TIMER_SILENCE, answer_ms)

    def check_instance(self, sender: IPv6Address, startup_wall_ns: int) -> None:
        """MIKE-22: a TM that restarted knows nothing of our group any more."""
        if sender != self.tm or self.state not in (State.MEMBER, State.JOINING):
            return
        if self.tm_startup is None or self.tm_startup[0] != sender:
            self.tm_startup = (sender, startup_wall_ns)
        elif startup_wall_ns > self.tm_startup[1]:
            self.tm_startup = None
            self.began = sender
            self.lose_tm()

    def lose_tm(self) -> None:
        """MIKE-22: the TM does not serve us any more, whatever IDP hears of its device.

        A member takes it for gone; a joiner that is not in yet asks anew.
        """
        assert self.tm is not None
        self.counters.count("MIKE-22")
        if self.state is State.JOINING:
            self.leave_group()
            self.attempt = None
            self.listen_before_founding(group_heard=False)
            self.join()
            return
        self.silent = self.tm
        if self.began == self.tm:
            # IDP hears its device: it is not gone, and may join the group that follows.
            self.deposed = self.tm
        else:
            self.liveness.lost(self.tm, self.now.wall_ns)
        self.elect()
