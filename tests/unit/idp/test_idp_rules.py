"""The rules, one by one; and the specification says what the code does."""

from __future__ import annotations

import errno
import re
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from protocol.core.errors import PeerError
from protocol.core.transitions import TransitionTable, to_mermaid
from protocol.idp import rules
from protocol.idp.config import IdpConfig
from protocol.idp.connectivity import DEVICE
from protocol.idp.instance import INSTANCE
from protocol.idp.lighthello import Commitment
from protocol.idp.messages import Hello, PrefixAnnouncement
from protocol.idp.pairplan import PAIR
from protocol.idp.saplan import EPOCH
from protocol.idpmike import EpochId
from protocol.ipsec.backend import AddSa, DeletePolicy, DeleteSa, Outcome, PutPolicy
from protocol.ipsec.grouppolicy import GroupPath
from protocol.ipsec.model import KeyMaterial, SecurityAssociation, Suite
from tests.support.fakelink import SA_GROUP
from tests.support.identities import address

DOCUMENT = (Path(__file__).resolve().parents[3] / "docs" / "idp.md").read_text()
A, B = address(0), address(1)


def test_rule_table_of_the_document_is_that_of_the_code() -> None:
    rows = dict(re.findall(r"^\| (IDP-\d+) \| (.+) \|$", DOCUMENT, re.MULTILINE))
    assert rows == rules.RULES


@pytest.mark.parametrize("table", [INSTANCE, DEVICE, EPOCH, PAIR], ids=lambda table: table.name)
def test_diagrams_of_the_document_are_drawn_from_the_tables(table: TransitionTable) -> None:  # type: ignore[type-arg]
    assert f"```mermaid\n{to_mermaid(table)}```" in DOCUMENT
    assert table.unreachable() == []


def test_timing_table_of_the_document_has_the_defaults() -> None:
    config = IdpConfig(sa_group=SA_GROUP)
    rows = re.findall(r"^\| (\w+) \| (\d+) \| .+ \|$", DOCUMENT, re.MULTILINE)
    named = {name: int(value) for name, value in rows if hasattr(config, name)}
    assert len(named) == 14
    assert named == {name: getattr(config, name) for name in named}


@pytest.mark.parametrize(
    ("hello", "text"),
    [
        (
            Hello(1000, 4, epoch=EpochId(7, bytes.fromhex("0a1b2c3d4e5f6071"))),
            "000003e80402000000000000000000070a1b2c3d4e5f6071" + "00" * 52,
        ),
        (
            Hello(1000, 4, triggered=True, pair_key=bytes(range(32))),
            "000003e80401" + "0" * 36 + bytes(range(32)).hex() + "0" * 40,
        ),
        (
            Hello(
                1000,
                4,
                policy_version=3,
                policy_digest=bytes.fromhex("0102030405060708"),
                trust_digest=bytes.fromhex("1112131415161718"),
            ),
            "000003e80400" + "0" * 100 + "0000000301020304050607081112131415161718",
        ),
        (
            Hello(
                1000,
                4,
                asking=True,
                chain=Commitment(3, 5, 64, 980, 5500, bytes.fromhex("a5" * 32)),
            ),
            "000003e8040c" + "0" * 140 + "0000000300050040000003d40000157c" + "a5" * 32,
        ),
    ],
)
def test_vectors_of_the_document(hello: Hello, text: str) -> None:
    assert f"`{text}`" in DOCUMENT
    assert hello.encode().hex() == text
    assert Hello.decode(bytes.fromhex(text)) == hello


def test_announcement_of_the_document() -> None:
    """IDP-17."""
    found = re.search(r"ANSWER_WANTED \| `(\w+)` `(\w+)` \|", DOCUMENT)
    assert found is not None
    body = bytes.fromhex("".join(found.groups()))
    assert PrefixAnnouncement.decode(body) == PrefixAnnouncement(
        3,
        (ip_network("10.0.1.0/24"), ip_network("fd00:1::/64")),
        heard_startup_wall_ns=5,
        heard_version=2,
        answer_wanted=True,
    )


def refused_as(rule: str) -> Any:
    return pytest.raises(PeerError, match=rf"^{rule}: ")


@pytest.mark.parametrize("interval_ms", [0, 49, 60_001])
def test_idp_2(interval_ms: int) -> None:
    """IDP-2."""
    with refused_as("IDP-2"):
        rules.check_hello(Hello(interval_ms, 4))


@pytest.mark.parametrize("factor", [0, 1, 21])
def test_idp_3(factor: int) -> None:
    """IDP-3."""
    with refused_as("IDP-3"):
        rules.check_hello(Hello(1000, factor))


def test_hello_at_the_bounds_is_fine() -> None:
    rules.check_hello(Hello(50, 2))
    rules.check_hello(Hello(60_000, 20))


def test_idp_4() -> None:
    """IDP-4."""
    rules.check_not_own_address(B, A)
    with refused_as("IDP-4"):
        rules.check_not_own_address(A, A)


def test_idp_5() -> None:
    """IDP-5."""
    rules.check_startup_not_older(5, 5)
    with refused_as("IDP-5"):
        rules.check_startup_not_older(4, 5)


def test_idp_6() -> None:
    """IDP-6."""
    rules.check_table_room(2, 3)
    with refused_as("IDP-6"):
        rules.check_table_room(3, 3)


def test_idp_7() -> None:
    """IDP-7."""
    assert not rules.is_silent(100, 50, 149)
    assert rules.is_silent(100, 50, 150)


def test_idp_8() -> None:
    """IDP-8."""
    assert rules.triggered_hello_mono_ns(1000, None, 100, 7) == 1007
    assert rules.triggered_hello_mono_ns(1000, 990, 100, 7) == 1097
    assert rules.triggered_hello_mono_ns(1000, 500, 100, 7) == 1007


def test_idp_9() -> None:
    """IDP-9."""
    assert not rules.was_inaudible(None, 50, 1000)
    assert not rules.was_inaudible(951, 50, 1000)
    assert rules.was_inaudible(950, 50, 1000)
    assert not rules.proves_reconnection(None, 1)
    assert rules.proves_reconnection(10, 10)
    assert not rules.proves_reconnection(10, 11)


def test_idp_10() -> None:
    """IDP-10."""
    assert not rules.was_not_running(1000, 100, 1050)
    assert rules.was_not_running(1000, 100, 1051)


@pytest.mark.parametrize(
    ("members", "tm"), [([], A), ([A, A], A), ([A], B), ([A, B, address(2)], A)]
)
def test_idp_11(members: list[object], tm: object) -> None:
    """IDP-11."""
    with refused_as("IDP-11"):
        rules.check_status(members, tm, 2)  # type: ignore[arg-type]
    rules.check_status([A, B], B, 2)


def test_idp_12() -> None:
    """IDP-12."""
    assert rules.is_excluded(A, [B])
    assert not rules.is_excluded(A, [B, A])


def test_idp_13() -> None:
    """IDP-13."""
    rules.check_group_key(bytes(32))
    with refused_as("IDP-13"):
        rules.check_group_key(bytes(31))


def test_idp_14() -> None:
    """IDP-14."""
    sa = SecurityAssociation(A, SA_GROUP, 256, Suite.AES_GCM_128, KeyMaterial(bytes(20)))
    policy = GroupPath(A, SA_GROUP, 66, 7).outbound()[0]
    add, delete, put, drop = AddSa(sa), DeleteSa(sa.id), PutPolicy(policy), DeletePolicy(policy.id)
    gone, absent = Outcome(errno.ESRCH, "gone"), Outcome(errno.ENOENT, "absent")
    assert all(rules.is_done(operation, Outcome()) for operation in (add, delete, put, drop))
    assert rules.is_done(delete, gone)
    assert rules.is_done(drop, absent)
    assert not rules.is_done(add, Outcome(errno.EEXIST, "exists"))
    assert not rules.is_done(delete, Outcome(errno.EPERM, "no"))
    assert not rules.is_done(put, absent)
    assert rules.repetition(add) == [delete, add]
    assert rules.repetition(put) == [put]


def test_idp_15() -> None:
    """IDP-15."""
    assert rules.may_read(True)
    assert not rules.may_read(False)
