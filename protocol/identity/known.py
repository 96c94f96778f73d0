"""Whom a device knows: certificates as far as the protocols need them, and the keys behind them.

No X.509 here: `protocol.identity.certificates` reads certificates into these.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv6Address
from typing import NamedTuple, Protocol

from protocol.ipsec.model import Prefix

RULE_VALIDITY = "AUTH-6"


def describe_time(wall_ns: int) -> str:
    """Return a time as people read it, to the second, UTC."""
    try:
        moment = datetime.fromtimestamp(wall_ns // 1_000_000_000, tz=UTC)
    except (OverflowError, ValueError, OSError):
        return f"{wall_ns} ns"
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


class SigningKey(Protocol):
    """What an identity signs with: an ``Ed25519PrivateKey``, or the simulator's model of one."""

    def sign(self, data: bytes, /) -> bytes:
        """Return a signature of 64 bytes."""
        ...


class VerifyKey(Protocol):
    """A device's public key: an ``Ed25519PublicKey``, or the simulator's model of one.

    Certificates are read into Ed25519 keys only (`protocol.identity.certificates`), so no
    configuration of a daemon leads to another kind.
    """

    def verify(self, signature: bytes, data: bytes, /) -> None:
        """Raise ``cryptography.exceptions.InvalidSignature`` if it does not verify."""
        ...


@dataclass(frozen=True, slots=True)
class Peer:
    """A device as its certificate names it.

    Attributes:
        address: black address (subject alternative name).
        name: device name (common name).
        nation: organisation.
        fingerprint: SHA-256 of the DER certificate, first 16 bytes.
        gateway: it is one leg of an IDP security gateway (organisational unit ``gateway``), and so
            may speak for other partitions (docs/gateways.md).
        prefixes: red prefixes that the certificate authorises (RFC 3779).
    """

    address: IPv6Address
    name: str
    nation: str
    fingerprint: bytes
    gateway: bool = False
    prefixes: tuple[Prefix, ...] = ()


@dataclass(frozen=True, slots=True)
class ValidityWindow:
    """When a certificate of the chain is valid, both ends included.

    Attributes:
        subject: which certificate, for the reason: ``certificate`` or ``certificate of 'X CA'``.
        start_wall_ns: not valid before.
        end_wall_ns: not valid after.
    """

    subject: str
    start_wall_ns: int
    end_wall_ns: int

    def problem(self, wall_ns: int) -> str | None:
        """Say in plain words why it is not valid at this time, or None."""
        if wall_ns > self.end_wall_ns:
            return f"{self.subject} expired on {describe_time(self.end_wall_ns)}"
        if wall_ns < self.start_wall_ns:
            return f"{self.subject} not valid before {describe_time(self.start_wall_ns)}"
        return None


@dataclass(frozen=True, slots=True)
class KnownDevice:
    """A pre-deployed device certificate and what verifying its chain gave.

    Attributes:
        peer: what the certificate says.
        verify_key: the device's public key.
        validity: the device's and its issuer's validity windows.
        refusal: (rule, reason) if chain or revocation make it unacceptable for good, else None.
    """

    peer: Peer
    verify_key: VerifyKey
    validity: tuple[ValidityWindow, ...] = ()
    refusal: tuple[str, str] | None = None

    def problem(self, wall_ns: int) -> tuple[str, str] | None:
        """Return (rule, reason) why it is not acceptable at this time, or None."""
        if self.refusal is not None:
            return self.refusal
        for window in self.validity:
            reason = window.problem(wall_ns)
            if reason is not None:
                return RULE_VALIDITY, reason
        return None


class CrlEntry(NamedTuple):
    """Which revocation list a device has, as it travels.

    Attributes:
        issuer: truncated hash of the CA's subject, 8 bytes.
        number: CRL number, 0 if it has none.
        issued_s: when it was issued, UTC seconds.
    """

    issuer: bytes
    number: int
    issued_s: int
