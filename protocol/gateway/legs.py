"""What a gateway knows by one of its legs: the partition there, and the other gateways in it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv6Address

from protocol.core.errors import PeerError
from protocol.gateway import protection, rules
from protocol.gateway.config import GatewayConfig, Leg, Network
from protocol.gateway.events import LegView
from protocol.gateway.messages import Claim, Member, Part, decode_table, encode_table, fitted, split
from protocol.gateway.protection import Sealed
from protocol.identity import Identity, Opened
from protocol.idpmike import EpochId

KEYS_MAX = 4
"""Epochs whose key is kept: what another gateway says may be an epoch behind, or ahead."""


@dataclass(slots=True)
class Speaker:
    """Another gateway, as heard on one leg.

    Attributes:
        name: of its leg, as its certificate says.
        startup_wall_ns: of its instance.
        heard_mono_ns: when its last whole table came in.
        generation: of that table.
        claims: what it said.
        parts: of the next table, so far.
    """

    name: str
    startup_wall_ns: int
    heard_mono_ns: int
    generation: int = -1
    claims: tuple[Claim, ...] = ()
    parts: dict[int, Part] = field(default_factory=dict)

    def collect(self, part: Part, now_mono_ns: int) -> bytes | None:
        """Take a part in; return the table when it is whole."""
        first = next(iter(self.parts.values()), None)
        if first is not None and (first.generation, first.count) != (part.generation, part.count):
            self.parts.clear()
        self.parts[part.index] = part
        if len(self.parts) < part.count:
            return None
        whole = b"".join(self.parts[index].chunk for index in range(part.count))
        self.parts.clear()
        self.generation = part.generation
        self.heard_mono_ns = now_mono_ns
        return whole


class LegState:
    """One leg.

    Attributes:
        leg: its settings.
        identity: signs for it, and knows the partition's devices.
        view: what its idpd said last, None if it does not run.
        since_mono_ns: since when it counts (GATE-14), None if it does not.
        speakers: the other gateways by the address of their leg here.
        told: the prefixes that idpd was told to announce.
        table: what we said last.
        left_out: of how many claims it lacks something, for want of room (GATE-11).
    """

    def __init__(self, leg: Leg, identity: Identity, config: GatewayConfig) -> None:
        self.leg = leg
        self.identity = identity
        self.view: LegView | None = None
        self.since_mono_ns: int | None = None
        self.speakers: dict[IPv6Address, Speaker] = {}
        self.told: set[Network] = set()
        self.table: bytes | None = None
        self.left_out = 0
        self._config = config
        self._keys: OrderedDict[EpochId, bytes] = OrderedDict()
        self._up: frozenset[IPv6Address] = frozenset()
        self._generation = 0
        self._number = 0

    @property
    def name(self) -> str:
        """Return the partition's name."""
        return self.leg.partition

    @property
    def counts(self) -> bool:
        """GATE-14: whether the leg takes part."""
        return self.since_mono_ns is not None

    @property
    def epoch(self) -> EpochId | None:
        """Return the epoch under which we speak: the newest one whose key we have."""
        return next(reversed(self._keys), None)

    # What idpd says.

    def look(self, view: LegView | None, now_mono_ns: int) -> bool:
        """Take in what idpd said; return whether anything has changed."""
        old, self.view = self.view, view
        if view is None:
            self._keys.clear()
        if view is None or (old is not None and old.startup_wall_ns != view.startup_wall_ns):
            self.told.clear()  # another idpd, which has been told nothing
        self._up = frozenset() if view is None else frozenset(m.address for m in view.up)
        for address in [at for at in self.speakers if at not in self._up]:
            del self.speakers[address]  # GATE-12
        return self._judge(now_mono_ns) or old != view

    def learn(self, epoch: EpochId, group_key: bytes, now_mono_ns: int) -> None:
        """Take in the key of an epoch."""
        self._keys[epoch] = group_key
        while len(self._keys) > KEYS_MAX:
            self._keys.popitem(last=False)
        self._judge(now_mono_ns)

    @property
    def lacks_key(self) -> EpochId | None:
        """Return the epoch whose key is to be fetched, or None."""
        if self.view is None or self.view.epoch is None or self.view.epoch in self._keys:
            return None
        return self.view.epoch

    def _judge(self, now_mono_ns: int) -> bool:
        before = self.counts
        if not rules.counts(self.view is not None, bool(self._keys)):
            self.since_mono_ns = None
            self.speakers.clear()
            self.table = None
        elif self.since_mono_ns is None:
            self.since_mono_ns = now_mono_ns
        return before != self.counts

    def is_plain(self, address: IPv6Address) -> bool:
        """Return whether this is a device here, and no gateway's leg; who is not known is neither.

        What a gateway announces in IDP is of another partition, whatever its certificate's place.
        """
        peer = self.identity.peer_by_address(address)
        return peer is not None and not peer.gateway

    def members(self) -> tuple[Member, ...]:
        """Return the partition's devices that are up, without gateways."""
        if self.view is None:
            return ()
        return tuple(sorted(m for m in self.view.up if self.is_plain(m.address)))

    def prefixes(self) -> tuple[Network, ...]:
        """Return what the partition's own devices announce."""
        if self.view is None:
            return ()
        return tuple(
            net for net, peer in self.view.prefixes if peer in self._up and self.is_plain(peer)
        )

    # What other gateways say.

    def hear(self, opened: Opened, now_mono_ns: int) -> bool:
        """Take in a message; return whether a claim has changed.

        Raises:
            PeerError: it breaks a rule.
        """
        rules.check_speaker(opened.peer)
        if not self.counts or opened.peer.address not in self._up:
            return False
        sealed = Sealed.decode(opened.body)
        group_key = self._keys.get(sealed.epoch)
        if group_key is None:
            raise PeerError(protection.RULE_KEY, f"we have no key of epoch {sealed.epoch}")
        sender = (opened.peer.fingerprint, opened.startup_wall_ns)
        part = Part.decode(protection.unseal(sealed, group_key, sender))
        speaker = self.speakers.get(opened.peer.address)
        if speaker is None or speaker.startup_wall_ns != opened.startup_wall_ns:
            speaker = Speaker(opened.peer.name, opened.startup_wall_ns, now_mono_ns)
            self.speakers[opened.peer.address] = speaker
        whole = speaker.collect(part, now_mono_ns)
        if whole is None:
            return False
        claims = decode_table(whole)
        rules.check_bounds(claims, self._config)
        rules.check_authority(claims, opened.peer)
        for claim in claims:
            rules.check_path(claim.path, self.name)
        changed = claims != speaker.claims
        speaker.claims = claims
        return changed

    def forget_silent(self, now_mono_ns: int) -> bool:
        """GATE-12: forget who has fallen silent; return whether anybody has."""
        dead_ns = self._config.dead_ns
        silent = [
            address
            for address, speaker in self.speakers.items()
            if not rules.is_alive(speaker.heard_mono_ns, address in self._up, now_mono_ns, dead_ns)
        ]
        for address in silent:
            del self.speakers[address]
        return bool(silent)

    def heard(self) -> Iterator[tuple[IPv6Address, Claim]]:
        """Yield every claim that holds here, with the address of who made it."""
        for address, speaker in self.speakers.items():
            for claim in speaker.claims:
                yield address, claim

    # What we say.

    def say(self, claims: list[Claim]) -> tuple[bool, list[bytes]]:
        """Return whether this is news, and the bodies of the messages that say it."""
        epoch = self.epoch
        startup_wall_ns = self.identity.startup_wall_ns
        assert epoch is not None
        assert startup_wall_ns is not None
        kept, self.left_out = fitted(claims)
        table = encode_table(kept)
        news = table != self.table
        if news:
            self.table = table
            self._generation += 1
        sender = (self.identity.me.fingerprint, startup_wall_ns)
        bodies = []
        for part in split(table, self._generation):
            body = protection.seal(part.encode(), epoch, self._keys[epoch], sender, self._number)
            self._number += 1
            bodies.append(body)
        return news, bodies
