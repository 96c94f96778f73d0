"""Devices with real certificates in memory, on the virtual time of `tests.support.fakelink`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import IPv6Address

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from protocol.identity import Identity
from protocol.identity.pki import Authority, DeviceSpec
from protocol.identity.policypki import PolicyAuthority
from protocol.identity.profile import inspect_anchor, inspect_device
from protocol.identity.signed import PURPOSE, open_signed
from protocol.identity.trust import TrustStore
from protocol.idp.policy import DomainPolicy
from protocol.idp.policykeeper import OwnPolicy
from tests.support.fakelink import WALL_START_NS
from tests.support.identities import NATIONS, address, signing_key
from tests.vectors.make_documents import POLICY

START = datetime.fromtimestamp(WALL_START_NS // 10**9, tz=UTC)
BEFORE, AFTER = START - timedelta(days=1), START + timedelta(days=100)


@cache
def authority(nation: str) -> Authority:
    """The CA of a nation; made once in a test run."""
    return Authority.create(nation, not_before=BEFORE, not_after=AFTER)


def nation_of(index: int) -> str:
    return NATIONS[index % len(NATIONS)]


def issue(
    index: int,
    *,
    ca: Authority | None = None,
    nation: str | None = None,
    at: IPv6Address | None = None,
    name: str | None = None,
    key: Ed25519PrivateKey | None = None,
    not_before: datetime = BEFORE,
    not_after: datetime = AFTER,
) -> x509.Certificate:
    """The certificate of the device with this index, or something out of place."""
    nation = nation or nation_of(index)
    spec = DeviceSpec(name or f"d{index + 1}", nation, at or address(index))
    public = (key or signing_key(index)).public_key()
    issuer = ca or authority(nation)
    return issuer.issue(spec, public, not_before=not_before, not_after=not_after)


@cache
def certificate(index: int) -> x509.Certificate:
    """The one good certificate of the device with this index."""
    return issue(index)


def der(thing: x509.Certificate | x509.CertificateRevocationList) -> bytes:
    return thing.public_bytes(Encoding.DER)


def anchors(nations: Sequence[str] = NATIONS) -> list[x509.Certificate]:
    return [authority(nation).certificate for nation in nations]


def make_identity(
    index: int,
    *,
    own: x509.Certificate | None = None,
    knows: Sequence[x509.Certificate] = (),
    nations: Sequence[str] = NATIONS,
) -> Identity:
    """An identity that has its own certificate, its anchors and what it ``knows``."""
    trusted = [inspect_anchor(one) for one in anchors(nations)]
    mine = inspect_device(own or certificate(index), trusted)
    store = TrustStore(trusted, mine)
    store.deploy(inspect_device(each, trusted) for each in knows)
    return Identity(mine.known, signing_key(index), store.devices(), store=store)


def policy(**changes: object) -> DomainPolicy:
    """A domain policy that the default settings keep, or break with these changes."""
    return DomainPolicy.from_table(POLICY | changes)


@cache
def policy_authority(
    purpose: x509.ObjectIdentifier = PURPOSE, *, expired: bool = False, nation: str = ""
) -> PolicyAuthority:
    """Who signs policies; made once in a test run."""
    return PolicyAuthority.create(
        "policy",
        authority=authority(nation) if nation else None,
        not_before=BEFORE,
        not_after=START - timedelta(hours=1) if expired else AFTER,
        purpose=purpose,
    )


def own_policy(
    made: DomainPolicy, signer: PolicyAuthority | None = None, trusted: Authority | None = None
) -> OwnPolicy:
    """What a device starts with: a policy of the authority that it trusts."""
    anchor = inspect_anchor((trusted or policy_authority().authority).certificate)
    document = (signer or policy_authority()).sign(made.encode())
    return OwnPolicy(made, document, lambda data, at_ns: open_signed(data, anchor, at_ns))


def revocation_list(
    nation: str,
    revoked: Sequence[x509.Certificate] = (),
    *,
    number: int = 2,
    issued: datetime = START,
    ca: Authority | None = None,
    serials: Iterable[int] = (),
) -> bytes:
    """A CRL (DER) with this number."""
    issuer = ca or authority(nation)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(issued)
        .next_update(issued + timedelta(days=30))
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    for serial in (*(each.serial_number for each in revoked), *(1 << 150 | n for n in serials)):
        entry = x509.RevokedCertificateBuilder().serial_number(serial)
        builder = builder.add_revoked_certificate(entry.revocation_date(issued).build())
    return der(builder.sign(issuer._key, None))
