"""The key schedule against the library's HKDF and X25519, and its labels against each other."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocol.core.errors import PeerError
from protocol.mike import schedule
from protocol.mike.schedule import NodeSecret, epoch_keys, node_secret
from tests.support.identities import address


def test_hkdf_is_the_library_s() -> None:
    salt, material, info = b"salt", b"material", b"info"
    ours = schedule.expand(schedule.extract(salt, material), info)
    assert ours == HKDF(SHA256(), 32, salt, info).derive(material)


def test_blinded_key_is_the_public_key() -> None:
    private = "77" * 32
    public = X25519PrivateKey.from_private_bytes(bytes.fromhex(private)).public_key()
    assert NodeSecret(bytes.fromhex(private)).blinded == public.public_bytes_raw()


def test_both_children_compute_the_same_node() -> None:
    left, right = NodeSecret(b"l" * 32), NodeSecret(b"r" * 32)
    pair = (left.blinded, right.blinded)
    assert node_secret(left, right.blinded, *pair) == node_secret(right, left.blinded, *pair)
    swapped = node_secret(left, right.blinded, pair[1], pair[0])
    assert swapped != node_secret(left, right.blinded, *pair)


@pytest.mark.parametrize("bad", [bytes(32), bytes([1]) + bytes(31)])
def test_low_order_is_refused(bad: bytes) -> None:
    """MIKE-6."""
    ours = NodeSecret(b"s" * 32)
    with pytest.raises(PeerError, match="MIKE-6"):
        node_secret(ours, bad, ours.blinded, bad)


def test_keys_depend_on_announcement_and_root() -> None:
    one = epoch_keys(b"d" * 32, b"r" * 32)
    assert one.group_key != one.confirmation_key
    assert one.group_key != epoch_keys(b"e" * 32, b"r" * 32).group_key
    assert one.group_key != epoch_keys(b"d" * 32, b"s" * 32).group_key


def test_confirmation_is_bound_to_its_sender() -> None:
    """MIKE-8."""
    keys = epoch_keys(b"d" * 32, b"r" * 32)
    tag = keys.confirmation(address(1))
    assert len(tag) == 16
    assert keys.confirms(address(1), tag)
    assert not keys.confirms(address(2), tag)
    assert not keys.confirms(address(1), bytes(16))


def test_secrets_are_not_printed() -> None:
    secret = NodeSecret(b"s" * 32)
    assert b"s" * 32 not in repr(secret).encode()
    assert secret.reveal().hex() not in repr(secret)
    assert "group_key" not in repr(epoch_keys(b"d" * 32, b"r" * 32))
