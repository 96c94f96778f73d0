"""Security associations and policies as plain data.

Names follow RFC 4301 (SA, SPI, SAD, SPD, selector, direction); the kernel's words (state, policy,
template, reqid) appear where a field only exists in Linux.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Address, IPv6Network

ESP = 50
"""IP protocol number of ESP (RFC 4303 section 2)."""

SPI_MIN = 256
"""SPIs 1 to 255 are reserved by IANA and 0 is for local use (RFC 4303 section 2.1)."""

Prefix = IPv4Network | IPv6Network
"""A red network, or any other set of addresses that a selector or route is about."""

ANY_ADDRESS = IPv6Address("::")
ANY_NETWORK = IPv6Network("::/0")
ANY_IPV4_NETWORK = IPv4Network("0.0.0.0/0")


class Mode(StrEnum):
    """ESP mode (RFC 4301 section 4.1)."""

    TRANSPORT = "transport"
    TUNNEL = "tunnel"


class SaDirection(StrEnum):
    """Direction the kernel shall enforce for an SA (XFRMA_SA_DIR, Linux 6.10 and newer)."""

    IN = "in"
    OUT = "out"


class PolicyDirection(StrEnum):
    """Traffic direction of a policy in the SPD."""

    IN = "in"
    OUT = "out"
    FORWARD = "fwd"


class Suite(StrEnum):
    """The algorithm suites that this project installs.

    ``AES_GCM_128``/``AES_GCM_256``: RFC 4106, 16-octet ICV. ``AES_CBC_SHA256``: RFC 3602 with
    HMAC-SHA-256-128 (RFC 4868). ``TDES_SHA1``: 3DES-CBC with HMAC-SHA1-96, the paper's (Fig. 9).
    """

    AES_GCM_128 = "aes-gcm-128"
    AES_GCM_256 = "aes-gcm-256"
    AES_CBC_SHA256 = "aes-cbc-sha256"
    TDES_SHA1 = "3des-sha1"


@dataclass(frozen=True, slots=True)
class SuiteParameters:
    """Kernel names and sizes of a suite; sizes in bytes, ICV lengths in bits.

    Attributes:
        aead: kernel name of the AEAD transform, or None.
        encryption: kernel name of the cipher if not AEAD.
        authentication: kernel name of the MAC if not AEAD.
        encryption_key_length: cipher key length, for AEAD including the 4-octet salt.
        authentication_key_length: MAC key length (0 for AEAD).
        icv_bits: length of the integrity check value.
    """

    aead: str | None
    encryption: str | None
    authentication: str | None
    encryption_key_length: int
    authentication_key_length: int
    icv_bits: int


SUITES: dict[Suite, SuiteParameters] = {
    Suite.AES_GCM_128: SuiteParameters("rfc4106(gcm(aes))", None, None, 20, 0, 128),
    Suite.AES_GCM_256: SuiteParameters("rfc4106(gcm(aes))", None, None, 36, 0, 128),
    Suite.AES_CBC_SHA256: SuiteParameters(None, "cbc(aes)", "hmac(sha256)", 16, 32, 128),
    Suite.TDES_SHA1: SuiteParameters(None, "cbc(des3_ede)", "hmac(sha1)", 24, 20, 96),
}


@dataclass(frozen=True, slots=True)
class KeyMaterial:
    """Keys of one SA; never shown.

    Attributes:
        encryption: cipher key (AEAD: key and salt).
        authentication: MAC key, empty for AEAD.
    """

    encryption: bytes = field(repr=False)
    authentication: bytes = field(default=b"", repr=False)

    @property
    def digest(self) -> str:
        """A 16-hex-digit identifier that tells keys apart without showing them."""
        data = len(self.encryption).to_bytes(2, "big") + self.encryption + self.authentication
        return hashlib.sha256(b"idpmike key digest\0" + data).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"KeyMaterial(digest={self.digest})"


@dataclass(frozen=True, slots=True, order=True)
class SaId:
    """What the kernel finds an SA by: destination, SPI and protocol (never the source)."""

    destination: IPv6Address
    spi: int
    protocol: int = ESP

    def __hash__(self) -> int:
        """Hash the SPI, which alone tells SAs apart; the address would cost ten times as much."""
        return self.spi


@dataclass(frozen=True, slots=True)
class SecurityAssociation:
    """One entry of the SAD.

    Attributes:
        source: outer source address, or `ANY_ADDRESS`.
        destination: outer destination, for a group SA the black multicast group.
        spi: security parameters index, `SPI_MIN` or larger.
        suite: algorithms.
        key: key material of the suite's lengths.
        mode: tunnel or transport.
        reqid: ties the SA to policy templates.
        if_id: xfrm interface the SA belongs to, or None.
        direction: direction the kernel enforces, None where it must serve both (mode ``paper``)
            or the kernel does not know it.
        replay_window: packets, 0 switches anti-replay off (RFC 4303: multi-sender SAs; and
            required for outbound SAs that carry a direction).
        esn: extended sequence numbers.
    """

    source: IPv6Address
    destination: IPv6Address
    spi: int
    suite: Suite
    key: KeyMaterial
    mode: Mode = Mode.TUNNEL
    reqid: int = 0
    if_id: int | None = None
    direction: SaDirection | None = None
    replay_window: int = 0
    esn: bool = False

    @property
    def id(self) -> SaId:
        """The kernel's look-up key of this SA."""
        return SaId(self.destination, self.spi)


@dataclass(frozen=True, slots=True)
class Selector:
    """Which packets a policy is about; ``upper_protocol`` 0 means any, ports are not selected.

    Both networks are of one family: that of the inner packet, whatever carries it.
    """

    source: Prefix = ANY_NETWORK
    destination: Prefix = ANY_NETWORK
    upper_protocol: int = 0

    def __hash__(self) -> int:
        """Hash where the networks begin; whole networks would cost five times as much."""
        return hash((int(self.source.network_address), int(self.destination.network_address)))


@dataclass(frozen=True, slots=True)
class PolicyId:
    """What the kernel finds a policy by."""

    selector: Selector
    direction: PolicyDirection
    if_id: int | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """One entry of the SPD with action PROTECT, or DISCARD if ``template_mode`` is None.

    Attributes:
        selector: packets concerned.
        direction: traffic direction.
        template_source: outer source (our address outbound, `ANY_ADDRESS` inbound: any sender).
        template_destination: outer destination.
        template_spi: 0 for any SA that fits, else the SPI pinned for output (make before break).
        template_mode: mode of the SA, None for a discard policy.
        reqid: must match the SA's.
        if_id: xfrm interface, or None.
        priority: lower wins.
    """

    selector: Selector
    direction: PolicyDirection
    template_source: IPv6Address
    template_destination: IPv6Address
    template_spi: int = 0
    template_mode: Mode | None = Mode.TUNNEL
    reqid: int = 0
    if_id: int | None = None
    priority: int = 1000

    @property
    def id(self) -> PolicyId:
        """The kernel's look-up key of this policy."""
        return PolicyId(self.selector, self.direction, self.if_id)
