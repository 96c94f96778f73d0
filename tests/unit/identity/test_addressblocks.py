"""RFC 3779 address blocks: our codec beside OpenSSL's words, and what is refused."""

from __future__ import annotations

import subprocess
from ipaddress import IPv6Address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.core.errors import LocalError
from protocol.identity import addressblocks
from protocol.identity.certificates import load_identity
from protocol.identity.pki import DeviceSpec, make_coalition
from protocol.ipsec.model import Prefix

PREFIXES = tuple(map(ip_network, ("10.1.0.0/16", "fd00:1::/64", "fd00:7:8::/45")))
D1 = DeviceSpec("d1", "alpha", IPv6Address("2001:db8:b::1"), prefixes=PREFIXES)


def test_example_of_the_rfc() -> None:
    """Two prefixes of the first example in RFC 3779 appendix B."""
    value = addressblocks.encode(map(ip_network, ("10.0.32.0/20", "10.0.64.0/24")))
    assert value.hex() == "3014" + "3012" + "04020001" + "300c" + "0304040a0020" + "0304000a0040"
    assert addressblocks.decode(value) == tuple(map(ip_network, ("10.0.32.0/20", "10.0.64.0/24")))


def test_openssl_reads_a_device_certificate_the_same_way(tmp_path: Path) -> None:
    coalition = make_coalition(tmp_path / "pki", [D1])
    path = coalition.files("d1").certificate
    words = ["openssl", "x509", "-in", str(path), "-noout", "-text"]
    text = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    assert "sbgp-ipAddrBlock: critical" in text
    for line in ("10.1.0.0/16", "fd00:1::/64", "fd00:7:8::/45"):
        assert line in text, text


def test_prefixes_reach_the_peer(tmp_path: Path) -> None:
    d2 = DeviceSpec("d2", "beta", IPv6Address("2001:db8:b::2"))
    coalition = make_coalition(tmp_path / "pki", [D1, d2])
    identity, notices = load_identity(coalition.files("d2").identity_files())
    assert notices == []
    assert [peer.prefixes for peer in identity.trusted_peers()] == [PREFIXES]
    assert identity.me.prefixes == ()


def test_adjacent_blocks_are_joined_and_the_number_is_bounded() -> None:
    halves = map(ip_network, ("fd00::/65", "fd00::8000:0:0:0/65"))
    assert addressblocks.decode(addressblocks.encode(halves)) == (ip_network("fd00::/64"),)
    many = [ip_network(f"10.{i}.0.0/24") for i in range(addressblocks.BLOCKS_MAX + 1)]
    for bad in ([], many):
        with pytest.raises(LocalError, match="authorises 1 to 64"):
            addressblocks.encode(bad)


@given(st.binary(max_size=60))
def test_rubbish_is_refused(value: bytes) -> None:
    try:
        found = addressblocks.decode(value)
    except (ValueError, LocalError):
        return
    assert addressblocks.encode(found) == value


@given(st.data())
def test_damage_is_refused_or_something_else(data: st.DataObject) -> None:
    good = bytearray(addressblocks.encode(PREFIXES))
    place = data.draw(st.integers(0, len(good) - 1))
    good[place] = data.draw(st.integers(0, 255))
    try:
        found: tuple[Prefix, ...] = addressblocks.decode(bytes(good))
    except (ValueError, LocalError):
        return
    assert addressblocks.encode(found) == bytes(good)


def test_blocks_without_any_prefix_are_malformed() -> None:
    """Found by fuzzing: `encode` refused them with another error, which ended the reader."""
    for value in (b"\x30\x00", b"\x30\x06\x30\x04\x04\x00\x30\x00"):
        with pytest.raises(ValueError, match=r"canonical|family"):
            addressblocks.decode(value)
