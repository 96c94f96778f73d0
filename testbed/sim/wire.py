"""The black network of a simulation: how long each copy of a datagram is under way, if it arrives.

Without an active fault each direction of a link has its own fixed delay. Every fault draws from its
own stream of chance, so that leaving one out leaves the others' draws alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from protocol.core.agenda import NS_PER_MS, Agenda
from testbed.sim.chance import Chance
from testbed.sim.faults import Fault, Kind

NS_PER_US = 1_000

DELAY_MS_MAX = 3_000.0
"""No datagram is older: faults are over when the safety phase is, or soon after."""

CLOG_MAX = 64
"""Datagrams that a clogged direction holds; more are lost."""

Shape = Callable[[int, int, Sequence[int]], Sequence[int]]
"""What a fault makes of a datagram: (sender, receiver, delays of its copies in ns) to delays."""


class Wire:
    """Delays and losses between devices.

    Attributes:
        sent: copies handed to a receiver.
        lost: datagrams of which no copy was.
    """

    def __init__(
        self, chance: Chance, agenda: Agenda, members: int, link_us: tuple[int, int]
    ) -> None:
        draws = chance.stream("links")
        low, high = link_us
        self._chance = chance
        self._agenda = agenda
        self._delays_ns = [
            [(draws.randint(low * NS_PER_US, high * NS_PER_US),) for _ in range(members)]
            for _ in range(members)
        ]
        self._active: dict[int, Shape] = {}
        self._shapes: list[Shape] = []
        self.sent = 0
        self.lost = 0

    def begin(self, number: int, fault: Fault) -> None:
        """Switch a fault on.

        Args:
            number: names it for `end`.
            fault: of the kinds in `testbed.sim.faults.PACKETS`.
        """
        self._active[number] = self._shape(self._chance.stream(f"fault {fault}"), fault)
        self._shapes = list(self._active.values())

    def end(self, number: int) -> None:
        """Switch a fault off."""
        del self._active[number]
        self._shapes = list(self._active.values())

    def delays_ns(self, sender: int, receiver: int) -> Sequence[int]:
        """Return the delay of every copy that arrives; empty: it is lost."""
        delays: Sequence[int] = self._delays_ns[sender][receiver]
        if not self._shapes:
            self.sent += 1
            return delays
        for shape in self._shapes:
            delays = shape(sender, receiver, delays)
        if delays:
            self.sent += len(delays)
        else:
            self.lost += 1
        return delays

    def _shape(self, draws: Random, fault: Fault) -> Shape:
        """Return what a fault does to a datagram."""
        amount = fault.amount
        match fault.kind:
            case Kind.LOSS:
                return lambda _s, _r, delays: [d for d in delays if draws.random() >= amount]
            case Kind.BURST:
                return self._bursts(draws, amount)
            case Kind.DUPLICATION:
                return lambda _s, _r, delays: [
                    copy
                    for delay in delays
                    for copy in (
                        (delay, delay + draws.randrange(20 * NS_PER_MS))
                        if draws.random() < amount
                        else (delay,)
                    )
                ]
            case Kind.REORDERING:
                return lambda _s, _r, delays: [
                    delay + draws.randrange(60 * NS_PER_MS) if draws.random() < amount else delay
                    for delay in delays
                ]
            case Kind.DELAY:
                return lambda _s, _r, delays: [
                    delay + int(_late_ms(draws, fault.flavour, amount) * NS_PER_MS)
                    for delay in delays
                ]
            case Kind.PARTITION:
                side = frozenset(fault.devices)
                return lambda s, r, delays: [] if (s in side) != (r in side) else delays
            case Kind.ONE_WAY:
                deaf = frozenset(fault.devices[1:])
                return lambda s, r, delays: [] if s == fault.devices[0] and r in deaf else delays
            case Kind.CLOG:
                return self._clog(fault)
        raise AssertionError(f"{fault.kind} is no fault of the network")

    def _bursts(self, draws: Random, mean_ms: float) -> Shape:
        """Each direction is dead for a while, then well three times as long, at random lengths."""
        turns: dict[tuple[int, int], tuple[int, bool]] = {}
        agenda = self._agenda

        def shape(sender: int, receiver: int, delays: Sequence[int]) -> Sequence[int]:
            turn = turns.get((sender, receiver))
            until_ns, dead = turn or (0, draws.random() < 0.75)
            while until_ns <= agenda.now_ns:
                dead = not dead
                length_ms = draws.expovariate(1 / (mean_ms if dead else 3 * mean_ms))
                until_ns = max(until_ns, agenda.now_ns - 1) + int(length_ms * NS_PER_MS) + 1
                turns[sender, receiver] = (until_ns, dead)
            return [] if dead else delays

        return shape

    def _clog(self, fault: Fault) -> Shape:
        """Hold what one device sends to some others, and let all go at the end, in order."""
        first, others = fault.devices[0], frozenset(fault.devices[1:])
        held: dict[int, int] = {}
        agenda = self._agenda
        end_ns = agenda.now_ns + fault.duration_ms * NS_PER_MS

        def shape(sender: int, receiver: int, delays: Sequence[int]) -> Sequence[int]:
            if sender != first or receiver not in others:
                return delays
            number = held.get(receiver, 0)
            if number >= CLOG_MAX:
                return []
            held[receiver] = number + 1
            until_ns = end_ns - agenda.now_ns + number * NS_PER_US
            return [until_ns + delay for delay in delays]

        return shape


def _late_ms(draws: Random, flavour: str, mean_ms: float) -> float:
    """Draw a delay of the given mean, at most `DELAY_MS_MAX`."""
    match flavour:
        case "exponential":
            late = draws.expovariate(1 / mean_ms)
        case "pareto":
            # Shape 1.5: mean 3 times the scale, infinite variance.
            late = mean_ms / 3 * draws.paretovariate(1.5)
        case _:
            late = draws.uniform(0, 2 * mean_ms)
    return min(late, DELAY_MS_MAX)
