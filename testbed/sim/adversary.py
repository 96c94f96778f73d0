"""Somebody on the wire without a key: repeats what it heard, alters it, invents something.

What it sends is handed to the engine directly, and the engine's effects and status before and after
go to the checkers. A recorded datagram is sent twice in a row and only the second copy is judged:
the first may be the original, late, for a receiver that has lost it.
"""

from __future__ import annotations

from collections import deque
from random import Random
from typing import TYPE_CHECKING, Any

from protocol.core.agenda import NS_PER_MS
from protocol.core.engine import DatagramReceived
from protocol.identity import envelope
from testbed.sim.daemon import LOOPBACK, Daemon
from testbed.sim.faults import Fault, Kind
from testbed.sim.history import Injected

if TYPE_CHECKING:
    from testbed.sim.world import World

MEMORY = 256
"""Datagrams it remembers."""

_MOVING = frozenset({"counters", "refused", "at_wall_ns"})
"""Fields of a status that may change by a refusal, or by the time alone."""


class Adversary:
    """Hears every datagram; sends while a fault of its kind lasts."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._heard: deque[tuple[int, DatagramReceived]] = deque(maxlen=MEMORY)
        self._listens = any(fault.kind in _KINDS for fault in world.scenario.faults)
        self._active: dict[int, tuple[Fault, Random]] = {}

    def begin(self, number: int, fault: Fault) -> None:
        """Start sending."""
        self._active[number] = (fault, self._world.chance.stream(f"fault {fault}"))
        self._later(number)

    def end(self, number: int) -> None:
        """Stop sending."""
        del self._active[number]

    def overhear(self, daemon: Daemon, event: DatagramReceived) -> None:
        """Remember a datagram."""
        if self._listens:
            self._heard.append((daemon.device.daemons.index(daemon), event))

    def _later(self, number: int) -> None:
        fault, draws = self._active[number]
        delay_ns = int(draws.expovariate(fault.amount) * 1_000 * NS_PER_MS) + 1
        self._world.agenda.after(delay_ns, self._act, number)

    def _act(self, number: int) -> None:
        """Send one thing to one daemon that runs, and think of the next."""
        if number not in self._active:
            return
        fault, draws = self._active[number]
        device = draws.choice(self._world.devices)
        place, heard = draws.choice(self._heard) if self._heard else (0, None)
        daemon = device.daemons[place]
        ready = daemon.running and device.connected and not device.paused
        if heard is not None and ready and heard.source != device.address:
            if fault.kind is Kind.REPLAY:
                daemon.deliver(heard)
                self._inject(daemon, heard, "a repeated datagram")
            else:
                self._inject(daemon, *_forged(draws, heard))
        self._later(number)

    def _inject(self, daemon: Daemon, event: DatagramReceived, what: str) -> None:
        """Hand it in, and tell the checkers what came of it."""
        before = _state(daemon)
        effects = daemon.deliver(event)
        after = _state(daemon)
        changed = tuple(name for name in before if before[name] != after.get(name))
        names = tuple(type(effect).__name__ for effect in effects)
        world = self._world
        world.tell(Injected(world.now_ms, daemon.device.index, what, names, changed))


_KINDS = (Kind.REPLAY, Kind.FORGERY)


def _authentic(payload: bytes) -> int:
    """Return how many bytes authenticate a datagram: a mark less makes a message no less true."""
    return envelope.marks_offset(payload) if envelope.may_decode(payload) else len(payload)


def _forged(draws: Random, heard: DatagramReceived) -> tuple[DatagramReceived, str]:
    """Make something that no device with a key has sent."""
    payload = heard.payload
    match draws.randrange(5):
        case 0:
            flipped = bytearray(payload)
            place = draws.randrange(8 * _authentic(payload))
            flipped[place // 8] ^= 1 << place % 8
            return _as(heard, bytes(flipped)), "one flipped bit"
        case 1:
            return _as(heard, payload[: draws.randrange(len(payload))]), "a truncated datagram"
        case 2:
            return _as(heard, payload + draws.randbytes(draws.randint(1, 8))), "a longer datagram"
        case 3:
            return _as(heard, draws.randbytes(draws.randint(0, 1500))), "noise"
        case _:
            noise = draws.randbytes(draws.randint(0, 400))
            return DatagramReceived("local", LOOPBACK, noise), "noise on the local interface"


def _as(heard: DatagramReceived, payload: bytes) -> DatagramReceived:
    return DatagramReceived("group", heard.source, payload)


def _state(daemon: Daemon) -> dict[str, Any]:
    """Return the engine's status without what a refusal may change."""
    assert daemon.engine is not None
    status = daemon.engine.status(daemon.device.now())
    return {name: value for name, value in status.items() if name not in _MOVING}
