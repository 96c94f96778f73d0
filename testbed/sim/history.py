"""What a simulation tells its checkers: records while it runs, views when it is judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address

from protocol.ipsec.model import Prefix
from protocol.mike.schedule import NodeSecret
from testbed.sim.pairview import PairsView


@dataclass(frozen=True, slots=True)
class Record:
    """Something that happened at one device.

    Attributes:
        at_ms: virtual time.
        device: its index.
    """

    at_ms: float
    device: int


@dataclass(frozen=True, slots=True)
class MikeStarted(Record):
    """A new instance of MIKE: its epochs begin anew."""


@dataclass(frozen=True, slots=True)
class KeyPublished(Record):
    """MIKE established an epoch.

    Attributes:
        pointer: the printed epoch id, ``number-tag``.
        key: the group key.
    """

    pointer: str
    key: bytes


@dataclass(frozen=True, slots=True)
class Detected(Record):
    """IDP noticed a change of the connectivity table.

    Attributes:
        kind: ``join``, ``restart``, ``restore`` or ``leave``.
        peer: whose.
    """

    kind: str
    peer: IPv6Address


@dataclass(frozen=True, slots=True)
class Agreed(Record):
    """In the middle of a run nothing had gone wrong for long, and all agreed; of no device."""


@dataclass(frozen=True, slots=True)
class Signalled(Record):
    """A signal of IDP reached its MIKE.

    Attributes:
        kind: ``join``, ``restore`` or ``leave``.
        peer: about whom.
        own: whether that is the device itself.
        matters: MIKE must answer it by a new key: JOIN or RESTORE of the device itself, LEAVE of a
            member at the TM.
    """

    kind: str
    peer: IPv6Address
    own: bool
    matters: bool


@dataclass(frozen=True, slots=True)
class Led(Record):
    """A device's policies lead to a network by way of another device.

    Attributes:
        peer: the other device.
        prefix: the network.
    """

    peer: IPv6Address
    prefix: Prefix


@dataclass(frozen=True, slots=True)
class Announced(Record):
    """A device announced its prefixes to another one."""


@dataclass(frozen=True, slots=True)
class Injected(Record):
    """Somebody without a key sent something; what the engine did.

    Attributes:
        what: a few words.
        effects: names of the effects' classes.
        changed: fields of the engine's status that differ afterwards, counters left out.
    """

    what: str
    effects: tuple[str, ...]
    changed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sampled(Record):
    """How much a device holds and sends.

    Attributes:
        timers: running timers of both engines.
        outstanding: unacknowledged messages of the local interface, both sides.
        keys: group keys in the key directory.
        sas: SAs in the SAD.
        refusals: entries in both engines' lists of refusals.
        entries: entries of all containers in both engines; 0 if not counted.
        sent: datagrams sent since the last sample.
        span_ms: time since the last sample.
    """

    timers: int
    outstanding: int
    keys: int
    sas: int
    refusals: int
    entries: int
    sent: int
    span_ms: float


@dataclass(frozen=True, slots=True)
class View:
    """One live device when the run is judged.

    Attributes:
        device: its index.
        address: its black address.
        peers_up: devices that are up in its connectivity table.
        epoch: the established epoch of its MIKE, printed.
        unfinished: whether a newer one is pending, or a JOIN unanswered.
        key: the group key of that epoch, None if its key directory has none.
        members: of that epoch.
        tm: whom it takes for the TM.
        is_tm: whether it acts as TM.
        active_epoch: the epoch that its IDP sends with.
        sources: whose SAs for the group are in its SAD.
        pairs: SAs and policies for single other devices.
        routes: red prefixes that it has a route to.
        announced: red prefixes that it announces.
        sad: digest of its SAs for the group, equal on devices that hold the same ones.
    """

    device: int
    address: IPv6Address
    peers_up: frozenset[IPv6Address]
    epoch: str | None
    unfinished: bool
    key: bytes | None
    members: frozenset[IPv6Address]
    tm: IPv6Address | None
    is_tm: bool
    active_epoch: str | None
    sources: frozenset[IPv6Address]
    pairs: PairsView
    routes: frozenset[Prefix]
    announced: frozenset[Prefix]
    sad: str

    def describe(self) -> str:
        """Return one line: who it is, what it has, whom it misses."""
        role = "TM" if self.is_tm else "member"
        return (
            f"d{self.device + 1} {self.address}: {role}, epoch {self.epoch}"
            f"{' (unfinished newer one)' if self.unfinished else ''}, sends with"
            f" {self.active_epoch}, TM {self.tm}, {len(self.members)} members,"
            f" {len(self.peers_up)} peers up, SAs of {len(self.sources)}"
        )


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known after a run to somebody who saw all of it.

    Attributes:
        secret_type: what MIKE made its node secrets of.
        draws: each device's address, and all that its key source ever gave, in order.
        datagrams: of MIKE on the black network, in order.
        unheard: what MIKE said without a carrier: nobody has it, but it tells who is in an epoch.
        keys: every group key, by its epoch.
        at_ms: virtual time of the end.
    """

    secret_type: type[NodeSecret] = field(repr=False)
    draws: Sequence[tuple[IPv6Address, Sequence[bytes]]] = field(repr=False)
    datagrams: Sequence[bytes] = field(repr=False)
    unheard: Sequence[bytes] = field(repr=False)
    keys: Mapping[str, bytes] = field(repr=False)
    at_ms: float = 0.0
