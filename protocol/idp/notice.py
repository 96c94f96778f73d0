"""The notice: "I have this epoch's SAs", "I send with them". Its bytes, and its authenticity.

Its key comes from the epoch's group key, so only a member of the epoch can make one, and none is
of use in another epoch. What a notice may cause: docs/idp.md section 8.1.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from ipaddress import IPv6Address

from protocol.core.wire import Reader, Writer
from protocol.identity import PROTOCOL_IDP
from protocol.idpmike import EpochId
from protocol.idpmike.messages import TAG_LENGTH
from protocol.ipsec.schedule import encoded, expander

KIND = 9
"""Of `protocol.idp.messages.MessageKind`."""

PREAMBLE = bytes((1, PROTOCOL_IDP, KIND))
"""How every notice begins, and no envelope that we read does; its word follows."""

QUESTION_MAX = 8
"""So often a device asks the same one in one epoch."""

HAVE = 0
"""Word: I have the SAs. From 1 to `QUESTION_MAX` it asks besides, for the receiver's notice."""

SEND = QUESTION_MAX + 1
"""Word: I have them, and send with them only."""

RULE_SYNTAX = "IDP-41"

LABEL = b"idpmike v1 idp notice key"

KEY_LENGTH = 32
MAC_LENGTH = 16
NOTICE_LENGTH = 4 + 8 + TAG_LENGTH + MAC_LENGTH


def notice_key(group_key: bytes, epoch: EpochId) -> bytes:
    """Return the key of the notices of an epoch: HKDF-Expand under its group key."""
    number = epoch.number.to_bytes(8, "big")
    return expander(group_key)(encoded(LABEL, number, epoch.tag), KEY_LENGTH)


@dataclass(frozen=True, slots=True)
class Notice:
    """I have the SAs of this epoch.

    Attributes:
        epoch: which.
        word: `HAVE`, `SEND`, or between them for which time the sender asks for the receiver's.
        mac: of the above and the sender's black address.
    """

    epoch: EpochId
    word: int
    mac: bytes = field(repr=False)

    @classmethod
    def made(cls, key: bytes, epoch: EpochId, sender: IPv6Address, *, word: int) -> Notice:
        """Return a notice of ours."""
        return cls(epoch, word, _mac(key, _head(epoch, word), sender))

    @property
    def question(self) -> int:
        """For which time its sender asks; 0: it does not."""
        return self.word if self.word <= QUESTION_MAX else 0

    @property
    def sends(self) -> bool:
        """Whether its sender sends with no older epoch any more."""
        return self.word == SEND

    def is_of(self, key: bytes, sender: IPv6Address) -> bool:
        """Return whether a device at this address made it with this key."""
        expected = _mac(key, _head(self.epoch, self.word), sender)
        return hmac.compare_digest(expected, self.mac)

    def encode(self) -> bytes:
        """Return the datagram."""
        return _head(self.epoch, self.word) + self.mac

    @classmethod
    def decode(cls, datagram: bytes) -> Notice:
        """Read a datagram that begins with `PREAMBLE`.

        Raises:
            DecodeError: not a notice (rule IDP-41).
        """
        reader = Reader(datagram, RULE_SYNTAX)
        if reader.pull_bytes(len(PREAMBLE), "preamble") != PREAMBLE:
            reader.fail("preamble", "not that of a notice")
        word = reader.pull_u8("word")
        if word > SEND:
            reader.fail("word", f"{word} is above {SEND}")
        number = reader.pull_u64("epoch_number")
        tag = reader.pull_bytes(TAG_LENGTH, "epoch_tag")
        mac = reader.pull_bytes(MAC_LENGTH, "mac")
        reader.finish()
        return cls(EpochId(number, tag), word, mac)


def _head(epoch: EpochId, word: int) -> bytes:
    writer = Writer()
    writer.push_bytes(PREAMBLE)
    writer.push_u8(word, "word")
    writer.push_u64(epoch.number, "epoch_number")
    writer.push_bytes(epoch.tag, TAG_LENGTH, "epoch_tag")
    return writer.finish()


def _mac(key: bytes, head: bytes, sender: IPv6Address) -> bytes:
    return hmac.digest(key, head + sender.packed, "sha256")[:MAC_LENGTH]
