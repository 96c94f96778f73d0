"""Makes documents.json: ``python -m tests.vectors.make_documents``.

Bodies of IDP's kinds 4 to 7, the trust digest and the local interface's two messages about trust.
Everything is a function of constants.
"""

from __future__ import annotations

import hashlib
import json
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from protocol.identity import CrlEntry
from protocol.idp.documents import Request, Subject, encode_chain, split
from protocol.idp.policy import DomainPolicy
from protocol.idpmike import (
    Credential,
    CredentialKind,
    Frame,
    Side,
    Standing,
    direction_key,
    encode,
)

FINGERPRINT = bytes(range(16))
COOKIE = bytes(range(16, 32))
ENTRIES = (CrlEntry(b"\x0a" * 8, 3, 1_790_000_000), CrlEntry(b"\x0b" * 8, 0, 1_790_000_001))
REQUESTS = {
    "certificate": Request(Subject.CERTIFICATE, FINGERPRINT),
    "certificate with cookie": Request(Subject.CERTIFICATE, FINGERPRINT, COOKIE),
    "cookie": Request(Subject.CERTIFICATE, FINGERPRINT, COOKIE, returned=True),
    "revocation lists": Request(Subject.REVOCATIONS, entries=ENTRIES),
    "policy": Request(Subject.POLICY),
}
CHAIN = (b"\x30\x03one", b"\x30\x03two")
LONG = bytes(number % 251 for number in range(1100))
TOLD = {
    "certificate": Credential(CredentialKind.CERTIFICATE, CHAIN[0], 1),
    "revocation list": Credential(CredentialKind.REVOCATIONS, CHAIN[1], 2),
    "refused": Standing(IPv6Address("2001:db8:b::7"), "another domain policy", 3),
    "admitted": Standing(IPv6Address("2001:db8:b::7"), "", 4),
}

POLICY: dict[str, Any] = {
    "domain": "exercise",
    "version": 3,
    "suites": ["aes-gcm-128", "aes-gcm-256"],
    "sa_modes": ["per-sender"],
    "unicast": ["group", "off"],
    "key_bits_min": 128,
    "sa_lifetime_min_s": 60,
    "sa_lifetime_max_s": 3600,
    "sa_lifetime_min_bytes": 10_000_000,
    "sa_lifetime_max_bytes": 1_000_000_000_000,
    "hello_interval_min_ms": 500,
    "hello_interval_max_ms": 2000,
}


def digest(entries: tuple[CrlEntry, ...]) -> str:
    """Return the trust digest of these lists, by the words of docs/idp.md."""
    data = b"idpmike revocation lists v1\x00"
    for entry in entries:
        data += entry.issuer + entry.number.to_bytes(8, "big") + entry.issued_s.to_bytes(8, "big")
    return hashlib.sha256(data).digest()[:8].hex()


def vectors() -> dict[str, Any]:
    """Return the whole file."""
    secret = bytes(range(32))
    key = direction_key(secret, Side.IDP)
    return {
        "requests": {name: each.encode().hex() for name, each in REQUESTS.items()},
        "chain": {
            "certificates": [der.hex() for der in CHAIN],
            "document": encode_chain(CHAIN).hex(),
            "parts": [part.encode().hex() for part in split(encode_chain(CHAIN))],
        },
        "parts_of_1100_bytes": [hashlib.sha256(part.encode()).hexdigest() for part in split(LONG)],
        "trust_digest": digest(ENTRIES),
        "policy": {
            "table": POLICY,
            "content": DomainPolicy.from_table(POLICY).encode().hex(),
            "digest": DomainPolicy.from_table(POLICY).digest().hex(),
        },
        "local": {
            "secret": secret.hex(),
            "frames": {
                name: encode(Frame(7, 7, 8, 1, 9, told), key).hex() for name, told in TOLD.items()
            },
        },
    }


if __name__ == "__main__":
    path = Path(__file__).with_name("documents.json")
    path.write_text(json.dumps(vectors(), indent=1) + "\n")
