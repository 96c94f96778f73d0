"""The witness: tshark decrypts with the right key, and with no other; keys stay out of sight.

The ESP packets are made by hand with the ``cryptography`` library (RFC 4303, 4106, 3602, 4868).
"""

from __future__ import annotations

import hashlib
import hmac
import stat
import struct
from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

from protocol.ipsec.model import SUITES, KeyMaterial, SecurityAssociation, Suite
from testbed.dissector import DissectorError
from testbed.pcap import CapturedFrame, write_frames
from testbed.witness import EspFlow, decrypt_count, key_lines, write_keys
from tests.support import frames as f

B1, B2 = IPv6Address(f.B1), IPv6Address(f.B2)
GROUP = IPv6Address(f.ESP_GROUP)
IV = bytes(range(16))


def association(
    spi: int, seed: int = 1, source: IPv6Address = B1, suite: Suite = Suite.AES_GCM_128
) -> SecurityAssociation:
    sizes = SUITES[suite]
    length = sizes.encryption_key_length + sizes.authentication_key_length
    material = hashlib.shake_256(bytes([seed])).digest(length)
    key = KeyMaterial(
        material[: sizes.encryption_key_length], material[sizes.encryption_key_length :]
    )
    return SecurityAssociation(source, GROUP, spi, suite, key)


def sealed(sa: SecurityAssociation, sequence: int, inner: bytes, following: int = 41) -> bytes:
    """An ESP packet in tunnel mode, as a frame."""
    head = struct.pack("!II", sa.spi, sequence)
    block = 16 if sa.suite is Suite.AES_CBC_SHA256 else 4
    pad = -(len(inner) + 2) % block
    plain = inner + bytes(range(1, pad + 1)) + bytes((pad, following))
    if sa.suite is Suite.AES_CBC_SHA256:
        encryptor = Cipher(AES(sa.key.encryption), CBC(IV)).encryptor()
        body = head + IV + encryptor.update(plain) + encryptor.finalize()
        esp = body + hmac.new(sa.key.authentication, body, "sha256").digest()[:16]
    else:
        key, salt = sa.key.encryption[:-4], sa.key.encryption[-4:]
        iv = struct.pack("!Q", sequence)
        esp = head + iv + AESGCM(key).encrypt(salt + iv, plain, head)
    return f.ethernet(f.ipv6(f.ESP, esp, str(sa.source), f.ESP_GROUP))


def red(sequence: int) -> bytes:
    payload = f"packet {sequence}".encode()
    return f.ipv6(f.UDP, f.udp(5000, 5000, payload), f.RED1, f.RED_GROUP)


def capture(path: Path, *frames: bytes) -> Path:
    write_frames(path, [CapturedFrame(i * 10**6, data) for i, data in enumerate(frames)])
    return path


@pytest.mark.parametrize("suite", [Suite.AES_GCM_128, Suite.AES_GCM_256, Suite.AES_CBC_SHA256])
def test_the_right_key_decrypts_and_no_other(tmp_path: Path, suite: Suite) -> None:
    sa = association(0x1234, suite=suite)
    frames = [sealed(sa, number, red(number)) for number in range(1, 6)]
    pcap = capture(tmp_path / "x.pcap", *frames, *frames[:2])  # two of them on a second link
    flow = EspFlow(f.B1, 0x1234)
    counted = decrypt_count(pcap, [sa])
    assert list(counted) == [flow]
    assert (counted[flow].packets, counted[flow].decrypted) == (5, 5)
    assert counted[flow].inner == {(f.RED1, f.RED_GROUP): 5}
    for wrong in (
        replace(sa, key=association(1, seed=2, suite=suite).key),  # another epoch's key
        replace(sa, spi=0x1238),
        replace(sa, source=B2),  # another sender's SA
    ):
        found = decrypt_count(pcap, [wrong])[flow]
        assert (found.packets, found.decrypted, found.inner) == (5, 0, {})


def test_senders_and_epochs_are_told_apart(tmp_path: Path) -> None:
    old, new = association(0x100, 1), association(0x201, 2)
    other = association(0x301, 3, source=B2)
    inner4 = f.ipv4(f.UDP, f.udp(1, 2, b"four"), "10.1.1.1", "239.1.1.1")
    pcap = capture(
        tmp_path / "x.pcap",
        sealed(old, 1, red(1)),
        sealed(new, 1, red(2)),
        sealed(new, 2, red(3)),
        sealed(other, 1, inner4, following=4),
        f.ethernet(f.register(sealed(new, 3, red(4))[14:])),  # a copy on its way to the RP
    )
    counted = decrypt_count(pcap, [old, other])
    assert {flow: (c.packets, c.decrypted) for flow, c in counted.items()} == {
        EspFlow(f.B1, 0x100): (1, 1),
        EspFlow(f.B1, 0x201): (2, 0),
        EspFlow(f.B2, 0x301): (1, 1),
    }
    assert counted[EspFlow(f.B2, 0x301)].inner == {("10.1.1.1", "239.1.1.1"): 1}


def test_an_sa_that_all_senders_share_fits_any_source(tmp_path: Path) -> None:
    shared = [association(0x100, suite=Suite.AES_CBC_SHA256, source=one) for one in (B1, B2)]
    (line,) = key_lines(shared)
    assert line.startswith('"IPv6","*","ff0e::1","0x00000100","AES-CBC [RFC3602]","0x')
    pcap = capture(tmp_path / "x.pcap", *(sealed(sa, 1, red(1)) for sa in shared))
    assert [count.decrypted for count in decrypt_count(pcap, shared).values()] == [1, 1]


def test_the_key_file_is_for_its_owner_only(tmp_path: Path) -> None:
    (tmp_path / "esp_sa").write_text("old\n" * 100)
    (tmp_path / "esp_sa").chmod(0o666)
    path = write_keys(tmp_path, [association(0x100), association(0x100), association(0x200)])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_text().splitlines()) == 2
    assert association(0x100).key.encryption.hex() in path.read_text()


def test_keys_are_no_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody may read the arguments of a process; a stand-in for tshark prints its own."""
    fake = tmp_path / "tshark"
    fake.write_text('#!/bin/sh\necho "$@" >&2\nexit 3\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    sa = association(0x100)
    with pytest.raises(DissectorError, match="tshark ended with 3: ") as caught:
        decrypt_count(capture(tmp_path / "x.pcap", sealed(sa, 1, red(1))), [sa])
    assert "esp.enable_encryption_decode" in str(caught.value)
    assert sa.key.encryption.hex()[:8] not in str(caught.value)


def test_no_tshark_is_said_with_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DissectorError, match="tshark is not installed; run 'make setup'"):
        decrypt_count(tmp_path / "x.pcap", [])
