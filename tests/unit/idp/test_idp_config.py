"""Settings: mistakes name the field."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from protocol.idp.config import ConfigError, IdpConfig, SaMode
from protocol.ipsec.model import Suite
from tests.support.fakelink import SA_GROUP

GOOD = IdpConfig(sa_group=SA_GROUP)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sa_group", type(SA_GROUP)("2001:db8::1")),
        ("if_id", 0),
        ("reqid", 0),
        ("hello_interval_ms", 49),
        ("hello_interval_ms", 60_001),
        ("hello_interval_ms", 1000.5),
        ("hello_interval_ms", True),
        ("dead_factor", 1),
        ("dead_factor", 21),
        ("jitter_ms", -1),
        ("jitter_ms", 251),
        ("triggered_hello_spread_ms", 1001),
        ("triggered_hello_gap_ms", -1),
        ("activation_delay_ms", -1),
        ("deactivation_delay_ms", 300_001),
        ("max_peers", 0),
        ("max_epochs", 1),
        ("retry_ms", 0),
    ],
)
def test_field_out_of_bounds(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: "):
        replace(GOOD, **{field: value})


def test_shared_key_with_an_aead_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^suite: aes-gcm-128 with sa_mode paper"):
        replace(GOOD, sa_mode=SaMode.PAPER)
    assert replace(GOOD, sa_mode=SaMode.PAPER, suite=Suite.TDES_SHA1).sa_mode is SaMode.PAPER


def test_tables_of_a_device() -> None:
    config = IdpConfig.from_tables(
        {"group": "ff0e::1d0", "port": 47500, "hello_interval_ms": 500, "jitter_ms": 10},
        {
            "backend": "netlink",
            "interface": "xfrm0",
            "group": "ff0e::1",
            "sa_mode": "paper",
            "suite": "3des-sha1",
            "if_id": 9,
            "sa_directions": False,
        },
    )
    assert config == IdpConfig(
        sa_group=SA_GROUP,
        hello_interval_ms=500,
        jitter_ms=10,
        sa_mode=SaMode.PAPER,
        suite=Suite.TDES_SHA1,
        if_id=9,
        sa_directions=False,
    )
    assert config.dead_interval_ms == 2000


@pytest.mark.parametrize(
    ("idp", "ipsec", "text"),
    [
        ({"helo_interval_ms": 1}, {}, r"\[idp\] helo_interval_ms: unknown"),
        ({}, {"jitter_ms": 1}, r"\[ipsec\] jitter_ms: unknown"),
        ({}, {}, r"\[ipsec\] group: missing"),
        ({}, {"group": "nowhere"}, r"\[ipsec\] group: "),
        ({}, {"group": "ff0e::1", "sa_mode": "both"}, r"\[ipsec\] sa_mode: 'both'"),
        ({}, {"group": "ff0e::1", "suite": "rot13"}, r"\[ipsec\] suite: 'rot13'"),
        ({}, {"group": "ff0e::1", "sa_directions": 1}, r"\[ipsec\] sa_directions: 1"),
        ({"dead_factor": "4"}, {"group": "ff0e::1"}, r"\[idp\] dead_factor: '4'"),
    ],
)
def test_mistakes_in_the_tables(idp: dict[str, Any], ipsec: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        IdpConfig.from_tables(idp, ipsec)
