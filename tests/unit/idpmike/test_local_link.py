"""The link between the daemons: in order, at most once, over loss, repetition and restarts."""

from __future__ import annotations

from collections import deque
from ipaddress import IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.core.engine import (
    CancelTimer,
    DatagramReceived,
    Effect,
    Instant,
    Log,
    SendDatagram,
    SetTimer,
)
from protocol.core.errors import LocalError, PeerError
from protocol.idpmike import (
    TIMER,
    EpochId,
    GroupStatus,
    LinkOpened,
    LocalLink,
    Side,
    Signal,
    SignalKind,
)
from protocol.idpmike.link import OUTSTANDING_MAX

SECRET = bytes(range(32))
LOOPBACK = IPv6Address("::1")
WALL = 1_790_000_000_000_000_000
MS = 1_000_000


def signal(number: int) -> Signal:
    return Signal(SignalKind.JOIN, IPv6Address(number), number)


def status(number: int) -> GroupStatus:
    return GroupStatus(0, EpochId(number, bytes(8)), "p", (), IPv6Address(1))


def label(message: object) -> int:
    return message.startup_wall_ns if isinstance(message, Signal) else message.epoch.number  # type: ignore[attr-defined]


class Bench:
    """Two link ends, the datagrams in flight, their timers, and what was handed out."""

    def __init__(self) -> None:
        self.mono_ns = 0
        self.links = {side: LocalLink(SECRET, side) for side in Side}
        self.offset_ns = dict.fromkeys(Side, 0)
        self.flight: dict[Side, deque[bytes]] = {side: deque() for side in Side}
        self.timers: dict[Side, int | None] = dict.fromkeys(Side)
        self.got: dict[Side, list[int]] = {side: [] for side in Side}
        self.openings = dict.fromkeys(Side, 0)
        self.logs: list[Log] = []

    def now(self, side: Side) -> Instant:
        return Instant(self.mono_ns, WALL + self.mono_ns + self.offset_ns[side])

    def perform(self, side: Side, effects: list[Effect]) -> None:
        other = Side.MIKE if side is Side.IDP else Side.IDP
        for effect in effects:
            match effect:
                case SendDatagram("local", payload, None):
                    self.flight[other].append(payload)
                case SetTimer(name, at):
                    assert name == TIMER
                    assert at > self.mono_ns
                    self.timers[side] = at
                case CancelTimer(name):
                    self.timers[side] = None
                case Log():
                    self.logs.append(effect)
                case _:
                    raise AssertionError(effect)

    def send(self, side: Side, number: int) -> None:
        message = signal(number) if side is Side.IDP else status(number)
        self.perform(side, self.links[side].send(message, self.now(side)))

    def deliver(self, side: Side, payload: bytes) -> None:
        event = DatagramReceived("local", LOOPBACK, payload)
        message, effects = self.links[side].handle(event, self.now(side))
        if isinstance(message, LinkOpened):
            self.openings[side] += 1
        elif message is not None:
            self.got[side].append(label(message))
        self.perform(side, effects)

    def drain(self, limit: int = 2000) -> None:
        """Deliver everything in flight, in order, until nothing is."""
        while any(self.flight.values()):
            limit -= 1
            assert limit > 0, "the two ends answer each other for ever"
            for side in Side:
                if self.flight[side]:
                    self.deliver(side, self.flight[side].popleft())

    def fire(self, side: Side) -> None:
        """Let the side's timer run out."""
        at = self.timers[side]
        if at is None:
            return
        self.mono_ns = max(self.mono_ns, at)
        self.timers[side] = None
        self.perform(side, self.links[side].on_timer(TIMER, self.now(side)))

    def restart(self, side: Side, offset_ns: int = 0) -> None:
        self.mono_ns += 1
        self.links[side] = LocalLink(SECRET, side)
        self.timers[side] = None
        self.offset_ns[side] += offset_ns
        self.got[side] = []
        self.openings[side] = 0


def test_hands_out_each_message_once_and_in_order() -> None:
    bench = Bench()
    for number in (1, 2, 3):
        bench.send(Side.IDP, number)
    bench.send(Side.MIKE, 1)
    bench.drain()
    assert bench.got == {Side.IDP: [1], Side.MIKE: [1, 2, 3]}
    assert bench.openings == {Side.IDP: 1, Side.MIKE: 1}
    assert bench.timers == {Side.IDP: None, Side.MIKE: None}
    assert bench.links[Side.IDP].last_serial == 4
    assert bench.links[Side.IDP].outstanding == 0


def test_the_first_signal_leaves_at_once_and_needs_no_answer_to_be_handed_out() -> None:
    bench = Bench()
    bench.send(Side.IDP, 1)
    for payload in list(bench.flight[Side.MIKE]):
        bench.deliver(Side.MIKE, payload)
    assert bench.got[Side.MIKE] == [1]


def test_a_lost_acknowledgement_never_repeats_an_action() -> None:
    bench = Bench()
    bench.send(Side.IDP, 1)
    for _ in range(3):
        while bench.flight[Side.MIKE]:
            bench.deliver(Side.MIKE, bench.flight[Side.MIKE].popleft())
        bench.flight[Side.IDP].clear()
        bench.fire(Side.IDP)
    bench.drain()
    assert bench.got[Side.MIKE] == [1]
    assert bench.links[Side.IDP].outstanding == 0


def test_a_leave_never_overtakes_its_join() -> None:
    bench = Bench()
    bench.send(Side.IDP, 1)
    bench.drain()
    bench.send(Side.IDP, 2)
    bench.send(Side.IDP, 3)
    bench.flight[Side.MIKE].popleft()
    bench.drain()
    assert bench.got[Side.MIKE] == [1]
    bench.fire(Side.IDP)
    bench.drain()
    assert bench.got[Side.MIKE] == [1, 2, 3]


def test_repeats_with_back_off_then_gives_up_and_says_so() -> None:
    bench = Bench()
    bench.send(Side.IDP, 1)
    waits = []
    while bench.timers[Side.IDP] is not None:
        waits.append((bench.timers[Side.IDP] - bench.mono_ns) // MS)
        bench.flight[Side.MIKE].clear()
        bench.fire(Side.IDP)
    assert waits == [200, 400, 800, 1000, 1000, 1000, 1000, 1000, 1000]
    assert bench.links[Side.IDP].given_up_total == 2
    assert [(log.level, log.text) for log in bench.logs] == [
        ("info", "MIKE never acknowledged LinkOpened 1"),
        ("warning", "MIKE never acknowledged Signal 2"),
    ]
    bench.send(Side.IDP, 2)
    bench.drain()
    assert bench.got[Side.MIKE] == [2], "what was given up never blocks what follows"


def test_memory_is_bounded_while_nobody_listens() -> None:
    bench = Bench()
    for number in range(2000):
        bench.send(Side.IDP, number)
    assert bench.links[Side.IDP].outstanding == OUTSTANDING_MAX
    assert bench.links[Side.IDP].given_up_total == 2001 - OUTSTANDING_MAX


@pytest.mark.parametrize("step_ns", [0, 5_000_000_000, -5_000_000_000, -3600 * 10**9])
@pytest.mark.parametrize("restarted", Side)
def test_a_restarted_daemon_is_not_locked_out(restarted: Side, step_ns: int) -> None:
    """Even if its clock was set back."""
    bench = Bench()
    for number in range(1, 6):
        bench.send(Side.IDP, number)
        bench.send(Side.MIKE, number)
    bench.drain()
    other = Side.MIKE if restarted is Side.IDP else Side.IDP
    bench.got[other], bench.openings[other] = [], 0
    bench.restart(restarted, step_ns)
    bench.send(restarted, 9)
    bench.drain()
    bench.send(other, 8)
    bench.drain()
    assert bench.got[other] == [9]
    assert bench.got[restarted] == [8]
    assert bench.openings[other] == 1, "the other daemon learns of the new instance, once"


def test_messages_of_an_earlier_instance_are_not_acted_upon() -> None:
    bench = Bench()
    bench.send(Side.IDP, 1)
    recorded = list(bench.flight[Side.MIKE])
    bench.drain()
    bench.send(Side.IDP, 2)
    recorded += bench.flight[Side.MIKE]
    bench.drain()
    bench.restart(Side.IDP)
    bench.send(Side.IDP, 3)
    bench.drain()
    for payload in recorded:
        bench.deliver(Side.MIKE, payload)
    bench.drain()
    assert bench.got[Side.MIKE] == [1, 2, 3]


def test_a_restarted_receiver_refuses_what_was_recorded_for_its_last_instance() -> None:
    bench = Bench()
    bench.send(Side.IDP, 1)
    bench.drain()
    bench.send(Side.IDP, 2)
    recorded = list(bench.flight[Side.MIKE])
    bench.drain()
    bench.restart(Side.MIKE)
    for payload in recorded:
        bench.deliver(Side.MIKE, payload)
    bench.drain()
    assert bench.got[Side.MIKE] == []


def test_a_first_message_must_be_fresh() -> None:
    bench = Bench()
    bench.send(Side.IDP, 1)
    recorded = list(bench.flight[Side.MIKE])
    bench.flight[Side.MIKE].clear()
    bench.mono_ns += 31_000_000_000
    for payload in recorded:
        bench.deliver(Side.MIKE, payload)
    assert bench.got[Side.MIKE] == []
    bench.drain()
    bench.fire(Side.IDP)
    bench.drain()
    assert bench.got[Side.MIKE] == [1], "its sender has learnt our instance"


def test_a_recorded_first_message_never_replaces_an_instance_we_know() -> None:
    bench = Bench()
    bench.send(Side.IDP, 1)
    recorded = list(bench.flight[Side.MIKE])
    bench.flight[Side.MIKE].clear()
    bench.restart(Side.IDP, -10_000_000_000)
    bench.send(Side.IDP, 2)
    bench.drain()
    for payload in recorded:
        bench.deliver(Side.MIKE, payload)
    bench.drain()
    assert bench.got[Side.MIKE] == [2], "although its instance is the larger one"


def test_moving_an_instance_up_repeats_nothing() -> None:
    """IDP's clock was set back; a new MIKE acts on its JOIN before an old MIKE's Resync arrives."""
    bench = Bench()
    bench.send(Side.IDP, 1)
    bench.drain()
    bench.restart(Side.IDP, -10_000_000_000)
    bench.send(Side.IDP, 2)
    opening, join = bench.flight[Side.MIKE]
    bench.deliver(Side.MIKE, opening)
    resync = bench.flight[Side.IDP].pop()
    bench.restart(Side.MIKE)
    for payload in (opening, join):
        bench.deliver(Side.MIKE, payload)
    bench.deliver(Side.IDP, resync)
    bench.drain()
    for _ in range(3):
        bench.fire(Side.IDP)
        bench.drain()
    assert bench.got[Side.MIKE] == [2]
    assert bench.links[Side.IDP].outstanding == 0


def test_local_2_and_3_forgeries_change_nothing() -> None:
    bench = Bench()
    bench.send(Side.IDP, 1)
    bench.drain()
    before = bench.links[Side.MIKE].status()
    good = bench.links[Side.IDP].send(signal(2), bench.now(Side.IDP))[0]
    assert isinstance(good, SendDatagram)
    stranger = LocalLink(bytes(32), Side.IDP).send(signal(3), bench.now(Side.IDP))[0]
    assert isinstance(stranger, SendDatagram)
    for source, payload, rule in (
        ("2001:db8::1", good.payload, "LOCAL-2"),
        ("::1", stranger.payload, "LOCAL-3"),
        ("::1", good.payload[:-1] + bytes([good.payload[-1] ^ 1]), "LOCAL-3"),
        ("::1", b"", "LOCAL-1"),
    ):
        event = DatagramReceived("local", IPv6Address(source), payload)
        with pytest.raises(PeerError, match=rule):
            bench.links[Side.MIKE].handle(event, bench.now(Side.MIKE))
    assert bench.links[Side.MIKE].status() == before


def test_a_reflected_datagram_is_refused() -> None:
    bench = Bench()
    bench.send(Side.IDP, 1)
    payload = bench.flight[Side.MIKE][0]
    event = DatagramReceived("local", LOOPBACK, payload)
    with pytest.raises(PeerError, match="LOCAL-3"):
        bench.links[Side.IDP].handle(event, bench.now(Side.IDP))


def test_each_daemon_sends_its_own_messages_only() -> None:
    bench = Bench()
    with pytest.raises(LocalError, match="GroupStatus is not for IDP"):
        bench.links[Side.IDP].send(status(1), bench.now(Side.IDP))
    assert bench.links[Side.IDP].on_timer("idp.hello", bench.now(Side.IDP)) == []
    assert SECRET.hex() not in repr(bench.links[Side.IDP])


steps = st.lists(
    st.tuples(
        st.sampled_from(["send", "send", "deliver", "deliver", "drop", "repeat", "swap", "fire"])
        | st.sampled_from(["send", "deliver", "restart", "set back"]),
        st.sampled_from(Side),
    ),
    max_size=60,
)


@settings(max_examples=400, deadline=None)
@given(steps)
def test_any_network_and_any_restarts(schedule) -> None:
    """Safety: in order and at most once per receiver. Liveness: once the network is good, all."""
    bench = Bench()
    sent: dict[Side, list[int]] = {side: [] for side in Side}
    owed: dict[Side, list[int]] = {side: [] for side in Side}
    for number, (action, side) in enumerate(schedule, 1):
        other = Side.MIKE if side is Side.IDP else Side.IDP
        queue = bench.flight[side]
        bench.mono_ns += 1
        if action == "send":
            bench.send(side, number)
            sent[other].append(number)
            owed[other].append(number)
        elif action == "restart" or action == "set back":
            bench.restart(side, -10_000_000_000 if action == "set back" else 0)
            owed[other] = []
            owed[side] = []
        elif action == "fire":
            bench.fire(side)
        elif queue and action == "deliver":
            bench.deliver(side, queue.popleft())
        elif queue and action == "drop":
            queue.popleft()
        elif queue and action == "repeat":
            queue.append(queue[0])
        elif queue and action == "swap":
            queue.rotate(1)
        for receiver in Side:
            got = bench.got[receiver]
            assert got == sorted(set(got)), "out of order or twice"
            assert set(got) <= set(sent[receiver])
    given_up = sum(link.given_up_total for link in bench.links.values())
    for _ in range(12):
        bench.drain()
        for side in Side:
            bench.fire(side)
    bench.drain()
    for side in Side:
        got = bench.got[side]
        assert got == sorted(set(got))
        assert bench.links[side].outstanding == 0
        if given_up == 0:
            assert set(owed[side]) <= set(got)
