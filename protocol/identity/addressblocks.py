"""Which red prefixes a certificate authorises: the IPAddrBlocks extension of RFC 3779 section 2.

As DER and nothing more: prefixes of both families, no ranges, no "inherit" (the chain has no
delegation, the nation's CA vouches for each device directly), no SAFI. Adjacent blocks
are joined as far as a prefix can express it.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, collapse_addresses

from protocol.core.errors import LocalError
from protocol.ipsec.model import Prefix

OID = "1.3.6.1.5.5.7.1.7"
"""id-pe-ipAddrBlocks."""

BLOCKS_MAX = 64
"""Blocks in one certificate: a device has a handful of red LANs."""

_SEQUENCE, _OCTETS, _BITS = 0x30, 0x04, 0x03
_FAMILIES: dict[bytes, type[IPv4Network | IPv6Network]] = {
    b"\x00\x01": IPv4Network,
    b"\x00\x02": IPv6Network,
}


def encode(prefixes: Iterable[Prefix]) -> bytes:
    """Return the DER value of the extension.

    Raises:
        LocalError: no prefix, or more than `BLOCKS_MAX`.
    """
    wanted = list(prefixes)
    four = collapse_addresses([one for one in wanted if isinstance(one, IPv4Network)])
    six = collapse_addresses([one for one in wanted if isinstance(one, IPv6Network)])
    families = []
    count = 0
    for number, bits in zip(_FAMILIES, (map(_bits, four), map(_bits, six)), strict=True):
        blocks = list(bits)
        if blocks:
            count += len(blocks)
            families.append(_wrap(_SEQUENCE, _wrap(_OCTETS, number) + _sequence(blocks)))
    if not 1 <= count <= BLOCKS_MAX:
        raise LocalError(f"a certificate authorises 1 to {BLOCKS_MAX} prefixes, not {count}")
    return _sequence(families)


def decode(value: bytes) -> tuple[Prefix, ...]:
    """Return the prefixes of an extension.

    Raises:
        ValueError: it is not what `encode` can have made.
    """
    families, rest = _unwrap(_SEQUENCE, value)
    found: list[Prefix] = []
    while families:
        family, families = _unwrap(_SEQUENCE, families)
        number, choice = _unwrap(_OCTETS, family)
        if number not in _FAMILIES:
            raise ValueError("address family")
        blocks, more = _unwrap(_SEQUENCE, choice)
        if more:
            raise ValueError("trailing bytes")
        while blocks:
            bits, blocks = _unwrap(_BITS, blocks)
            found.append(_prefix(_FAMILIES[number], bits))
            if len(found) > BLOCKS_MAX:
                raise ValueError("too many blocks")
    if not found or rest or encode(found) != value:
        raise ValueError("not in canonical form")
    return tuple(found)


def _bits(block: Prefix) -> bytes:
    length = (block.prefixlen + 7) // 8
    return _wrap(
        _BITS, bytes([length * 8 - block.prefixlen]) + block.network_address.packed[:length]
    )


def _prefix(kind: type[IPv4Network | IPv6Network], bits: bytes) -> Prefix:
    """Return the block of a BIT STRING; host bits are refused by the network's class."""
    size = 4 if kind is IPv4Network else 16
    if not 1 <= len(bits) <= size + 1 or bits[0] > 7 or (len(bits) == 1 and bits[0]):
        raise ValueError("bit string")
    return kind((bits[1:].ljust(size, b"\0"), 8 * (len(bits) - 1) - bits[0]))


def _sequence(items: Iterable[bytes]) -> bytes:
    return _wrap(_SEQUENCE, b"".join(items))


def _wrap(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def _unwrap(tag: int, data: bytes) -> tuple[bytes, bytes]:
    """Return the content of the first element and what follows it."""
    if len(data) < 2 or data[0] != tag:
        raise ValueError("unexpected element")
    size, start = data[1], 2
    if size >= 0x80:
        octets = size & 0x7F
        if not 1 <= octets <= 2:
            raise ValueError("length")
        size, start = int.from_bytes(data[2 : 2 + octets], "big"), 2 + octets
    if len(data) < start + size:
        raise ValueError("cut short")
    return data[start : start + size], data[start + size :]
