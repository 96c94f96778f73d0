"""Which X.509 certificates and revocation lists we accept: the profile of docs/identity.md.

Pure: bytes already parsed go in, what they say comes out. The chain is always nation CA to device
(no intermediate CA). Whatever is wrong with a device's certificate becomes the reason with which
its messages are refused. Imported only where certificates are read: X.509 is dear to import.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv6Address
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID, NameOID, ObjectIdentifier

from protocol.identity import addressblocks
from protocol.identity.envelope import FINGERPRINT_LENGTH
from protocol.identity.identity import RULE_CHAIN
from protocol.identity.known import KnownDevice, Peer, ValidityWindow
from protocol.ipsec.model import Prefix

NS_PER_S = 1_000_000_000

ISSUER_ID_LENGTH = 8

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


@dataclass(frozen=True, slots=True)
class DeviceCertificate:
    """A device's certificate, its chain verified; revocation is another matter (`TrustStore`).

    Attributes:
        known: what it says, and why it is not acceptable for good.
        certificate: as parsed.
    """

    known: KnownDevice
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        """Return the bytes its fingerprint is of."""
        return self.certificate.public_bytes(Encoding.DER)


@dataclass(frozen=True, slots=True)
class RevocationList:
    """A CRL that a trust anchor signed.

    Attributes:
        issuer: the CA's subject.
        issuer_name: its common name.
        version: CRL number and time of issue in UTC seconds; the larger one is the newer list.
        next_update_ns: when it is overdue, or None.
        revoked: serial number of the certificate -> UTC of its revocation in nanoseconds.
        der: the list itself.
    """

    issuer: x509.Name
    issuer_name: str
    version: tuple[int, int]
    next_update_ns: int | None
    revoked: Mapping[int, int]
    der: bytes

    @property
    def issuer_id(self) -> bytes:
        """Return what names the CA on the wire: a truncated hash of its subject."""
        return issuer_id(self.issuer)


class UnusableError(Exception):
    """A certificate or CRL that breaks our profile; the text completes "certificate ..."."""


class UnknownIssuerError(UnusableError):
    """A CRL of a CA that is no trust anchor."""


MALFORMED = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What pyca raises on a malformed certificate or CRL: some when reading it, some when a field is
first looked at."""

UNUSABLE = (UnusableError, *MALFORMED)


def fingerprint(certificate: x509.Certificate) -> bytes:
    """Return the truncated SHA-256 of the DER certificate, the name of a device on the wire."""
    return fingerprint_of(certificate.public_bytes(Encoding.DER))


def fingerprint_of(der: bytes) -> bytes:
    """Return the same, from bytes that nobody has parsed."""
    return hashlib.sha256(der).digest()[:FINGERPRINT_LENGTH]


def issuer_id(name: x509.Name) -> bytes:
    """Return the truncated SHA-256 of a CA's subject."""
    return hashlib.sha256(name.public_bytes()).digest()[:ISSUER_ID_LENGTH]


def inspect_anchor(certificate: x509.Certificate) -> Anchor:
    """Check a nation CA against our profile."""
    key = ed25519_key(certificate)
    extensions = _extensions(certificate)
    constraints = _extension(extensions, x509.BasicConstraints)
    usage = _extension(extensions, x509.KeyUsage)
    if constraints is None or not constraints.ca:
        raise UnusableError("is not a CA's (basicConstraints)")
    if usage is None or not usage.key_cert_sign:
        raise UnusableError("may not sign certificates (keyUsage)")
    name = _required(certificate.subject, NameOID.COMMON_NAME, "common name")
    nation = _required(certificate.subject, NameOID.ORGANIZATION_NAME, "organisation")
    return Anchor(name, nation, certificate, key)


def inspect_device(certificate: x509.Certificate, anchors: Sequence[Anchor]) -> DeviceCertificate:
    """Verify the chain of one device certificate, once and for all.

    Raises:
        UnusableError: it does not even name a device with an Ed25519 key.
    """
    key = ed25519_key(certificate)
    extensions = _extensions(certificate)
    name = _required(certificate.subject, NameOID.COMMON_NAME, "common name")
    nation = _required(certificate.subject, NameOID.ORGANIZATION_NAME, "organisation")
    gateway = attribute(certificate.subject, NameOID.ORGANIZATIONAL_UNIT_NAME) == GATEWAY_UNIT
    address, prefixes = _black_address(extensions), _red_prefixes(extensions)
    peer = Peer(address, name, nation, fingerprint(certificate), gateway, prefixes)
    validity = [validity_window("certificate", certificate)]
    anchor, reason = find_anchor(certificate, anchors)
    if anchor is None:
        known = KnownDevice(peer, key, tuple(validity), (RULE_CHAIN, reason))
        return DeviceCertificate(known, certificate)
    validity.append(validity_window(f"certificate of '{anchor.name}'", anchor.certificate))
    refusal: tuple[str, str] | None = None
    problem = _profile_problem(certificate, extensions)
    if anchor.nation != nation:
        text = f"issued by '{anchor.name}' which cannot vouch for nation '{nation}'"
        refusal = (RULE_CHAIN, text)
    elif problem is not None:
        refusal = (RULE_CHAIN, f"certificate {problem}")
    return DeviceCertificate(KnownDevice(peer, key, tuple(validity), refusal), certificate)


def find_anchor(
    certificate: x509.Certificate, anchors: Sequence[Anchor]
) -> tuple[Anchor | None, str]:
    """Return the anchor whose key signed this certificate, or why there is none."""
    issuer = attribute(certificate.issuer, NameOID.COMMON_NAME) or "?"
    named = [a for a in anchors if a.certificate.subject == certificate.issuer]
    for anchor in named:
        try:
            certificate.verify_directly_issued_by(anchor.certificate)
        except (InvalidSignature, *MALFORMED):
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
        raise UnusableError("does not name exactly one IPv6 address (subjectAltName)")
    return addresses[0]


def _red_prefixes(extensions: x509.Extensions) -> tuple[Prefix, ...]:
    """Return the prefixes that the device may announce; none without the extension."""
    for extension in extensions:
        if extension.oid.dotted_string == addressblocks.OID:
            assert isinstance(extension.value, x509.UnrecognizedExtension)
            try:
                return addressblocks.decode(extension.value.value)
            except ValueError:
                raise UnusableError("has malformed address blocks (RFC 3779)") from None
    return ()


def ed25519_key(certificate: x509.Certificate) -> Ed25519PublicKey:
    """Return the subject's key, which must be Ed25519."""
    try:
        key = certificate.public_key()
    except MALFORMED:
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise UnusableError("does not hold an Ed25519 key")
    return key


def _extensions(certificate: x509.Certificate) -> x509.Extensions:
    """Parse all extensions; pyca does so only when asked."""
    try:
        return certificate.extensions
    except MALFORMED:
        raise UnusableError("has malformed extensions") from None


def _extension(extensions: x509.Extensions, kind: type[T]) -> T | None:
    """Return the value of one extension, or None."""
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def attribute(name: x509.Name, oid: ObjectIdentifier) -> str | None:
    """Return the only value of an attribute, if it is printable text."""
    values = [attribute.value for attribute in name.get_attributes_for_oid(oid)]
    if len(values) != 1 or not isinstance(values[0], str) or not values[0].isprintable():
        return None
    return values[0] or None


def _required(name: x509.Name, oid: ObjectIdentifier, what: str) -> str:
    """Return an attribute that every certificate of our profile has."""
    value = attribute(name, oid)
    if value is None:
        raise UnusableError(f"does not name exactly one {what}")
    return value


def validity_window(subject: str, certificate: x509.Certificate) -> ValidityWindow:
    """Return a certificate's validity; its last second belongs to it."""
    return ValidityWindow(
        subject,
        to_ns(certificate.not_valid_before_utc),
        to_ns(certificate.not_valid_after_utc) + NS_PER_S - 1,
    )


def to_ns(moment: datetime) -> int:
    """Return a time of whole seconds as UTC nanoseconds."""
    return int(moment.timestamp()) * NS_PER_S


def inspect_revocations(
    crl: x509.CertificateRevocationList, anchors: Sequence[Anchor]
) -> RevocationList:
    """Check a CRL's issuer and signature; read all of it.

    Raises:
        UnknownIssuerError: no trust anchor is its issuer.
        UnusableError: its issuer did not sign it, or may not.
        ValueError: (and the others of `MALFORMED`) it is not well-formed.
    """
    issuers = [anchor for anchor in anchors if anchor.certificate.subject == crl.issuer]
    if not issuers:
        name = attribute(crl.issuer, NameOID.COMMON_NAME) or "?"
        raise UnknownIssuerError(f"issuer '{name}' is not among the trust anchors")
    anchor = next((anchor for anchor in issuers if _is_signed_by(crl, anchor)), None)
    if anchor is None:
        raise UnusableError(f"CRL is not signed by '{issuers[0].name}'")
    number = 0
    for extension in crl.extensions:
        if isinstance(extension.value, x509.CRLNumber):
            number = extension.value.crl_number
        elif extension.critical:
            oid = extension.oid.dotted_string
            raise UnusableError(f"CRL has an unknown critical extension {oid}")
    if not 0 <= number < 1 << 64:
        raise UnusableError("CRL number does not fit in 64 bits")
    overdue = crl.next_update_utc
    return RevocationList(
        issuer=crl.issuer,
        issuer_name=anchor.name,
        version=(number, to_ns(crl.last_update_utc) // NS_PER_S),
        next_update_ns=None if overdue is None else to_ns(overdue),
        revoked={entry.serial_number: to_ns(entry.revocation_date_utc) for entry in crl},
        der=crl.public_bytes(Encoding.DER),
    )


def _is_signed_by(crl: x509.CertificateRevocationList, anchor: Anchor) -> bool:
    """Verify a CRL's signature; the CA's certificate must allow it to sign CRLs."""
    usage = _extension(_extensions(anchor.certificate), x509.KeyUsage)
    if usage is None or not usage.crl_sign:
        return False
    try:
        return crl.is_signature_valid(anchor.public_key)
    except (InvalidSignature, *MALFORMED):
        return False
