"""The keys of one device's pairs: its ephemeral pair key, its peers', and what follows from both.

Pure state, owned and driven by `protocol.idp.unicast`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv6Address

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from protocol.core.engine import KeySource
from protocol.core.errors import PeerError
from protocol.idp import rules
from protocol.idp.config import IdpConfig, Unicast
from protocol.idp.keying import WrittenEpoch
from protocol.idp.messages import NO_PAIR_KEY, PAIR_KEY_LENGTH
from protocol.ipsec.model import SecurityAssociation
from protocol.ipsec.pairschedule import (
    PairContext,
    PairEnd,
    announcement_key,
    epoch_context,
    pair_sas,
    psk_context,
)

PSK_EPOCH = "psk"
"""In place of an epoch where a pre-shared key takes the place of the group key."""


@dataclass(slots=True)
class PeerKeys:
    """What makes the keys of one pair.

    Attributes:
        address: the peer's black address.
        startup_wall_ns: start-up time-stamp of its instance.
        pair_key: that instance's, from the hello with which it was met.
        secret: of the pair, once it was needed.
        announcement_key: of its announcements, once it was needed.
        unusable: the peer has no pair key, or one that makes no SAs.
    """

    address: IPv6Address
    startup_wall_ns: int
    pair_key: bytes
    secret: bytes | None = field(default=None, repr=False)
    announcement_key: bytes | None = field(default=None, repr=False)
    unusable: bool = False


class PairKeys:
    """Derives the SAs of pairs.

    Attributes:
        public: our pair key, or `NO_PAIR_KEY`.
        epoch: label of the epoch whose SAs are made, None if there is none.
        members: of that epoch in position order, None where everybody is meant (mode ``psk``).
    """

    def __init__(self, config: IdpConfig, own: IPv6Address, source: KeySource) -> None:
        self._config = config
        self._own = own
        self._source = source
        self._spare: tuple[X25519PrivateKey, bytes] | None = None
        self.forget()

    def forget(self) -> None:
        """Drop all keys; make the next instance's pair key now, for its start shall not wait."""
        if self._config.unicast is not Unicast.OFF and self._spare is None:
            secret = self._source.random_bytes(PAIR_KEY_LENGTH)
            private = X25519PrivateKey.from_private_bytes(secret)
            self._spare = private, private.public_key().public_bytes_raw()
        self._private: X25519PrivateKey | None = None
        self._context: PairContext | None = None
        self._startup_wall_ns = 0
        self.public = NO_PAIR_KEY
        self.epoch: str | None = None
        self.members: tuple[IPv6Address, ...] | None = None
        self._places: dict[IPv6Address, int] = {}

    def begin(self, startup_wall_ns: int) -> None:
        """Begin an instance, with a pair key of its own."""
        self.forget()
        self._startup_wall_ns = startup_wall_ns
        if self._spare is not None:
            (self._private, self.public), self._spare = self._spare, None
        if self._config.unicast is Unicast.PSK:
            self._context, self.epoch = psk_context(), PSK_EPOCH

    def enter(self, written: WrittenEpoch) -> None:
        """Make SAs of this epoch from now on."""
        epoch, spis = written.epoch, frozenset(written.spis)
        self._context = epoch_context(written.group_key, epoch.number, epoch.tag, spis)
        self.epoch, self.members = str(epoch), written.members
        self._places = {address: place for place, address in enumerate(written.members)}

    def leave(self) -> None:
        """Make no SAs until the next epoch."""
        self._context = self.epoch = self.members = None
        self._places = {}

    def is_fellow(self, peer: IPv6Address) -> bool:
        """Return whether there are SAs with this peer in the epoch (IDP-26)."""
        if self._context is None:
            return False
        return self.members is None or rules.is_fellow(peer, self._own, self._places)

    def meet(self, peer: PeerKeys, *, agree: bool) -> None:
        """Look at a peer's pair key.

        Args:
            peer: has just been met.
            agree: also agree with it now, rather than when the SAs are made.

        Raises:
            PeerError: it is our own, or of low order (IDP-25).
        """
        if self._config.unicast is Unicast.OFF:
            return
        peer.unusable = peer.pair_key in (NO_PAIR_KEY, self.public)
        rules.check_pair_key(peer.pair_key, self.public)
        if agree and not peer.unusable:
            self._secret(peer)

    def sas(self, peer: PeerKeys) -> tuple[SecurityAssociation, SecurityAssociation]:
        """Return the SAs of a pair in the epoch, ours to send with first.

        Raises:
            PeerError: the peer's pair key is of low order (IDP-25).
        """
        config = self._config
        assert config.if_id is not None
        assert self._context is not None
        secret, own, other = self._ends(peer)
        return pair_sas(
            secret,
            self._context,
            own,
            other,
            suite=config.suite,
            reqid=config.unicast_reqid,
            if_id=config.if_id,
            directions=config.sa_directions,
        )

    def announcements(self, peer: PeerKeys) -> bytes:
        """Return the key of the announcements between us and a peer.

        Raises:
            PeerError: the peer's pair key is of low order (IDP-25).
        """
        if peer.announcement_key is None:
            peer.announcement_key = announcement_key(*self._ends(peer))
        return peer.announcement_key

    def _ends(self, peer: PeerKeys) -> tuple[bytes, PairEnd, PairEnd]:
        """Return the secret of a pair, we as its one end, and the peer."""
        secret = self._secret(peer)
        if self._config.psk is not None:
            return (
                self._config.psk + secret,
                PairEnd(self._own, _instance(self._startup_wall_ns, self.public)),
                PairEnd(peer.address, _instance(peer.startup_wall_ns, peer.pair_key)),
            )
        places = self._places
        return (
            secret,
            PairEnd(self._own, self.public, places.get(self._own, 0)),
            PairEnd(peer.address, peer.pair_key, places.get(peer.address, 0)),
        )

    def _secret(self, peer: PeerKeys) -> bytes:
        """Agree with a peer, once per pair of instances."""
        if peer.secret is None:
            assert self._private is not None
            try:
                public = X25519PublicKey.from_public_bytes(peer.pair_key)
                peer.secret = self._private.exchange(public)
            except ValueError:
                peer.unusable = True
                raise PeerError("IDP-25", "its pair key is of low order") from None
        return peer.secret


def _instance(startup_wall_ns: int, pair_key: bytes) -> bytes:
    """Return what a pair's keys are bound to in mode ``psk``: time-stamp and pair key."""
    return startup_wall_ns.to_bytes(8, "big") + pair_key
