"""Makes envelope.json: ``python -m tests.vectors.make_envelope``.

Keys are those of tests/support/identities.py; Ed25519 is deterministic, so the file is too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from protocol.core.engine import Instant
from protocol.identity import envelope
from protocol.identity.marks import Marks, static_secret
from tests.support.identities import known_device, make_identities, signing_key

NOW = Instant(5_000_000_000, 1_790_000_000_123_456_789)
STARTUP = 1_790_000_000_000_000_000
CASES = (("empty", 1, 1, b""), ("idp", 1, 2, b"hello"), ("mike", 2, 9, bytes(range(256)) * 4))


def vectors() -> dict[str, Any]:
    """Return the whole file."""
    device = make_identities(1)[0]
    device.begin(STARTUP)
    valid = []
    for sequence, (name, protocol, kind, body) in enumerate(CASES):
        datagram = device.seal(protocol, kind, body, NOW)
        valid.append(
            {
                "name": name,
                "protocol": protocol,
                "kind": kind,
                "sender": str(device.me.address),
                "fingerprint": device.me.fingerprint.hex(),
                "startup_wall_ns": STARTUP,
                "sequence": sequence,
                "sent_wall_ns": NOW.wall_ns,
                "body": body.hex(),
                "public_key": signing_key(0).public_key().public_bytes_raw().hex(),
                "datagram": datagram.hex(),
            }
        )
    good = bytes.fromhex(str(valid[1]["datagram"]))
    malformed = [
        {"name": name, "field": field, "datagram": data.hex()}
        for name, field, data in (
            ("nothing", "version", b""),
            ("version 2", "version", b"\x02" + good[1:]),
            ("65 marks", "marks", good[:3] + b"\x41" + good[4:]),
            ("a mark that is not there", "marks", good[:3] + b"\x01" + good[4:]),
            ("cut in the fingerprint", "fingerprint", good[:30]),
            ("cut in the body", "body", good[:64]),
            ("cut in the signature", "signature", good[:-1]),
            ("trailing byte", "end", good + b"\x00"),
            ("body longer than allowed", "body", good[:60] + b"\xff\xff" + good[62:]),
        )
    ]
    return {
        "marked": marked(),
        "comment": "signed envelope, docs/identity.md; made by tests/vectors/make_envelope.py",
        "label": envelope.LABEL.hex(),
        "valid": valid,
        "malformed": malformed,
    }


def marked() -> dict[str, str]:
    """Return a message of the first device to the second one, and what its mark is made of."""
    sender = make_identities(2)[0]
    sender.begin(STARTUP)
    keys = [signing_key(index) for index in range(2)]
    secret = static_secret(keys[0], keys[1].public_key())
    key = Marks(known_device(0), keys[0], static_secret).key(known_device(1))
    assert secret is not None
    assert key is not None
    return {
        "private_keys": " ".join(each.private_bytes_raw().hex() for each in keys),
        "fingerprints": " ".join(known_device(index).peer.fingerprint.hex() for index in range(2)),
        "secret": secret.hex(),
        "mark_key": key.hex(),
        "datagram": sender.seal(2, 1, b"body", NOW).hex(),
    }


if __name__ == "__main__":
    Path(__file__).with_name("envelope.json").write_text(json.dumps(vectors(), indent=1) + "\n")
