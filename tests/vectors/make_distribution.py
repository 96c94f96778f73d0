"""Make distribution.json: key distribution mode of MIKE written a second time (docs/mike.md).

Nothing of `protocol` is used: hmac, hashlib, struct, X25519 and AES on single blocks.

python tests/vectors/make_distribution.py > tests/vectors/distribution.json
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
import sys
from ipaddress import IPv6Address
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

LABEL = b"idpmike v1 mike "
LEAF = 1 << 31


def drawn(name: str) -> bytes:
    return hashlib.sha256(b"vector " + name.encode()).digest()


def public(secret: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def exchange(secret: bytes, key: bytes) -> bytes:
    private = X25519PrivateKey.from_private_bytes(secret)
    return private.exchange(X25519PublicKey.from_public_bytes(key))


def mac(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, hashlib.sha256).digest()


def expand(key: bytes, info: bytes) -> bytes:
    return mac(key, info + b"\x01")


def key_wrap(key: bytes, plain: bytes) -> bytes:
    """RFC 3394 section 2.2.1."""
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    a = b"\xa6" * 8
    r = [plain[i : i + 8] for i in range(0, len(plain), 8)]
    for j in range(6):
        for i in range(len(r)):
            b = block.update(a + r[i])
            t = len(r) * j + i + 1
            a = bytes(x ^ y for x, y in zip(b[:8], t.to_bytes(8, "big"), strict=True))
            r[i] = b[8:]
    return a + b"".join(r)


def pairwise(tm_secret: bytes, leaf_key: bytes, member: bytes) -> bytes:
    shared = mac(LABEL + b"pair", exchange(tm_secret, leaf_key))
    return expand(shared, LABEL + b"pair key" + public(tm_secret) + leaf_key + member)


def entries(roster: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(address + key for address, key in roster)


def vector() -> dict[str, Any]:
    """Four members; the fourth has just joined beside the third; the first is the TM."""
    members = [IPv6Address(f"2001:db8:b::{n}").packed for n in range(1, 5)]
    leaves = [drawn(f"leaf {n}") for n in range(1, 5)]
    roster = [(who, public(leaf)) for who, leaf in zip(members, leaves, strict=True)]
    digest = hashlib.sha256(LABEL + b"roster\x00" + entries(roster)).digest()
    nonce = drawn("nonce")[:16]
    announcement = (
        b"\x00"
        + struct.pack(">Q", 8)
        + struct.pack(">Q", 7)
        + bytes(range(8))
        + members[0]
        + struct.pack(">H", 4)
        + digest
        + struct.pack(">H", 0)
        + struct.pack(">H", 1)
        + entries(roster[3:])
        + struct.pack(">H", 1)
        + members[3]
        + nonce
    )
    name = hashlib.sha256(LABEL + b"distribution\x00" + announcement).digest()
    tm_secret = drawn("distribution secret")
    pairs = [pairwise(tm_secret, key, who) for who, key in roster]
    # Keys: 4 is above the leaves 3 and 4, 5 above leaf 2 and key 4; 0 is the root secret.
    node4, node5, root = drawn("key 4"), drawn("key 5"), drawn("root")
    plan = [
        (4, 5, node4, node5),
        (5, 0, node5, root),
        (LEAF | 1, 5, pairs[1], node5),
        (LEAF | 2, 4, pairs[2], node4),
        (LEAF | 3, 4, pairs[3], node4),
    ]
    wraps = [
        {
            "under": under,
            "key": number,
            "wrapped": key_wrap(expand(by, LABEL + b"wrap" + name), what).hex(),
        }
        for under, number, by, what in plan
    ]
    epoch_secret = mac(name, root)
    group_key = expand(epoch_secret, LABEL + b"group key")
    confirm = mac(
        expand(epoch_secret, LABEL + b"confirmation key"), LABEL + b"confirm" + members[0]
    )[:16]
    rekey = (
        struct.pack(">H", len(announcement))
        + announcement
        + struct.pack(">I", 0)
        + public(tm_secret)
        + struct.pack(">H", len(wraps))
        + b"".join(
            struct.pack(">II", wrap["under"], wrap["key"]) + bytes.fromhex(wrap["wrapped"])
            for wrap in wraps
        )
        + b"\x01"
        + confirm
    )
    page = digest + struct.pack(">HH", 0, 4) + entries(roster)
    return {
        "members": [str(IPv6Address(who)) for who in members],
        "leaf_secrets": [leaf.hex() for leaf in leaves],
        "leaf_keys": [key.hex() for _, key in roster],
        "distribution_secret": tm_secret.hex(),
        "distribution_key": public(tm_secret).hex(),
        "pairwise_keys": [None, *(key.hex() for key in pairs[1:])],
        "hierarchy": {"4": node4.hex(), "5": node5.hex()},
        "root": root.hex(),
        "roster_digest": digest.hex(),
        "announcement": announcement.hex(),
        "epoch": f"8-{name[:8].hex()}",
        "wraps": wraps,
        "rekey": rekey.hex(),
        "page": page.hex(),
        "group_key": group_key.hex(),
        "confirmation_of_tm": confirm.hex(),
    }


if __name__ == "__main__":
    json.dump(vector(), sys.stdout, indent=1)
    print()
