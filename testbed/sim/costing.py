"""What counts and times the cost of an event: secrets, a wire, the sums (`testbed.sim.scale`)."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from ipaddress import IPv6Address
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.identity.envelope import OVERHEAD
from protocol.mike.change import Change
from protocol.mike.config import MikeConfig, Mode
from protocol.mike.fragments import split
from protocol.mike.messages import DECODERS, Kind, Path, Tree
from protocol.mike.rekeying import (
    Page,
    Rekey,
)
from protocol.mike.roster import Roster
from protocol.mike.schedule import NodeSecret
from testbed.sim.people import address

EVENTS = ("join", "leave", "take-over")


class CountedSecret(NodeSecret):
    """Counts what X25519 would be asked for."""

    __slots__ = ()
    operations = 0

    def shared_with(self, sibling_key: bytes) -> bytes:
        """One operation."""
        CountedSecret.operations += 1
        return super().shared_with(sibling_key)

    def _blind(self) -> bytes:
        CountedSecret.operations += 1
        return super()._blind()


@dataclass(frozen=True, slots=True)
class Cost:
    """What one event costs.

    A member is one that was there before the event and still is, the TM and a newcomer apart.

    Attributes:
        mode: ``ka`` or ``kd``.
        event: ``join``, ``leave`` or ``take-over`` (the TM is gone, another member excludes it).
        members: before the event.
        messages: multicast for it, before fragmentation.
        datagrams: of these messages.
        bytes: UDP payload of these datagrams.
        newcomer_bytes: UDP payload of what only the newcomer gets.
        tm_operations: public-key operations of the TM.
        member_operations: of the member that has most.
        mean_operations: of the members, on average.
        newcomer_operations: of the newcomer, making its leaf key included; 0 without one.
        all_operations: of all together.
        unwraps: symmetric, of the member that has most.
        tm_cpu_ms: processor time of the TM.
        member_cpu_ms: of the member that has most.
        newcomer_cpu_ms: of the newcomer, with all that it gets alone; 0 without one.
        all_cpu_ms: of all together.
    """

    mode: str
    event: str
    members: int
    messages: int
    datagrams: int
    bytes: int
    newcomer_bytes: int
    tm_operations: int
    member_operations: int
    mean_operations: float
    newcomer_operations: int
    all_operations: int
    unwraps: int
    tm_cpu_ms: float
    member_cpu_ms: float
    newcomer_cpu_ms: float
    all_cpu_ms: float

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


class Draws:
    """Secrets that are all different."""

    def __init__(self) -> None:
        self._number = 0

    def draw(self) -> bytes:
        """Return 32 bytes."""
        self._number += 1
        return hashlib.sha256(b"scale %d" % self._number).digest()

    def secret(self) -> CountedSecret:
        """Return a secret."""
        return CountedSecret(self.draw())


class Work(NamedTuple):
    """What somebody has done: public-key operations, and nanoseconds of processor time."""

    operations: int = 0
    cpu_ns: int = 0

    def plus(self, other: Work) -> Work:
        """Return both together."""
        return Work(self.operations + other.operations, self.cpu_ns + other.cpu_ns)


def counted(work: Callable[[], object]) -> Work:
    """Do something; return what it took."""
    before, since_ns = CountedSecret.operations, time.thread_time_ns()
    work()
    return Work(CountedSecret.operations - before, time.thread_time_ns() - since_ns)


@cache
def signature_ns() -> tuple[int, int]:
    """Return the processor time of a signature, and of its check, over a full datagram."""
    key, datagram = Ed25519PrivateKey.generate(), bytes(MikeConfig().datagram_size_max)
    public, signature = key.public_key(), key.sign(datagram)
    made = [counted(lambda: key.sign(datagram)).cpu_ns for _ in range(100)]
    checked = [counted(lambda: public.verify(signature, datagram)).cpu_ns for _ in range(100)]
    return int(statistics.median(made)), int(statistics.median(checked))


class Wire:
    """Counts and times what is sent.

    Attributes:
        messages, datagrams, bytes: sent so far.
        sent_ns: processor time of the senders, by sender.
        read_ns: of each receiver of all of it.
    """

    def __init__(self) -> None:
        self.messages = self.datagrams = self.bytes = self.read_ns = 0
        self.sent_ns: dict[IPv6Address, int] = {}

    def send(self, message: Tree | Path | Rekey | Page | Change, sender: IPv6Address) -> None:
        """Count a message."""
        sign_ns, check_ns = signature_ns()
        since_ns = time.thread_time_ns()
        body = message.encode()
        kind, size_max = Kind[type(message).__name__.upper()], MikeConfig().datagram_size_max
        bodies = [body]
        if len(body) + OVERHEAD > size_max:
            bodies = [fragment.encode() for fragment in split(kind, body, size_max)]
            assert bodies, "a message larger than any that may be sent"
        spent_ns = time.thread_time_ns() - since_ns + len(bodies) * sign_ns
        self.sent_ns[sender] = self.sent_ns.get(sender, 0) + spent_ns
        self.messages += 1
        self.datagrams += len(bodies)
        self.bytes += sum(len(one) + OVERHEAD for one in bodies)
        self.read_ns += len(bodies) * check_ns + counted(lambda: DECODERS[kind](body)).cpu_ns


class Group:
    """Its members' leaves, and nothing yet of an epoch; the first member is TM."""

    def __init__(self, members: int) -> None:
        self._draws = Draws()
        self._size = members
        self._number = 0
        self._tm = address(0)
        self._leaves: dict[IPv6Address, NodeSecret] = {
            address(index): self._draws.secret() for index in range(members)
        }
        self._roster = Roster((who, leaf.blinded) for who, leaf in self._leaves.items())

    @property
    def tm(self) -> IPv6Address:
        """Who is TM."""
        return self._tm

    def _cost(
        self,
        mode: Mode,
        event: str,
        works: Mapping[IPv6Address, Work],
        *,
        wire: Wire,
        alone: Wire,
        unwraps: int = 0,
    ) -> Cost:
        """Add up what everybody did, sent and read.

        Args:
            mode: of the group.
            event: what happened.
            works: of TM and members, without what they sent and read.
            wire: what was sent to all.
            alone: what the TM sent to the newcomer.
            unwraps: of the busiest member.
        """
        only_tm = wire.sent_ns.keys() <= {self._tm}
        spent_ns = {
            who: work.cpu_ns
            + wire.sent_ns.get(who, 0)
            + alone.sent_ns.get(who, 0)
            + (0 if who == self._tm and only_tm else wire.read_ns)
            for who, work in works.items()
        }
        newcomer = address(self._size) if event == "join" else None
        if newcomer is not None:
            spent_ns[newcomer] += alone.read_ns
        members = [who for who in works if who not in (self._tm, newcomer)]
        operations = [works[who].operations for who in members]
        return Cost(
            mode.value,
            event,
            self._size,
            wire.messages,
            wire.datagrams,
            wire.bytes,
            alone.bytes,
            works[self._tm].operations,
            max(operations),
            statistics.fmean(operations),
            works[newcomer].operations if newcomer is not None else 0,
            sum(work.operations for work in works.values()),
            unwraps,
            spent_ns[self._tm] / 1e6,
            max(spent_ns[who] for who in members) / 1e6,
            spent_ns[newcomer] / 1e6 if newcomer is not None else 0.0,
            sum(spent_ns.values()) / 1e6,
        )
