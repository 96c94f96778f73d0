"""Device certificates, trust anchors and CRLs: read once at start-up, verified once each.

The chain is always nation CA to device (no intermediate CA). Whatever is wrong with another
device's certificate becomes the reason with which its messages are refused; whatever is wrong with
our own files is a `LocalError` of one line. Imported only where files are read, because X.509 is
dear to import.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv6Address
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtensionOID, NameOID, ObjectIdentifier

from protocol.core.errors import LocalError
from protocol.identity import addressblocks
from protocol.identity.envelope import FINGERPRINT_LENGTH
from protocol.identity.files import list_files, read_file, read_private
from protocol.identity.identity import (
    FRESHNESS_MS_DEFAULT,
    RULE_CHAIN,
    RULE_REVOKED,
    Identity,
    KnownDevice,
    Peer,
    ValidityWindow,
    describe_time,
)
from protocol.ipsec.model import Prefix

CERTIFICATE_SUFFIXES = (".pem", ".crt")
CRL_SUFFIXES = (".pem", ".crl")

NS_PER_S = 1_000_000_000

GATEWAY_UNIT = "gateway"
"""Organisational unit of a certificate whose holder may speak for other partitions: the mark is
the nation's CA's to give, not the holder's to claim."""

T = TypeVar("T", bound=x509.ExtensionType)

_UNDERSTOOD = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ObjectIdentifier(addressblocks.OID),
    }
)
"""Extensions we act upon; any other critical one is a reason to refuse (RFC 5280 section 4.2)."""


@dataclass(frozen=True, slots=True)
class IdentityFiles:
    """Where the files of an identity are: the ``[identity]`` table of a device's TOML file.

    Attributes:
        certificate: our device certificate.
        key: our private key, mode 0600.
        anchors: directory of nation CA certificates.
        peers: directory of pre-deployed device certificates.
        revocations: directory of CRLs, or None.
        freshness_ms: how far another device's clock may be from ours.
    """

    certificate: Path
    key: Path
    anchors: Path
    peers: Path
    revocations: Path | None = None
    freshness_ms: int = FRESHNESS_MS_DEFAULT


@dataclass(frozen=True, slots=True)
class Anchor:
    """One nation's CA, trusted because its certificate lies in the anchors directory.

    Attributes:
        name: common name.
        nation: organisation; the only nation it may speak for.
        certificate: the CA certificate.
        public_key: the CA's key.
    """

    name: str
    nation: str
    certificate: x509.Certificate
    public_key: Ed25519PublicKey


Revocations = dict[tuple[x509.Name, int], datetime]
"""When a certificate (issuer, serial number) was revoked."""


class _UnusableError(Exception):
    """A certificate that breaks our profile; the text completes "certificate ...".

    It never leaves this module.
    """


_MALFORMED = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What pyca raises on a malformed certificate or CRL: some when reading it, some when a field is
first looked at."""

_UNUSABLE = (_UnusableError, *_MALFORMED)


def fingerprint(certificate: x509.Certificate) -> bytes:
    """Return the truncated SHA-256 of the DER certificate, the name of a device on the wire."""
    der = certificate.public_bytes(Encoding.DER)
    return hashlib.sha256(der).digest()[:FINGERPRINT_LENGTH]


def load_identity(
    files: IdentityFiles, address: IPv6Address | None = None, wall_ns: int | None = None
) -> tuple[Identity, list[str]]:
    """Read everything an identity needs.

    An expired or revoked certificate of our own is not an error here: the others will refuse us
    and say why, and `Identity.own_problem` tells us.

    Args:
        files: where the files are.
        address: the configured black address, which must be the certificate's.
        wall_ns: UTC now, for the notice that a CRL is overdue.

    Returns:
        The identity, and notices for the log: certificates and CRLs that were left out, and why.

    Raises:
        LocalError: a file is missing, unreadable, malformed, or too open.
    """
    anchors = load_anchors(files.anchors)
    revocations, notices = load_revocations(files.revocations, anchors, wall_ns)
    devices, left_out = load_devices(files.peers, anchors, revocations)
    notices += left_out
    certificate = _one_certificate(files.certificate)
    try:
        own = inspect_device(certificate, anchors, revocations)
    except _UNUSABLE as error:
        raise LocalError(f"{files.certificate}: certificate {error}") from None
    signing_key = _private_key(files.key)
    if signing_key.public_key() != own.verify_key:
        raise LocalError(f"{files.key}: not the key of the certificate {files.certificate}")
    if address is not None and own.peer.address != address:
        raise LocalError(
            f"{files.certificate}: certificate is for {own.peer.address}, "
            f"the device's address is {address}"
        )
    return Identity(own, signing_key, devices, freshness_ms=files.freshness_ms), notices


def load_trust(files: IdentityFiles, wall_ns: int | None = None) -> list[KnownDevice]:
    """Read anchors, CRLs and device certificates again, for `Identity.trust`."""
    anchors = load_anchors(files.anchors)
    revocations, _ = load_revocations(files.revocations, anchors, wall_ns)
    return load_devices(files.peers, anchors, revocations)[0]


def load_anchors(directory: Path) -> list[Anchor]:
    """Read the nation CAs; at least one."""
    anchors: list[Anchor] = []
    for path in list_files(directory, CERTIFICATE_SUFFIXES):
        for certificate in _certificates(path):
            try:
                anchors.append(inspect_anchor(certificate))
            except _UNUSABLE as error:
                raise LocalError(f"{path}: certificate {error}") from None
    if not anchors:
        raise LocalError(f"{directory}: no trust anchor")
    return anchors


def load_devices(
    directory: Path, anchors: Sequence[Anchor], revocations: Revocations
) -> tuple[list[KnownDevice], list[str]]:
    """Read the pre-deployed device certificates; those outside our profile become notices."""
    devices: list[KnownDevice] = []
    notices: list[str] = []
    for path in list_files(directory, CERTIFICATE_SUFFIXES):
        try:
            certificates = _certificates(path)
        except LocalError as error:
            notices.append(f"left out {error}")
            continue
        for certificate in certificates:
            try:
                devices.append(inspect_device(certificate, anchors, revocations))
            except _UNUSABLE as error:
                notices.append(f"left out {path}: certificate {error}")
    return devices, notices


def load_revocations(
    directory: Path | None, anchors: Sequence[Anchor], wall_ns: int | None = None
) -> tuple[Revocations, list[str]]:
    """Read the CRLs; one whose issuer is a trust anchor must carry its valid signature."""
    revocations: Revocations = {}
    notices: list[str] = []
    if directory is None:
        return revocations, notices
    for path in list_files(directory, CRL_SUFFIXES):
        try:
            crl = x509.load_pem_x509_crl(read_file(path))
            notices += _add_revocations(path, crl, anchors, wall_ns, revocations)
        except _MALFORMED:
            raise LocalError(f"{path}: not a well-formed PEM CRL") from None
    return revocations, notices


def _add_revocations(
    path: Path,
    crl: x509.CertificateRevocationList,
    anchors: Sequence[Anchor],
    wall_ns: int | None,
    revocations: Revocations,
) -> list[str]:
    """Add what one CRL revokes; return notices about it."""
    issuers = [a for a in anchors if a.certificate.subject == crl.issuer]
    if not issuers:
        name = _attribute(crl.issuer, NameOID.COMMON_NAME) or "?"
        return [f"left out {path}: issuer '{name}' is not among the trust anchors"]
    if not any(_is_signed_by(crl, anchor) for anchor in issuers):
        raise LocalError(f"{path}: CRL is not signed by '{issuers[0].name}'")
    for entry in crl:
        revocations[crl.issuer, entry.serial_number] = entry.revocation_date_utc
    overdue = crl.next_update_utc
    if wall_ns is None or overdue is None or wall_ns <= _to_ns(overdue):
        return []
    since = describe_time(_to_ns(overdue))
    return [f"CRL of '{issuers[0].name}' is overdue since {since}; it still counts"]


def inspect_anchor(certificate: x509.Certificate) -> Anchor:
    """Check a nation CA against our profile."""
    key = _ed25519_key(certificate)
    extensions = _extensions(certificate)
    constraints = _extension(extensions, x509.BasicConstraints)
    usage = _extension(extensions, x509.KeyUsage)
    if constraints is None or not constraints.ca:
        raise _UnusableError("is not a CA's (basicConstraints)")
    if usage is None or not usage.key_cert_sign:
        raise _UnusableError("may not sign certificates (keyUsage)")
    name = _required(certificate.subject, NameOID.COMMON_NAME, "common name")
    nation = _required(certificate.subject, NameOID.ORGANIZATION_NAME, "organisation")
    return Anchor(name, nation, certificate, key)


def inspect_device(
    certificate: x509.Certificate, anchors: Sequence[Anchor], revocations: Revocations
) -> KnownDevice:
    """Verify the chain of one device certificate, once and for all.

    Raises:
        _UnusableError: it does not even name a device with an Ed25519 key.
    """
    key = _ed25519_key(certificate)
    extensions = _extensions(certificate)
    name = _required(certificate.subject, NameOID.COMMON_NAME, "common name")
    nation = _required(certificate.subject, NameOID.ORGANIZATION_NAME, "organisation")
    gateway = _attribute(certificate.subject, NameOID.ORGANIZATIONAL_UNIT_NAME) == GATEWAY_UNIT
    address, prefixes = _black_address(extensions), _red_prefixes(extensions)
    peer = Peer(address, name, nation, fingerprint(certificate), gateway, prefixes)
    validity = [_window("certificate", certificate)]
    anchor, reason = _find_anchor(certificate, anchors)
    if anchor is None:
        return KnownDevice(peer, key, tuple(validity), (RULE_CHAIN, reason))
    validity.append(_window(f"certificate of '{anchor.name}'", anchor.certificate))
    refusal: tuple[str, str] | None = None
    problem = _profile_problem(certificate, extensions)
    revoked = revocations.get((certificate.issuer, certificate.serial_number))
    if anchor.nation != nation:
        text = f"issued by '{anchor.name}' which cannot vouch for nation '{nation}'"
        refusal = (RULE_CHAIN, text)
    elif problem is not None:
        refusal = (RULE_CHAIN, f"certificate {problem}")
    elif revoked is not None:
        text = f"revoked by '{anchor.name}' on {describe_time(_to_ns(revoked))}"
        refusal = (RULE_REVOKED, text)
    return KnownDevice(peer, key, tuple(validity), refusal)


def _find_anchor(
    certificate: x509.Certificate, anchors: Sequence[Anchor]
) -> tuple[Anchor | None, str]:
    """Return the anchor whose key signed this certificate, or why there is none."""
    issuer = _attribute(certificate.issuer, NameOID.COMMON_NAME) or "?"
    named = [a for a in anchors if a.certificate.subject == certificate.issuer]
    for anchor in named:
        try:
            certificate.verify_directly_issued_by(anchor.certificate)
        except (InvalidSignature, *_MALFORMED):
            continue
        return anchor, ""
    if named:
        return None, f"not signed by the '{issuer}' we trust"
    return None, f"issued by '{issuer}' which is not among the trust anchors"


def _profile_problem(certificate: x509.Certificate, extensions: x509.Extensions) -> str | None:
    """Say what a device certificate may not be, or None."""
    constraints = _extension(extensions, x509.BasicConstraints)
    usage = _extension(extensions, x509.KeyUsage)
    if certificate.version is not x509.Version.v3:
        return "is not of version 3"
    if constraints is None or constraints.ca:
        return "is a CA's or lacks basicConstraints"
    if usage is None or not usage.digital_signature or usage.key_cert_sign:
        return "is not for digital signatures only (keyUsage)"
    for extension in extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD:
            return f"has an unknown critical extension {extension.oid.dotted_string}"
    return None


def _black_address(extensions: x509.Extensions) -> IPv6Address:
    """Return the one IPv6 address of the subject alternative name."""
    names = _extension(extensions, x509.SubjectAlternativeName)
    addresses = [] if names is None else names.get_values_for_type(x509.IPAddress)
    if len(addresses) != 1 or not isinstance(addresses[0], IPv6Address):
        raise _UnusableError("does not name exactly one IPv6 address (subjectAltName)")
    return addresses[0]


def _red_prefixes(extensions: x509.Extensions) -> tuple[Prefix, ...]:
    """Return the prefixes that the device may announce; none without the extension."""
    for extension in extensions:
        if extension.oid.dotted_string == addressblocks.OID:
            assert isinstance(extension.value, x509.UnrecognizedExtension)
            try:
                return addressblocks.decode(extension.value.value)
            except ValueError:
                raise _UnusableError("has malformed address blocks (RFC 3779)") from None
    return ()


def _ed25519_key(certificate: x509.Certificate) -> Ed25519PublicKey:
    """Return the subject's key, which must be Ed25519."""
    try:
        key = certificate.public_key()
    except _MALFORMED:
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise _UnusableError("does not hold an Ed25519 key")
    return key


def _extensions(certificate: x509.Certificate) -> x509.Extensions:
    """Parse all extensions; pyca does so only when asked."""
    try:
        return certificate.extensions
    except _MALFORMED:
        raise _UnusableError("has malformed extensions") from None


def _extension(extensions: x509.Extensions, kind: type[T]) -> T | None:
    """Return the value of one extension, or None."""
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _attribute(name: x509.Name, oid: ObjectIdentifier) -> str | None:
    """Return the only value of an attribute, if it is printable text."""
    values = [attribute.value for attribute in name.get_attributes_for_oid(oid)]
    if len(values) != 1 or not isinstance(values[0], str) or not values[0].isprintable():
        return None
    return values[0] or None


def _required(name: x509.Name, oid: ObjectIdentifier, what: str) -> str:
    """Return an attribute that every certificate of our profile has."""
    value = _attribute(name, oid)
    if value is None:
        raise _UnusableError(f"does not name exactly one {what}")
    return value


def _window(subject: str, certificate: x509.Certificate) -> ValidityWindow:
    """Return a certificate's validity; its last second belongs to it."""
    return ValidityWindow(
        subject,
        _to_ns(certificate.not_valid_before_utc),
        _to_ns(certificate.not_valid_after_utc) + NS_PER_S - 1,
    )


def _to_ns(moment: datetime) -> int:
    """Return a time of whole seconds as UTC nanoseconds."""
    return int(moment.timestamp()) * NS_PER_S


def _is_signed_by(crl: x509.CertificateRevocationList, anchor: Anchor) -> bool:
    """Verify a CRL's signature."""
    try:
        return crl.is_signature_valid(anchor.public_key)
    except (InvalidSignature, *_MALFORMED):
        return False


def _certificates(path: Path) -> list[x509.Certificate]:
    """Read the PEM certificates of a file; at least one."""
    try:
        return x509.load_pem_x509_certificates(read_file(path))
    except _MALFORMED:
        raise LocalError(f"{path}: no PEM certificate") from None


def _one_certificate(path: Path) -> x509.Certificate:
    """Read a file of exactly one certificate."""
    certificates = _certificates(path)
    if len(certificates) != 1:
        raise LocalError(f"{path}: {len(certificates)} certificates instead of one")
    return certificates[0]


def _private_key(path: Path) -> Ed25519PrivateKey:
    """Read our private key; the reason of a failure never quotes the file."""
    try:
        key = load_pem_private_key(read_private(path), password=None)
    except _MALFORMED:
        raise LocalError(f"{path}: not an unencrypted PEM private key") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise LocalError(f"{path}: not an Ed25519 key")
    return key
