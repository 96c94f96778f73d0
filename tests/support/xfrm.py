"""SAs and policies for tests: Hypothesis strategies, and messages as plain JSON values."""

from __future__ import annotations

import dataclasses
from enum import Enum
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from typing import Any

from hypothesis import strategies as st

from protocol.ipsec.model import (
    ANY_ADDRESS,
    SUITES,
    KeyMaterial,
    Mode,
    Policy,
    PolicyDirection,
    SaDirection,
    SaId,
    SecurityAssociation,
    Selector,
    Suite,
)

OWN = IPv6Address("2001:db8:b::1")
PEER = IPv6Address("2001:db8:b::2")
GROUP = IPv6Address("ff0e::1")

U32 = st.integers(0, 0xFFFFFFFF)
SPIS = st.integers(256, 0xFFFFFFFF)
ADDRESSES = st.integers(0, (1 << 128) - 1).map(IPv6Address)
IF_IDS = st.none() | st.integers(1, 0xFFFFFFFF)


@st.composite
def sas(draw: st.DrawFn) -> SecurityAssociation:
    """Every SA that `sa_defect` accepts."""
    suite = draw(st.sampled_from(Suite))
    sizes = SUITES[suite]
    direction = draw(st.none() | st.sampled_from(SaDirection))
    window = 0 if direction is SaDirection.OUT else draw(st.integers(0, 4096))
    esn = draw(st.booleans()) if window or direction is SaDirection.OUT else False
    cipher, mac = sizes.encryption_key_length, sizes.authentication_key_length
    return SecurityAssociation(
        source=draw(ADDRESSES),
        destination=draw(ADDRESSES),
        spi=draw(SPIS),
        suite=suite,
        key=KeyMaterial(
            draw(st.binary(min_size=cipher, max_size=cipher)),
            draw(st.binary(min_size=mac, max_size=mac)),
        ),
        mode=draw(st.sampled_from(Mode)),
        reqid=draw(U32),
        if_id=draw(IF_IDS),
        direction=direction,
        replay_window=window,
        esn=esn,
    )


SA_IDS = st.builds(SaId, ADDRESSES, U32, st.integers(0, 255))


@st.composite
def networks(draw: st.DrawFn) -> IPv6Network:
    """A network of any length."""
    return IPv6Network((draw(ADDRESSES), draw(st.integers(0, 128))), strict=False)


@st.composite
def ipv4_networks(draw: st.DrawFn) -> IPv4Network:
    """An IPv4 network of any length."""
    return IPv4Network((draw(U32), draw(st.integers(0, 32))), strict=False)


SELECTORS = st.builds(Selector, networks(), networks(), st.integers(0, 255))
IPV4_SELECTORS = st.builds(Selector, ipv4_networks(), ipv4_networks(), st.integers(0, 255))


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Every policy that `policy_defect` accepts; a discard policy has no template."""
    mode = draw(st.none() | st.sampled_from(Mode))
    discard = mode is None
    carries_ipv4 = mode is not Mode.TRANSPORT and draw(st.booleans())
    return Policy(
        selector=draw(IPV4_SELECTORS if carries_ipv4 else SELECTORS),
        direction=draw(st.sampled_from(PolicyDirection)),
        template_source=ANY_ADDRESS if discard else draw(ADDRESSES),
        template_destination=ANY_ADDRESS if discard else draw(ADDRESSES),
        template_spi=0 if discard else draw(U32),
        template_mode=mode,
        reqid=0 if discard else draw(U32),
        if_id=draw(IF_IDS),
        priority=draw(U32),
    )


def make_sa(spi: int, suite: Suite = Suite.AES_GCM_128, **changes: Any) -> SecurityAssociation:
    """An SA with a key that depends on SPI and suite."""
    sizes = SUITES[suite]
    seed = spi.to_bytes(4, "big") + suite.value.encode()
    stream = (seed * 8)[: sizes.encryption_key_length + sizes.authentication_key_length]
    key = KeyMaterial(stream[: sizes.encryption_key_length], stream[sizes.encryption_key_length :])
    fields = {"source": PEER, "destination": GROUP, "reqid": 7, **changes}
    return SecurityAssociation(spi=spi, suite=suite, key=key, **fields)


def plain(value: Any) -> Any:
    """Any message as JSON values; a key is its digest."""
    if isinstance(value, KeyMaterial):
        return {"digest": value.digest}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain(item) for name, item in value._asdict().items()}
    if isinstance(value, (IPv6Address, IPv4Network, IPv6Network)):
        return str(value)
    return value
