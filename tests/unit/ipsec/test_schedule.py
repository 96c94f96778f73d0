"""The key schedule: vectors made by a second implementation, and the properties the SAs need."""

from __future__ import annotations

import json
from collections.abc import Callable
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given
from hypothesis import strategies as st

from protocol.core.errors import LocalError
from protocol.ipsec import schedule
from protocol.ipsec.model import SPI_MIN, SaDirection, Suite
from protocol.ipsec.schedule import REPLAY_WINDOW, sender_sas, shared_sa
from protocol.ipsec.validation import sa_defect

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "schedule.json").read_text())
MEMBERS = [IPv6Address("2001:db8:b::") + index for index in range(1, 11)]
GROUP = IPv6Address("ff0e::1")
KEY = bytes(range(32))


def derive(**changes: Any) -> list[Any]:
    fields: dict[str, Any] = {
        "epoch_number": 5,
        "epoch_tag": b"tag",
        "members": MEMBERS,
        "group": GROUP,
        "suite": Suite.AES_GCM_128,
        "own": MEMBERS[0],
        "reqid": 7,
        "if_id": 66,
        **changes,
    }
    return sender_sas(fields.pop("group_key", KEY), **fields)


@pytest.mark.parametrize(
    "case", VECTORS, ids=lambda case: f"{case['suite']}-{len(case['members'])}"
)
def test_vectors(case: dict[str, Any]) -> None:
    members = [IPv6Address(member) for member in case["members"]]
    common = {
        "epoch_number": case["epoch_number"],
        "epoch_tag": bytes.fromhex(case["epoch_tag"]),
        "group": IPv6Address(case["group"]),
        "suite": Suite(case["suite"]),
        "own": members[0],
        "reqid": 7,
    }
    group_key = bytes.fromhex(case["group_key"])
    sas = sender_sas(group_key, members=members, **common)
    found = [
        {
            "spi": sa.spi,
            "encryption": sa.key.encryption.hex(),
            "authentication": sa.key.authentication.hex(),
        }
        for sa in sas
    ]
    assert found == case["senders"]
    assert [sa.source for sa in sas] == members
    if "shared" in case:
        one = shared_sa(group_key, **common)
        assert one.spi == case["shared"]["spi"]
        assert one.key.encryption.hex() == case["shared"]["encryption"]
        assert one.key.authentication.hex() == case["shared"]["authentication"]


def test_every_device_derives_the_same_keys_and_only_its_own_sa_is_outbound() -> None:
    by_device = [derive(own=member) for member in MEMBERS]
    facts = [[(sa.source, sa.spi, sa.key) for sa in sas] for sas in by_device]
    assert all(fact == facts[0] for fact in facts)
    for index, sas in enumerate(by_device):
        assert [sa.direction is SaDirection.OUT for sa in sas] == [i == index for i in range(10)]
        assert [sa.replay_window for sa in sas] == [
            0 if i == index else REPLAY_WINDOW for i in range(10)
        ]
        assert not any(sa_defect(sa) for sa in sas)
        assert all(sa.reqid == 7 and sa.if_id == 66 and sa.destination == GROUP for sa in sas)


def test_keys_and_spis_of_senders_differ() -> None:
    sas = derive()
    assert len({sa.spi for sa in sas}) == len({sa.key.encryption for sa in sas}) == 10
    assert all(sa.spi >= SPI_MIN for sa in sas)


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch_number": 6},
        {"epoch_tag": b"other"},
        {"group": IPv6Address("ff0e::2")},
        {"suite": Suite.AES_GCM_256},
        {"group_key": bytes(32)},
    ],
)
def test_another_context_gives_other_keys(changes: dict[str, Any]) -> None:
    before = {sa.key.encryption[:16] for sa in derive()}
    assert not before & {sa.key.encryption[:16] for sa in derive(**changes)}


def test_successive_epochs_never_share_an_spi() -> None:
    found = [{sa.spi & 3 for sa in derive(epoch_number=number)} for number in range(4)]
    assert found == [{0}, {1}, {2}, {3}]


def first_candidates(monkeypatch: pytest.MonkeyPatch, candidate: bytes) -> None:
    """Let every sender's first SPI candidate be the same."""
    real = schedule.expander

    def expander(group_key: bytes) -> Callable[[bytes, int], bytes]:
        expand = real(group_key)

        def bent(info: bytes, length: int) -> bytes:
            first = schedule.LABEL_SENDER_SPI in info and info.endswith(bytes(4))
            return candidate if first else expand(info, length)

        return bent

    monkeypatch.setattr(schedule, "expander", expander)


def test_a_taken_spi_moves_the_later_member_on(monkeypatch: pytest.MonkeyPatch) -> None:
    first_candidates(monkeypatch, b"\x00\x00\x10\x00")
    spis = [sa.spi for sa in derive()]
    assert spis[0] == 0x1001
    assert len(set(spis)) == 10


def test_a_reserved_spi_is_never_used(monkeypatch: pytest.MonkeyPatch) -> None:
    first_candidates(monkeypatch, b"\x00\x00\x00\xff")
    assert all(sa.spi >= SPI_MIN for sa in derive())


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=200), st.integers(1, 200))
def test_expansion_is_that_of_rfc_5869(key: bytes, info: bytes, length: int) -> None:
    expected = HKDFExpand(SHA256(), length, info).derive(key)
    assert schedule.expander(key)(info, length) == expected


@given(st.permutations(MEMBERS))
def test_keys_do_not_depend_on_position(members: list[IPv6Address]) -> None:
    keys = {sa.source: sa.key for sa in derive()}
    assert {sa.source: sa.key for sa in derive(members=members)} == keys


@pytest.mark.parametrize(
    "changes",
    [
        {"group_key": bytes(31)},
        {"own": IPv6Address("2001:db8:b::99")},
        {"members": [MEMBERS[0], MEMBERS[1], MEMBERS[0]]},
        {"epoch_number": 1 << 64},
        {"epoch_number": -1},
    ],
)
def test_a_callers_mistake_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(LocalError):
        derive(**changes)


def test_without_directions() -> None:
    assert all(sa.direction is None for sa in derive(directions=False))


def test_shared_sa_is_for_all_senders() -> None:
    common: dict[str, Any] = {
        "epoch_number": 5, "epoch_tag": b"tag", "group": GROUP,
        "suite": Suite.AES_CBC_SHA256, "reqid": 7, "if_id": 66,
    }  # fmt: skip
    one, other = (shared_sa(KEY, own=own, **common) for own in MEMBERS[:2])
    assert (one.spi, one.key, one.destination) == (other.spi, other.key, other.destination)
    assert (one.source, other.source) == (MEMBERS[0], MEMBERS[1])
    assert one.direction is None
    assert one.replay_window == 0
    assert not sa_defect(one)


@pytest.mark.parametrize("suite", [Suite.AES_GCM_128, Suite.AES_GCM_256])
def test_shared_sa_refuses_suites_whose_nonces_would_repeat(suite: Suite) -> None:
    with pytest.raises(LocalError, match="RFC 6054"):
        shared_sa(
            KEY, epoch_number=5, epoch_tag=b"", group=GROUP, suite=suite, own=MEMBERS[0], reqid=7
        )


def test_nothing_shows_a_key() -> None:
    sas = derive()
    shown = repr(sas)
    for sa in sas:
        assert sa.key.encryption.hex() not in shown
        assert repr(sa.key.encryption) not in shown
