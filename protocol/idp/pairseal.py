"""What makes a prefix announcement authentic: a MAC under a key that only the pair has.

A signature would prove the same to the receiver at a hundred times the cost, and in one join a
device makes and checks one for each other device. The key comes from the pair's secret, which the
signed hellos of both instances have settled (mode ``psk``: and from the pre-shared key).
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from ipaddress import IPv6Address

from protocol.core.errors import PeerError
from protocol.core.wire import Reader, Writer
from protocol.identity import PROTOCOL_IDP
from protocol.idp.messages import MessageKind

PREAMBLE = bytes((1, PROTOCOL_IDP, MessageKind.PREFIXES, 0))
"""How every announcement begins: version, IDP, kind, flags."""

RULE = "IDP-45"

MAC_LENGTH = 16
HEAD_LENGTH = len(PREAMBLE) + 8 + 4
SEALED_MAX = 8192
"""Bytes; the longest announcement, 256 prefixes, has 4660."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A datagram between two devices, taken apart; nothing in it is believed yet.

    Attributes:
        startup_wall_ns: start-up time-stamp of the sender's instance.
        sequence: number of the datagram among all announcements of that instance, from 1.
        body: what is announced.
        mac: of all before it and both addresses.
    """

    startup_wall_ns: int
    sequence: int
    body: bytes
    mac: bytes = field(repr=False)

    @classmethod
    def decode(cls, datagram: bytes) -> Sealed:
        """Take a datagram apart.

        Raises:
            DecodeError: it is none between two devices (rule IDP-45).
        """
        reader = Reader(datagram, RULE)
        if reader.pull_bytes(len(PREAMBLE), "preamble") != PREAMBLE:
            reader.fail("preamble", "not that of an announcement")
        startup_wall_ns = reader.pull_u64("startup_wall_ns")
        sequence = reader.pull_u32("sequence")
        rest = reader.pull_rest("body")
        if not MAC_LENGTH <= len(rest) <= SEALED_MAX:
            reader.fail("body", f"{len(rest)} bytes with the MAC")
        return cls(startup_wall_ns, sequence, rest[:-MAC_LENGTH], rest[-MAC_LENGTH:])

    def check(
        self, key: bytes, sender: IPv6Address, receiver: IPv6Address, heard: tuple[int, int]
    ) -> None:
        """Refuse what the pair's other end did not send to us, or what came before.

        Args:
            key: of the pair.
            sender: black address of the sender.
            receiver: ours.
            heard: instance and number of the newest announcement that was read of the sender.

        Raises:
            PeerError: not authentic, or not newer (IDP-45).
        """
        head = _head(self.startup_wall_ns, self.sequence)
        expected = _mac(key, sender, receiver, head + self.body)
        if not hmac.compare_digest(expected, self.mac):
            raise PeerError(RULE, "its announcement is not authentic")
        if self.startup_wall_ns == heard[0] and self.sequence <= heard[1]:
            raise PeerError(RULE, f"announcement {self.sequence} came after {heard[1]}")


def seal(
    key: bytes,
    sender: IPv6Address,
    receiver: IPv6Address,
    *,
    startup_wall_ns: int,
    sequence: int,
    body: bytes,
) -> bytes:
    """Return the datagram of ours with this content.

    Args:
        key: of the pair (`protocol.ipsec.pairschedule.announcement_key`).
        sender: our black address.
        receiver: the peer's.
        startup_wall_ns: start-up time-stamp of our instance.
        sequence: one more than in our instance's last announcement, to whomever.
        body: the announcement.
    """
    sealed = _head(startup_wall_ns, sequence) + body
    return sealed + _mac(key, sender, receiver, sealed)


def _head(startup_wall_ns: int, sequence: int) -> bytes:
    writer = Writer()
    writer.push_bytes(PREAMBLE)
    writer.push_u64(startup_wall_ns, "startup_wall_ns")
    writer.push_u32(sequence, "sequence")
    return writer.finish()


def _mac(key: bytes, sender: IPv6Address, receiver: IPv6Address, content: bytes) -> bytes:
    return hmac.digest(key, sender.packed + receiver.packed + content, "sha256")[:MAC_LENGTH]
