"""The light hello: its bytes, and the hash chain that makes it authentic without a signature.

A signed hello commits to a chain of SHA-256 values; a light hello reveals the next one. Only who
made the chain knows it, and it says nothing but "what I signed is still so". Why that is safe, and
what is weaker than a signature: docs/idp.md, section 3.1.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from struct import Struct

from protocol.core.wire import Reader, Writer
from protocol.identity import PROTOCOL_IDP

KIND = 8
"""Of `protocol.idp.messages.MessageKind`."""

HEADER = bytes((1, PROTOCOL_IDP, KIND, 0))
"""How every light hello begins, and no envelope that we read does."""

RULE_SYNTAX = "IDP-30"

FINGERPRINT_LENGTH = 16
VALUE_LENGTH = hashlib.sha256().digest_size
LIGHT_HELLO_LENGTH = 68
COMMITMENT_LENGTH = 48

CHAIN_LENGTH = 64
"""Values that we reveal of one chain: making them costs about as much as one signature."""

CHAIN_LENGTH_MAX = 256
"""Longest chain of others (rule IDP-31), so also the most hashes that one light hello can cost:
about as much as one signature check."""

_PLACE = Struct(">IHHII")
"""Of a commitment: chain, index, length, step, age."""

_LIGHT_PLACE = Struct(">QII")
"""Of a light hello: start-up time-stamp, chain, index."""

_LIGHT = Struct(">4s16sQII32s")
"""A light hello, whole: header, fingerprint, place, value. Read at once: nothing comes so often."""

LABEL = b"idpmike light hello chain v1\x00"
"""Domain separation: no other hash of this system begins with it."""


@dataclass(frozen=True, slots=True)
class Commitment:
    """Where the sender of a signed hello is in its chain.

    Attributes:
        chain: number of the chain in the sender's instance, from 0.
        index: of the newest value revealed, the one given here; 0: the anchor.
        length: the largest index of the chain.
        step_ms: the value with index i is revealed up to this late after the one before.
        age_ms: how long ago the chain began.
        value: the newest value.
    """

    chain: int
    index: int
    length: int
    step_ms: int
    age_ms: int
    value: bytes = field(repr=False)

    def push(self, writer: Writer) -> None:
        """Append it to a hello."""
        place = self.chain, self.index, self.length, self.step_ms, self.age_ms
        writer.push_fields(_PLACE, "commitment", *place)
        writer.push_bytes(self.value, VALUE_LENGTH, "value")

    @classmethod
    def pull(cls, reader: Reader) -> Commitment:
        """Read it from a hello."""
        chain, index, length, step_ms, age_ms = reader.pull_fields(_PLACE, "commitment")
        value = reader.pull_bytes(VALUE_LENGTH, "value")
        return cls(chain, index, length, step_ms, age_ms, value)


@dataclass(frozen=True, slots=True)
class LightHello:
    """What I signed is still so, and I am still here.

    Attributes:
        fingerprint: of the sender's certificate.
        startup_wall_ns: start-up time-stamp of the sender's instance.
        chain: number of the chain in that instance.
        index: of the value in the chain, from 1.
        value: the value.
    """

    fingerprint: bytes
    startup_wall_ns: int
    chain: int
    index: int
    value: bytes = field(repr=False)

    def encode(self) -> bytes:
        """Return the datagram."""
        writer = Writer()
        writer.push_bytes(HEADER)
        writer.push_bytes(self.fingerprint, FINGERPRINT_LENGTH, "fingerprint")
        place = self.startup_wall_ns, self.chain, self.index
        writer.push_fields(_LIGHT_PLACE, "place", *place)
        writer.push_bytes(self.value, VALUE_LENGTH, "value")
        return writer.finish()

    @classmethod
    def decode(cls, datagram: bytes) -> LightHello:
        """Read a datagram that begins with `HEADER`.

        Raises:
            DecodeError: not a light hello (rule IDP-30).
        """
        reader = Reader(datagram, RULE_SYNTAX)
        header, *fields = reader.pull_fields(_LIGHT, "light hello")
        if header != HEADER:
            reader.fail("header", "not that of a light hello")
        reader.finish()
        return cls(*fields)


def peeked(datagram: bytes) -> LightHello | None:
    """Read a datagram that begins with `HEADER`; None if it is no light hello. Cheaply."""
    if len(datagram) != LIGHT_HELLO_LENGTH:
        return None
    _, *fields = _LIGHT.unpack(datagram)
    return LightHello(*fields)


def context(fingerprint: bytes, startup_wall_ns: int, chain: int) -> bytes:
    """Return what binds the values of a chain to its owner, instance and number; 16 bytes."""
    named = fingerprint + startup_wall_ns.to_bytes(8, "big") + chain.to_bytes(4, "big")
    return hashlib.sha256(LABEL + named).digest()[:16]


def before(chain_context: bytes, index: int, value: bytes) -> bytes:
    """Return the value with index - 1, given the one with this index."""
    return hashlib.sha256(chain_context + index.to_bytes(4, "big") + value).digest()


def leads_to(
    chain_context: bytes, index: int, value: bytes, known: int, known_value: bytes
) -> bool:
    """Say whether this value is that of ``index`` in the chain whose value ``known`` we know."""
    for number in range(index, known, -1):
        value = before(chain_context, number, value)
    return hmac.compare_digest(value, known_value)


class HashChain:
    """Our own chain: all values from the anchor, index 0, to the seed.

    Args:
        chain_context: see `context`.
        seed: 32 fresh bytes; the last value.
        length: the largest index.
    """

    __slots__ = ("_values", "length")

    def __init__(self, chain_context: bytes, seed: bytes, length: int) -> None:
        values = [seed]
        for index in range(length, 0, -1):
            values.append(before(chain_context, index, values[-1]))
        values.reverse()
        self._values = values
        self.length = length

    def __repr__(self) -> str:
        return f"HashChain({self.length}, anchor {self._values[0].hex()[:16]})"

    def value(self, index: int) -> bytes:
        """Return the value with this index; who gives it away gives away all below, too."""
        return self._values[index]
