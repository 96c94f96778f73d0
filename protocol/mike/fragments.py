"""A message above the size of a datagram: into fragments, and together again (MIKE-26, MIKE-27).

Every fragment travels in a signed envelope of its own. So nothing is ever kept that was not
authenticated and is not fresh, and no fragment depends on another one; the price is one signature
check per kilobyte. (One signature over the whole would be cheaper, but whoever waits for it has to
keep what anybody on the wire sent until then.) A message is named by a hash of its content: its
repetition has the same fragments, and completes what was lost of the first one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from ipaddress import IPv6Address

from protocol.core.errors import PeerError
from protocol.identity.envelope import HEADER_LENGTH
from protocol.mike.fields import PARTS_MAX
from protocol.mike.messages import FRAGMENT_OVERHEAD, MESSAGE_ID_LENGTH, Fragment, Kind, limits

RULE_BOUNDS = "MIKE-27"

LABEL_MESSAGE = b"idpmike v1 mike message\x00"

SENDERS_MAX = 8
"""Devices of which incomplete messages are kept: a joiner does not know yet who is TM."""

MESSAGES_MAX = 2
"""Incomplete messages per device: the newest, and one that was overtaken by it."""

DONE_MAX = 8
"""Complete messages whose names are remembered: their repetition costs one fragment, not all."""


def message_id(kind: int, body: bytes) -> bytes:
    """Return the name of a message: the first 8 bytes of a labelled SHA-256 of kind and body."""
    return hashlib.sha256(LABEL_MESSAGE + bytes([kind]) + body).digest()[:MESSAGE_ID_LENGTH]


def split(kind: Kind, body: bytes, datagram_size_max: int) -> tuple[Fragment, ...]:
    """Return the fragments of a message, none of whose datagrams is above the size.

    Empty: it takes more than its kind may have (MIKE-20).
    """
    length = datagram_size_max - FRAGMENT_OVERHEAD
    count = parts_of(len(body), datagram_size_max)
    size_max, parts_max = limits(kind)
    if count > parts_max or len(body) > size_max:
        return ()
    name = message_id(kind, body)
    return tuple(
        Fragment(name, kind, index, count, body[index * length : (index + 1) * length])
        for index in range(count)
    )


def parts_of(body_size: int, datagram_size_max: int) -> int:
    """Return how many fragments a body of so many bytes takes."""
    return -(-body_size // (datagram_size_max - FRAGMENT_OVERHEAD))


def body_size_max(datagram_size_max: int, kind: Kind = Kind.REKEY) -> int:
    """Return the largest body that can be sent in datagrams of this size.

    Args:
        datagram_size_max: bytes of UDP payload.
        kind: of the message; only TREE may be larger than the others.
    """
    size_max, parts_max = limits(kind)
    return min(size_max, parts_max * (datagram_size_max - FRAGMENT_OVERHEAD))


def bit_of(index: int) -> int:
    """Return the bit of a bitmap that stands for a fragment; in a long message for others, too."""
    return 1 << index % PARTS_MAX


def claim(datagram: bytes) -> tuple[bytes, int]:
    """Return message and index that a FRAGMENT's datagram claims, before it is authenticated."""
    start = HEADER_LENGTH
    return datagram[start : start + MESSAGE_ID_LENGTH], datagram[start + MESSAGE_ID_LENGTH + 1]


@dataclass(slots=True)
class Incomplete:
    """A message of which fragments are missing.

    Attributes:
        message: its name.
        kind: its kind.
        count: number of its fragments.
        since_mono_ns: when its first fragment came.
        due_mono_ns: when to ask for the missing ones.
        asked: how often we did.
        parts: what came, by index.
    """

    message: bytes
    kind: Kind
    count: int
    since_mono_ns: int
    due_mono_ns: int
    asked: int = 0
    parts: dict[int, bytes] = field(default_factory=dict, repr=False)

    @property
    def missing(self) -> int:
        """Bitmap of the fragments that did not come."""
        bits = 0
        for index in range(self.count):
            if index not in self.parts:
                bits |= bit_of(index)
        return bits

    def add(self, fragment: Fragment) -> None:
        """Keep a fragment; the first one of an index stays.

        Raises:
            PeerError: it does not belong to this message, or makes it too large (MIKE-27).
        """
        if (fragment.kind, fragment.count) != (self.kind, self.count):
            raise PeerError(RULE_BOUNDS, "fragments of one message contradict each other")
        size_max = limits(self.kind)[0]
        if sum(map(len, self.parts.values())) + len(fragment.part) > size_max:
            raise PeerError(RULE_BOUNDS, f"a message of more than {size_max} bytes")
        self.parts.setdefault(fragment.index, fragment.part)

    def body(self) -> bytes:
        """Return the whole message's body.

        Raises:
            PeerError: it is not what the fragments named (MIKE-27).
        """
        body = b"".join(self.parts[index] for index in range(self.count))
        if message_id(self.kind, body) != self.message:
            raise PeerError(RULE_BOUNDS, "the fragments make another message than they name")
        return body


class Assemblies:
    """The incomplete messages of all senders: bounded in number, size and time."""

    __slots__ = ("_done", "_open")

    def __init__(self) -> None:
        self._open: dict[IPv6Address, dict[bytes, Incomplete]] = {}
        self._done: dict[bytes, tuple[IPv6Address, Kind, bytes]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._open.values()))

    @property
    def size(self) -> int:
        """Bytes kept of incomplete messages."""
        return sum(len(part) for _, it in self.pending() for part in it.parts.values())

    def pending(self) -> list[tuple[IPv6Address, Incomplete]]:
        """Return all incomplete messages, those of the longest unheard sender first."""
        return [(who, it) for who, messages in self._open.items() for it in messages.values()]

    def waits_for(self, sender: IPv6Address | None) -> bool:
        """Say whether a message of this device (None: of any) is incomplete."""
        return bool(self._open) if sender is None else sender in self._open

    def is_known(self, message: bytes, index: int) -> bool:
        """Say whether a fragment is worth nothing: of a complete message, and not its first one.

        The first one stands for the repetition of the whole.
        """
        return index != 0 and message in self._done

    def take(
        self, fragment: Fragment, sender: IPv6Address, mono_ns: int, due_mono_ns: int
    ) -> tuple[Kind, bytes] | None:
        """Add an authenticated fragment; return the message (kind, body) if it is complete now.

        A first fragment of a message that was complete already gives it again.

        Raises:
            PeerError: the fragments of this message make no message (MIKE-27); they are dropped.
        """
        done = self._done.get(fragment.message)
        if done is not None:
            return done[1:] if fragment.index == 0 and done[0] == sender else None
        messages = self._open.pop(sender, {})
        self._open[sender] = messages
        incomplete = messages.get(fragment.message)
        if incomplete is None:
            incomplete = Incomplete(
                fragment.message, fragment.kind, fragment.count, mono_ns, due_mono_ns
            )
            messages[fragment.message] = incomplete
        try:
            incomplete.add(fragment)
            if incomplete.missing:
                self._keep_bounds(messages)
                return None
            body = incomplete.body()
        except PeerError:
            self.drop(sender, fragment.message)
            raise
        # What of its sort began before it is past: its sender says now what it says. A PAGE goes
        # with a REKEY and may overtake parts of it, or the other way round.
        page = incomplete.kind is Kind.PAGE
        for it in list(messages.values()):
            if it.message == fragment.message or (
                it.since_mono_ns <= incomplete.since_mono_ns and (it.kind is Kind.PAGE) == page
            ):
                self.drop(sender, it.message)
        self._done[fragment.message] = (sender, incomplete.kind, body)
        while len(self._done) > DONE_MAX:
            del self._done[next(iter(self._done))]
        return incomplete.kind, body

    def _keep_bounds(self, messages: dict[bytes, Incomplete]) -> None:
        """Drop the oldest of a sender, and the longest unheard sender."""
        while len(messages) > MESSAGES_MAX:
            del messages[next(iter(messages))]
        while len(self._open) > SENDERS_MAX:
            del self._open[next(iter(self._open))]

    def drop(self, sender: IPv6Address, message: bytes) -> None:
        """Forget an incomplete message; no error if it is gone."""
        messages = self._open.get(sender, {})
        messages.pop(message, None)
        if not messages:
            self._open.pop(sender, None)

    def clear(self) -> None:
        """Forget all incomplete messages."""
        self._open.clear()
