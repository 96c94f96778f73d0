"""Messages in several datagrams: kept until they are whole, lost fragments asked for."""

from __future__ import annotations

from protocol.core.errors import DecodeError
from protocol.core.retransmit import Backoff
from protocol.identity import Opened
from protocol.mike.config import NS_PER_MS
from protocol.mike.fragments import claim
from protocol.mike.instance import TIMER_FRAGMENTS, Instance
from protocol.mike.messages import DECODERS, NO_EPOCH, Fragment, Message, Repair
from protocol.mike.rules import check_fragment_sender
from protocol.mike.states import State

FRAGMENT_REPAIRS_MAX = 4
"""Questions for one message's fragments; after the last one's time it is dropped."""


class Assembler(Instance):
    """Reassembly and its repair."""

    def is_spare(self, datagram: bytes) -> bool:
        """Say whether a FRAGMENT's datagram can be dropped before any cryptography."""
        try:
            return self.assemblies.is_known(*claim(datagram))
        except IndexError:
            return False

    def gather(self, fragment: Fragment, opened: Opened) -> Message | None:
        """Keep an authentic fragment; return the message that it completes.

        Raises:
            PeerError: its sender cannot act as TM, or it is not part of any message (MIKE-27).
            DecodeError: what it completes is no message (MIKE-1).
        """
        sender = opened.peer.address
        asks = self.attempt is not None or self.state is State.JOINING
        check_fragment_sender(self.view(), sender, asks=asks)
        now_ns = self.now.mono_ns
        due_ns = now_ns + self.spread_ns(self.config.repair_delay_ms)
        whole = self.assemblies.take(fragment, sender, now_ns, due_ns)
        if whole is None:
            self._watch()
            return None
        kind, body = whole
        if self.decoded is None or self.decoded[0] is not body:
            # Its repetition costs one fragment, and must not cost the reading of a whole tree.
            self.decoded = (body, DECODERS[kind](body))
        message = self.decoded[1]
        if isinstance(message, Fragment):
            raise DecodeError("kind", 0, "a fragment of a fragment", "MIKE-1")
        return message

    def _watch(self) -> None:
        """Set the timer for the next question."""
        pending = self.assemblies.pending()
        if pending and not self.runs(TIMER_FRAGMENTS):
            due_ns = min(incomplete.due_mono_ns for _, incomplete in pending)
            self.after_ns(TIMER_FRAGMENTS, max(0, due_ns - self.now.mono_ns))

    def on_fragments_timer(self) -> None:
        """Ask for what is missing and due; give up what was asked for often enough."""
        now_ns = self.now.mono_ns
        for sender, incomplete in self.assemblies.pending():
            if incomplete.due_mono_ns > now_ns:
                continue
            if incomplete.asked >= FRAGMENT_REPAIRS_MAX:
                self.counters.count("MIKE-27")
                self.assemblies.drop(sender, incomplete.message)
                continue
            question = Repair(NO_EPOCH, self.held_epoch(), incomplete.message, incomplete.missing)
            self.send(question, sender)
            incomplete.asked += 1
            incomplete.due_mono_ns = now_ns + self.repair_backoff_ns(incomplete.asked)
        self._watch()

    def repair_backoff_ns(self, asked: int) -> int:
        """Return the wait after so many questions: doubling, and 0.5 to 1.5 of it by chance."""
        config = self.config
        backoff = Backoff(
            config.repair_delay_ms * NS_PER_MS, config.repair_retry_max_ms * NS_PER_MS, 0
        )
        return self.spread_ns(backoff.delay_ns(asked) // NS_PER_MS)
