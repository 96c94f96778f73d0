"""A stream of hellos, whatever a network or an attacker makes of it: what counts, and until when.

A sender with a real schedule; an attacker delivers any of its hellos, in any order, at any time
after they were sent, more than once, and invents others. Checked is the claim of docs/idp.md,
section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.core.counters import RuleCounters
from protocol.core.engine import Instant
from protocol.core.errors import PeerError
from protocol.identity import Opened
from protocol.idp import lighthello
from protocol.idp.followers import Followers
from protocol.idp.lighthello import Commitment, HashChain, LightHello
from protocol.idp.messages import Hello
from tests.support.identities import known_device, make_identities

MS = 1_000_000
WALL_NS = 1_800_000_000_000_000_000
PEER = known_device(1).peer
STARTUP, INTERVAL_MS, JITTER_MS, EVERY, LENGTH = 5, 1000, 50, 4, 12
STEP_MS = INTERVAL_MS - JITTER_MS
IDENTITY = make_identities(2)[0]
CONTEXT = lighthello.context(PEER.fingerprint, STARTUP, 0)
CHAIN = HashChain(CONTEXT, bytes(32), LENGTH)


@dataclass(frozen=True)
class Sent:
    """One hello of the sender."""

    index: int
    at_ms: int
    signed: bool


def deliver(followers: Followers, sent: Sent, now_ms: float, ahead_ms: int = 0) -> bool:
    """Hand it in; return whether it counted. The sender's wall clock may be ahead of ours."""
    now_ns = int(now_ms * MS)
    arrived = Instant(now_ns, WALL_NS + now_ns)
    try:
        if sent.signed:
            value = CHAIN.value(sent.index)
            commitment = Commitment(0, sent.index, LENGTH, STEP_MS, sent.at_ms, value)
            hello = Hello(INTERVAL_MS, 4, chain=commitment)
            sent_wall_ns = WALL_NS + (sent.at_ms + ahead_ms) * MS
            opened = Opened(PEER, 1, STARTUP, sent.index, sent_wall_ns, b"")
            followers.check_signed(opened, hello, arrived)
            followers.take_signed(opened, hello, arrived)
        else:
            value = CHAIN.value(sent.index)
            light = LightHello(PEER.fingerprint, STARTUP, 0, sent.index, value)
            followers.take_light(light, STARTUP, now_ns)
    except PeerError:
        return False
    return True


@st.composite
def streams(draw: st.DrawFn) -> list[Sent]:
    """Hello i of the chain is sent between i steps less the jitter and i steps after the first."""
    return [
        Sent(i, i * STEP_MS - (draw(st.integers(0, JITTER_MS)) if i else 0), i % EVERY == 0)
        for i in range(LENGTH + 1)
    ]


@settings(max_examples=300, deadline=None)
@given(streams(), st.integers(0, LENGTH), st.data())
def test_nothing_counts_later_than_the_bound_after_the_sender_died(
    stream: list[Sent], last: int, data: st.DataObject
) -> None:
    followers = Followers(IDENTITY, RuleCounters(), lambda peer, error, now: [])
    died_ms = stream[last].at_ms
    # The first signed hello, and with it all else, takes this long.
    transit_ms = data.draw(st.integers(0, 3000), "transit_ms")
    ahead_ms = data.draw(st.integers(-6000, 6000), "sender's wall clock ahead of ours")
    assert deliver(followers, stream[0], transit_ms, ahead_ms)
    events = data.draw(
        st.lists(st.tuples(st.integers(0, last), st.integers(transit_ms, 12_000)), max_size=40).map(
            lambda found: sorted(found, key=lambda event: stream[event[0]].at_ms + event[1])
        ),
        "deliveries",
    )
    counted: list[int] = []
    for index, delay_ms in events:
        now_ms = stream[index].at_ms + delay_ms
        if deliver(followers, stream[index], now_ms, ahead_ms):
            if not stream[index].signed:
                counted.append(index)
            bound_ms = 4 * INTERVAL_MS + JITTER_MS + max(transit_ms, ahead_ms)
            assert now_ms - stream[index].at_ms <= bound_ms
            assert now_ms - died_ms <= bound_ms
    assert counted == sorted(set(counted))


@settings(max_examples=200, deadline=None)
@given(streams(), st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH), st.integers(0, 900))
def test_all_that_arrive_in_time_count_whatever_else_is_lost(
    stream: list[Sent], arrives: list[bool], spread_ms: int
) -> None:
    followers = Followers(IDENTITY, RuleCounters(), lambda peer, error, now: [])
    assert deliver(followers, stream[0], 10)
    for sent, there in zip(stream[1:], arrives, strict=True):
        if there:
            delay_ms = 10 + spread_ms * (sent.index % 2)
            assert deliver(followers, sent, sent.at_ms + delay_ms)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, LENGTH),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2),
    st.binary(min_size=32, max_size=32),
    st.integers(0, 20_000),
)
def test_invented_values_never_count(
    known: int, index: int, chain: int, value: bytes, now_ms: int
) -> None:
    followers = Followers(IDENTITY, RuleCounters(), lambda peer, error, now: [])
    assert deliver(followers, Sent(known, known * STEP_MS, True), known * STEP_MS)
    invented = LightHello(PEER.fingerprint, STARTUP, chain, index, value)
    try:
        followers.take_light(invented, STARTUP, now_ms * MS)
    except PeerError:
        return
    raise AssertionError(invented)
