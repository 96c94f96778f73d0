"""The hello's codec and the engine under rubbish: one error and no other, no effect, no crash."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.core.engine import DatagramReceived, Log
from protocol.core.errors import DecodeError, PeerError
from protocol.idp import rules
from protocol.idp.lighthello import HEADER, Commitment, LightHello
from protocol.idp.messages import (
    CHAINED_HELLO_LENGTH,
    HELLO_LENGTH,
    Hello,
    PrefixAnnouncement,
    prefix_order,
)
from protocol.idpmike import EpochId
from tests.support.fakelink import LOOPBACK, Network
from tests.support.identities import address

epochs = st.builds(EpochId, st.integers(0, 2**64 - 1), st.binary(min_size=8, max_size=8))
digests = st.binary(min_size=8, max_size=8)
policies = st.just((0, bytes(8))) | st.tuples(
    st.integers(1, 2**32 - 1), digests.filter(lambda digest: digest != bytes(8))
)
u16, u32 = st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1)
values = st.binary(min_size=32, max_size=32)
chains = st.builds(Commitment, u32, u16, u16, u32, u32, values)
lights = st.builds(
    LightHello,
    st.binary(min_size=16, max_size=16),
    st.integers(0, 2**64 - 1),
    u32,
    u32,
    values,
)
hellos = st.builds(
    lambda fixed, policy, *more: Hello(*fixed, *policy, *more),
    st.tuples(
        st.integers(0, 2**32 - 1),
        st.integers(0, 255),
        st.booleans(),
        st.none() | epochs,
        st.binary(min_size=32, max_size=32),
    ),
    policies,
    digests,
    st.booleans(),
    st.none() | chains,
)
networks = st.one_of(
    st.builds(
        lambda value, length: IPv4Network((value >> (32 - length) << (32 - length), length)),
        st.integers(0, 2**32 - 1),
        st.integers(0, 32),
    ),
    st.builds(
        lambda value, length: IPv6Network((value >> (128 - length) << (128 - length), length)),
        st.integers(0, 2**128 - 1),
        st.integers(0, 128),
    ),
)
announcements = st.builds(
    PrefixAnnouncement,
    st.integers(0, 2**32 - 1),
    st.sets(networks, max_size=12).map(lambda found: tuple(sorted(found, key=prefix_order))),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)


@given(announcements)
def test_announcements_round_trip(announcement: PrefixAnnouncement) -> None:
    assert PrefixAnnouncement.decode(announcement.encode()) == announcement


@given(announcements, st.integers(0, 400), st.integers(0, 255))
def test_a_damaged_announcement_is_refused_or_another_one(
    announcement: PrefixAnnouncement, place: int, value: int
) -> None:
    body = bytearray(announcement.encode())
    if place < len(body):
        body[place] = value
    else:
        body = body[: place % len(body)]
    try:
        found = PrefixAnnouncement.decode(bytes(body))
    except DecodeError:
        return
    assert found.encode() == bytes(body)


@given(hellos)
def test_round_trip(hello: Hello) -> None:
    body = hello.encode()
    assert len(body) == (HELLO_LENGTH if hello.chain is None else CHAINED_HELLO_LENGTH)
    assert Hello.decode(body) == hello


@given(
    st.binary(max_size=90)
    | st.binary(min_size=HELLO_LENGTH, max_size=HELLO_LENGTH)
    | st.binary(min_size=CHAINED_HELLO_LENGTH, max_size=CHAINED_HELLO_LENGTH)
)
def test_decoder_raises_one_error_and_one_string_stands_for_each_hello(body: bytes) -> None:
    try:
        hello = Hello.decode(body)
    except DecodeError:
        return
    assert hello.encode() == body


@given(lights)
def test_light_hellos_round_trip(light: LightHello) -> None:
    assert LightHello.decode(light.encode()) == light


@given(st.binary(max_size=80).map(lambda tail: HEADER + tail) | st.binary(max_size=80))
def test_light_decoder_raises_one_error_and_one_string_stands_for_each(datagram: bytes) -> None:
    try:
        light = LightHello.decode(datagram)
    except DecodeError:
        return
    assert light.encode() == datagram


@given(hellos, st.integers(0, HELLO_LENGTH * 8 - 1))
def test_truncated_and_extended_bodies_are_refused(hello: Hello, cut: int) -> None:
    body = hello.encode()
    for wrong in (body[: cut // 8], body + b"\0"):
        try:
            Hello.decode(wrong)
        except DecodeError:
            continue
        raise AssertionError(wrong)


@given(hellos)
def test_checked_hello_has_a_bounded_dead_interval(hello: Hello) -> None:
    try:
        rules.check_hello(hello)
    except PeerError:
        return
    assert 100_000_000 <= hello.dead_interval_ns <= 1_200_000_000_000


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["group", "local"]),
            st.sampled_from([address(0), address(1), address(9), LOOPBACK]),
            st.binary(max_size=300) | st.binary(max_size=70).map(lambda tail: HEADER + tail),
        ),
        max_size=20,
    )
)
def test_engine_survives_rubbish_and_stays_as_it_was(
    datagrams: list[tuple[str, object, bytes]],
) -> None:
    network = Network(2)
    a, b = network.devices
    a.start()
    b.start()
    network.run(1500)
    before = a.status()["peers"]
    for channel, source, payload in datagrams:
        event = DatagramReceived(channel, source, payload)  # type: ignore[arg-type]
        effects = a.engine.handle(event, network.now)
        assert all(isinstance(effect, Log) for effect in effects)
    assert a.status()["peers"] == before
    refused = sum(
        amount
        for rule, amount in a.status()["counters"].items()
        if rule.startswith(("AUTH", "LOCAL", "IDP-30"))
    )
    assert refused == len(datagrams)
