"""Hash chains: what they are, and what a receiver lets count."""

from __future__ import annotations

import re

import pytest

from protocol.core.counters import RuleCounters
from protocol.core.engine import Instant
from protocol.core.errors import DecodeError, LocalError, PeerError
from protocol.identity import Opened
from protocol.idp import lighthello, rules
from protocol.idp.connectivity import ConnectivityTable
from protocol.idp.followers import Followers
from protocol.idp.lighthello import Commitment, HashChain, LightHello
from protocol.idp.messages import Hello
from tests.support.identities import known_device, make_identities
from tests.unit.idp.test_idp_rules import DOCUMENT, refused_as

MS = 1_000_000
PEER = known_device(1).peer
STARTUP = 77
WALL_NS = 1_800_000_000_000_000_000
STEP_MS, INTERVAL_MS, SLACK_MS, LENGTH = 980, 1000, 4000, 12


def chain(number: int = 0, startup_wall_ns: int = STARTUP) -> HashChain:
    context = lighthello.context(PEER.fingerprint, startup_wall_ns, number)
    return HashChain(context, bytes(31) + bytes([number]), LENGTH)


def followers() -> Followers:
    return Followers(make_identities(2)[0], RuleCounters(), lambda peer, error, now: [])


def sign(
    known: Followers,
    at_ms: float,
    *,
    sequence: int = 0,
    number: int = 0,
    index: int = 0,
    age_ms: int = 0,
    chained: bool = True,
    signed_ms: float = -60_000,
) -> None:
    """Let a signed hello arrive; it was signed at this time by the wall clocks, long ago."""
    commitment = Commitment(number, index, LENGTH, STEP_MS, age_ms, chain(number).value(index))
    hello = Hello(INTERVAL_MS, 4, chain=commitment if chained else None)
    arrived = Instant(int(at_ms * MS), WALL_NS + int(at_ms * MS))
    sent_wall_ns = WALL_NS + int(signed_ms * MS)
    opened = Opened(PEER, 1, STARTUP, sequence, sent_wall_ns, hello.encode())
    known.check_signed(opened, hello, arrived)
    known.take_signed(opened, hello, arrived)


def light(index: int, number: int = 0, startup_wall_ns: int = STARTUP) -> LightHello:
    value = chain(number, startup_wall_ns).value(index)
    return LightHello(PEER.fingerprint, startup_wall_ns, number, index, value)


def hear(known: Followers, message: LightHello, at_ms: float, listed: int | None = STARTUP) -> None:
    known.take_light(message, listed, int(at_ms * MS))


def test_vectors_of_the_document() -> None:
    context = lighthello.context(b"\x01" * 16, 2, 4)
    values = HashChain(context, b"\x03" * 32, 5)
    assert f"`{values.value(0).hex()}`" in DOCUMENT
    message = LightHello(b"\x01" * 16, 2, 4, 2, values.value(2))
    (text,) = re.findall(r"^`(01010800[0-9a-f]+)`\.$", DOCUMENT, re.MULTILINE)
    assert message.encode().hex() == text
    assert LightHello.decode(bytes.fromhex(text)) == message
    assert lighthello.before(context, 1, values.value(1)) == values.value(0)


def test_idp_30() -> None:
    """IDP-30."""
    good = light(1).encode()
    for wrong in (good[:-1], good + b"\0", good[:4], b"", b"\1\1\1\0" + good[4:]):
        with pytest.raises(DecodeError, match=r"^IDP-30: "):
            LightHello.decode(wrong)
    with pytest.raises(LocalError):
        LightHello(bytes(15), 1, 0, 1, bytes(32)).encode()


@pytest.mark.parametrize(
    ("index", "length", "step_ms"),
    [(3, 2, 1000), (0, 0, 1000), (0, 257, 1000), (0, 9, 749), (0, 9, 1001)],
)
def test_idp_31(index: int, length: int, step_ms: int) -> None:
    """IDP-31."""
    rules.check_hello(Hello(1000, 4, chain=Commitment(0, 2, 256, 750, 0, bytes(32))))
    with refused_as("IDP-31"):
        rules.check_hello(Hello(1000, 4, chain=Commitment(0, index, length, step_ms, 0, bytes(32))))


def test_values_of_another_chain_instance_or_index_do_not_fit() -> None:
    """IDP-34."""
    known = followers()
    sign(known, 0)
    for value in (chain(1).value(1), chain(0, STARTUP + 1).value(1), chain().value(2), bytes(32)):
        with refused_as("IDP-34"):
            hear(known, LightHello(PEER.fingerprint, STARTUP, 0, 1, value), 980)
    hear(known, light(1), 980)


def test_idp_32() -> None:
    """IDP-32."""
    known = followers()
    with refused_as("IDP-32"):
        hear(known, light(1), 980)
    sign(known, 0)
    for message, listed in [
        (light(1, number=1), STARTUP),
        (light(1, startup_wall_ns=STARTUP + 1), STARTUP),
        (light(1), None),
        (light(1), STARTUP + 1),
    ]:
        with refused_as("IDP-32"):
            hear(known, message, 980, listed)
    sign(known, 500, sequence=1, chained=False)
    with refused_as("IDP-32"):
        hear(known, light(1), 980)


def test_idp_33() -> None:
    """IDP-33."""
    known = followers()
    sign(known, 0)
    hear(known, light(3), 3 * STEP_MS)
    for index in (3, 2, 1, 0):
        with refused_as("IDP-33"):
            hear(known, light(index), 3 * STEP_MS)
    with refused_as("IDP-31"):
        hear(known, LightHello(PEER.fingerprint, STARTUP, 0, LENGTH + 1, bytes(32)), 3 * STEP_MS)


def test_idp_35_window_ends_one_dead_interval_after_the_value_was_due() -> None:
    """IDP-35."""
    known = followers()
    sign(known, 0)
    with refused_as("IDP-35"):
        hear(known, light(1), STEP_MS + SLACK_MS + 1)
    hear(known, light(2), 2 * STEP_MS + SLACK_MS)


def test_idp_35_hello_that_comes_early_moves_the_chain_back_and_never_forward() -> None:
    """IDP-35."""
    known = followers()
    # The signed hello was under way for 700 ms longer than the light ones.
    sign(known, 700)
    hear(known, light(1), STEP_MS)
    # It was revealed 960 ms after the chain began or later, so the chain began at 20 at the latest.
    with refused_as("IDP-35"):
        hear(known, light(2), 20 + 2 * STEP_MS + SLACK_MS + 1)
    hear(known, light(3), 20 + 3 * STEP_MS + SLACK_MS)
    # A signed one that arrives late does not move it forward again.
    sign(known, 8900, sequence=5, index=5, age_ms=5 * STEP_MS)
    with refused_as("IDP-35"):
        hear(known, light(6), 20 + 6 * STEP_MS + SLACK_MS + 1)


def test_idp_35_and_39_signed() -> None:
    """IDP-35, IDP-39."""
    known = followers()
    sign(known, 0, sequence=5)
    with refused_as("IDP-39"):
        sign(known, 10, sequence=4)
    with refused_as("IDP-35"):
        sign(known, 6000, sequence=6, index=1, age_ms=STEP_MS)
    # Of a new chain, nothing is known.
    sign(known, 6000, sequence=6, number=1, index=0)
    hear(known, light(1, number=1), 6900)


def test_idp_35_just_signed_hello_sets_a_chain_right_whose_sender_stood_still() -> None:
    """IDP-35."""
    known = followers()
    sign(known, 0)
    hear(known, light(2), 2 * STEP_MS)
    # The sender's machine was suspended for a minute; its monotonic clock stood still.
    back_ms = 60_000
    with refused_as("IDP-35"):
        hear(known, light(3), back_ms + 3 * STEP_MS)
    at_ms = back_ms + 4 * STEP_MS
    later = {"sequence": 1, "index": 4, "age_ms": 4 * STEP_MS}
    with refused_as("IDP-35"):
        sign(known, at_ms, **later, signed_ms=at_ms - SLACK_MS - 1)
    sign(known, at_ms, **later, signed_ms=at_ms - 300)
    # The windows are as narrow as if it had come in no time.
    with refused_as("IDP-35"):
        hear(known, light(5), back_ms - 300 + 5 * STEP_MS + SLACK_MS + 1)
    hear(known, light(6), back_ms - 300 + 6 * STEP_MS + SLACK_MS)


def test_idp_35_sender_whose_wall_clock_is_ahead_gains_nothing_by_it() -> None:
    """IDP-35."""
    known = followers()
    sign(known, 0)
    at_ms = 20_000 + STEP_MS
    with refused_as("IDP-35"):
        sign(known, at_ms, sequence=1, index=1, age_ms=STEP_MS, signed_ms=at_ms + SLACK_MS + 1)
    sign(known, at_ms, sequence=1, index=1, age_ms=STEP_MS, signed_ms=at_ms + SLACK_MS)
    with refused_as("IDP-35"):
        hear(known, light(2), 20_000 + 2 * STEP_MS + SLACK_MS + 1)


def test_signed_hello_of_the_chain_saves_the_hashes_but_not_the_values_used() -> None:
    known = followers()
    sign(known, 0)
    hear(known, light(4), 4 * STEP_MS)
    # An answer that was sealed before the light one left, and came after it.
    sign(known, 4 * STEP_MS + 1, sequence=1, index=3, age_ms=4 * STEP_MS - 5)
    with refused_as("IDP-33"):
        hear(known, light(4), 4 * STEP_MS + 2)
    hear(known, light(5), 5 * STEP_MS)


def test_restart_needs_a_signed_hello() -> None:
    known = followers()
    sign(known, 0)
    with pytest.raises(PeerError):
        hear(known, light(1, startup_wall_ns=STARTUP + 1), 980, STARTUP + 1)


def test_idp_36() -> None:
    """IDP-36."""
    assert rules.asked_after_ns(1000, 4000) == 2000
    assert rules.asked_after_ns(1000, 2000) == 1500
    assert rules.asked_after_ns(999, 2000) == 1499, "not before one and a half intervals"
    for dead_factor, asked_at_ms in ((4, 2000), (2, 1500)):
        table = ConnectivityTable(4)
        table.heard(PEER, STARTUP, Hello(1000, dead_factor), 0)
        assert table.falling_silent(asked_at_ms * MS - 1) == ()
        assert table.falling_silent(asked_at_ms * MS) == (PEER.address,)


def test_idp_37() -> None:
    """IDP-37."""
    assert rules.next_index(0, 960, 980) == 1
    assert rules.next_index(3, 4 * 980 + 5, 980) == 4
    assert rules.next_index(3, 9 * 980 + 5, 980) == 9


@pytest.mark.parametrize(
    ("interval_ms", "devices", "budget", "paced_ms"),
    [
        (1000, 100, 200, 1000),
        (1000, 200, 200, 1000),
        (1000, 201, 200, 1250),
        (1000, 256, 200, 1500),
        (1000, 100, 10, 10_000),
        (50, 10, 200, 50),
        (50, 11, 200, 60),
        (1000, 4096, 1, 60_000),
    ],
)
def test_idp_38(interval_ms: int, devices: int, budget: int, paced_ms: int) -> None:
    """IDP-38."""
    assert rules.paced_interval_ms(interval_ms, devices, budget) == paced_ms


def test_no_value_of_a_chain_in_any_repr() -> None:
    values = chain()
    message = light(3)
    commitment = Commitment(0, 3, LENGTH, STEP_MS, 0, values.value(3))
    for text in (repr(values), repr(message), repr(commitment)):
        assert values.value(3).hex()[:16] not in text
        assert repr(values.value(3))[2:10] not in text


def test_of_too_many_light_hellos_only_those_that_go_on_with_their_chain_are_looked_at() -> None:
    """IDP-32 to IDP-34, at the price of a few comparisons."""
    from dataclasses import replace

    from protocol.core.engine import DatagramReceived
    from protocol.idp.followers import AHEAD_MAX, IN_VAIN_PER_S

    known = followers()
    sign(known, 0)
    now = Instant(MS, WALL_NS)
    table = ConnectivityTable(4)
    forged = replace(light(1), value=bytes(32))
    others = [
        forged,
        light(AHEAD_MAX + 1),
        light(1, number=1),
        light(1, startup_wall_ns=STARTUP + 1),
        replace(light(1), fingerprint=bytes(16)),
    ]
    payloads = [*(other.encode() for other in others), forged.encode()[:-1]]
    assert not any(known.sheds(payload, now.mono_ns) for payload in payloads)
    for _ in range(IN_VAIN_PER_S):
        event = DatagramReceived("group", PEER.address, forged.encode())
        heard, _ = known.read_light(event, table, now, now)
        assert heard is None
    before = dict(known._counters.as_dict())
    assert all(known.sheds(payload, now.mono_ns) for payload in payloads)
    after = known._counters.as_dict()
    grown = {rule: n - before.get(rule, 0) for rule, n in after.items() if "IDP" in rule}
    assert grown == {"IDP-30": 1, "IDP-32": 3, "IDP-33": 1, "IDP-34": 1}
    assert not any(known.sheds(light(i).encode(), now.mono_ns) for i in range(1, AHEAD_MAX + 1))
    hear(known, light(3), 3 * STEP_MS)
    assert known.sheds(light(3).encode(), now.mono_ns), "used up"
    assert not known.sheds(light(4).encode(), now.mono_ns)
    later = Instant(now.mono_ns + 10**9, WALL_NS)
    assert not any(known.sheds(payload, later.mono_ns) for payload in payloads)
