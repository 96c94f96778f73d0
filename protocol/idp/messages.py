"""What IDP says on the black network: the hello (field table in docs/idp.md section 3).

A body travels in the signed envelope of `protocol.identity`, which carries the sender's address,
certificate fingerprint, start-up time-stamp, sequence number and send time. Decoding here is syntax
only; `protocol.idp.rules` judges the values.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag

from protocol.core.wire import Reader, Writer
from protocol.idpmike import EpochId

RULE_SYNTAX = "IDP-1"
"""Rule under which a body that is no message is refused."""

EPOCH_TAG_LENGTH = 8
HELLO_LENGTH = 24
"""Bytes of a hello's body."""


class MessageKind(IntEnum):
    """Kinds of IDP messages in the envelope; 2 to 5 are kept for later versions.

    Kept: 2 prefix announcement, 3 good-bye, 4 certificate request, 5 certificate.
    """

    HELLO = 1


class HelloFlag(IntFlag):
    """Bits of a hello's flags field; the others are zero.

    ``TRIGGERED``: sent out of turn (first hello of an instance, answer to a new device, link back).
    ``KEYED``: the epoch fields are valid.
    """

    TRIGGERED = 0x01
    KEYED = 0x02


KNOWN_FLAGS = int(HelloFlag.TRIGGERED | HelloFlag.KEYED)


@dataclass(frozen=True, slots=True)
class Hello:
    """I am here, and this is how long you may take me for being here.

    Attributes:
        hello_interval_ms: period of the sender's hellos.
        dead_factor: silent for this many periods means down.
        triggered: sent out of turn.
        epoch: the epoch whose group key the sender has, or None.
    """

    hello_interval_ms: int
    dead_factor: int
    triggered: bool = False
    epoch: EpochId | None = None

    @property
    def dead_interval_ns(self) -> int:
        """How long the sender may be silent."""
        return self.hello_interval_ms * self.dead_factor * 1_000_000

    def encode(self) -> bytes:
        """Return the body."""
        flags = HelloFlag(0)
        number, tag = 0, bytes(EPOCH_TAG_LENGTH)
        if self.triggered:
            flags |= HelloFlag.TRIGGERED
        if self.epoch is not None:
            flags |= HelloFlag.KEYED
            number, tag = self.epoch.number, self.epoch.tag
        writer = Writer()
        writer.push_u32(self.hello_interval_ms, "hello_interval_ms")
        writer.push_u8(self.dead_factor, "dead_factor")
        writer.push_u8(int(flags), "flags")
        writer.push_zero(2)
        writer.push_u64(number, "epoch_number")
        writer.push_bytes(tag, EPOCH_TAG_LENGTH, "epoch_tag")
        return writer.finish()

    @classmethod
    def decode(cls, body: bytes) -> Hello:
        """Read a body; exactly one byte string stands for each hello.

        Raises:
            DecodeError: not a hello (rule IDP-1).
        """
        reader = Reader(body, RULE_SYNTAX)
        hello_interval_ms = reader.pull_u32("hello_interval_ms")
        dead_factor = reader.pull_u8("dead_factor")
        flags = reader.pull_u8("flags")
        if flags & ~KNOWN_FLAGS:
            reader.fail("flags", f"reserved bits set in {flags:#04x}")
        reader.pull_zero(2, "reserved")
        number = reader.pull_u64("epoch_number")
        tag = reader.pull_bytes(EPOCH_TAG_LENGTH, "epoch_tag")
        reader.finish()
        keyed = bool(flags & HelloFlag.KEYED)
        if not keyed and (number or any(tag)):
            reader.fail("epoch", "not zero although the flag KEYED is not set")
        return cls(
            hello_interval_ms=hello_interval_ms,
            dead_factor=dead_factor,
            triggered=bool(flags & HelloFlag.TRIGGERED),
            epoch=EpochId(number, tag) if keyed else None,
        )
