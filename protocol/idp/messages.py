"""What IDP says: the hello, the prefix announcement (field tables in docs/idp.md section 3).

A body travels in the signed envelope of `protocol.identity`, which carries the sender's address,
certificate fingerprint, start-up time-stamp, sequence number and send time. Decoding here is syntax
only; `protocol.idp.rules` judges the values. The light hello is no envelope and has a module of its
own, `protocol.idp.lighthello`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from ipaddress import IPv4Network, IPv6Network
from struct import Struct

from protocol.core.wire import Reader, Writer
from protocol.idp import notice
from protocol.idp.lighthello import COMMITMENT_LENGTH, KIND, Commitment
from protocol.idpmike import EpochId
from protocol.ipsec.model import Prefix

RULE_SYNTAX = "IDP-1"
"""Rule under which a body that is no hello is refused."""

RULE_PREFIX_SYNTAX = "IDP-17"
"""Rule under which a body that is no prefix announcement is refused."""

EPOCH_TAG_LENGTH = 8
NO_TAG = bytes(EPOCH_TAG_LENGTH)
PAIR_KEY_LENGTH = 32
DIGEST_LENGTH = 8
NO_DIGEST = bytes(DIGEST_LENGTH)
HELLO_LENGTH = 76
"""Bytes of a hello's body without a chain."""

CHAINED_HELLO_LENGTH = HELLO_LENGTH + COMMITMENT_LENGTH

NO_PAIR_KEY = bytes(PAIR_KEY_LENGTH)
"""In place of a pair key: this device makes no unicast SAs from one."""

PREFIXES_MAX = 256
"""Prefixes in one announcement, and so of one device: an announcement is always the whole list."""


class MessageKind(IntEnum):
    """Kinds of IDP messages; 3 is kept for a good-bye.

    Kinds 4 to 7 are those of `protocol.idp.documents`. 8 and 9 are never in the envelope: an
    envelope of these kinds is dropped like one of an unknown kind.
    """

    HELLO = 1
    PREFIXES = 2
    REQUEST = 4
    CERTIFICATE = 5
    REVOCATIONS = 6
    POLICY = 7
    LIGHT_HELLO = KIND
    NOTICE = notice.KIND


class HelloFlag(IntFlag):
    """Bits of a hello's flags field; the others are zero.

    ``TRIGGERED``: sent out of turn (first hello of an instance, answer to a new device, link back).
    ``KEYED``: the epoch fields are valid. ``ASKING``: the receiver shall answer by a triggered
    hello, known or not. ``CHAINED``: a commitment to a chain follows.
    """

    TRIGGERED = 0x01
    KEYED = 0x02
    ASKING = 0x04
    CHAINED = 0x08


KNOWN_FLAGS = sum(HelloFlag)

_TRIGGERED, _KEYED, _ASKING, _CHAINED = map(int, HelloFlag)
"""Plain numbers: calculating with members of an enumeration calls its class each time."""

_HEAD = Struct(">IBBHQ")
"""Hello interval, dead factor, flags, reserved, number of the epoch."""


@dataclass(frozen=True, slots=True)
class Hello:
    """I am here, and this is how long you may take me for being here.

    Attributes:
        hello_interval_ms: period of the sender's hellos.
        dead_factor: silent for this many periods means down.
        triggered: sent out of turn.
        epoch: the epoch whose group key the sender has, or None.
        pair_key: X25519 public key of this instance (RFC 7748), or `NO_PAIR_KEY`.
        policy_version: of the domain policy the sender keeps, 0 if it has none.
        policy_digest: of that policy; zeros if it has none.
        trust_digest: of the revocation lists the sender has; zeros if it has none.
        asking: to be answered.
        chain: where the sender's light hellos go on from, or None if they do not.
    """

    hello_interval_ms: int
    dead_factor: int
    triggered: bool = False
    epoch: EpochId | None = None
    pair_key: bytes = NO_PAIR_KEY
    policy_version: int = 0
    policy_digest: bytes = NO_DIGEST
    trust_digest: bytes = NO_DIGEST
    asking: bool = False
    chain: Commitment | None = None

    @property
    def dead_interval_ns(self) -> int:
        """How long the sender may be silent."""
        return self.hello_interval_ms * self.dead_factor * 1_000_000

    def marked(self, *, triggered: bool, asking: bool, chain: Commitment | None) -> Hello:
        """Return a hello that says the same, and why and where in its series it is sent."""
        return Hello(
            self.hello_interval_ms,
            self.dead_factor,
            triggered,
            self.epoch,
            self.pair_key,
            self.policy_version,
            self.policy_digest,
            self.trust_digest,
            asking,
            chain,
        )

    def encode(self) -> bytes:
        """Return the body."""
        flags = _TRIGGERED if self.triggered else 0
        number, tag = 0, NO_TAG
        if self.epoch is not None:
            flags |= _KEYED
            number, tag = self.epoch.number, self.epoch.tag
        if self.asking:
            flags |= _ASKING
        if self.chain is not None:
            flags |= _CHAINED
        writer = Writer()
        pace = self.hello_interval_ms, self.dead_factor
        writer.push_fields(_HEAD, "head", *pace, flags, 0, number)
        writer.push_bytes(tag, EPOCH_TAG_LENGTH, "epoch_tag")
        writer.push_bytes(self.pair_key, PAIR_KEY_LENGTH, "pair_key")
        writer.push_u32(self.policy_version, "policy_version")
        writer.push_bytes(self.policy_digest, DIGEST_LENGTH, "policy_digest")
        writer.push_bytes(self.trust_digest, DIGEST_LENGTH, "trust_digest")
        if self.chain is not None:
            self.chain.push(writer)
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
        pair_key = reader.pull_bytes(PAIR_KEY_LENGTH, "pair_key")
        policy_version = reader.pull_u32("policy_version")
        policy_digest = reader.pull_bytes(DIGEST_LENGTH, "policy_digest")
        trust_digest = reader.pull_bytes(DIGEST_LENGTH, "trust_digest")
        chain = Commitment.pull(reader) if flags & _CHAINED else None
        reader.finish()
        if (policy_version == 0) != (policy_digest == NO_DIGEST):
            reader.fail("policy", "a version without a digest, or a digest without a version")
        keyed = bool(flags & _KEYED)
        if not keyed and (number or any(tag)):
            reader.fail("epoch", "not zero although the flag KEYED is not set")
        return cls(
            hello_interval_ms=hello_interval_ms,
            dead_factor=dead_factor,
            triggered=bool(flags & _TRIGGERED),
            epoch=EpochId(number, tag) if keyed else None,
            pair_key=pair_key,
            policy_version=policy_version,
            policy_digest=policy_digest,
            trust_digest=trust_digest,
            asking=bool(flags & _ASKING),
            chain=chain,
        )


ANSWER_WANTED = 0x01
"""The only flag of a prefix announcement; the other bits are zero."""


def prefix_order(prefix: Prefix) -> tuple[int, int, int]:
    """Return what prefixes are sorted by: family, first address, length."""
    return prefix.version, int(prefix.network_address), prefix.prefixlen


@dataclass(frozen=True, slots=True)
class PrefixAnnouncement:
    """These red prefixes lie behind me; and this is what I have heard of yours.

    Attributes:
        version: of the list, counted by the sender's instance from 1.
        prefixes: the whole list, sorted by `prefix_order`, none twice.
        heard_startup_wall_ns: the receiver's instance whose announcement the sender has, or 0.
        heard_version: version of that announcement, or 0.
        answer_wanted: the sender does not know yet whether the receiver has this version.
    """

    version: int
    prefixes: tuple[Prefix, ...] = ()
    heard_startup_wall_ns: int = 0
    heard_version: int = 0
    answer_wanted: bool = False

    def encode(self) -> bytes:
        """Return the body."""
        writer = Writer()
        writer.push_u32(self.version, "version")
        writer.push_u64(self.heard_startup_wall_ns, "heard_startup_wall_ns")
        writer.push_u32(self.heard_version, "heard_version")
        writer.push_u8(ANSWER_WANTED if self.answer_wanted else 0, "flags")
        writer.push_zero(1)
        writer.push_count(len(self.prefixes), PREFIXES_MAX, "prefixes")
        for prefix in self.prefixes:
            writer.push_u8(prefix.version, "family")
            writer.push_u8(prefix.prefixlen, "prefix_length")
            writer.push_bytes(prefix.network_address.packed)
        return writer.finish()

    @classmethod
    def decode(cls, body: bytes) -> PrefixAnnouncement:
        """Read a body; exactly one byte string stands for each announcement.

        Raises:
            DecodeError: not a prefix announcement (rule IDP-17).
        """
        reader = Reader(body, RULE_PREFIX_SYNTAX)
        version = reader.pull_u32("version")
        heard_startup_wall_ns = reader.pull_u64("heard_startup_wall_ns")
        heard_version = reader.pull_u32("heard_version")
        flags = reader.pull_u8("flags")
        if flags & ~ANSWER_WANTED:
            reader.fail("flags", f"reserved bits set in {flags:#04x}")
        reader.pull_zero(1, "reserved")
        count = reader.pull_count(PREFIXES_MAX, "prefixes")
        prefixes: list[Prefix] = []
        for _ in range(count):
            prefix = _pull_prefix(reader)
            if prefixes and prefix_order(prefixes[-1]) >= prefix_order(prefix):
                reader.fail("prefixes", f"{prefix} is not in order, or there twice")
            prefixes.append(prefix)
        reader.finish()
        return cls(
            version,
            tuple(prefixes),
            heard_startup_wall_ns,
            heard_version,
            answer_wanted=bool(flags & ANSWER_WANTED),
        )


def _pull_prefix(reader: Reader) -> Prefix:
    """Read one prefix."""
    family = reader.pull_u8("family")
    length = reader.pull_u8("prefix_length")
    if family not in (4, 6):
        reader.fail("family", f"{family} is neither 4 nor 6")
    try:
        if family == 4:
            return IPv4Network((reader.pull_bytes(4, "prefix"), length))
        return IPv6Network((reader.pull_bytes(16, "prefix"), length))
    except ValueError:
        reader.fail("prefix", f"length {length} does not fit, or host bits are set")
