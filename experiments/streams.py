"""Numbered red packets, sent at one place or several at once, and who got which of them when."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from experiments.outcome import NS_PER_S, Time

MARK = b"idpmike delivery "
"""In every packet: what a leak check looks for, and what tells a stream's frames on a wire."""

_NS_PER_MS = 1e6
_GRACE_S = 0.3
"""For packets that overtook others, and for copies where there should be none."""

_PAUSE_S = 0.02


class End(Protocol):
    """Where packets go out and come in (`testbed.packets.RedEndpoint`)."""

    def send(self, payload: bytes) -> str:
        """Send one packet; return why it could not be sent, or nothing."""

    def receive_stamped(self) -> list[tuple[int, bytes]]:
        """Return what has arrived with its time of arrival, UTC ns."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What one receiver got of one stream.

    Attributes:
        received: different packets.
        duplicates: packets beyond these.
        first_number: of the first packet that arrived, from 1; None: nothing did.
        first_wall_ns: when that was, UTC ns.
        first_arrival_ms: from the first sending of the stream to the first arrival of any packet.
        median_ms: median over the packets, from the sending of a packet to its first arrival.
    """

    received: int = 0
    duplicates: int = 0
    first_number: int | None = None
    first_wall_ns: int | None = None
    first_arrival_ms: float | None = None
    median_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Flow:
    """One sender's stream.

    Attributes:
        sender: where it was sent.
        sent: packets that the kernel took.
        refusal: why it did not take another, the last time; empty if it took all.
        arrivals: by receiver.
    """

    sender: str
    sent: int
    refusal: str
    arrivals: Mapping[str, Arrivals]


@dataclass(slots=True)
class _Stream:
    """A stream while it runs; its id keeps it apart from those before and after it."""

    sender: str
    end: End
    expected: frozenset[str]
    tag: bytes
    sent_ns: dict[int, int] = field(default_factory=dict)
    refusal: str = ""
    got: dict[str, dict[int, int]] = field(default_factory=dict)
    copies: dict[str, int] = field(default_factory=dict)

    def send(self, number: int, now_ns: int) -> None:
        refusal = self.end.send(self.tag + b"%06d" % number)
        if refusal:
            self.refusal = refusal
        else:
            self.sent_ns[number] = now_ns

    def take(self, receiver: str, number: int, arrived_ns: int) -> None:
        got = self.got.setdefault(receiver, {})
        if number in got:
            self.copies[receiver] = self.copies.get(receiver, 0) + 1
        else:
            got[number] = arrived_ns

    def reached_all(self) -> bool:
        return all(self.got.get(receiver) for receiver in self.expected)

    def complete(self) -> bool:
        return all(len(self.got.get(r, ())) == len(self.sent_ns) for r in self.expected)

    def flow(self, receivers: Sequence[str]) -> Flow:
        return Flow(
            self.sender, len(self.sent_ns), self.refusal, {r: self._arrivals(r) for r in receivers}
        )

    def _arrivals(self, receiver: str) -> Arrivals:
        got = self.got.get(receiver)
        if not got:
            return Arrivals()
        first = min(got, key=lambda number: (got[number], number))
        began = min(self.sent_ns.values())
        delays = [(got[number] - self.sent_ns[number]) / _NS_PER_MS for number in got]
        return Arrivals(
            received=len(got),
            duplicates=self.copies.get(receiver, 0),
            first_number=first,
            first_wall_ns=got[first],
            first_arrival_ms=(got[first] - began) / _NS_PER_MS,
            median_ms=statistics.median(delays),
        )


class Streams:
    """Sends streams between places.

    Args:
        ends: by the place's name; all of one address family and group.
        expects: returns who must hear a sender.
        clock: the orchestrator's; the stamps of arrival are compared with it.
    """

    _ids = itertools.count(1)

    def __init__(
        self,
        ends: Mapping[str, End],
        expects: Callable[[str], frozenset[str]],
        clock: Time | None = None,
    ) -> None:
        self._ends = ends
        self._expects = expects
        self._time = clock or Time()

    def run(
        self,
        senders: Sequence[str],
        *,
        packets: int,
        interval_ms: float,
        deadline_s: float,
        until_first: bool = False,
    ) -> list[Flow]:
        """Send one stream from each sender, all at once, and collect what arrives.

        Args:
            senders: places.
            packets: of each stream.
            interval_ms: between the packets of a stream.
            deadline_s: how long after the last packet the expected receivers may lack any.
            until_first: end as soon as each expected receiver has got something of each stream.

        Returns:
            A flow for each sender; its arrivals are those at all other places, expected or not.
        """
        self._take({})  # what earlier streams left behind
        streams = {
            (number := next(self._ids)): _Stream(
                sender, self._ends[sender], self._expects(sender), MARK + b"%06d " % number
            )
            for sender in senders
        }
        next_ns = self._time.now_ns()
        for number in range(1, packets + 1):
            for stream in streams.values():
                stream.send(number, self._time.now_ns())
            next_ns += int(interval_ms * _NS_PER_MS)
            self._time.sleep_until(next_ns)
            self._take(streams)
            if until_first and all(stream.reached_all() for stream in streams.values()):
                break
        self._settle(streams, deadline_s, until_first=until_first)
        return [
            stream.flow([place for place in self._ends if place != stream.sender])
            for stream in streams.values()
        ]

    def _settle(
        self, streams: Mapping[int, _Stream], deadline_s: float, *, until_first: bool
    ) -> None:
        """Wait until all is there or time is up, then a little for what should not be there."""
        limit = self._time.now_ns() + int(deadline_s * NS_PER_S)
        enough = _Stream.reached_all if until_first else _Stream.complete
        while not all(enough(stream) for stream in streams.values()):
            if self._time.now_ns() >= limit:
                break
            self._time.sleep(_PAUSE_S)
            self._take(streams)
        self._time.sleep(_GRACE_S)
        self._take(streams)

    def _take(self, streams: Mapping[int, _Stream]) -> None:
        for place, end in self._ends.items():
            for arrived_ns, payload in end.receive_stamped():
                found = parse(payload)
                if found is None or found[0] not in streams:
                    continue
                stream, number = found
                streams[stream].take(place, number, arrived_ns)


def parse(payload: bytes) -> tuple[int, int] | None:
    """Return stream id and number of a packet, None if it is none of ours."""
    words = payload.removeprefix(MARK).split()
    if not payload.startswith(MARK) or len(words) != 2 or not all(w.isdigit() for w in words):
        return None
    return int(words[0]), int(words[1])
