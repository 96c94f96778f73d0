"""The domain policy's bytes, its TOML, and what it says about a device's settings."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.core.errors import DecodeError, LocalError, PeerError
from protocol.identity.profile import inspect_anchor
from protocol.identity.signed import open_signed
from protocol.idp.config import IdpConfig, SaMode, Unicast
from protocol.idp.policy import KEY_BITS, DomainPolicy
from protocol.ipsec.model import Suite
from tests.support.coalition import policy, policy_authority
from tests.support.fakelink import SA_GROUP, WALL_START_NS
from tests.vectors.make_documents import POLICY


def some(kind: type) -> st.SearchStrategy[tuple]:  # type: ignore[type-arg]
    return st.sets(st.sampled_from(list(kind)), min_size=1).map(
        lambda found: tuple(one for one in kind if one in found)
    )


def ordered(low: int, high: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(low, high), min_size=2, max_size=2).map(sorted)


@st.composite
def policies(draw: st.DrawFn) -> DomainPolicy:
    suites = draw(some(Suite))
    life, hello = draw(ordered(10, 30 * 86_400)), draw(ordered(50, 60_000))
    return DomainPolicy(
        draw(st.text("abc é-0", min_size=1, max_size=20)),
        draw(st.integers(1, 2**32 - 1)),
        suites,
        draw(some(SaMode)),
        draw(some(Unicast)),
        draw(st.integers(0, max(KEY_BITS[suite] for suite in suites))),
        *life,
        *draw(ordered(1 << 20, 1 << 62)),
        *hello,
    )


@given(policies())
def test_round_trip(made: DomainPolicy) -> None:
    content = made.encode()
    assert DomainPolicy.decode(content) == made
    assert DomainPolicy.from_table(made.describe()) == made
    assert made.differences(made) == []
    for wrong in (content[:-1], content + b"\0"):
        with pytest.raises(DecodeError, match="IDP-50"):
            DomainPolicy.decode(wrong)


@settings(max_examples=400)
@given(policies(), st.integers(0, 2**16), st.integers(0, 2**16))
def test_one_string_stands_for_each_policy(made: DomainPolicy, one: int, other: int) -> None:
    content = bytearray(made.encode())
    for flip in (one, other):
        place = flip % (8 * len(content))
        content[place // 8] ^= 1 << place % 8
    try:
        read = DomainPolicy.decode(bytes(content))
    except DecodeError:
        return
    assert read.encode() == bytes(content)
    assert (read == made) == (read.digest() == made.digest())


@given(policies(), policies())
def test_differences_name_exactly_the_fields_that_differ(
    one: DomainPolicy, other: DomainPolicy
) -> None:
    named = [text.split(" ")[0] for text in one.differences(other)]
    assert named == [
        item.name for item in fields(one) if getattr(one, item.name) != getattr(other, item.name)
    ]
    assert (one.digest() == other.digest()) == (named == [])


@given(policies(), st.sampled_from(Suite), st.integers(500, 60_000))
def test_settings_are_held_against_every_field(
    made: DomainPolicy, suite: Suite, interval: int
) -> None:
    config = IdpConfig(sa_group=SA_GROUP, suite=suite, hello_interval_ms=interval)
    broken = {field for field, _ in made.defects(config)}
    expected = set()
    if suite not in made.suites or KEY_BITS[suite] < made.key_bits_min:
        expected.add("[ipsec] suite")
    if SaMode.PER_SENDER not in made.sa_modes:
        expected.add("[ipsec] sa_mode")
    if Unicast.GROUP not in made.unicast:
        expected.add("[ipsec] unicast")
    if not made.hello_interval_min_ms <= interval <= made.hello_interval_max_ms:
        expected.add("[idp] hello_interval_ms")
    assert broken == expected
    life = made.sa_lifetime_max_s + 1
    if life <= 30 * 86_400:
        longer = replace(config, sa_lifetime_s=life)
        assert {field for field, _ in made.defects(longer)} - broken == {"[ipsec] sa_lifetime_s"}
    for carried in (made.sa_lifetime_min_bytes - 1, made.sa_lifetime_max_bytes + 1):
        if carried <= 1 << 62:
            found = {field for field, _ in made.defects(replace(config, sa_lifetime_bytes=carried))}
            assert found - broken == {"[ipsec] sa_lifetime_bytes"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 0}, "version: 0 is not a whole number from 1"),
        ({"version": True}, "version: True"),
        ({"domain": ""}, "domain: not a printable text"),
        ({"domain": "x" * 64}, "domain: not a printable text"),
        ({"domain": 7}, "domain: not a text"),
        ({"suites": []}, "suites: must be a list of some of aes-gcm-128"),
        ({"suites": ["rot13"]}, "not ['rot13']"),
        ({"suites": "aes-gcm-128"}, "suites: must be a list"),
        ({"key_bits_min": 192, "suites": ["aes-gcm-128"]}, "no allowed suite has 192 bits"),
        ({"sa_lifetime_min_s": 5}, "sa_lifetime_min_s: 5 is not"),
        ({"sa_lifetime_min_s": 7200}, "sa_lifetime_min_s: larger than sa_lifetime_max_s"),
        ({"sa_lifetime_min_bytes": 5}, "sa_lifetime_min_bytes: 5 is not"),
        ({"sa_lifetime_max_bytes": 1 << 63}, "from 1048576 to 4611686018427387904"),
        ({"sa_lifetime_max_bytes": 1 << 20}, "larger than sa_lifetime_max_bytes"),
        ({"hello_interval_min_ms": 49}, "hello_interval_min_ms: 49 is not"),
        ({"colour": "red"}, "colour: unknown (known: domain, version"),
        ({"unicast": None}, "unicast: must be a list"),
    ],
)
def test_absurd_policies_name_the_field(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(LocalError) as error:
        policy(**changes)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_field_is_named() -> None:
    for name in POLICY:
        table = {key: value for key, value in POLICY.items() if key != name}
        with pytest.raises(LocalError, match=f"{name}: missing"):
            DomainPolicy.from_table(table)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=200)
@given(st.integers(0, 2**16))
def test_no_damaged_document_counts(flip: int) -> None:
    authority = policy_authority()
    anchor = inspect_anchor(authority.authority.certificate)
    good = authority.sign(policy().encode())
    assert open_signed(good, anchor, WALL_START_NS) == policy().encode()
    document = bytearray(good)
    place = flip % (8 * len(document))
    document[place // 8] ^= 1 << place % 8
    try:
        content = open_signed(bytes(document), anchor, WALL_START_NS)
    except PeerError:
        return
    # The one byte of the signer's certificate that no signature covers.
    assert content == policy().encode()
    assert len(good) - 64 - 65 == place // 8
