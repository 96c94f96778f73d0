"""What every backend refuses alike, checked before anything reaches a kernel.

The kernel would refuse most of it too, but each interface in words of its own.
"""

from __future__ import annotations

from protocol.ipsec.model import (
    SPI_MIN,
    SUITES,
    Mode,
    Policy,
    SaDirection,
    SecurityAssociation,
)

REPLAY_WINDOW_MAX = 4096
"""Largest window in packets (XFRMA_REPLAY_ESN_MAX in uapi/linux/xfrm.h)."""

_U32_MAX = 0xFFFFFFFF


def sa_defect(sa: SecurityAssociation) -> str:
    """Say what is wrong with an SA, or return an empty string; never shows key material."""
    sizes = SUITES[sa.suite]
    if not SPI_MIN <= sa.spi <= _U32_MAX:
        return f"SPI {sa.spi:#x} is reserved or longer than 32 bits"
    if len(sa.key.encryption) != sizes.encryption_key_length:
        return f"{sa.suite} wants a cipher key of {sizes.encryption_key_length} bytes"
    if len(sa.key.authentication) != sizes.authentication_key_length:
        return f"{sa.suite} wants a MAC key of {sizes.authentication_key_length} bytes"
    if not 0 <= sa.reqid <= _U32_MAX:
        return f"reqid {sa.reqid} does not fit in 32 bits"
    if sa.if_id is not None and not 1 <= sa.if_id <= _U32_MAX:
        return f"if_id {sa.if_id} is not between 1 and 2^32-1"
    if not 0 <= sa.replay_window <= REPLAY_WINDOW_MAX:
        return f"replay window {sa.replay_window} is not between 0 and {REPLAY_WINDOW_MAX}"
    if sa.direction is SaDirection.OUT and sa.replay_window:
        return "an outbound SA has no replay window"
    if sa.esn and not sa.replay_window and sa.direction is not SaDirection.OUT:
        return "extended sequence numbers need a replay window"
    return ""


def policy_defect(policy: Policy) -> str:
    """Say what is wrong with a policy, or return an empty string."""
    family = policy.selector.source.version
    if family != policy.selector.destination.version:
        return "the selector mixes IPv4 and IPv6"
    if family == 4 and policy.template_mode is Mode.TRANSPORT:
        return "IPv4 in transport mode over IPv6 addresses does not exist: use tunnel mode"
    if not 0 <= policy.selector.upper_protocol <= 0xFF:
        return f"upper protocol {policy.selector.upper_protocol} does not fit in 8 bits"
    if not 0 <= policy.template_spi <= _U32_MAX:
        return f"template SPI {policy.template_spi:#x} does not fit in 32 bits"
    if not 0 <= policy.reqid <= _U32_MAX or not 0 <= policy.priority <= _U32_MAX:
        return "reqid or priority does not fit in 32 bits"
    if policy.if_id is not None and not 1 <= policy.if_id <= _U32_MAX:
        return f"if_id {policy.if_id} is not between 1 and 2^32-1"
    return ""
