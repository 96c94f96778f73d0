"""Who has the SAs of the newest epoch, and who sends with them.

The two delays of RFC 5374 section 4.2.1 are measured anew each time instead of guessed. Each member
says by a notice that it has written an epoch's SAs: a sender switches when everybody has. Each says
so when it has switched: the older SAs go when everybody has, and as much time again has passed for
what is under way. Pure state, owned and driven by `protocol.idp.keying`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from ipaddress import IPv6Address

from protocol.core.counters import RuleCounters
from protocol.core.engine import CancelTimer, Effect, Report, SendDatagram, SetTimer
from protocol.idp import rules
from protocol.idp.notice import HAVE, QUESTION_MAX, SEND, Notice, notice_key
from protocol.idpmike import EpochId

NS_PER_MS = 1_000_000

CHANNEL = "group"
TIMER_NOTICE = "idp.notice"

FIRST_PAUSE_MS = 20
"""From the writing of the SAs to our notice: the key agreement of the others goes on meanwhile, and
is not to be disturbed; we still send with the epoch before."""

ASK_PAUSE_MS = 50
"""Before we ask for the first time, where notices are quick; the pause doubles."""

ASK_PAUSE_MS_MAX = 250
"""... and where they are not: half of the default activation delay, so that some time is left."""

SEND_PAUSE_MS = 300
"""From our switch to the notice that says so: whatever else a new member brings goes first, and so
the older SAs are kept a little longer than they need be."""

IsLost = Callable[[IPv6Address], bool]
"""Whether a device was there and has fallen silent."""


class Confirmations:
    """The notices of the newest epoch.

    Args:
        own: our address.
        is_lost: of the engine.
        counters: of the engine.
        held_max: notices kept that came before their epoch.
    """

    def __init__(
        self, own: IPv6Address, is_lost: IsLost, counters: RuleCounters, held_max: int
    ) -> None:
        self._own = own
        self._is_lost = is_lost
        self._counters = counters
        self._held_max = held_max
        # Outlives epochs: how long the notices of one took says when those of the next are late.
        self._ask_pause_ms = float(ASK_PAUSE_MS)
        self.forget()

    def forget(self) -> None:
        """Drop everything, the key too."""
        self._epoch: EpochId | None = None
        self._group_key = self._key = b""
        self._others: dict[IPv6Address, None] = {}
        self._confirmed: set[IPv6Address] = set()
        self._senders: set[IPv6Address] = set()
        self._answered: dict[IPv6Address, int] = {}
        self._held: dict[IPv6Address, Notice] = {}
        self._written_mono_ns: int | None = None
        self._pause_ns = self._question = 0
        self._active_mono_ns: int | None = None
        self._said = self._said_sends = self._over = self._drained = False

    def expect(self, epoch: EpochId, members: Sequence[IPv6Address], group_key: bytes) -> None:
        """The SAs of a new epoch are going to be written; take what came too early."""
        held = self._held
        self.forget()
        self._epoch, self._group_key = epoch, group_key
        self._others = dict.fromkeys(address for address in members if address != self._own)
        for sender, notice in held.items():
            if notice.epoch == epoch and self._is_authentic(notice, sender):
                self._note(notice, sender)

    def written(self, epoch: EpochId | None, now_mono_ns: int, *, waits: bool) -> list[Effect]:
        """The SAs of an epoch are written; say so soon, if it is the newest.

        Args:
            epoch: which.
            now_mono_ns: the time.
            waits: whether we still send with another one; else the others need not confirm.
        """
        if epoch is None or epoch != self._epoch or self._written_mono_ns is not None:
            return []
        self._written_mono_ns = now_mono_ns
        self._over = not waits or not self._others
        if not self._others:
            return []
        return [SetTimer(TIMER_NOTICE, now_mono_ns + FIRST_PAUSE_MS * NS_PER_MS)]

    def complete(self, now_mono_ns: int) -> tuple[EpochId | None, list[Effect]]:
        """Return the epoch once everybody has it, once, and what follows."""
        waiting = self._missing(self._confirmed)
        if self._over or self._written_mono_ns is None or not rules.is_confirmed(waiting):
            return None, []
        self._over = True
        spread_ms = (now_mono_ns - self._written_mono_ns) / NS_PER_MS
        self._ask_pause_ms = min(max(2 * spread_ms, ASK_PAUSE_MS), ASK_PAUSE_MS_MAX)
        fields = {
            "epoch": str(self._epoch),
            "confirmed": len(self._confirmed),
            "members": len(self._others) + 1,
            "spread_ms": spread_ms,
        }
        effects: list[Effect] = [Report("idp.confirmed", fields)]
        return self._epoch, [*effects, CancelTimer(TIMER_NOTICE)] if self._said else effects

    def active(self, epoch: EpochId | None, now_mono_ns: int) -> list[Effect]:
        """We send with an epoch; say so, if it is the newest and the others wait for it."""
        if epoch is None or epoch != self._epoch or self._active_mono_ns is not None:
            return []
        self._active_mono_ns = now_mono_ns
        if not self._said:
            return []  # one notice will say that we have the SAs, too
        return [SetTimer(TIMER_NOTICE, now_mono_ns + SEND_PAUSE_MS * NS_PER_MS)]

    def drained(self, now_mono_ns: int, least_ns: int) -> tuple[int | None, list[Effect]]:
        """IDP-46: return when nothing of older epochs is under way, once everybody sends with this.

        That took a time from our own switch, besides the pause that all make before they say so; as
        much again has what was sent before.

        Args:
            now_mono_ns: the time.
            least_ns: what is under way has at least so long.
        """
        if self._drained or self._active_mono_ns is None or not self._others:
            return None, []
        if not rules.is_confirmed(self._missing(self._senders)):
            return None, []
        self._drained = True
        measured_ns = max(now_mono_ns - self._active_mono_ns - SEND_PAUSE_MS * NS_PER_MS, 0)
        wait_ns = rules.drain_ns(measured_ns, least_ns)
        fields = {
            "epoch": str(self._epoch),
            "senders": len(self._senders),
            "spread_ms": measured_ns / NS_PER_MS,
            "wait_ms": wait_ns / NS_PER_MS,
        }
        return now_mono_ns + wait_ns, [Report("idp.drained", fields)]

    def heard(self, payload: bytes, sender: IPv6Address) -> list[Effect]:
        """Take a notice from the address of a device that is up.

        Raises:
            PeerError: it is none (IDP-41), or not a member's (IDP-42).
        """
        notice = Notice.decode(payload)
        if notice.epoch != self._epoch:
            if self._epoch is None or notice.epoch.number >= self._epoch.number:
                self._hold(notice, sender)
            return []
        rules.check_notice(sender in self._others and self._is_authentic(notice, sender))
        self._note(notice, sender)
        if not notice.question or self._written_mono_ns is None:
            return []
        if not rules.is_new_question(notice.question, self._answered.get(sender, 0)):
            self._counters.count("IDP-44")
            return []
        self._answered[sender] = notice.question
        return [self._notice(sender)]

    def has(self, address: IPv6Address) -> bool:
        """Return whether a member has said that it has the SAs."""
        return address in self._confirmed

    def due(self, now_mono_ns: int) -> list[Effect]:
        """Say that we have the SAs; later, ask who has not said so, or say that we send."""
        if self._written_mono_ns is None:
            return []
        effects: list[Effect] = []
        sends = self._active_mono_ns is not None
        if not self._said:
            self._said, self._said_sends = True, sends
            self._pause_ns = int(self._ask_pause_ms * NS_PER_MS)
            effects.append(self._notice(None))
        elif sends:
            if not self._said_sends:
                self._said_sends = True
                effects.append(self._notice(None))
        else:
            self._question += 1
            waiting = self._missing(self._confirmed)
            effects += [self._notice(address, self._question) for address in waiting]
            self._pause_ns *= 2
        if not self._over and self._question < QUESTION_MAX:
            effects.append(SetTimer(TIMER_NOTICE, now_mono_ns + self._pause_ns))
        return effects

    def give_up(self) -> list[Effect]:
        """The epoch is in use without everybody: ask no more."""
        if self._over or self._written_mono_ns is None:
            return []
        self._over = True
        self._counters.count("IDP-43", sum(1 for _ in self._missing(self._confirmed)))
        return [CancelTimer(TIMER_NOTICE)] if self._said else []

    def _note(self, notice: Notice, sender: IPv6Address) -> None:
        self._confirmed.add(sender)
        if notice.sends:
            self._senders.add(sender)

    def _missing(self, known: Container[IPv6Address]) -> Iterator[IPv6Address]:
        """Yield the other members that are not lost and not among these."""
        return (a for a in self._others if a not in known and not self._is_lost(a))

    def _hold(self, notice: Notice, sender: IPv6Address) -> None:
        if sender in self._held or len(self._held) < self._held_max:
            self._held[sender] = notice

    def _is_authentic(self, notice: Notice, sender: IPv6Address) -> bool:
        return notice.is_of(self._notice_key(), sender)

    def _notice_key(self) -> bytes:
        """Derive it when it is needed first: the writing of the SAs does not wait for it."""
        if not self._key:
            assert self._epoch is not None
            self._key, self._group_key = notice_key(self._group_key, self._epoch), b""
        return self._key

    def _notice(self, destination: IPv6Address | None, question: int = 0) -> SendDatagram:
        assert self._epoch is not None
        word = question or (HAVE if self._active_mono_ns is None else SEND)
        notice = Notice.made(self._notice_key(), self._epoch, self._own, word=word)
        return SendDatagram(CHANNEL, notice.encode(), destination)
