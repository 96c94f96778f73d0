"""MIKE's key schedule: every label, every HKDF (RFC 5869, SHA-256), in one place.

::

    leaf secret s_i                      32 bytes from the key source
    blinded key of a node                X25519 public key of the node's secret
    node secret                          Expand(Extract("idpmike v1 mike node", DH),
                                                "idpmike v1 mike node secret" | left | right)
        DH = X25519(own child's secret, sibling's blinded key)
        left, right = blinded keys of the two children
    pairwise key of TM and member        Expand(Extract("idpmike v1 mike pair", DH),
                                                "idpmike v1 mike pair key" | TM's distribution key
                                                | member's leaf key | member's address)
        DH = X25519(one's secret, the other's key)
    wrapping key                         Expand(pairwise or hierarchy key,
                                                "idpmike v1 mike wrap" | announcement digest)
    epoch secret                         Extract(announcement digest, root secret)
    group key, confirmation key          Expand(epoch secret, label)
    confirmation tag of a member         HMAC(confirmation key, label | member's address)[:16]

A node secret depends only on the two keys below it, so it stays valid over epochs in which nothing
below it changed. What leaves the tree (group key, tags) depends on the whole announcement of the
epoch as well. The root secret itself is never used as a key of anything.

In key distribution mode the root secret and the keys of the hierarchy are drawn by the TM, and
reach the members wrapped (AES-256 key wrap, RFC 3394), each under a key that serves one epoch only.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from ipaddress import IPv6Address

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from protocol.core.errors import PeerError

SECRET_LENGTH = 32
BLINDED_LENGTH = 32
CONFIRMATION_LENGTH = 16
EPOCH_TAG_LENGTH = 8
DIGEST_LENGTH = 32
WRAPPED_LENGTH = SECRET_LENGTH + 8

LABEL_NODE = b"idpmike v1 mike node"
LABEL_NODE_SECRET = b"idpmike v1 mike node secret"
LABEL_ANNOUNCEMENT = b"idpmike v1 mike announcement\x00"
LABEL_DISTRIBUTION = b"idpmike v1 mike distribution\x00"
LABEL_ROSTER = b"idpmike v1 mike roster\x00"
LABEL_PAIR = b"idpmike v1 mike pair"
LABEL_PAIR_KEY = b"idpmike v1 mike pair key"
LABEL_WRAP = b"idpmike v1 mike wrap"
LABEL_GROUP_KEY = b"idpmike v1 mike group key"
LABEL_CONFIRMATION_KEY = b"idpmike v1 mike confirmation key"
LABEL_CONFIRM = b"idpmike v1 mike confirm"

RULE_LOW_ORDER = "MIKE-6"
RULE_UNWRAP = "MIKE-31"


class NodeSecret:
    """The secret of one node: never sent, never printed.

    The one place that knows the group: the simulator's model overrides `_blind` and `shared_with`,
    and an engine makes all its secrets of the class it was constructed with.
    """

    __slots__ = ("_blinded", "_private", "_raw")

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._blinded: bytes | None = None
        self._private: X25519PrivateKey | None = None

    @property
    def blinded(self) -> bytes:
        """The blinded key, computed when first asked for."""
        if self._blinded is None:
            self._blinded = self._blind()
        return self._blinded

    def shared_with(self, sibling_key: bytes) -> bytes:
        """Return the Diffie-Hellman secret with a blinded key.

        Raises:
            ValueError: the key is of low order.
        """
        return self._loaded().exchange(X25519PublicKey.from_public_bytes(sibling_key))

    def _blind(self) -> bytes:
        return self._loaded().public_key().public_bytes_raw()

    def _loaded(self) -> X25519PrivateKey:
        """Return the secret as a private key, made once."""
        if self._private is None:
            self._private = X25519PrivateKey.from_private_bytes(self._raw)
        return self._private

    def reveal(self) -> bytes:
        """Return the secret itself, for the key schedule only."""
        return self._raw

    def __repr__(self) -> str:
        return f"NodeSecret({hashlib.sha256(b'id' + self._raw).hexdigest()[:8]})"


@dataclass(frozen=True, slots=True)
class EpochKeys:
    """What an epoch's root secret is expanded to.

    Attributes:
        group_key: 32 bytes, handed to IDP.
        confirmation_key: proves to other members that we have the same.
    """

    group_key: bytes = field(repr=False)
    confirmation_key: bytes = field(repr=False)

    def confirmation(self, member: IPv6Address) -> bytes:
        """Return the tag with which a member proves that it computed the root."""
        mac = hmac.digest(self.confirmation_key, LABEL_CONFIRM + member.packed, "sha256")
        return mac[:CONFIRMATION_LENGTH]

    def confirms(self, member: IPv6Address, tag: bytes) -> bool:
        """Say whether a member's tag is right, in constant time."""
        return hmac.compare_digest(self.confirmation(member), tag)


def extract(salt: bytes, material: bytes) -> bytes:
    """HKDF-Extract (RFC 5869 section 2.2)."""
    return hmac.digest(salt, material, "sha256")


def expand(key: bytes, info: bytes) -> bytes:
    """HKDF-Expand (RFC 5869 section 2.3) to one block of 32 bytes."""
    return hmac.digest(key, info + b"\x01", "sha256")


def node_secret(child: NodeSecret, sibling_key: bytes, left_key: bytes, right_key: bytes) -> bytes:
    """Return the secret of the node above two children of which we know one's secret.

    Raises:
        PeerError: the sibling's key is of low order: the shared secret would be zero (MIKE-6).
    """
    try:
        shared = child.shared_with(sibling_key)
    except ValueError as error:
        raise PeerError(RULE_LOW_ORDER, "a blinded key is of low order") from error
    return expand(extract(LABEL_NODE, shared), LABEL_NODE_SECRET + left_key + right_key)


def pairwise_key(
    own: NodeSecret, other_key: bytes, distribution_key: bytes, leaf_key: bytes, member: IPv6Address
) -> bytes:
    """Return the key that a TM and one member share; either computes it from its own secret.

    Args:
        own: the TM's distribution secret, or the member's leaf secret.
        other_key: public key of the other.
        distribution_key: the TM's; one of these two is ``other_key``.
        leaf_key: the member's.
        member: its address.

    Raises:
        PeerError: the other's key is of low order (MIKE-6).
    """
    try:
        shared = own.shared_with(other_key)
    except ValueError as error:
        raise PeerError(RULE_LOW_ORDER, "a key is of low order") from error
    info = LABEL_PAIR_KEY + distribution_key + leaf_key + member.packed
    return expand(extract(LABEL_PAIR, shared), info)


def wrapped(under: bytes, digest: bytes, key: bytes) -> bytes:
    """Wrap a key for the epoch of this announcement (RFC 3394)."""
    return aes_key_wrap(expand(under, LABEL_WRAP + digest), key)


def unwrapped(under: bytes, digest: bytes, wrap: bytes) -> bytes:
    """Return what `wrapped` wrapped.

    Raises:
        PeerError: it was wrapped under another key, or for another epoch (MIKE-31).
    """
    try:
        return aes_key_unwrap(expand(under, LABEL_WRAP + digest), wrap)
    except InvalidUnwrap as error:
        raise PeerError(RULE_UNWRAP, "a key cannot be unwrapped") from error


def announcement_digest(announcement: bytes, label: bytes = LABEL_ANNOUNCEMENT) -> bytes:
    """Return the hash that names an epoch's content; the label tells its mode."""
    return hashlib.sha256(label + announcement).digest()


def roster_digest(entries: bytes) -> bytes:
    """Return the hash that names a roster."""
    return hashlib.sha256(LABEL_ROSTER + entries).digest()


def epoch_keys(digest: bytes, root: bytes) -> EpochKeys:
    """Expand the root secret of an epoch with this announcement."""
    secret = extract(digest, root)
    return EpochKeys(expand(secret, LABEL_GROUP_KEY), expand(secret, LABEL_CONFIRMATION_KEY))
