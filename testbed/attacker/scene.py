"""What an attacker has learnt from the wire: who there is, what was said, what can be repeated.

Everything here is visible to whoever can tap the black cables: nothing is decrypted.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Any, Final

from protocol.core.errors import DecodeError
from protocol.identity import PROTOCOL_IDP, PROTOCOL_MIKE, envelope
from protocol.identity.envelope import Envelope
from protocol.idp import lighthello, notice
from protocol.idp.lighthello import LightHello
from protocol.idp.messages import Hello, MessageKind
from protocol.idp.notice import Notice
from protocol.idpmike import EpochId
from protocol.mike.messages import Announcement, Kind, Tree
from testbed.attacker import frames
from testbed.attacker.frames import Frame, Way

RECORDED_MAX: Final = 8192
"""Frames remembered, the newest ones."""

IDP: Final = "idpd"
MIKE: Final = "miked"
"""Whose messages, by the daemon that reads them."""

ESP_MAX: Final = 512
NOTICES_MAX: Final = 512


@dataclass(frozen=True, slots=True)
class Channels:
    """Where the victims listen.

    Attributes:
        idp_group: multicast group of IDP.
        idp_port: its UDP port.
        mike_group: multicast group of MIKE.
        mike_port: its UDP port.
        black_group: destination of multicast ESP.
        other_ports: UDP ports of the clock responder and of the local interface.
        devices: black addresses of all devices.
    """

    idp_group: IPv6Address
    idp_port: int
    mike_group: IPv6Address
    mike_port: int
    black_group: IPv6Address
    other_ports: tuple[int, ...]
    devices: tuple[IPv6Address, ...]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Channels:
        """Read what `as_json` wrote."""
        return cls(
            IPv6Address(data["idp_group"]),
            int(data["idp_port"]),
            IPv6Address(data["mike_group"]),
            int(data["mike_port"]),
            IPv6Address(data["black_group"]),
            tuple(int(port) for port in data["other_ports"]),
            tuple(IPv6Address(text) for text in data["devices"]),
        )

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "idp_group": str(self.idp_group),
            "idp_port": self.idp_port,
            "mike_group": str(self.mike_group),
            "mike_port": self.mike_port,
            "black_group": str(self.black_group),
            "other_ports": list(self.other_ports),
            "devices": [str(address) for address in self.devices],
        }

    def channel(self, protocol: int) -> tuple[IPv6Address, int]:
        """Return group and port of IDP or MIKE."""
        if protocol == PROTOCOL_IDP:
            return self.idp_group, self.idp_port
        return self.mike_group, self.mike_port


@dataclass(slots=True)
class Sending:
    """One SA as the wire shows it: who sends where, and how far its numbers are."""

    way: Way
    highest: int


@dataclass(slots=True)
class Scene:
    """What has been seen so far.

    Attributes:
        channels: where the victims listen.
        heard: frames seen in all.
        said: messages seen by channel (`IDP`, signed and light hellos, or `MIKE`) and sender.
        recorded: the newest of them.
        esp: the newest ESP packets.
        macs: Ethernet address of each source.
        signed: newest signed message by protocol and sender.
        hellos: newest signed hello by sender.
        lights: newest light hello by sender.
        notices: the newest notices, with their senders.
        tree: newest TREE, taken apart, and who sent it.
        sending: SAs in use, by SPI.
        session: what was recorded up to a moment, kept for later.
    """

    channels: Channels
    heard: int = 0
    said: Counter[tuple[str, IPv6Address]] = field(default_factory=Counter)
    recorded: deque[bytes] = field(default_factory=lambda: deque(maxlen=RECORDED_MAX))
    esp: deque[bytes] = field(default_factory=lambda: deque(maxlen=ESP_MAX))
    macs: dict[IPv6Address, bytes] = field(default_factory=dict)
    signed: dict[tuple[int, IPv6Address], Envelope] = field(default_factory=dict)
    hellos: dict[IPv6Address, Hello] = field(default_factory=dict)
    lights: dict[IPv6Address, LightHello] = field(default_factory=dict)
    notices: deque[tuple[IPv6Address, bytes]] = field(
        default_factory=lambda: deque(maxlen=NOTICES_MAX)
    )
    tree: tuple[Announcement, IPv6Address] | None = None
    sending: dict[int, Sending] = field(default_factory=dict)
    session: list[bytes] = field(default_factory=list)

    def observe(self, data: bytes) -> None:
        """Take one frame."""
        frame = frames.read(data)
        if frame is None:
            return
        self.heard += 1
        self.macs[frame.source] = frame.source_mac
        if frame.spi is not None:
            self.recorded.append(data)
            self.esp.append(data)
            self._note_esp(frame, frame.spi)
            return
        ports = frame.udp_ports
        wanted = (self.channels.idp_port, self.channels.mike_port)
        if ports is None or ports[0] != ports[1] or ports[0] not in wanted:
            return
        self.recorded.append(frames.completed(data))
        self._note_datagram(frame.source, frame.datagram)

    def way(self, source: IPv6Address, destination: IPv6Address) -> Way:
        """Return how a packet goes that claims this source, to the right Ethernet address.

        The attacker's own Ethernet address is the source: under others' the switch would learn
        that they are at its port, and send it what is meant for them, its own flood among it.
        """
        if destination.is_multicast:
            return Way(source, destination)
        return Way(source, destination, self.macs.get(destination, b"\xff" * 6))

    @property
    def epoch(self) -> EpochId | None:
        """The newest epoch that a hello or a notice has named."""
        named = [hello.epoch for hello in self.hellos.values() if hello.epoch is not None]
        for _, datagram in self.notices:
            named.append(Notice.decode(datagram).epoch)
        return max(named, key=lambda epoch: epoch.number, default=None)

    @property
    def known(self) -> Iterator[IPv6Address]:
        """Addresses of the devices that have signed something."""
        return (address for address in self.channels.devices if address in self.hellos)

    # Taking apart.

    def _note_esp(self, frame: Frame, spi: int) -> None:
        sequence = int.from_bytes(frame.payload[4:8], "big")
        known = self.sending.get(spi)
        if known is None:
            way = Way(frame.source, frame.destination, frame.destination_mac, frame.source_mac)
            self.sending[spi] = Sending(way, sequence)
        else:
            known.highest = max(known.highest, sequence)

    def _note_datagram(self, source: IPv6Address, datagram: bytes) -> None:
        try:
            if datagram.startswith(lighthello.HEADER):
                self.lights[source] = LightHello.decode(datagram)
                self.said[IDP, source] += 1
            elif datagram.startswith(notice.PREAMBLE):
                Notice.decode(datagram)
                self.notices.append((source, datagram))
            else:
                self._note_signed(source, envelope.decode(datagram))
        except DecodeError:
            return  # of another attacker, or of an announcement between two devices

    def _note_signed(self, source: IPv6Address, message: Envelope) -> None:
        if message.sender != source:
            return
        self.said[IDP if message.protocol == PROTOCOL_IDP else MIKE, source] += 1
        key = (message.protocol, source)
        before = self.signed.get(key)
        number = (message.startup_wall_ns, message.sequence)
        if before is None or number > (before.startup_wall_ns, before.sequence):
            self.signed[key] = message
        if message.protocol == PROTOCOL_IDP and message.kind == MessageKind.HELLO:
            self.hellos[source] = Hello.decode(message.body)
        elif message.protocol == PROTOCOL_MIKE and message.kind == Kind.TREE:
            content = Tree.decode(message.body).announcement
            if self.tree is None or content.number >= self.tree[0].number:
                self.tree = content, source
