"""What an attacker sends, attack by attack: lists of frames made from what it has seen.

Each attack is one entry of `WEAPONS`. Messages are well-formed wherever the attacker can make them
so: what is tested is what keeps a good forgery out, not what keeps junk out (that has attacks of
its own, in `testbed.attacker.floods`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv6Address, IPv6Network
from random import Random
from typing import Final

from protocol.core.errors import LocalError
from protocol.identity import PROTOCOL_IDP, PROTOCOL_MIKE
from protocol.idp import lighthello, notice
from protocol.idp.documents import split as split_document
from protocol.idp.lighthello import LightHello
from protocol.idp.messages import Hello, MessageKind, PrefixAnnouncement
from protocol.idpmike import EpochId, Frame, Side, Signal, SignalKind, direction_key, encode
from protocol.ipsec.model import Prefix
from protocol.mike.keytree import KeyTree
from protocol.mike.messages import (
    NO_EPOCH,
    Announcement,
    Handover,
    Join,
    Kind,
    Path,
    Repair,
    Status,
    Tree,
)
from protocol.mike.rekeying import Rekey, RekeyAnnouncement, Wrap
from protocol.mike.treemath import NodeName
from testbed.attacker import espkeys
from testbed.attacker.forger import Forger, Wanted
from testbed.attacker.scene import Scene

OUTSIDER: Final = "outsider"
FOREIGN: Final = "foreign"
EX_MEMBER: Final = "ex-member"
MEMBER: Final = "member"
"""Whose certificate it has: none; one of a CA that nobody trusts; that of a device which was a
member, and was revoked; a copy of a present member's (not its group key's)."""

STOLEN: Final = IPv6Network("fd00:66::/64")
"""A prefix that no certificate authorises."""

LOCAL_SECRET: Final = bytes(32)
"""The attacker's guess."""

KEY_BYTES: Final = 32


@dataclass(slots=True)
class Armoury:
    """What is at hand when a weapon is made.

    Attributes:
        scene: what was seen.
        forger: who we are, or claim to be.
        own: the attacker's own black address.
        draws: chance.
        now_ns: UTC; what is forged is fresh.
        psk: the pre-shared key, if it was stolen.
        policy: a document signed by an authority that nobody trusts.
        targets: the devices that get what would go to a group, one by one; none: the group.
    """

    scene: Scene
    forger: Forger
    own: IPv6Address
    draws: Random
    now_ns: int
    psk: bytes = b""
    policy: bytes = b""
    targets: tuple[IPv6Address, ...] = ()

    def senders(self) -> list[IPv6Address]:
        """Return as whom the forger speaks."""
        return self.forger.addresses(self.scene)

    def signed(
        self,
        protocol: int,
        kind: int,
        body: bytes,
        *,
        sender: IPv6Address,
        to: IPv6Address | None = None,
        newer: bool = False,
    ) -> list[bytes]:
        """Return the frames of one sealed message, to the protocol's group or to one device."""
        wanted = Wanted(protocol, kind, body, sender, self.now_ns, newer)
        datagram = self.forger.seal(self.scene, wanted)
        return self.datagram(protocol, datagram, sender=sender, to=to)

    def datagram(
        self, protocol: int, datagram: bytes, *, sender: IPv6Address, to: IPv6Address | None = None
    ) -> list[bytes]:
        """Return the frames of one datagram."""
        group, port = self.scene.channels.channel(protocol)
        found = []
        for destination in self.targets or (group,) if to is None else (to,):
            if destination != sender:
                found += self.scene.way(sender, destination).udp(port, datagram)
        return found

    def key(self) -> bytes:
        """Return random bytes in the place of a public key."""
        return self.draws.randbytes(KEY_BYTES)

    def hello(self, sender: IPv6Address) -> Hello:
        """Return a hello as this sender's last one, or as the others' if it is a stranger."""
        hellos = self.scene.hellos
        found = hellos.get(sender) or next(iter(hellos.values()), None)
        return Hello(1000, 4) if found is None else replace(found, chain=None)


Make = Callable[[Armoury], list[bytes]]


@dataclass(frozen=True, slots=True)
class Weapon:
    """One attack.

    Attributes:
        name: of the attack.
        who: whose certificate the attacker has.
        make: makes the frames from what is known by then.
        renew_s: after so long they are made anew.
        rate_pps: frames per second; None: as many as the machine and the cable carry.
        esp: it needs ESP packets, and so kernel SAs.
    """

    name: str
    who: str
    make: Make
    renew_s: float = 2.0
    rate_pps: float | None = 200.0
    esp: bool = False


# Replay.


def replay_all(at: Armoury) -> list[bytes]:
    """Repeat everything that was ever recorded, the newest first: it is fresh still."""
    return list(reversed(at.scene.recorded))


def replay_esp(at: Armoury) -> list[bytes]:
    """Repeat the newest ESP packets: to all, and to their sender alone (its own SA)."""
    found = list(at.scene.esp)
    return found + list(reversed(found))


def inject_esp(at: Armoury) -> list[bytes]:
    """Send invented packets on every SA in use, with the next numbers and with far ones."""
    found = []
    for spi, sending in list(at.scene.sending.items())[-64:]:
        for ahead in (1, 2, 40, 5000, 1 << 30):
            sequence = min(sending.highest + ahead, (1 << 32) - 1)
            noise = at.draws.randbytes(at.draws.choice((24, 96, 200)))
            found.append(sending.way.esp(spi, sequence, noise))
    spis = list(at.scene.sending) or [256]
    for packet in list(at.scene.esp)[-32:]:  # real ciphertext under another number or SPI
        head, rest = packet[:54], bytearray(packet[54:])
        at_byte = at.draws.choice((7, len(rest) - 1))
        rest[at_byte] ^= 1 << at.draws.randrange(8)
        found.append(head + bytes(rest))
        rest[:4] = at.draws.choice(spis).to_bytes(4, "big")
        found.append(head + bytes(rest))
    return found


# Hellos.


def forged_hellos(at: Armoury) -> list[bytes]:
    """Restart every device, change what it says, continue its chain, confirm what it has not."""
    found = []
    for sender in at.senders():
        hello = at.hello(sender)
        short = replace(hello, hello_interval_ms=50, dead_factor=2)
        for body in (hello, short, replace(hello, pair_key=at.key(), asking=True)):
            for newer in (True, False):
                found += at.signed(
                    PROTOCOL_IDP, MessageKind.HELLO, body.encode(), sender=sender, newer=newer
                )
        found += _forged_lights(at, sender, (1, 200))
        found += _forged_notices(at, sender)
    return found


def _forged_lights(at: Armoury, sender: IPv6Address, ahead: tuple[int, ...]) -> Iterator[bytes]:
    light = at.scene.lights.get(sender)
    if light is None:
        return
    for step in ahead:
        forged = LightHello(
            light.fingerprint,
            light.startup_wall_ns,
            light.chain,
            min(light.index + step, lighthello.CHAIN_LENGTH),
            at.draws.randbytes(lighthello.VALUE_LENGTH),
        )
        yield from at.datagram(PROTOCOL_IDP, forged.encode(), sender=sender)


def _forged_notices(at: Armoury, sender: IPv6Address) -> list[bytes]:
    epoch = at.scene.epoch
    if epoch is None:
        return []
    later = EpochId(epoch.number + 1, at.draws.randbytes(8))
    made = [
        notice.Notice.made(at.key(), which, sender, word=word).encode()
        for which in (epoch, later)
        for word in (notice.HAVE, notice.QUESTION_MAX, notice.SEND)
    ]
    return [
        frame for each in made for frame in at.datagram(PROTOCOL_IDP, each, sender=sender)
    ]  # fmt: skip


def forged_leaves(at: Armoury) -> list[bytes]:
    """Have everybody leave: by signals on the local interface from outside, and by HANDOVER."""
    found = []
    key = direction_key(LOCAL_SECRET, Side.IDP)
    loopback = IPv6Address("::1")
    for serial, victim in enumerate(at.scene.channels.devices, 1):
        signal = Signal(SignalKind.LEAVE, victim, at.now_ns, serial, at.now_ns)
        local = encode(Frame(at.now_ns, at.now_ns, 0, serial, at.now_ns, signal), key)
        for port in at.scene.channels.other_ports:
            found += at.scene.way(loopback, victim).udp(port, local)
            found += at.scene.way(victim, victim).udp(port, local)
    for sender in at.senders():
        found += _handover(at, sender, leaving=True)
    return found


# The role of the transaction manager.


def act_as_tm(at: Armoury) -> list[bytes]:
    """Do all that a transaction manager does, and beacon a better group."""
    found = usurp(at)
    epoch = at.scene.epoch or EpochId(1, bytes(8))
    better = EpochId(epoch.number + 1000, at.draws.randbytes(8))
    for sender in at.senders():
        for which, term in ((better, 0), (epoch, 1000)):
            body = Status(which, term, 200, at.draws.randbytes(16)).encode()
            found += at.signed(PROTOCOL_MIKE, Kind.STATUS, body, sender=sender)
    return found


def usurp(at: Armoury) -> list[bytes]:
    """Announce epochs, hand over, publish keys, ask for the impossible."""
    found = []
    epoch = at.scene.epoch or EpochId(1, bytes(8))
    later = EpochId(epoch.number + 1000, at.draws.randbytes(8))
    for sender in at.senders():
        found += _trees(at, sender) + _rekeys(at, sender)
        found += _handover(at, sender, leaving=False) + _handover(at, sender, leaving=True)
        nodes = {NodeName(name): at.key() for name in (2, 3)}
        path = Path(epoch, nodes, at.draws.randbytes(16)).encode()
        found += at.signed(PROTOCOL_MIKE, Kind.PATH, path, sender=sender)
        question = Repair(later, NO_EPOCH).encode()
        found += at.signed(PROTOCOL_MIKE, Kind.REPAIR, question, sender=sender)
    return found


def _trees(at: Armoury, sender: IPv6Address) -> list[bytes]:
    """Announce the next epoch: the members as they are, without the TM, and with the sender."""
    if at.scene.tree is None:
        return []
    content, tm = at.scene.tree
    epoch = at.scene.epoch or content.epoch
    found = []
    for tree in _next_trees(at, content, sender, tm):
        for number in (epoch.number + 1, epoch.number + 100):
            sponsors = tuple(who for who in tree.addresses if who == sender)
            made = Announcement(number, epoch, sender, tree, sponsors)
            for confirmation in (None, at.draws.randbytes(16)):
                body = Tree(made, confirmation=confirmation).encode()
                found += at.signed(PROTOCOL_MIKE, Kind.TREE, body, sender=sender)
    return found


def _next_trees(
    at: Armoury, content: Announcement, sender: IPv6Address, tm: IPv6Address
) -> list[KeyTree]:
    tree = content.tree
    try:
        if sender not in tree.addresses:
            tree, _ = tree.inserted(sender, at.key(), at.key())
        leaf = tree.leaf_of(sender)
        assert leaf is not None
        found = [tree.refreshed(leaf, at.key())]
        if tm != sender:
            found.append(tree.removed(tm)[0])
    except LocalError:
        return []
    return found


def _rekeys(at: Armoury, sender: IPv6Address) -> list[bytes]:
    """Announce the next epoch in key distribution mode, with wraps of our own making."""
    if at.scene.tree is None:
        return []
    content, tm = at.scene.tree
    epoch = at.scene.epoch or content.epoch
    found = []
    for removed in ((), (tm,) if tm != sender else ()):
        made = RekeyAnnouncement(
            epoch.number + 1,
            epoch,
            sender,
            max(len(content.tree.addresses) - len(removed), 1),
            at.draws.randbytes(32),
            removed,
        )
        wraps = {number: Wrap(0, at.draws.randbytes(40)) for number in (1, 2)}
        body = Rekey(made, 0, at.key(), wraps, at.draws.randbytes(16)).encode()
        found += at.signed(PROTOCOL_MIKE, Kind.REKEY, body, sender=sender)
    return found


def _handover(at: Armoury, sender: IPv6Address, *, leaving: bool) -> list[bytes]:
    epoch = at.scene.epoch or EpochId(1, bytes(8))
    body = Handover(epoch, sender, 50, epoch.number, leaving).encode()
    return at.signed(PROTOCOL_MIKE, Kind.HANDOVER, body, sender=sender)


def downgrade_mode(at: Armoury) -> list[bytes]:
    """Have the group go to key distribution mode, where the attacker would draw the keys."""
    return [frame for sender in at.senders() for frame in _rekeys(at, sender)]


# Policy, prefixes, coming back.


def downgrade_policy(at: Armoury) -> list[bytes]:
    """Hand out a weaker policy of another authority, and hellos that keep to it or to none."""
    found = []
    for sender in at.senders():
        for part in split_document(at.policy):
            found += at.signed(PROTOCOL_IDP, MessageKind.POLICY, part.encode(), sender=sender)
        hello = at.hello(sender)
        for version, digest in ((0, bytes(8)), (hello.policy_version + 1, at.draws.randbytes(8))):
            weaker = replace(hello, policy_version=version, policy_digest=digest)
            found += at.signed(PROTOCOL_IDP, MessageKind.HELLO, weaker.encode(), sender=sender)
    return found


def steal_prefixes(at: Armoury) -> list[bytes]:
    """Announce others' prefixes, and have the others announce none."""
    return _announcements(at, at.draws.randbytes(KEY_BYTES))


def use_stolen_psk(at: Armoury) -> list[bytes]:
    """Announce in every device's name under what follows from the pre-shared key alone."""
    return _announcements(at, at.psk) + pair_packets(at) + forged_hellos(at)


def pair_packets(at: Armoury) -> list[bytes]:
    """Seal ESP packets of every pair as the pre-shared key alone would have it.

    Inside is an announcement without prefixes: a device that believes it loses its routes.
    """
    found = []
    devices = list(at.scene.known)
    for sender in devices:
        for victim in devices:
            if sender == victim:
                continue
            spi, key = espkeys.psk_pair(at.psk, at.scene, sender, victim)
            inner = espkeys.announcement_packet(at.psk, at.scene, sender, victim)
            way = at.scene.way(sender, victim)
            known = at.scene.sending.get(spi)
            sequence = 1000 + (0 if known is None else known.highest)
            found.append(way.esp(spi, sequence, espkeys.sealed(key, spi, sequence, inner)))
    return found


def _announcements(at: Armoury, secret: bytes) -> list[bytes]:
    found = []
    devices = list(at.scene.known)
    lists: tuple[tuple[Prefix, ...], ...] = ((), (STOLEN,), (IPv6Network("fd00:1::/64"),))
    for sender in [*devices, at.own]:
        for victim in devices:
            if victim == sender:
                continue
            for number, prefixes in enumerate(lists):
                body = PrefixAnnouncement(1000 + number, prefixes).encode()
                sealed = espkeys.forged_announcement(secret, at.scene, sender, victim, body)
                found += at.datagram(PROTOCOL_IDP, sealed, sender=sender, to=victim)
    return found


def come_back(at: Armoury) -> list[bytes]:
    """Say hello, ask to join, and repeat the whole old session."""
    found = list(at.scene.session)
    for sender in at.senders():
        hello = replace(at.hello(sender), asking=True)
        found += at.signed(PROTOCOL_IDP, MessageKind.HELLO, hello.encode(), sender=sender)
        found += joins(at, sender)
    return found


def joins(at: Armoury, sender: IPv6Address) -> list[bytes]:
    """Ask to join once, with a nonce and a key that were not used before."""
    epoch = at.scene.epoch
    number = 0 if epoch is None else epoch.number
    body = Join(at.draws.randbytes(16), at.key(), number).encode()
    return at.signed(PROTOCOL_MIKE, Kind.JOIN, body, sender=sender)


WEAPONS: Final[tuple[Weapon, ...]] = (
    Weapon("replay-all", OUTSIDER, replay_all, rate_pps=500.0),
    Weapon("forged-hello", OUTSIDER, forged_hellos),
    Weapon("forged-leave", OUTSIDER, forged_leaves),
    Weapon("prefix-theft", EX_MEMBER, steal_prefixes),
    Weapon("stolen-psk", OUTSIDER, use_stolen_psk),
    Weapon("tm-outsider", OUTSIDER, act_as_tm),
    Weapon("tm-foreign", FOREIGN, act_as_tm),
    Weapon("tm-ex-member", EX_MEMBER, act_as_tm),
    Weapon("tm-member", MEMBER, usurp, rate_pps=50.0),
    Weapon("downgrade-mode", EX_MEMBER, downgrade_mode),
    Weapon("downgrade-policy", EX_MEMBER, downgrade_policy),
    Weapon("ex-member-return", EX_MEMBER, come_back),
    Weapon("esp-inject", OUTSIDER, inject_esp, esp=True, rate_pps=None),
    Weapon("esp-replay", OUTSIDER, replay_esp, esp=True, rate_pps=None, renew_s=0.3),
)
"""Attacks that try to achieve something; those whose purpose is the load are in `floods`."""
