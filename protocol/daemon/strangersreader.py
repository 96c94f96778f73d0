"""How much is read of what strangers send (AUTH-18): nobody whom we know waits for a stranger."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from protocol.core.buckets import Bucket
from protocol.daemon.clock import Clock
from protocol.daemon.loop import Loop
from protocol.daemon.sockets import DatagramSocket, Received

TIMER: Final = "daemon.strangers"

PER_S: Final = 100
"""Datagrams of strangers read in a second, with the burst of `Bucket`; what comes beyond waits, and
is lost when their socket is full. Enough for the certificates of a hundred new devices in seconds
(docs/idp.md section 12)."""

PAUSE_NS: Final = 20_000_000
"""What is not read now is looked at again so much later."""

SHARE: Final = 20
"""One part in so many of the processor's time is theirs, however slow it is: a question for a
certificate is a signature, and on a slow machine hundreds of them take longer than a join."""


class StrangersReader:
    """Reads the strangers' socket now and then, from a loop.

    Args:
        sock: of strangers.
        loop: of the daemon.
        clock: of the daemon.
        hand_in: takes a datagram.
        ignored: counts what was put off.
    """

    def __init__(
        self,
        sock: DatagramSocket,
        loop: Loop,
        clock: Clock,
        hand_in: Callable[[Received], None],
        ignored: Counter[str],
    ) -> None:
        self._sock = sock
        self._loop = loop
        self._clock = clock
        self._hand_in = hand_in
        self._ignored = ignored
        self._bucket = Bucket(PER_S, clock.now().mono_ns)
        self._hear(TIMER)

    def _hear(self, _name: str) -> None:
        self._loop.add_reader(self._sock.fileno(), self.read)

    def read(self) -> None:
        """Read one datagram, or none for a while."""
        pause_ns = PAUSE_NS
        if self._bucket.take(self._clock.now().mono_ns):
            began_ns = time.thread_time_ns()
            received = self._sock.receive()
            if received is not None:
                self._hand_in(received)
            pause_ns = (time.thread_time_ns() - began_ns) * (SHARE - 1)
        else:
            self._ignored["strangers.put_off"] += 1
        self._loop.remove_reader(self._sock.fileno())
        at_mono_ns = self._clock.now().mono_ns + pause_ns
        self._loop.set_timer(TIMER, at_mono_ns, self._hear)
