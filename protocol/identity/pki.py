"""Makes the certificates of a coalition: one CA per nation, cross-trusted.

For testbeds, exercises and tests; `testbed pki` is its command line. Call::

    coalition = make_coalition(directory, [DeviceSpec("d1", "alpha", IPv6Address("2001:db8:b::1"))])
    coalition.files("d1").certificate      # the paths for d1's TOML file

Layout::

    DIRECTORY/authorities/NATION/ca.pem, ca.key (0600), crl.pem
    DIRECTORY/devices/NAME/device.pem, device.key (0600), local.secret (0600),
                           anchors/NATION.pem, peers/NAME.pem, crl/NATION.pem

Keys and serial numbers come from the operating system, so two runs never make the same. Directories
are built beside their place and renamed into it: an interrupted run leaves nothing half-made.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from protocol.core.errors import LocalError
from protocol.identity import addressblocks
from protocol.identity.certificates import IdentityFiles
from protocol.identity.files import SECRET_LENGTH, read_file, read_private
from protocol.identity.profile import GATEWAY_UNIT
from protocol.ipsec.model import Prefix

VALID_DAYS = 365

BACKDATE = timedelta(hours=1)
"""Certificates begin in the past, so that a device whose clock is behind accepts them."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A device to be certified.

    Attributes:
        name: common name and directory name.
        nation: organisation; its CA signs.
        address: black address.
        gateway: whether it is a leg of an IDP security gateway (docs/gateways.md).
        prefixes: red prefixes that it may announce.
    """

    name: str
    nation: str
    address: IPv6Address
    gateway: bool = False
    prefixes: tuple[Prefix, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceFiles:
    """Where a device's files are.

    Attributes:
        directory: holds all of them.
    """

    directory: Path

    @property
    def certificate(self) -> Path:
        """The device certificate."""
        return self.directory / "device.pem"

    @property
    def key(self) -> Path:
        """The private key, mode 0600."""
        return self.directory / "device.key"

    @property
    def anchors(self) -> Path:
        """Directory of nation CA certificates."""
        return self.directory / "anchors"

    @property
    def peers(self) -> Path:
        """Directory of all devices' certificates."""
        return self.directory / "peers"

    @property
    def revocations(self) -> Path:
        """Directory of CRLs."""
        return self.directory / "crl"

    @property
    def local_secret(self) -> Path:
        """The secret of the local interface, mode 0600."""
        return self.directory / "local.secret"

    def identity_files(self) -> IdentityFiles:
        """Return what `load_identity` wants."""
        return IdentityFiles(self.certificate, self.key, self.anchors, self.peers, self.revocations)


class Authority:
    """One nation's CA.

    Attributes:
        nation: the organisation.
        name: common name, ``NATION CA``.
        certificate: self-signed.
    """

    def __init__(self, key: Ed25519PrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self.certificate = certificate
        self.nation = _text(certificate.subject, NameOID.ORGANIZATION_NAME)
        self.name = _text(certificate.subject, NameOID.COMMON_NAME)

    @classmethod
    def create(
        cls, nation: str, *, not_before: datetime | None = None, not_after: datetime | None = None
    ) -> Authority:
        """Make a CA that may sign device certificates only (path length 0)."""
        _check_name(nation, "nation")
        key = Ed25519PrivateKey.generate()
        subject = _name(f"{nation} CA", nation)
        builder = _builder(subject, subject, key.public_key(), not_before, not_after)
        builder = builder.add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        builder = builder.add_extension(_key_usage(authority=True), critical=True)
        return cls(key, builder.sign(key, None))

    @classmethod
    def read(cls, directory: Path) -> Authority:
        """Read a CA that `write` wrote."""
        key = load_pem_private_key(read_private(directory / "ca.key"), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise LocalError(f"{directory / 'ca.key'}: not an Ed25519 key")
        return cls(key, x509.load_pem_x509_certificate(read_file(directory / "ca.pem")))

    def write(self, directory: Path) -> None:
        """Write ``ca.pem``, ``ca.key`` and an empty ``crl.pem``."""
        directory.mkdir(parents=True, mode=0o700)
        write_file(directory / "ca.pem", self.certificate.public_bytes(Encoding.PEM))
        write_file(directory / "ca.key", key_pem(self._key), private=True)
        write_file(directory / "crl.pem", self.revoke([]))

    def issue(
        self,
        spec: DeviceSpec,
        public_key: Ed25519PublicKey,
        *,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
    ) -> x509.Certificate:
        """Certify a device. The nation is not checked: tests need a CA that oversteps."""
        _check_name(spec.name, "device")
        subject = _name(spec.name, spec.nation, *((GATEWAY_UNIT,) if spec.gateway else ()))
        issuer = self.certificate.subject
        builder = _builder(subject, issuer, public_key, not_before, not_after)
        ca_key = self._key.public_key()
        for extension, critical in (
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_key_usage(authority=False), True),
            (x509.SubjectAlternativeName([x509.IPAddress(spec.address)]), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key), False),
        ):
            builder = builder.add_extension(extension, critical=critical)
        if spec.prefixes:
            oid = x509.ObjectIdentifier(addressblocks.OID)
            blocks = x509.UnrecognizedExtension(oid, addressblocks.encode(spec.prefixes))
            builder = builder.add_extension(blocks, critical=True)
        return builder.sign(self._key, None)

    def certify_signer(
        self,
        public_key: Ed25519PublicKey,
        purpose: x509.ObjectIdentifier,
        not_before: datetime,
        not_after: datetime,
    ) -> x509.Certificate:
        """Certify a key that signs for one purpose only (`protocol.identity.signed`)."""
        subject = _name(f"{self.nation} signer", self.nation)
        issuer = self.certificate.subject
        builder = _builder(subject, issuer, public_key, not_before, not_after)
        for extension, critical in (
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_key_usage(authority=False), True),
            (x509.ExtendedKeyUsage([purpose]), True),
        ):
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self._key, None)

    def revoke(
        self,
        certificates: Iterable[x509.Certificate],
        *,
        on: datetime | None = None,
        previous: x509.CertificateRevocationList | None = None,
    ) -> bytes:
        """Return a PEM CRL of these certificates and those of a previous CRL, numbered after it."""
        now = datetime.now(tz=UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now)
            .next_update(now + timedelta(days=VALID_DAYS))
            .add_extension(x509.CRLNumber(_number_after(previous)), critical=False)
        )
        dates = (
            {} if previous is None else {e.serial_number: e.revocation_date_utc for e in previous}
        )
        for certificate in certificates:
            dates.setdefault(certificate.serial_number, on or now)
        for serial, date in dates.items():
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(date)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self._key, None).public_bytes(Encoding.PEM)


def _number_after(previous: x509.CertificateRevocationList | None) -> int:
    """Return the CRL number (RFC 5280 section 5.2.3) that follows a CRL's."""
    if previous is None:
        return 1
    try:
        return previous.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number + 1
    except x509.ExtensionNotFound:
        return 1


class Coalition:
    """The certificates of a coalition in a directory.

    Attributes:
        directory: as given to `make_coalition`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def files(self, name: str) -> DeviceFiles:
        """Return where a device's files are."""
        return DeviceFiles(self.directory / "devices" / name)

    def devices(self) -> list[str]:
        """Return the names of all devices, sorted."""
        return sorted(path.name for path in (self.directory / "devices").iterdir())

    def nations(self) -> list[str]:
        """Return the names of all nations, sorted."""
        return sorted(path.name for path in (self.directory / "authorities").iterdir())

    def authority(self, nation: str) -> Authority:
        """Return a nation's CA."""
        return Authority.read(self.directory / "authorities" / nation)

    def certificate(self, name: str) -> x509.Certificate:
        """Return a device's certificate."""
        return x509.load_pem_x509_certificate(read_file(self.files(name).certificate))

    def reissue(
        self,
        spec: DeviceSpec,
        *,
        authority: Authority | None = None,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
    ) -> None:
        """Give a device a new key and certificate, and all devices the new certificate.

        With ``not_after`` in the past, an ``authority`` outside the coalition or another address it
        makes the bad certificates that tests need.
        """
        issuer = authority or self.authority(spec.nation)
        key = Ed25519PrivateKey.generate()
        certificate = issuer.issue(
            spec, key.public_key(), not_before=not_before, not_after=not_after
        )
        pem = certificate.public_bytes(Encoding.PEM)
        files = self.files(spec.name)
        write_file(files.key, key_pem(key), private=True)
        write_file(files.certificate, pem)
        for name in self.devices():
            write_file(self.files(name).peers / f"{spec.name}.pem", pem)

    def revoke(
        self,
        names: Sequence[str],
        *,
        on: datetime | None = None,
        receivers: Sequence[str] | None = None,
    ) -> None:
        """Revoke devices' certificates in their nations' CRLs.

        Args:
            names: of the devices.
            on: since when; now if None.
            receivers: the devices that get the CRLs, all if None. A running device hands a new
                list on to the others (`idpd trust reload`), so that one receiver is enough.
        """
        by_nation: dict[str, list[x509.Certificate]] = {}
        for name in names:
            certificate = self.certificate(name)
            nation = _text(certificate.issuer, NameOID.ORGANIZATION_NAME)
            by_nation.setdefault(nation, []).append(certificate)
        for nation, certificates in by_nation.items():
            path = self.directory / "authorities" / nation / "crl.pem"
            previous = x509.load_pem_x509_crl(read_file(path))
            pem = self.authority(nation).revoke(certificates, on=on, previous=previous)
            write_file(path, pem)
            for name in self.devices() if receivers is None else receivers:
                write_file(self.files(name).revocations / f"{nation}.pem", pem)


def make_coalition(
    directory: Path, devices: Sequence[DeviceSpec], *, valid_days: int = VALID_DAYS
) -> Coalition:
    """Make the certificates of all devices in a directory that does not exist yet (or is empty).

    Raises:
        LocalError: a name or address is used twice, a name cannot be a file's, no device is given,
            or the directory holds something.
    """
    _check_devices(devices)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise LocalError(f"{directory}: exists already; nothing was changed")
    not_after = datetime.now(tz=UTC) + timedelta(days=valid_days)
    building = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        building.mkdir(mode=0o700)
        _build(building, devices, not_after)
        building.rename(directory)
    except OSError as error:
        raise LocalError(f"{directory}: {error.strerror}") from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return Coalition(directory)


def _build(directory: Path, devices: Sequence[DeviceSpec], not_after: datetime) -> None:
    """Fill the new directory."""
    nations = list(dict.fromkeys(device.nation for device in devices))
    shared: dict[str, dict[str, bytes]] = {"anchors": {}, "peers": {}, "crl": {}}
    authorities: dict[str, Authority] = {}
    for nation in nations:
        authority = Authority.create(nation, not_after=not_after)
        authority.write(directory / "authorities" / nation)
        authorities[nation] = authority
        shared["anchors"][nation] = authority.certificate.public_bytes(Encoding.PEM)
        shared["crl"][nation] = read_file(directory / "authorities" / nation / "crl.pem")
    for spec in devices:
        files = DeviceFiles(directory / "devices" / spec.name)
        files.directory.mkdir(parents=True, mode=0o700)
        key = Ed25519PrivateKey.generate()
        certificate = authorities[spec.nation].issue(spec, key.public_key(), not_after=not_after)
        shared["peers"][spec.name] = certificate.public_bytes(Encoding.PEM)
        write_file(files.certificate, shared["peers"][spec.name])
        write_file(files.key, key_pem(key), private=True)
        write_file(
            files.local_secret, secrets.token_hex(SECRET_LENGTH).encode() + b"\n", private=True
        )
    for spec in devices:
        for folder, contents in shared.items():
            target = directory / "devices" / spec.name / folder
            target.mkdir()
            for name, pem in contents.items():
                write_file(target / f"{name}.pem", pem)


def _check_devices(devices: Sequence[DeviceSpec]) -> None:
    """Refuse what would overwrite or confuse."""
    if not devices:
        raise LocalError("no device to certify")
    names: set[str] = set()
    addresses: set[IPv6Address] = set()
    for spec in devices:
        _check_name(spec.name, "device")
        _check_name(spec.nation, "nation")
        if spec.name in names:
            raise LocalError(f"device '{spec.name}' is given twice")
        if spec.address in addresses:
            raise LocalError(f"address {spec.address} is given twice")
        names.add(spec.name)
        addresses.add(spec.address)


def _check_name(name: str, what: str) -> None:
    """Refuse a name that cannot safely be a file's."""
    if _NAME.fullmatch(name) is None:
        raise LocalError(f"{what} name {name!r}: letters, digits, '.', '_', '-' only, at most 63")


def _name(common_name: str, nation: str, *units: str) -> x509.Name:
    """Return the subject: nation as organisation, organisational units, then the name."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, nation),
            *(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit) for unit in units),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _text(name: x509.Name, oid: x509.ObjectIdentifier) -> str:
    """Return an attribute of a certificate that we made."""
    return str(name.get_attributes_for_oid(oid)[0].value)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: Ed25519PublicKey,
    not_before: datetime | None,
    not_after: datetime | None,
) -> x509.CertificateBuilder:
    """Start a certificate; what CAs and devices share."""
    now = datetime.now(tz=UTC)
    end = not_after or now + timedelta(days=VALID_DAYS)
    start = not_before or min(now, end) - BACKDATE
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    """Return the key usage: a CA signs certificates and CRLs, a device signs messages."""
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def key_pem(key: Ed25519PrivateKey) -> bytes:
    """Return a private key as unencrypted PKCS #8; the file's mode protects it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def write_file(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write a file in one step, a private one never readable by others, not for an instant."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    mode = 0o600 if private else 0o644
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
