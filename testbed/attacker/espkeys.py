"""ESP as whoever has a key sees it: opening captured packets, sealing forged ones (RFC 4106).

AES-GCM only, which is what the attack campaign's SAs use. Keys stay in memory and are never shown;
what leaves this module are counts and sealed bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocol.identity import PROTOCOL_IDP
from protocol.idp.messages import NO_PAIR_KEY, PrefixAnnouncement
from protocol.idp.notice import Notice, notice_key
from protocol.idp.pairseal import seal as seal_pair
from protocol.idpmike import EpochId
from protocol.ipsec.model import KeyMaterial, SecurityAssociation, Suite
from protocol.ipsec.pairpolicy import link_local
from protocol.ipsec.pairschedule import PairEnd, announcement_key, pair_sas, psk_context
from protocol.ipsec.schedule import sender_sas
from testbed.attacker import frames
from testbed.attacker.frames import Way
from testbed.attacker.scene import Scene

SALT_BYTES: Final = 4
IV_BYTES: Final = 8
HEAD_BYTES: Final = 8
NEXT_IPV6: Final = 41
REQID: Final = 7


def opened(key: KeyMaterial, packet: bytes) -> bool:
    """Say whether an ESP packet (from its SPI on) decrypts under this key with a good ICV."""
    cipher, salt = AESGCM(key.encryption[:-SALT_BYTES]), key.encryption[-SALT_BYTES:]
    iv, rest = packet[HEAD_BYTES : HEAD_BYTES + IV_BYTES], packet[HEAD_BYTES + IV_BYTES :]
    try:
        cipher.decrypt(salt + iv, rest, packet[:HEAD_BYTES])
    except InvalidTag:
        return False
    return True


def sealed(key: KeyMaterial, spi: int, sequence: int, inner: bytes) -> bytes:
    """Return IV, ciphertext and ICV of an ESP packet in tunnel mode around an IPv6 packet."""
    padding = -(len(inner) + 2) % 4
    text = inner + bytes(range(1, padding + 1)) + bytes((padding, NEXT_IPV6))
    iv = sequence.to_bytes(IV_BYTES, "big")
    cipher, salt = AESGCM(key.encryption[:-SALT_BYTES]), key.encryption[-SALT_BYTES:]
    head = spi.to_bytes(4, "big") + sequence.to_bytes(4, "big")
    return iv + cipher.encrypt(salt + iv, text, head)


# What the pre-shared key alone gives.


def psk_pair(
    psk: bytes, scene: Scene, sender: IPv6Address, receiver: IPv6Address
) -> tuple[int, KeyMaterial]:
    """Return SPI and key of the SA from one device to another if only the pre-shared key counts."""
    ends = pair_ends(scene, sender, receiver)
    outbound, _ = pair_sas(psk, psk_context(), *ends, suite=Suite.AES_GCM_128, reqid=REQID, if_id=1)
    return outbound.spi, outbound.key


def forged_announcement(
    secret: bytes, scene: Scene, sender: IPv6Address, receiver: IPv6Address, body: bytes
) -> bytes:
    """Return an announcement in a device's name under a secret that the attacker has or guesses."""
    return seal_pair(
        announcement_key(secret, *pair_ends(scene, sender, receiver)),
        sender,
        receiver,
        startup_wall_ns=_startup(scene, sender),
        sequence=60000,
        body=body,
    )


def announcement_packet(
    psk: bytes, scene: Scene, sender: IPv6Address, receiver: IPv6Address
) -> bytes:
    """Return the packet that has a device announce nothing, as it travels inside a pair's SA."""
    body = PrefixAnnouncement(1000).encode()
    datagram = forged_announcement(psk, scene, sender, receiver, body)
    way = Way(link_local(sender), link_local(receiver), bytes(6))
    frame = way.udp(scene.channels.idp_port, datagram)[0]
    return frame[frames.ETHERNET_BYTES :]


def pair_ends(scene: Scene, one: IPv6Address, other: IPv6Address) -> tuple[PairEnd, PairEnd]:
    """Return the ends of a pair as mode ``psk`` binds its keys to them; all is on the wire."""
    found = []
    for who in (one, other):
        hello = scene.hellos.get(who)
        public = NO_PAIR_KEY if hello is None else hello.pair_key
        found.append(PairEnd(who, _startup(scene, who).to_bytes(8, "big") + public))
    return found[0], found[1]


def _startup(scene: Scene, device: IPv6Address) -> int:
    last = scene.signed.get((PROTOCOL_IDP, device))
    return 0 if last is None else last.startup_wall_ns


# What an ex-member still has.


@dataclass(slots=True)
class OldKeys:
    """Everything that a device knew when it was a member.

    Attributes:
        group_keys: of its epochs.
        sas: of its SAD, at any time.
    """

    group_keys: dict[str, bytes]
    sas: list[SecurityAssociation]

    def __repr__(self) -> str:
        return f"OldKeys({len(self.group_keys)} group keys, {len(self.sas)} SAs)"

    def opens(self, packets: Iterable[bytes]) -> int:
        """Return how many ESP packets (from the SPI on) any of the old SAs' keys opens."""
        keys = {sa.key.digest: sa.key for sa in self.sas if sa.suite is Suite.AES_GCM_128}
        return sum(any(opened(key, packet) for key in keys.values()) for packet in packets)

    def derives(
        self,
        packets: Sequence[bytes],
        epochs: Iterable[EpochId],
        members: Sequence[IPv6Address],
        group: IPv6Address,
    ) -> int:
        """Return how many packets open under keys made for later epochs from old group keys."""
        made: list[SecurityAssociation] = []
        for epoch in epochs:
            for secret in self.group_keys.values():
                made += sender_sas(
                    secret,
                    epoch_number=epoch.number,
                    epoch_tag=epoch.tag,
                    members=members,
                    group=group,
                    suite=Suite.AES_GCM_128,
                    own=members[0],
                    reqid=REQID,
                )
        return sum(any(opened(sa.key, packet) for sa in made) for packet in packets)

    def verifies(self, notices: Iterable[tuple[IPv6Address, bytes]]) -> int:
        """Return how many notices any of the old group keys verifies."""
        count = 0
        for sender, datagram in notices:
            message = Notice.decode(datagram)
            count += any(
                message.is_of(notice_key(secret, message.epoch), sender)
                for secret in self.group_keys.values()
            )
        return count


def esp_of(frame: bytes) -> bytes:
    """Return an ESP frame from its SPI on."""
    found = frames.read(frame)
    assert found is not None
    return found.payload
