"""Raw frames as an attacker makes them: Ethernet, IPv6, UDP and ESP, with any source.

Pure bytes. Nothing here is checked by a kernel before it is on the wire: that is the purpose.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final

ETHERTYPE_IPV6: Final = 0x86DD
ETHERNET_BYTES: Final = 14
IPV6_BYTES: Final = 40
UDP_BYTES: Final = 8
HEADERS_BYTES: Final = ETHERNET_BYTES + IPV6_BYTES

UDP: Final = 17
ESP: Final = 50
FRAGMENT: Final = 44
"""Next-header numbers (RFC 8200, RFC 4303)."""

NOBODY: Final = IPv6Address("ff0e::dead")
"""A group without members."""

MTU: Final = 1500
HOPS: Final = 32

_ETHERNET: Final = struct.Struct("!6s6sH")
_IPV6: Final = struct.Struct("!IHBB16s16s")
_UDP: Final = struct.Struct("!HHHH")
_FRAGMENT: Final = struct.Struct("!BBHI")
_ESP: Final = struct.Struct("!II")


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame that carries IPv6.

    Attributes:
        destination_mac: of the Ethernet header.
        source_mac: the same.
        source: of the IPv6 header.
        destination: the same.
        protocol: next header.
        payload: what follows the IPv6 header.
    """

    destination_mac: bytes
    source_mac: bytes
    source: IPv6Address
    destination: IPv6Address
    protocol: int
    payload: bytes

    @property
    def udp_ports(self) -> tuple[int, int] | None:
        """Source and destination port, None if it carries no UDP."""
        if self.protocol != UDP or len(self.payload) < UDP_BYTES:
            return None
        source, destination, _, _ = _UDP.unpack_from(self.payload)
        return source, destination

    @property
    def datagram(self) -> bytes:
        """What the UDP header carries."""
        return self.payload[UDP_BYTES:]

    @property
    def spi(self) -> int | None:
        """SPI of an ESP packet, None if it is none."""
        if self.protocol != ESP or len(self.payload) < _ESP.size:
            return None
        spi: int = _ESP.unpack_from(self.payload)[0]
        return spi


def read(frame: bytes) -> Frame | None:
    """Take a frame apart; None if it carries no IPv6."""
    if len(frame) < HEADERS_BYTES:
        return None
    destination_mac, source_mac, kind = _ETHERNET.unpack_from(frame)
    if kind != ETHERTYPE_IPV6:
        return None
    _, length, protocol, _, source, destination = _IPV6.unpack_from(frame, ETHERNET_BYTES)
    return Frame(
        destination_mac,
        source_mac,
        IPv6Address(source),
        IPv6Address(destination),
        protocol,
        frame[HEADERS_BYTES : HEADERS_BYTES + length],
    )


def to_nobody(frame: bytes) -> bytes:
    """Return a frame of the same length that crosses the same switch and that no device wants."""
    return (
        multicast_mac(NOBODY)
        + frame[6:ETHERNET_BYTES]
        + frame[ETHERNET_BYTES : ETHERNET_BYTES + 24]
        + NOBODY.packed
        + frame[HEADERS_BYTES:]
    )


def completed(data: bytes) -> bytes:
    """Return a frame with the UDP checksum that a real wire would have shown.

    Between namespaces the kernel leaves it to be computed by hardware that is not there, and takes
    its own word for it; of a frame that comes from a packet socket it does not.
    """
    frame = read(data)
    if frame is None or frame.udp_ports is None:
        return data
    way = Way(frame.source, frame.destination, frame.destination_mac, frame.source_mac)
    source, destination = frame.udp_ports
    return way.packet(UDP, way._udp(source, destination, frame.datagram))


def multicast_mac(group: IPv6Address) -> bytes:
    """Return the Ethernet address of an IPv6 multicast group (RFC 2464 section 7)."""
    return b"\x33\x33" + group.packed[-4:]


@dataclass(frozen=True, slots=True)
class Way:
    """From whom to whom a forged packet goes.

    Attributes:
        source: claimed.
        destination: a group, or a device.
        destination_mac: of the device; None: that of the group.
        source_mac: of the attacker, or of whom it claims to be.
    """

    source: IPv6Address
    destination: IPv6Address
    destination_mac: bytes | None = None
    source_mac: bytes = b"\x02\x00\x00\xaa\x00\x01"

    def packet(self, protocol: int, payload: bytes) -> bytes:
        """Return a frame with this packet."""
        mac = self.destination_mac or multicast_mac(self.destination)
        return (
            _ETHERNET.pack(mac, self.source_mac, ETHERTYPE_IPV6)
            + _IPV6.pack(
                6 << 28,
                len(payload),
                protocol,
                HOPS,
                self.source.packed,
                self.destination.packed,
            )
            + payload
        )

    def udp(self, port: int, datagram: bytes) -> list[bytes]:
        """Return a datagram between equal ports, in fragments if it is too long for one frame."""
        whole = self._udp(port, port, datagram)
        if IPV6_BYTES + len(whole) <= MTU:
            return [self.packet(UDP, whole)]
        room = (MTU - IPV6_BYTES - _FRAGMENT.size) & ~7
        name = int.from_bytes(whole[4:8], "big")
        return [
            self.packet(
                FRAGMENT,
                _FRAGMENT.pack(UDP, 0, at | (at + room < len(whole)), name) + whole[at : at + room],
            )
            for at in range(0, len(whole), room)
        ]

    def esp(self, spi: int, sequence: int, rest: bytes) -> bytes:
        """Return an ESP packet whose IV, ciphertext and ICV are these bytes."""
        return self.packet(ESP, _ESP.pack(spi, sequence) + rest)

    def _udp(self, source: int, destination: int, datagram: bytes) -> bytes:
        """Return header and datagram."""
        length = UDP_BYTES + len(datagram)
        checksum = self._checksum(_UDP.pack(source, destination, length, 0) + datagram)
        return _UDP.pack(source, destination, length, checksum) + datagram

    def _checksum(self, whole: bytes) -> int:
        """Return the UDP checksum (RFC 8200 section 8.1), which IPv6 does not do without."""
        pseudo = struct.pack("!16s16sI3xB", self.source.packed, self.destination.packed,
                             len(whole), UDP)  # fmt: skip
        data = pseudo + whole + b"\0" * (len(whole) & 1)
        total = sum(struct.unpack(f"!{len(data) // 2}H", data))
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        return (~total & 0xFFFF) or 0xFFFF
