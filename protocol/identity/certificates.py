"""Device certificates, trust anchors and CRLs: read once at start-up, verified once each.

The chain is always nation CA to device (no intermediate CA). Whatever is wrong with another
device's certificate becomes the reason with which its messages are refused; whatever is wrong with
our own files is a `LocalError` of one line. Imported only where files are read, because X.509 is
dear to import.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from protocol.core.errors import LocalError, PeerError
from protocol.identity.files import list_files, read_file, read_private
from protocol.identity.identity import FRESHNESS_MS_DEFAULT, Identity
from protocol.identity.known import describe_time
from protocol.identity.profile import (
    MALFORMED,
    UNUSABLE,
    Anchor,
    DeviceCertificate,
    RevocationList,
    UnknownIssuerError,
    UnusableError,
    inspect_anchor,
    inspect_device,
    inspect_revocations,
)
from protocol.identity.trust import TrustStore

CERTIFICATE_SUFFIXES = (".pem", ".crt")
CRL_SUFFIXES = (".pem", ".crl")
CACHE_SUFFIXES = (".der",)

CACHED_CERTIFICATE = "certificate-"
CACHED_REVOCATIONS = "revocations-"
"""How the files of the cache begin; then hexadecimal, then ``.der``."""


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
        cache: directory of what was learned from other devices, or None.
    """

    certificate: Path
    key: Path
    anchors: Path
    peers: Path
    revocations: Path | None = None
    freshness_ms: int = FRESHNESS_MS_DEFAULT
    cache: Path | None = None


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
    certificate = _one_certificate(files.certificate)
    try:
        own = inspect_device(certificate, anchors)
    except UNUSABLE as error:
        raise LocalError(f"{files.certificate}: certificate {error}") from None
    signing_key = _private_key(files.key)
    if signing_key.public_key() != own.known.verify_key:
        raise LocalError(f"{files.key}: not the key of the certificate {files.certificate}")
    certified = own.known.peer.address
    if address is not None and certified != address:
        raise LocalError(
            f"{files.certificate}: certificate is for {certified}, "
            f"the device's address is {address}"
        )
    store = TrustStore(anchors, own)
    notices = _fill(store, files, wall_ns)
    devices = store.devices()
    identity = Identity(
        own.known, signing_key, devices, freshness_ms=files.freshness_ms, store=store
    )
    return identity, notices


def reload_trust(identity: Identity, files: IdentityFiles, wall_ns: int | None = None) -> list[str]:
    """Read anchors, CRLs and device certificates again; what other devices sent us is kept.

    A CRL that is newer than the file of its issuer goes on counting.

    Returns:
        Notices as `load_identity` does.

    Raises:
        LocalError: a file is malformed; nothing was changed.
    """
    store = identity.store
    assert isinstance(store, TrustStore)
    fresh = TrustStore(load_anchors(files.anchors), store.own)
    notices = _fill(fresh, files, wall_ns)
    store.take_over(fresh, wall_ns)
    identity.trust(store.devices())
    return notices


def _fill(store: TrustStore, files: IdentityFiles, wall_ns: int | None) -> list[str]:
    """Read what is deployed, then what was learned; return the notices."""
    revocations, notices = load_revocations(files.revocations, store.anchors, wall_ns)
    for revocation in revocations:
        store.add_revocations(revocation)
    devices, left_out = load_devices(files.peers, store.anchors)
    store.deploy(devices)
    notices += left_out
    if files.cache is not None:
        notices += _load_cache(files.cache, store, wall_ns)
    return notices


def _load_cache(directory: Path, store: TrustStore, wall_ns: int | None) -> list[str]:
    """Learn again what was learned before this start; what is not acceptable is left out."""
    notices: list[str] = []
    for path in list_files(directory, CACHE_SUFFIXES):
        try:
            der = read_file(path)
            if path.name.startswith(CACHED_CERTIFICATE):
                store.remember(der, wall_ns)
            elif path.name.startswith(CACHED_REVOCATIONS):
                store.learn_revocations(der, wall_ns)
        except LocalError as error:
            notices.append(f"left out {error}")
        except PeerError as error:
            notices.append(f"left out {path}: {error.reason}")
    return notices


def load_anchors(directory: Path) -> list[Anchor]:
    """Read the nation CAs; at least one."""
    anchors: list[Anchor] = []
    for path in list_files(directory, CERTIFICATE_SUFFIXES):
        for certificate in _certificates(path):
            try:
                anchors.append(inspect_anchor(certificate))
            except UNUSABLE as error:
                raise LocalError(f"{path}: certificate {error}") from None
    if not anchors:
        raise LocalError(f"{directory}: no trust anchor")
    return anchors


def load_anchor_file(path: Path) -> Anchor:
    """Read one CA from a file of its own, for one purpose (the authority of the domain policy)."""
    try:
        return inspect_anchor(_one_certificate(path))
    except UNUSABLE as error:
        raise LocalError(f"{path}: certificate {error}") from None


def load_devices(
    directory: Path, anchors: Sequence[Anchor]
) -> tuple[list[DeviceCertificate], list[str]]:
    """Read the pre-deployed device certificates; those outside our profile become notices."""
    devices: list[DeviceCertificate] = []
    notices: list[str] = []
    for path in list_files(directory, CERTIFICATE_SUFFIXES):
        try:
            certificates = _certificates(path)
        except LocalError as error:
            notices.append(f"left out {error}")
            continue
        for certificate in certificates:
            try:
                devices.append(inspect_device(certificate, anchors))
            except UNUSABLE as error:
                notices.append(f"left out {path}: certificate {error}")
    return devices, notices


def load_revocations(
    directory: Path | None, anchors: Sequence[Anchor], wall_ns: int | None = None
) -> tuple[list[RevocationList], list[str]]:
    """Read the CRLs; one whose issuer is a trust anchor must carry its valid signature."""
    found: list[RevocationList] = []
    notices: list[str] = []
    if directory is None:
        return found, notices
    for path in list_files(directory, CRL_SUFFIXES):
        try:
            crl = x509.load_pem_x509_crl(read_file(path))
            revocations = inspect_revocations(crl, anchors)
        except UnknownIssuerError as error:
            notices.append(f"left out {path}: {error}")
            continue
        except UnusableError as error:
            raise LocalError(f"{path}: {error}") from None
        except MALFORMED:
            raise LocalError(f"{path}: not a well-formed PEM CRL") from None
        found.append(revocations)
        overdue = revocations.next_update_ns
        if wall_ns is not None and overdue is not None and wall_ns > overdue:
            issuer, since = revocations.issuer_name, describe_time(overdue)
            notices.append(f"CRL of '{issuer}' is overdue since {since}; it still counts")
    return found, notices


def _certificates(path: Path) -> list[x509.Certificate]:
    """Read the PEM certificates of a file; at least one."""
    try:
        return x509.load_pem_x509_certificates(read_file(path))
    except MALFORMED:
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
    except MALFORMED:
        raise LocalError(f"{path}: not an unencrypted PEM private key") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise LocalError(f"{path}: not an Ed25519 key")
    return key
