"""Makes mike.json: ``python -m tests.vectors.make_mike``.

Bodies of MIKE's messages and the key schedule of key agreement, written a second time from
docs/mike.md, with nothing but hashlib, hmac, struct and X25519. Everything is a function of
constants. Three devices: A, the TM, and B at the leaves 4 and 5, C at the leaf 3. In epoch 8 C
joins beside the whole tree; in epoch 9 B renews its share, and publishes.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

A, B, C = (IPv6Address(f"2001:db8:b::{number}").packed for number in (1, 2, 3))
NONCE_B, NONCE_C = bytes(range(16)), bytes(range(16, 32))
SECRETS = {
    name: hashlib.sha256(b"mike vectors: leaf of " + name.encode()).digest()
    for name in ("A", "B", "B renewed", "C")
}
PREVIOUS = struct.pack(">Q", 7) + b"epoch  7"
NONE = bytes(16)
SUITE = b"\x00"
NODE_2, LEAF_4, LEAF_5, LEAF_3 = 2, 4, 5, 3
PART = 100
"""Bytes of a fragment here; those of the product are longer."""


# The key schedule.


def blinded(secret: bytes) -> bytes:
    """Return the blinded key of a node secret."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def extract(salt: bytes, material: bytes) -> bytes:
    """RFC 5869 section 2.2."""
    return hmac.digest(salt, material, "sha256")


def expand(key: bytes, label: bytes) -> bytes:
    """RFC 5869 section 2.3, one block."""
    return hmac.digest(key, label + b"\x01", "sha256")


def node(own: bytes, left: bytes, right: bytes) -> bytes:
    """Return the secret of a node: ours is one child's, the blinded keys are both children's."""
    other = right if blinded(own) == left else left
    key = X25519PublicKey.from_public_bytes(other)
    shared = X25519PrivateKey.from_private_bytes(own).exchange(key)
    return expand(
        extract(b"idpmike v1 mike node", shared), b"idpmike v1 mike node secret" + left + right
    )


def epoch(announcement: bytes, root: bytes) -> dict[str, Any]:
    """Return what follows from an announcement and a root secret, as hex."""
    digest = hashlib.sha256(b"idpmike v1 mike announcement\x00" + announcement).digest()
    secret = extract(digest, root)
    key = expand(secret, b"idpmike v1 mike confirmation key")
    return {
        "announcement": announcement.hex(),
        "digest": digest.hex(),
        "epoch": (announcement[1:9] + digest[:8]).hex(),
        "root": root.hex(),
        "epoch_secret": secret.hex(),
        "group_key": expand(secret, b"idpmike v1 mike group key").hex(),
        "confirmation_key": key.hex(),
        "confirmations": {
            name: hmac.digest(key, b"idpmike v1 mike confirm" + address, "sha256")[:16].hex()
            for name, address in (("A", A), ("B", B), ("C", C))
        },
    }


# Messages.


def announced(
    number: int, previous: bytes, leaf_b: bytes, key_2: bytes | None, rest: bytes
) -> bytes:
    """Return the announcement of the three: members, whether node 2 has a key, the rest."""
    leaves = ((A, 2, SECRETS["A"]), (B, 2, leaf_b), (C, 1, SECRETS["C"]))
    members = b"".join(
        address + bytes([level]) + blinded(secret) for address, level, secret in leaves
    )
    nodes = b"\x00" if key_2 is None else b"\x01" + key_2
    return SUITE + struct.pack(">Q", number) + previous + A + b"\x00\x03" + members + nodes + rest


def keys(pairs: dict[int, bytes]) -> bytes:
    """Return blinded keys by node."""
    said = b"".join(struct.pack(">I", name) + key for name, key in pairs.items())
    return struct.pack(">H", len(pairs)) + said


def tree(announcement: bytes, term: int, more: dict[int, bytes], confirmation: bytes) -> bytes:
    """Return the body of a TREE."""
    tag = b"\x01" + confirmation if confirmation else b"\x00"
    length = struct.pack(">H", len(announcement))
    return length + announcement + struct.pack(">I", term) + keys(more) + tag


def kept(node: int, key: bytes = b"") -> bytes:
    """Return the piece of a CHANGE that is a subtree of the tree before."""
    return (b"\x05" if key else b"\x04") + struct.pack(">I", node) + key


def change(announcement: bytes, pieces: bytes, sponsors: bytes, nonces: bytes, tag: bytes) -> bytes:
    """Return the body of a CHANGE that says what an announcement says.

    Args:
        announcement: of which it has the first fields, and the hash.
        pieces: the tree, from the root down.
        sponsors: how many, and who.
        nonces: how many, of whom, and which.
        tag: the sender's confirmation, or nothing.
    """
    digest = hashlib.sha256(b"idpmike v1 mike announcement\x00" + announcement).digest()
    said = b"\x01" + tag if tag else b"\x00"
    return announcement[:41] + digest + pieces + sponsors + nonces + bytes(4) + keys({}) + said


def fragments(kind: int, body: bytes) -> list[bytes]:
    """Return the bodies of the FRAGMENTs of a message."""
    label = b"idpmike v1 mike message\x00"
    name = hashlib.sha256(label + bytes([kind]) + body).digest()[:8]
    parts = [body[start : start + PART] for start in range(0, len(body), PART)]
    return [
        name + struct.pack(">BBBH", kind, index, len(parts), len(part)) + part
        for index, part in enumerate(parts)
    ]


def vectors() -> dict[str, Any]:
    """Return the whole file."""
    leaf = {name: blinded(secret) for name, secret in SECRETS.items()}
    node_2 = node(SECRETS["A"], leaf["A"], leaf["B"])
    root_8 = node(node_2, blinded(node_2), leaf["C"])
    join_8 = announced(
        8, PREVIOUS, SECRETS["B"], blinded(node_2), b"\x00\x00" + b"\x00\x01\x02" + NONCE_C
    )
    epoch_8 = epoch(join_8, root_8)
    renewed_2 = node(SECRETS["B renewed"], leaf["A"], leaf["B renewed"])
    root_9 = node(renewed_2, blinded(renewed_2), leaf["C"])
    renewal_9 = announced(
        9,
        bytes.fromhex(epoch_8["epoch"]),
        SECRETS["B renewed"],
        None,
        b"\x00\x01\x01" + b"\x00\x02\x01" + NONCE_B + b"\x02" + NONCE_C,
    )
    epoch_9 = epoch(renewal_9, root_9)
    ids = [bytes.fromhex(one["epoch"]) for one in (epoch_8, epoch_9)]
    tag_8 = bytes.fromhex(epoch_8["confirmations"]["A"])
    tags_9 = {name: bytes.fromhex(tag) for name, tag in epoch_9["confirmations"].items()}
    whole = tree(renewal_9, 0, {NODE_2: blinded(renewed_2)}, tags_9["A"])
    parts = fragments(2, whole)
    repaired = struct.pack(">I", 0b101)
    # C comes beside the whole tree, which gets a key: what was the root is node 2 now.
    joined = change(
        join_8,
        b"\x00" + kept(1, blinded(node_2)) + b"\x03" + C + leaf["C"],
        b"\x00\x00",
        b"\x00\x01" + C + NONCE_C,
        tag_8,
    )
    # Node 2 is open, A stays at leaf 4, B has another key, C stays at leaf 3.
    renewed = change(
        renewal_9,
        b"\x00" + b"\x00" + kept(LEAF_4) + b"\x03" + B + leaf["B renewed"] + kept(LEAF_3),
        b"\x00\x01" + B,
        b"\x00\x02" + B + NONCE_B + C + NONCE_C,
        b"",
    )
    bodies = [
        ("JOIN of C", 1, SUITE + NONCE_C + leaf["C"] + struct.pack(">Q", 7)),
        ("JOIN of B, a renewal", 1, SUITE + NONCE_B + leaf["B renewed"] + struct.pack(">Q", 8)),
        ("TREE, complete", 2, tree(join_8, 0, {}, tag_8)),
        ("TREE, node 2 open", 2, tree(renewal_9, 0, {}, b"")),
        ("TREE, repeated with what was published", 2, whole),
        (
            "PATH of B",
            3,
            ids[1] + keys({NODE_2: blinded(renewed_2)}) + b"\x01" + tags_9["B"],
        ),
        ("PATH without a confirmation", 3, ids[1] + keys({NODE_2: blinded(renewed_2)}) + b"\x00"),
        ("STATUS", 4, ids[1] + struct.pack(">IH", 0, 3) + tags_9["A"]),
        ("REPAIR, an epoch is missing", 5, ids[1] + ids[0] + bytes(8) + bytes(4)),
        ("REPAIR, fragments 0 and 2 are missing", 5, NONE + ids[0] + parts[0][:8] + repaired),
        ("HANDOVER to B, A leaves", 6, ids[1] + B + struct.pack(">IQB", 1, 9, 1)),
        ("CHANGE, complete", 10, joined),
        ("CHANGE, node 2 open", 10, renewed),
        *((f"FRAGMENT {index} of the repeated TREE", 7, part) for index, part in enumerate(parts)),
    ]
    good = {name: body for name, _, body in bodies}
    fragment, repair = parts[0], good["REPAIR, an epoch is missing"]
    malformed = [
        ("JOIN cut", 1, good["JOIN of C"][:-1]),
        ("JOIN of a reserved suite", 1, b"\x01" + good["JOIN of C"][1:]),
        ("JOIN with a trailing byte", 1, good["JOIN of C"] + b"\x00"),
        ("TREE of a reserved suite", 2, whole[:2] + b"\x01" + whole[3:]),
        ("TREE: a TM that is no member", 2, good["TREE, complete"].replace(A, NONE, 1)),
        ("PATH: keys not in ascending order", 3, ids[1] + keys({5: bytes(32), 2: bytes(32)})),
        ("PATH: has confirmation 2", 3, good["PATH without a confirmation"][:-1] + b"\x02"),
        ("STATUS: no members", 4, ids[1] + struct.pack(">IH", 0, 0) + tags_9["A"]),
        ("REPAIR: nothing is wanted", 5, NONE + repair[16:]),
        ("REPAIR: an epoch and fragments", 5, ids[1] + ids[0] + parts[0][:8] + repaired),
        ("HANDOVER: an unknown flag", 6, good["HANDOVER to B, A leaves"][:-1] + b"\x02"),
        ("FRAGMENT of no message", 7, bytes(8) + fragment[8:]),
        ("FRAGMENT of a JOIN", 7, fragment[:8] + b"\x01" + fragment[9:]),
        ("FRAGMENT: index beyond the count", 7, fragment[:9] + b"\x20" + fragment[10:]),
        ("FRAGMENT: one of one", 7, fragment[:10] + b"\x01" + fragment[11:]),
        ("FRAGMENT of 129", 7, fragment[:10] + b"\x81" + fragment[11:]),
        ("FRAGMENT of a PAGE, of 33", 7, fragment[:8] + b"\x09\x00\x21" + fragment[11:]),
        ("FRAGMENT: an empty part", 7, fragment[:11] + b"\x00\x00"),
        ("TREE: a short length in the long form", 2, b"\xff\xff\x00\x00" + whole),
        ("CHANGE: an unknown piece", 10, renewed[:73] + b"\x06" + renewed[74:]),
        ("CHANGE: a node that cannot be", 10, renewed[:79] + bytes(1) + renewed[80:]),
        ("CHANGE: a piece too few", 10, renewed[:-88].replace(kept(LEAF_3), b"")),
    ]
    return {
        "comment": "MIKE, docs/mike.md sections 2 and 3; made by tests/vectors/make_mike.py",
        "leaf_secrets": {name: secret.hex() for name, secret in SECRETS.items()},
        "blinded_keys": {name: key.hex() for name, key in leaf.items()},
        "node_2": {"epoch 8": node_2.hex(), "epoch 9": renewed_2.hex()},
        "epochs": {"8": epoch_8, "9": epoch_9},
        "bodies": [{"name": name, "kind": kind, "body": body.hex()} for name, kind, body in bodies],
        "malformed": [
            {"name": name, "kind": kind, "body": body.hex()} for name, kind, body in malformed
        ],
    }


if __name__ == "__main__":
    path = Path(__file__).with_name("mike.json")
    path.write_text(json.dumps(vectors(), indent=1) + "\n")
