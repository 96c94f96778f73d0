"""Streams between red clients that go on through faults, and who heard what of them when."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from itertools import pairwise

from testbed.fleet import Fleet
from testbed.packets import RedEndpoint
from testbed.wait import wait_until

MARK = b"red stream through faults "
"""In every packet: what a leak check looks for."""

_NS = 1_000_000_000
WAIT_S = 90.0


class RedLife:
    """Clients that send without pause, and clients that listen, in the test's own process.

    Ears are read all the time: a socket that nobody reads is full after a few seconds.

    Args:
        fleet: entered, in which the streams run.
        ears: clients that listen, from the beginning.
        interval_s: between two packets of a stream.

    Attributes:
        sent: per sender, when each of its packets was given to the kernel, UTC ns.
        refused: per sender, what the kernel said instead of sending.
    """

    def __init__(self, fleet: Fleet, ears: Iterable[str], interval_s: float = 0.1) -> None:
        self.sent: dict[str, list[int]] = {}
        self.refused: dict[str, list[str]] = {}
        self._fleet = fleet
        self._interval_s = interval_s
        self._end = threading.Event()
        self._stack = ExitStack()
        self._threads: list[threading.Thread] = []
        self._endpoints: dict[str, RedEndpoint] = {}
        self._heard: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for name in ears:
            self._open(name, listening=True)
        self._start("red-ears", lambda ears=dict(self._endpoints): self._listen(ears))

    def _start(self, name: str, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, name=name)
        self._threads.append(thread)
        thread.start()

    def _listen(self, ears: Mapping[str, RedEndpoint]) -> None:
        names = {endpoint.fileno(): name for name, endpoint in ears.items()}
        while not self._end.is_set():
            for number in select.select(list(names), [], [], 0.1)[0]:
                ear = names[number]
                for stamp, payload in ears[ear].receive_stamped():
                    if payload.startswith(MARK):
                        who, count = payload[len(MARK) :].split()[:2]
                        packets = self._heard.setdefault((who.decode(), ear), [])
                        packets.append((int(count), stamp))

    def _open(self, client: str, *, listening: bool) -> None:
        node = self._fleet.topology.node(client)
        endpoint = self._fleet.surroundings.endpoint(node, listening=listening)
        self._stack.callback(endpoint.close)
        self._endpoints[client] = endpoint

    def endpoint(self, client: str) -> RedEndpoint:
        """Return a client's sockets; one that is no ear only sends."""
        if client not in self._endpoints:
            self._open(client, listening=False)
        return self._endpoints[client]

    def stream(self, client: str, payload_bytes: int = 100) -> threading.Event:
        """Send from a client until the end, whatever becomes of the packets.

        Returns:
            What ends this stream before, if set.
        """
        endpoint = self.endpoint(client)
        sent = self.sent[client] = []
        refused = self.refused[client] = []
        own_end = threading.Event()

        def run() -> None:
            while not self._end.wait(self._interval_s) and not own_end.is_set():
                text = MARK + f"{client} {len(sent)} ".encode()
                sent.append(time.time_ns())
                if said := endpoint.send(text.ljust(payload_bytes, b".")):
                    refused.append(said)

        self._start(f"red-{client}", run)
        return own_end

    def heard(self, sender: str, ear: str) -> list[tuple[int, int]]:
        """Return number and time of arrival (UTC ns) of all packets of a stream, so far."""
        return list(self._heard.get((sender, ear), ()))

    def await_heard(self, sender: str, ear: str, since_ns: int, deadline_s: float = WAIT_S) -> int:
        """Wait for a packet that was sent since then; return when it arrived, UTC ns."""

        def arrival() -> int | None:
            sent = self.sent[sender]
            return min(
                (at for n, at in self.heard(sender, ear) if sent[n] >= since_ns), default=None
            )

        return wait_until(arrival, deadline_s, f"{ear} hears nothing from {sender}", pause_s=0.1)

    def await_sent(self, sender: str, count: int) -> None:
        """Wait until so many more packets were sent."""
        goal = len(self.sent[sender]) + count
        wait_until(lambda: len(self.sent[sender]) >= goal, WAIT_S, f"{sender} sends nothing")

    def share(self, sender: str, ear: str, begin_ns: int, end_ns: int) -> float:
        """Return which share of the packets sent between two times arrived."""
        times = self.sent[sender]
        arrived = {n for n, _ in self.heard(sender, ear) if begin_ns <= times[n] < end_ns}
        total = sum(begin_ns <= stamp < end_ns for stamp in times)
        return len(arrived) / total if total else 0.0

    def silence_s(self, sender: str, ear: str, begin_ns: int) -> float:
        """Return the longest time without an arrival since then."""
        stamps = [stamp for _, stamp in self.heard(sender, ear) if stamp >= begin_ns]
        edges = [begin_ns, *stamps, time.time_ns()]
        return max(later - earlier for earlier, later in pairwise(edges)) / _NS

    def close(self) -> None:
        """End the streams; idempotent."""
        self._end.set()
        for thread in self._threads:
            thread.join()
        self._stack.close()


def seconds(begin_ns: int, end_ns: int) -> float:
    """Return a time in seconds with two digits."""
    return round((end_ns - begin_ns) / _NS, 2)
