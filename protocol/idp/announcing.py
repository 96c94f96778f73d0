"""Our own red prefixes: to whom they are announced when, and who has them.

A device that can be reached is sent the whole list, again and again after a growing pause until it
says that it has it, and then with every hello interval until nothing has changed for four of them
(the paper; IDP-24). Whatever changes the list starts this anew for everybody.

Pure state, owned and driven by `protocol.idp.unicast`.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address

from protocol.idp import rules
from protocol.idp.config import IdpConfig
from protocol.idp.messages import PrefixAnnouncement, prefix_order
from protocol.ipsec.model import Prefix

NS_PER_MS = 1_000_000

FIRST_PAUSE_MS = 100
"""Before an announcement is repeated for the first time; the pause doubles. An answer from far away
(50 ms one way) or from a slow machine is there by then; a repetition would only load it more."""


@dataclass(slots=True)
class _Receiver:
    """One device that we announce to.

    Attributes:
        has_version: which version of our list it has; 0: none.
        owed: it waits to hear which version of its list we have.
        heard: its instance and the version of its list that we have.
        changed_mono_ns: when we last had something new to say.
        due_mono_ns: when the next announcement is due, None when it is quiet.
        pause_ns: until the one after that, while it has not our version.
        waits: we shall speak first, and have not yet.
    """

    changed_mono_ns: int
    due_mono_ns: int | None
    pause_ns: int
    has_version: int = 0
    owed: bool = False
    waits: bool = False
    heard: tuple[int, int] = (0, 0)


class Announcer:
    """Our list of prefixes, and who has it."""

    def __init__(self, config: IdpConfig) -> None:
        self.prefixes = config.prefixes
        self._interval_ns = config.hello_interval_ms * NS_PER_MS
        self._first_pause_ns = FIRST_PAUSE_MS * NS_PER_MS
        self._version = 1
        self._receivers: dict[IPv6Address, _Receiver] = {}

    def begin(self) -> None:
        """Begin anew with an instance; the list stays."""
        self._version = 1
        self._receivers.clear()

    @property
    def wake_mono_ns(self) -> int | None:
        """When `due` has something to say; None while all is quiet."""
        due = [r.due_mono_ns for r in self._receivers.values() if r.due_mono_ns is not None]
        return min(due) if due else None

    @property
    def busy(self) -> int:
        """How many devices we still announce to: 0 once nothing has changed for a while."""
        return sum(receiver.due_mono_ns is not None for receiver in self._receivers.values())

    def change(self, *, add: Prefix | None = None, remove: Prefix | None = None, now: int) -> None:
        """Change the list, and announce it to everybody."""
        kept = {*self.prefixes} - {remove}
        if add is not None:
            kept.add(add)
        self.prefixes = tuple(sorted((p for p in kept if p is not None), key=prefix_order))
        self._version += 1
        for receiver in self._receivers.values():
            receiver.changed_mono_ns = receiver.due_mono_ns = now
            receiver.waits = False
            receiver.pause_ns = self._first_pause_ns

    def reach(self, peer: IPv6Address, now_mono_ns: int, *, first: bool, ready: bool) -> None:
        """We can send to a device: begin to announce.

        Args:
            peer: which; nothing happens if it could be reached before.
            now_mono_ns: the time.
            first: whether we speak first. The other one answers: it was there earlier, its SAs are
                ready earlier, and what it says would come before the peer can read it.
            ready: whether it is known to have its SAs; else it probably has them a little later.
        """
        if peer not in self._receivers:
            pause_ns = self._first_pause_ns if first else self._interval_ns
            due_ns = now_mono_ns if first and ready else now_mono_ns + pause_ns
            self._receivers[peer] = _Receiver(
                now_mono_ns, due_ns, self._first_pause_ns, waits=first
            )

    def is_ready(self, peer: IPv6Address, now_mono_ns: int) -> bool:
        """A device says that it has its SAs; return whether that makes something due."""
        receiver = self._receivers.get(peer)
        if receiver is None or not receiver.waits:
            return False
        receiver.due_mono_ns = now_mono_ns
        return True

    def forget(self, peer: IPv6Address) -> None:
        """A device is gone."""
        self._receivers.pop(peer, None)

    def due(self, now_mono_ns: int) -> list[tuple[IPv6Address, PrefixAnnouncement]]:
        """Return what is to be said now, and to whom."""
        said = []
        for peer, receiver in self._receivers.items():
            if receiver.due_mono_ns is None or receiver.due_mono_ns > now_mono_ns:
                continue
            has_it = receiver.has_version == self._version
            quiet = rules.is_quiet(receiver.changed_mono_ns, self._interval_ns, now_mono_ns)
            if has_it and quiet and not receiver.owed:
                receiver.due_mono_ns = None
                continue
            said.append((peer, self._content(receiver)))
            receiver.owed = receiver.waits = False
            pause_ns = self._interval_ns if has_it else receiver.pause_ns
            receiver.pause_ns = min(2 * receiver.pause_ns, self._interval_ns)
            receiver.due_mono_ns = now_mono_ns + pause_ns
        return said

    def heard(
        self,
        peer: IPv6Address,
        own: int,
        startup_wall_ns: int,
        announcement: PrefixAnnouncement,
        now_mono_ns: int,
    ) -> PrefixAnnouncement | None:
        """Take note of what a device has of ours and we of its; return an urgent answer, or None.

        Args:
            peer: who announced.
            own: start-up time-stamp of our instance.
            startup_wall_ns: of the peer's instance.
            announcement: what it said.
            now_mono_ns: the time.
        """
        receiver = self._receivers.get(peer)
        if receiver is None:
            return None
        receiver.heard = (startup_wall_ns, announcement.version)
        pause_ns = self._first_pause_ns
        if announcement.heard_startup_wall_ns == own:
            if receiver.has_version < announcement.heard_version == self._version:
                # What we repeated has arrived: from now on once in a hello interval will do.
                pause_ns = self._interval_ns
                receiver.due_mono_ns = now_mono_ns + pause_ns
            receiver.has_version = max(receiver.has_version, announcement.heard_version)
        if not announcement.answer_wanted:
            return None
        if receiver.has_version != self._version:
            # If this is lost the peer repeats its own; until then there is no need to repeat ours.
            receiver.due_mono_ns = now_mono_ns + self._interval_ns
            return self._content(receiver)
        # It has our list and only wants to know that we have its own: that is not urgent, the less
        # if it has just answered ours.
        soon_ns = now_mono_ns + pause_ns // 2
        receiver.owed = True
        receiver.due_mono_ns = min(receiver.due_mono_ns or soon_ns, soon_ns)
        return None

    def _content(self, receiver: _Receiver) -> PrefixAnnouncement:
        return PrefixAnnouncement(
            self._version,
            self.prefixes,
            *receiver.heard,
            answer_wanted=receiver.has_version != self._version,
        )
