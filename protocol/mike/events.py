"""Events and effects that only MIKE has, beside the common ones of `protocol.core.engine`."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv6Address

from protocol.core.engine import Effect, Event


@dataclass(frozen=True, slots=True)
class HandoverRequested(Event):
    """The operator (or the experiment) wants another member to be transaction manager (TM).

    Ignored with a log line unless this device is the TM and ``to`` is another member.

    Attributes:
        to: black address of the member that shall be TM.
    """

    to: IPv6Address


@dataclass(frozen=True, slots=True)
class RekeyRequested(Event):
    """The operator wants a new group key, and a new share of this device in it.

    Whoever copied this device's secrets before cannot compute the keys after it. Ignored with a log
    line outside a group, and within ``rekey_interval_min_ms`` after the last renewal (MIKE-25).
    """


@dataclass(frozen=True, slots=True)
class EpochMarkFound(Event):
    """An earlier process of this device may have used epoch numbers up to this one (MIKE-29).

    Attributes:
        number: the mark; epochs of this device are above it from now on.
    """

    number: int


@dataclass(frozen=True, slots=True)
class KeepEpochMark(Effect):
    """Remember this epoch number over restarts, before any later effect is performed (MIKE-29).

    Attributes:
        number: the largest one that this device has used or seen.
    """

    number: int


@dataclass(frozen=True, slots=True)
class PublishKey(Effect):
    """Store a group key where IDP can fetch it, before any later effect is performed.

    Attributes:
        pointer: names the key: the printed epoch id (``12-0a1b2c3d4e5f6071``), usable as a file
            name.
        group_key: 32 bytes, input of ``protocol.ipsec.schedule``; never printed.
    """

    pointer: str
    group_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class RetireKey(Effect):
    """Overwrite and remove a key published earlier; no error if it is gone.

    Attributes:
        pointer: as in `PublishKey`.
    """

    pointer: str


@dataclass(frozen=True, slots=True)
class Attend(Effect):
    """From now on only these kinds of message mean anything to us (MIKE-2).

    A hint: whoever runs the engine may drop the others before they cost anything; the engine drops
    them anyway.

    Attributes:
        kinds: message kinds of the envelope, ascending.
    """

    kinds: tuple[int, ...]
