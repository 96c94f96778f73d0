"""Ethernet frames made by hand, for tests of what looks at captures."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

B1, B2, LINK_LOCAL = "2001:db8:b::1", "2001:db8:b::2", "fe80::1"
ESP_GROUP, IDP_GROUP, MIKE_GROUP, RED_GROUP = "ff0e::1", "ff0e::1d0", "ff0e::319e", "ff0e::7e57"
RED1, RED2 = "fd00:1::c", "fd00:2::c"
ALL_MLD_ROUTERS = "ff02::16"

ESP, ICMPV6, UDP, PIM, OSPF, HOP_BY_HOP, FRAGMENT = 50, 58, 17, 103, 89, 0, 44


def ethernet(payload: bytes, kind: int = 0x86DD) -> bytes:
    return bytes.fromhex("333300000001020000000001") + struct.pack("!H", kind) + payload


def vlan(payload: bytes, kind: int = 0x86DD) -> bytes:
    return ethernet(struct.pack("!HH", 5, kind) + payload, 0x8100)


def ipv6(
    following: int, payload: bytes, source: str = B1, destination: str = ESP_GROUP, hops: int = 64
) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(payload), following, hops)
    return head + IPv6Address(source).packed + IPv6Address(destination).packed + payload


def ipv4(following: int, payload: bytes, source: str, destination: str) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 8, following, 0)
    return head + IPv4Address(source).packed + IPv4Address(destination).packed + payload


def arp(asker: str, wanted: str) -> bytes:
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
    packed = IPv4Address(asker).packed, IPv4Address(wanted).packed
    return head + bytes(6) + packed[0] + bytes(6) + packed[1]


def udp(source: int, destination: int, payload: bytes = b"") -> bytes:
    return struct.pack("!HHHH", source, destination, 8 + len(payload), 0) + payload


def esp(sequence: int = 1, spi: int = 0x1234, length: int = 64) -> bytes:
    return struct.pack("!II", spi, sequence) + bytes(7 * i % 251 for i in range(length))


def fragments(following: int, payload: bytes, number: int, size: int = 1232) -> list[bytes]:
    """The fragments of a packet from B1 to the ESP group; ``size`` is a multiple of 8."""
    made = []
    for offset in range(0, len(payload), size):
        more = int(offset + size < len(payload))
        head = struct.pack("!BBHI", following, 0, offset | more, number)
        made.append(ipv6(FRAGMENT, head + payload[offset : offset + size]))
    return made


def register(packet: bytes, *, null: bool = False) -> bytes:
    """A PIM Register (RFC 7761 section 4.9.3) from a router to the rendezvous point."""
    body = b"\x21\0\0\0" + struct.pack("!I", int(null) << 30) + packet
    return ipv6(PIM, body, "2001:db8:f::1", "2001:db8:f::9")


def icmpv6_error(kind: int, quoted: bytes) -> bytes:
    return ipv6(ICMPV6, bytes((kind, 0, 0, 0)) + struct.pack("!I", 1400) + quoted, B2, B1)


def mld_report(group: str) -> bytes:
    """An MLDv2 report (RFC 3810 section 5.2) of one group."""
    record = b"\x04\0\0\0" + IPv6Address(group).packed
    body = b"\x3a\0\x05\x02\0\0\1\0" + b"\x8f\0\0\0\0\0\0\1" + record
    return ipv6(HOP_BY_HOP, body, LINK_LOCAL, ALL_MLD_ROUTERS, 1)


def solicitation(target: str) -> bytes:
    body = b"\x87" + bytes(7) + IPv6Address(target).packed
    return ipv6(ICMPV6, body, LINK_LOCAL, "ff02::1:ff00:1", 255)


def ospf_hello() -> bytes:
    body = struct.pack("!BBH4s4sHBB", 3, 1, 36, bytes([1, 1, 1, 1]), bytes(4), 0, 0, 0)
    body += struct.pack("!I4sHH4s4s", 5, b"\1\0\0\x13", 1, 4, bytes(4), bytes(4))
    return ipv6(OSPF, body, LINK_LOCAL, "ff02::5", 1)
