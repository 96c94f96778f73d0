"""What gateways tell one another: a table of claims, cut into parts (docs/gateways.md section 4).

A claim says of a partition, the *origin*, what is reachable there through the gateway that claims.
Decoding here is syntax only; `protocol.gateway.rules` judges the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from protocol.core.errors import LocalError
from protocol.core.wire import Reader, Writer
from protocol.gateway.config import PARTITION_NAME, PARTITION_NAME_MAX, Network

KIND_TABLE = 16
"""Kind of these messages in IDP's envelope; idpd drops it unread."""

RULE_SYNTAX = "GATE-1"

CLAIMS_MAX = 64
PATH_MAX = 16
PREFIXES_MAX = 256
MEMBERS_MAX = 256
MEMBER_NAME_MAX = 63

CHUNK_MAX = 1000
"""Bytes of a table in one part: with envelope and protection it needs no IPv6 fragment."""

PARTS_MAX = 64


@dataclass(frozen=True, slots=True, order=True)
class Member:
    """A device of a partition.

    Attributes:
        address: black address there.
        name: as its certificate says.
    """

    address: IPv6Address
    name: str


@dataclass(frozen=True, slots=True)
class Claim:
    """What a gateway says of one partition.

    Attributes:
        path: the partitions from the origin to the one before that in which this is said.
        prefixes: red prefixes of the origin, summarised, in order.
        members: its devices, in order of address.
    """

    path: tuple[str, ...]
    prefixes: tuple[Network, ...] = ()
    members: tuple[Member, ...] = ()

    @property
    def origin(self) -> str:
        """Return the partition that this is about."""
        return self.path[0]


@dataclass(frozen=True, slots=True)
class Part:
    """One datagram's worth of a table.

    Attributes:
        generation: counts the tables of one instance of a gateway.
        index: which part, from 0.
        count: how many there are.
        chunk: bytes of the table.
    """

    generation: int
    index: int
    count: int
    chunk: bytes = field(repr=False)

    def encode(self) -> bytes:
        """Return the part's bytes."""
        writer = Writer()
        writer.push_u32(self.generation, "generation")
        writer.push_u8(self.index, "index")
        writer.push_u8(self.count, "count")
        writer.push_bytes(self.chunk)
        return writer.finish()

    @classmethod
    def decode(cls, body: bytes) -> Part:
        """Read a part.

        Raises:
            DecodeError: it is none (rule GATE-1).
        """
        reader = Reader(body, RULE_SYNTAX)
        generation = reader.pull_u32("generation")
        index = reader.pull_u8("index")
        count = reader.pull_u8("count")
        chunk = reader.pull_rest("chunk")
        if not 1 <= count <= PARTS_MAX or index >= count:
            reader.fail("count", f"part {index} of {count}")
        if len(chunk) > CHUNK_MAX:
            reader.fail("chunk", f"{len(chunk)} bytes, above the maximum of {CHUNK_MAX}")
        return cls(generation, index, count, chunk)


def split(table: bytes, generation: int) -> list[Part]:
    """Cut an encoded table into parts.

    Raises:
        LocalError: it is too long.
    """
    chunks = [table[at : at + CHUNK_MAX] for at in range(0, len(table), CHUNK_MAX)]
    if len(chunks) > PARTS_MAX:
        raise LocalError(f"a table of {len(table)} bytes does not fit in {PARTS_MAX} parts")
    return [Part(generation, index, len(chunks), chunk) for index, chunk in enumerate(chunks)]


def fitted(claims: Sequence[Claim]) -> tuple[list[Claim], int]:
    """Return claims that fit into one table, and how many had to give something up.

    First members go, which are for people to know, then claims; each time the farthest one's.
    """
    kept = sorted(claims, key=lambda claim: (len(claim.path), claim.path))
    given_up = 0
    for shorter in (lambda claim: replace(claim, members=()), lambda claim: None):
        for place in reversed(range(len(kept))):
            if len(kept) <= CLAIMS_MAX and len(encode_table(kept)) <= CHUNK_MAX * PARTS_MAX:
                return kept, given_up
            less = shorter(kept[place])
            kept[place : place + 1] = [] if less is None else [less]
            given_up += 1
    return kept, given_up


def encode_table(claims: Sequence[Claim]) -> bytes:
    """Return the bytes of a table; claims are put in order of their origin."""
    writer = Writer()
    writer.push_count(len(claims), CLAIMS_MAX, "claims")
    for claim in sorted(claims, key=lambda claim: claim.origin):
        writer.push_u8(len(claim.path), "path")
        for name in claim.path:
            writer.push_u8(len(name), "partition")
            writer.push_bytes(name.encode("ascii"))
        writer.push_count(len(claim.prefixes), PREFIXES_MAX, "prefixes")
        for net in sorted(claim.prefixes, key=_order):
            writer.push_u8(net.version, "version")
            writer.push_u8(net.prefixlen, "length")
            writer.push_bytes(net.network_address.packed)
        writer.push_count(len(claim.members), MEMBERS_MAX, "members")
        for member in sorted(claim.members):
            text = member.name.encode()[:MEMBER_NAME_MAX].decode(errors="ignore").encode()
            writer.push_address(member.address)
            writer.push_u8(len(text), "name")
            writer.push_bytes(text)
    return writer.finish()


def decode_table(data: bytes) -> tuple[Claim, ...]:
    """Read a table; exactly one byte string stands for each.

    Raises:
        DecodeError: it is none (rule GATE-1).
    """
    reader = Reader(data, RULE_SYNTAX)
    claims: list[Claim] = []
    for _ in range(reader.pull_count(CLAIMS_MAX, "claims")):
        claim = Claim(_path(reader), _prefixes(reader), _members(reader))
        if claims and claims[-1].origin >= claim.origin:
            reader.fail("claims", "not in ascending order of the origin")
        claims.append(claim)
    reader.finish()
    return tuple(claims)


def _path(reader: Reader) -> tuple[str, ...]:
    length = reader.pull_u8("path")
    if not 1 <= length <= PATH_MAX:
        reader.fail("path", f"{length} partitions, not 1 to {PATH_MAX}")
    return tuple(_partition(reader) for _ in range(length))


def _partition(reader: Reader) -> str:
    raw = reader.pull_bytes(reader.pull_u8("partition"), "partition")
    name = raw.decode("latin-1")
    if len(name) > PARTITION_NAME_MAX or not PARTITION_NAME.fullmatch(name):
        reader.fail("partition", "no name of a partition")
    return name


def _prefixes(reader: Reader) -> tuple[Network, ...]:
    found: list[Network] = []
    for _ in range(reader.pull_count(PREFIXES_MAX, "prefixes")):
        version, length = reader.pull_u8("version"), reader.pull_u8("length")
        if version not in (4, 6) or length > (32 if version == 4 else 128):
            reader.fail("prefix", f"IPv{version} with length {length}")
        packed = reader.pull_bytes(4 if version == 4 else 16, "address")
        try:
            net: Network = (
                IPv4Network((IPv4Address(packed), length))
                if version == 4
                else IPv6Network((IPv6Address(packed), length))
            )
        except ValueError:
            reader.fail("prefix", "bits beyond its length are set")
        if found and _order(found[-1]) >= _order(net):
            reader.fail("prefixes", "not in ascending order")
        found.append(net)
    return tuple(found)


def _members(reader: Reader) -> tuple[Member, ...]:
    found: list[Member] = []
    for _ in range(reader.pull_count(MEMBERS_MAX, "members")):
        address = reader.pull_address("member")
        raw = reader.pull_bytes(reader.pull_u8("name"), "name")
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            reader.fail("name", "not UTF-8")
        if not name.isprintable() or not 1 <= len(raw) <= MEMBER_NAME_MAX:
            reader.fail("name", "not a printable name")
        if found and found[-1].address >= address:
            reader.fail("members", "not in ascending order")
        found.append(Member(address, name))
    return tuple(found)


def _order(net: Network) -> tuple[int, int, int]:
    return net.version, int(net.network_address), net.prefixlen
