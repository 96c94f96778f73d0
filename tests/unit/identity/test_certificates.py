"""Certificates from files: the chain, the profile, revocation, and the reasons in plain words."""

from __future__ import annotations

import base64
import os
import shutil
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.core.engine import Instant
from protocol.core.errors import LocalError
from protocol.identity import PROTOCOL_IDP, Identity, RefusedError
from protocol.identity.certificates import (
    load_anchors,
    load_devices,
    load_identity,
    load_revocations,
    reload_trust,
)
from protocol.identity.pki import Authority, Coalition, DeviceSpec, make_coalition

WALL = int(datetime.now(tz=UTC).timestamp()) * 10**9
NOW = Instant(0, WALL)
D1 = DeviceSpec("d1", "alpha", IPv6Address("2001:db8:b::1"))
D2 = DeviceSpec("d2", "beta", IPv6Address("2001:db8:b::2"))
D3 = DeviceSpec("d3", "beta", IPv6Address("2001:db8:b::3"))
PAST = datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pki") / "coalition"
    make_coalition(directory, [D1, D2, D3])
    return directory


@pytest.fixture
def coalition(pristine: Path, tmp_path: Path) -> Coalition:
    shutil.copytree(pristine, tmp_path / "coalition")
    return Coalition(tmp_path / "coalition")


def identity(coalition: Coalition, name: str) -> Identity:
    loaded, notices = load_identity(coalition.files(name).identity_files(), wall_ns=WALL)
    assert notices == []
    loaded.begin(WALL)
    return loaded


def exchange(
    coalition: Coalition, sender: str = "d2", receiver: str = "d1", now: Instant = NOW
) -> None:
    """The sender's message reaches the receiver; raises what `open` raises."""
    source = identity(coalition, sender)
    datagram = source.seal(PROTOCOL_IDP, 1, b"hello", now)
    target = identity(coalition, receiver)
    opened = target.open(datagram, PROTOCOL_IDP, source.me.address, now)
    assert opened is not None
    assert opened.peer == source.me


def reason(coalition: Coalition, rule: str, now: Instant = NOW) -> str:
    with pytest.raises(RefusedError) as error:
        exchange(coalition, now=now)
    assert error.value.rule == rule
    return error.value.reason


def test_devices_of_two_nations_trust_each_other(coalition: Coalition) -> None:
    exchange(coalition, "d2", "d1")
    exchange(coalition, "d1", "d2")
    exchange(coalition, "d3", "d2")
    peers = identity(coalition, "d1").trusted_peers(NOW)
    assert [(p.name, p.nation, p.address) for p in peers] == [
        ("d2", "beta", D2.address),
        ("d3", "beta", D3.address),
    ]


def test_expired_certificate(coalition: Coalition) -> None:
    coalition.reissue(D2, not_after=PAST)
    assert reason(coalition, "AUTH-6") == "certificate expired on 2020-01-02 03:04:05 UTC"
    assert "expired on 2020" in str(identity(coalition, "d2").own_problem(NOW))


def test_certificate_of_the_future(coalition: Coalition) -> None:
    coalition.reissue(D2, not_before=datetime.now(tz=UTC) + timedelta(days=1))
    assert "certificate not valid before" in reason(coalition, "AUTH-6")


def test_expired_authority(coalition: Coalition) -> None:
    later = Instant(0, WALL + 400 * 86400 * 10**9)
    coalition.reissue(D2, not_after=datetime.now(tz=UTC) + timedelta(days=1000))
    assert "certificate of 'beta CA' expired on" in reason(coalition, "AUTH-6", later)


def test_foreign_authority(coalition: Coalition) -> None:
    coalition.reissue(D2, authority=Authority.create("delta"))
    assert (
        reason(coalition, "AUTH-5") == "issued by 'delta CA' which is not among the trust anchors"
    )


def test_forged_authority_of_the_same_name(coalition: Coalition) -> None:
    coalition.reissue(D2, authority=Authority.create("beta"))
    assert reason(coalition, "AUTH-5") == "not signed by the 'beta CA' we trust"


def test_authority_that_speaks_for_another_nation(coalition: Coalition) -> None:
    coalition.reissue(D2, authority=coalition.authority("alpha"))
    assert (
        reason(coalition, "AUTH-5") == "issued by 'alpha CA' which cannot vouch for nation 'beta'"
    )


def test_revoked_certificate(coalition: Coalition) -> None:
    coalition.revoke(["d3"])
    exchange(coalition)
    coalition.revoke(["d2"], on=PAST)
    assert reason(coalition, "AUTH-7") == "revoked by 'beta CA' on 2020-01-02 03:04:05 UTC"
    with pytest.raises(RefusedError, match="revoked by 'beta CA'"):
        exchange(coalition, "d3")
    exchange(coalition, "d1", "d2")


def test_revocation_while_running(coalition: Coalition) -> None:
    receiver, sender = identity(coalition, "d1"), identity(coalition, "d2")
    first, second = (sender.seal(PROTOCOL_IDP, 1, b"", NOW) for _ in range(2))
    assert receiver.open(first, PROTOCOL_IDP, D2.address, NOW) is not None
    coalition.revoke(["d2"])
    assert reload_trust(receiver, coalition.files("d1").identity_files()) == []
    with pytest.raises(RefusedError, match="AUTH-7"):
        receiver.open(second, PROTOCOL_IDP, D2.address, NOW)


def test_certificate_that_was_never_deployed(coalition: Coalition) -> None:
    (coalition.files("d1").peers / "d2.pem").unlink()
    assert reason(coalition, "AUTH-4").startswith("unknown certificate ")


def test_wrong_address_in_the_certificate(coalition: Coalition) -> None:
    wrong = DeviceSpec("d2", "beta", IPv6Address("2001:db8:b::99"))
    coalition.reissue(wrong)
    source = identity(coalition, "d2")
    datagram = source.seal(PROTOCOL_IDP, 1, b"", NOW)
    with pytest.raises(RefusedError, match="its certificate is for 2001:db8:b::99") as error:
        identity(coalition, "d1").open(datagram, PROTOCOL_IDP, D2.address, NOW)
    assert error.value.rule == "AUTH-8"
    with pytest.raises(LocalError, match="certificate is for 2001:db8:b::99"):
        load_identity(coalition.files("d2").identity_files(), D2.address)


def test_key_file_must_be_private_and_ours(coalition: Coalition) -> None:
    files = coalition.files("d1")
    for mode in (0o644, 0o640, 0o660, 0o700):
        files.key.chmod(mode)
        with pytest.raises(LocalError, match=f"device.key: mode {mode:04o}, must be 0600"):
            load_identity(files.identity_files())
    files.key.chmod(0o400)
    load_identity(files.identity_files())
    if os.geteuid() == 0:
        os.chown(files.key, 12345, 0)
        with pytest.raises(LocalError, match="belongs to user 12345"):
            load_identity(files.identity_files())


def test_key_of_another_certificate_or_kind(coalition: Coalition) -> None:
    files = coalition.files("d1")
    shutil.copy(coalition.files("d2").key, files.key)
    with pytest.raises(LocalError, match="not the key of the certificate"):
        load_identity(files.identity_files())
    other = ec.generate_private_key(ec.SECP256R1())
    files.key.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(LocalError, match="not an Ed25519 key"):
        load_identity(files.identity_files())
    files.key.write_bytes(b"-----BEGIN SECRET STUFF-----")
    with pytest.raises(LocalError) as error:
        load_identity(files.identity_files())
    assert "SECRET" not in str(error.value)


def test_malformed_files_of_others_are_left_out_with_a_notice(coalition: Coalition) -> None:
    files = coalition.files("d1")
    (files.peers / "d2.pem").write_text("not a certificate")
    (files.peers / "notes.txt").write_text("ignored")
    loaded, notices = load_identity(files.identity_files())
    assert [peer.name for peer in loaded.trusted_peers()] == ["d3"]
    assert len(notices) == 1
    assert "d2.pem: no PEM certificate" in notices[0]


def test_malformed_trust_of_our_own_stops_us(coalition: Coalition, tmp_path: Path) -> None:
    files = coalition.files("d1")
    crl = files.revocations / "beta.pem"
    good = crl.read_bytes()
    crl.write_bytes(b"junk")
    with pytest.raises(LocalError, match="not a well-formed PEM CRL"):
        load_identity(files.identity_files())
    crl.write_bytes(Authority.create("beta").revoke([]))
    with pytest.raises(LocalError, match="CRL is not signed by 'beta CA'"):
        load_identity(files.identity_files())
    crl.write_bytes(Authority.create("delta").revoke([]))
    _, notices = load_identity(files.identity_files())
    assert "issuer 'delta CA' is not among the trust anchors" in notices[0]
    crl.write_bytes(good)
    _, notices = load_identity(files.identity_files(), wall_ns=WALL + 400 * 86400 * 10**9)
    assert "CRL of 'beta CA' is overdue since" in "".join(notices)
    shutil.copy(files.certificate, files.anchors / "device.pem")
    with pytest.raises(LocalError, match="is not a CA's"):
        load_anchors(files.anchors)
    with pytest.raises(LocalError, match="no trust anchor"):
        load_anchors(tmp_path / "coalition" / "devices")
    with pytest.raises(LocalError, match="No such file"):
        load_anchors(tmp_path / "nowhere")
    (files.anchors / "device.pem").unlink()
    files.certificate.unlink()
    with pytest.raises(LocalError, match=r"device\.pem: No such file"):
        load_identity(files.identity_files())


def custom(**changes: object) -> x509.Certificate:
    """A certificate of beta's CA with something out of our profile."""
    key = changes.get("key") or Ed25519PrivateKey.generate().public_key()
    now = datetime.now(tz=UTC)
    names = [x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "beta")]
    names += [x509.NameAttribute(x509.NameOID.COMMON_NAME, str(changes.get("name", "d9")))]
    builder = x509.CertificateBuilder().subject_name(x509.Name(names)).public_key(key)
    authority = changes["authority"]
    assert isinstance(authority, Authority)
    builder = builder.issuer_name(authority.certificate.subject).serial_number(77)
    builder = builder.not_valid_before(now).not_valid_after(now + timedelta(days=1))
    usage = {
        "content_commitment": False,
        "key_encipherment": False,
        "data_encipherment": False,
        "key_agreement": False,
        "key_cert_sign": False,
        "crl_sign": False,
        "encipher_only": False,
        "decipher_only": False,
    }
    for extension in (
        changes.get("constraints", x509.BasicConstraints(ca=False, path_length=None)),
        changes.get("usage", x509.KeyUsage(digital_signature=True, **usage)),
        changes.get("san", x509.SubjectAlternativeName([x509.IPAddress(D2.address)])),
        changes.get("extra"),
    ):
        if extension is not None:
            builder = builder.add_extension(extension, critical=True)
    return builder.sign(authority._key, None)


UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"x")
TWO = x509.SubjectAlternativeName([x509.IPAddress(D2.address), x509.IPAddress(D3.address)])
IPV4 = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("192.0.2.1"))])


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({}, None),
        ({"constraints": x509.BasicConstraints(ca=True, path_length=None)}, "is a CA's"),
        ({"constraints": None}, "lacks basicConstraints"),
        ({"usage": None}, "keyUsage"),
        ({"extra": UNKNOWN}, "unknown critical extension 1.2.3.4"),
    ],
)
def test_profile_of_device_certificates(
    coalition: Coalition, tmp_path: Path, changes: dict[str, object], refusal: str | None
) -> None:
    peers = tmp_path / "peers"
    peers.mkdir()
    certificate = custom(authority=coalition.authority("beta"), **changes)
    (peers / "x.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    devices, notices = load_devices(peers, load_anchors(coalition.files("d1").anchors))
    assert notices == []
    found = devices[0].known.refusal
    assert (found is None) if refusal is None else (found is not None and refusal in found[1])


@pytest.mark.parametrize(
    ("changes", "notice"),
    [
        ({"san": None}, "exactly one IPv6 address"),
        ({"san": TWO}, "exactly one IPv6 address"),
        ({"san": IPV4}, "exactly one IPv6 address"),
        ({"name": "bad\nname"}, "exactly one common name"),
        ({"key": ec.generate_private_key(ec.SECP256R1()).public_key()}, "Ed25519"),
    ],
)
def test_certificates_that_name_no_device_are_left_out(
    coalition: Coalition, tmp_path: Path, changes: dict[str, object], notice: str
) -> None:
    peers = tmp_path / "peers"
    peers.mkdir()
    certificate = custom(authority=coalition.authority("beta"), **changes)
    (peers / "x.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    devices, notices = load_devices(peers, load_anchors(coalition.files("d1").anchors))
    assert devices == []
    assert notice in notices[0]


def test_authority_of_another_key_kind_is_refused(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "RSA CA")])
    now = datetime.now(tz=UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1)
    builder = builder.public_key(key.public_key()).not_valid_before(now)
    certificate = builder.not_valid_after(now + timedelta(days=1)).sign(key, SHA256())
    (tmp_path / "ca.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    with pytest.raises(LocalError, match="does not hold an Ed25519 key"):
        load_anchors(tmp_path)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_certificate_never_becomes_a_trusted_device(
    data: st.DataObject, pristine: Path, tmp_path: Path
) -> None:
    source = Coalition(pristine)
    der = bytearray(source.certificate("d2").public_bytes(Encoding.DER))
    flip_a_bit(der, data)
    pem = x509_pem(bytes(der))
    peers = tmp_path / "peers"
    peers.mkdir(exist_ok=True)
    (peers / "x.pem").write_bytes(pem)
    devices, notices = load_devices(peers, load_anchors(source.files("d1").anchors))
    assert len(devices) + len(notices) == 1
    assert all(device.known.refusal is not None for device in devices)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_crl_stops_us(data: st.DataObject, pristine: Path, tmp_path: Path) -> None:
    files = Coalition(pristine).files("d1")
    pem = (files.revocations / "beta.pem").read_bytes()
    der = bytearray(x509.load_pem_x509_crl(pem).public_bytes(Encoding.DER))
    flip_a_bit(der, data)
    (tmp_path / "crl").mkdir(exist_ok=True)
    (tmp_path / "crl" / "beta.pem").write_bytes(x509_pem(bytes(der), "X509 CRL"))
    try:
        _, notices = load_revocations(tmp_path / "crl", load_anchors(files.anchors), WALL)
    except LocalError:
        return
    assert "left out" in notices[0], "only a CRL of an unknown issuer may be passed over"


def flip_a_bit(der: bytearray, data: st.DataObject) -> None:
    """Damage anything but the one byte that no signature covers and that changes nothing.

    It counts the unused bits of the BIT STRING that holds the 64 bytes of the signature.
    """
    bit = data.draw(st.integers(0, len(der) * 8 - 1).filter(lambda b: b // 8 != len(der) - 65))
    der[bit // 8] ^= 1 << bit % 8


def x509_pem(der: bytes, kind: str = "CERTIFICATE") -> bytes:
    """Wrap DER as PEM."""
    body = base64.encodebytes(der)
    marks = [f"-----{word} {kind}-----\n".encode() for word in ("BEGIN", "END")]
    return marks[0] + body + marks[1]
