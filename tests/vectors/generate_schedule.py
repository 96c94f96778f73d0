"""Make schedule.json: the key schedule written a second time, with nothing but hmac and hashlib.

python tests/vectors/generate_schedule.py > tests/vectors/schedule.json
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
from ipaddress import IPv6Address
from typing import Any

KEY_LENGTHS = {
    "aes-gcm-128": (20, 0),
    "aes-gcm-256": (36, 0),
    "aes-cbc-sha256": (16, 32),
    "3des-sha1": (24, 20),
}


def hkdf_expand(key: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 section 2.3."""
    output, block, counter = b"", b"", 1
    while len(output) < length:
        block = hmac.new(key, block + info + bytes([counter]), hashlib.sha256).digest()
        output += block
        counter += 1
    return output[:length]


def info(*parts: bytes) -> bytes:
    """Length-prefixed parts."""
    return b"".join(len(part).to_bytes(2, "big") + part for part in parts)


def derive(
    label: str, context: list[bytes], case: dict[str, Any], taken: set[int]
) -> dict[str, Any]:
    """SPI and keys under one label and context."""
    group_key = bytes.fromhex(case["group_key"])
    counter, spi = 0, 0
    while spi < 256 or spi in taken:
        parts = info(f"idpmike v1 {label} sa spi".encode(), *context, counter.to_bytes(4, "big"))
        spi = int.from_bytes(hkdf_expand(group_key, parts, 4), "big")
        spi = spi - spi % 4 + case["epoch_number"] % 4
        counter += 1
    taken.add(spi)
    cipher, mac = KEY_LENGTHS[case["suite"]]
    parts = info(f"idpmike v1 {label} sa key".encode(), *context)
    material = hkdf_expand(group_key, parts, cipher + mac)
    return {
        "spi": spi,
        "encryption": material[:cipher].hex(),
        "authentication": material[cipher:].hex(),
    }


def complete(case: dict[str, Any]) -> dict[str, Any]:
    """Add what must come out."""
    context = [
        case["suite"].encode(),
        case["epoch_number"].to_bytes(8, "big"),
        bytes.fromhex(case["epoch_tag"]),
        IPv6Address(case["group"]).packed,
    ]
    taken: set[int] = set()
    case["senders"] = [
        derive("sender", [*context, IPv6Address(member).packed], case, taken)
        for member in case["members"]
    ]
    if case["suite"] in ("aes-cbc-sha256", "3des-sha1"):
        case["shared"] = derive("shared", context, case, set())
    return case


CASES = [
    {
        "suite": suite,
        "group_key": hashlib.sha256(f"group key {number}".encode()).hexdigest(),
        "epoch_number": epoch,
        "epoch_tag": tag,
        "group": "ff0e::1",
        "members": [f"2001:db8:b::{index:x}" for index in range(1, count + 1)],
    }
    for number, (suite, epoch, tag, count) in enumerate(
        [
            ("aes-gcm-128", 1, "0001020304050607", 2),
            ("aes-gcm-128", 2, "0001020304050607", 10),
            ("aes-gcm-256", (1 << 64) - 1, "", 3),
            ("aes-cbc-sha256", 7, "ffffffffffffffff", 3),
            ("3des-sha1", 0, "00", 3),
        ]
    )
]

if __name__ == "__main__":
    json.dump([complete(case) for case in CASES], sys.stdout, indent=1)
    print()
