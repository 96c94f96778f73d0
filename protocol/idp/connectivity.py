"""The connectivity table: which devices are there, which fell silent, and what each change means.

Pure: it is told what was heard and what time it is, and says which change follows from
`TRANSITIONS`. Only the engine owns and drives a table. Entries of lost devices stay, because only
they tell a RESTORE (known start-up time-stamp) from a JOIN; they give way when the table is full.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv6Address
from typing import Any

from protocol.core.addresses import text_of
from protocol.core.transitions import Move, TransitionTable
from protocol.identity import Peer
from protocol.idp.messages import Hello
from protocol.idp.rules import (
    asked_after_ns,
    check_startup_not_older,
    check_table_room,
    is_silent,
)
from protocol.idpmike import EpochId, SignalKind


class PeerState(StrEnum):
    """State of one device in the table."""

    ABSENT = "absent"
    UP = "up"
    LOST = "lost"


class PeerEvent(StrEnum):
    """What can happen to one device."""

    HELLO_SAME_STARTUP = "hello, same start-up time-stamp"
    HELLO_LATER_STARTUP = "hello, later start-up time-stamp"
    SILENT = "silent for the dead interval"
    EVICTED = "table full, longest lost"
    UNACCEPTABLE = "certificate not acceptable any more"


class ChangeKind(StrEnum):
    """Why a signal follows; ``join`` and ``restart`` are both JOIN for MIKE."""

    JOIN = "join"
    RESTART = "restart"
    RESTORE = "restore"
    LEAVE = "leave"


TRANSITIONS: dict[tuple[PeerState, PeerEvent], tuple[PeerState, ChangeKind | None]] = {
    (PeerState.ABSENT, PeerEvent.HELLO_LATER_STARTUP): (PeerState.UP, ChangeKind.JOIN),
    (PeerState.UP, PeerEvent.HELLO_SAME_STARTUP): (PeerState.UP, None),
    (PeerState.UP, PeerEvent.HELLO_LATER_STARTUP): (PeerState.UP, ChangeKind.RESTART),
    (PeerState.UP, PeerEvent.SILENT): (PeerState.LOST, ChangeKind.LEAVE),
    (PeerState.LOST, PeerEvent.HELLO_SAME_STARTUP): (PeerState.UP, ChangeKind.RESTORE),
    (PeerState.LOST, PeerEvent.HELLO_LATER_STARTUP): (PeerState.UP, ChangeKind.RESTART),
    (PeerState.LOST, PeerEvent.EVICTED): (PeerState.ABSENT, None),
    (PeerState.UP, PeerEvent.UNACCEPTABLE): (PeerState.ABSENT, ChangeKind.LEAVE),
    (PeerState.LOST, PeerEvent.UNACCEPTABLE): (PeerState.ABSENT, None),
}
"""Every move a device can make in the table (docs/idp.md section 5); any other is a bug."""

DEVICE = TransitionTable(
    "device",
    PeerState.ABSENT,
    [
        Move(source, target, f"{event.value} / {kind.value if kind else 'nothing'}")
        for (source, event), (target, kind) in TRANSITIONS.items()
    ],
)
"""The same, for the diagram."""

SIGNAL_OF: dict[ChangeKind, SignalKind] = {
    ChangeKind.JOIN: SignalKind.JOIN,
    ChangeKind.RESTART: SignalKind.JOIN,
    ChangeKind.RESTORE: SignalKind.RESTORE,
    ChangeKind.LEAVE: SignalKind.LEAVE,
}


@dataclass(slots=True)
class PeerEntry:
    """One device; changed by `ConnectivityTable` only.

    Attributes:
        address: black address.
        name: from the certificate.
        nation: from the certificate.
        startup_wall_ns: start-up time-stamp of its present instance.
        first_mono_ns: when the first hello of this instance arrived.
        last_mono_ns: when the last one did.
        hello: the last hello that counted, or the signed one that a light one repeats.
        dead_interval_ns: silence after which it is down, as it announced.
        asked_after_ns: silence after which it is asked.
        hello_interval_ms: as it announced.
        state: ``UP`` or ``LOST``.
        epoch: as it announced.
        fingerprint: of the certificate that signed its last hello.
    """

    address: IPv6Address
    name: str
    nation: str
    startup_wall_ns: int
    first_mono_ns: int
    last_mono_ns: int
    state: PeerState
    fingerprint: bytes
    hello: Hello
    dead_interval_ns: int = 0
    asked_after_ns: int = 0
    hello_interval_ms: int = 0
    epoch: EpochId | None = None

    def __post_init__(self) -> None:
        self.follow(self.hello)

    def follow(self, hello: Hello) -> None:
        """Take over what a hello announces."""
        self.hello = hello
        self.dead_interval_ns = hello.dead_interval_ns
        self.hello_interval_ms = hello.hello_interval_ms
        self.asked_after_ns = asked_after_ns(
            hello.hello_interval_ms * 1_000_000, hello.dead_interval_ns
        )
        self.epoch = hello.epoch

    @property
    def deadline_mono_ns(self) -> int:
        """When it is down unless heard before."""
        return self.last_mono_ns + self.dead_interval_ns

    def describe(self, now_mono_ns: int) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "address": text_of(self.address),
            "name": self.name,
            "nation": self.nation,
            "state": self.state.value,
            "last_hello_ms": (now_mono_ns - self.last_mono_ns) // 1_000_000,
            "startup_wall_ns": self.startup_wall_ns,
            "epoch": None if self.epoch is None else str(self.epoch),
        }


@dataclass(frozen=True, slots=True)
class Change:
    """A change that MIKE is told of.

    Attributes:
        kind: why.
        address: of the device.
        name: of the device.
        startup_wall_ns: of the instance concerned.
    """

    kind: ChangeKind
    address: IPv6Address
    name: str
    startup_wall_ns: int

    @property
    def signal(self) -> SignalKind:
        """What MIKE is told."""
        return SIGNAL_OF[self.kind]


class ConnectivityTable:
    """At most ``max_peers`` devices, by black address, in the order in which they were met."""

    def __init__(self, max_peers: int) -> None:
        self._max_peers = max_peers
        self._entries: dict[IPv6Address, PeerEntry] = {}
        self._up: set[IPv6Address] = set()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, address: object) -> bool:
        return address in self._entries

    def get(self, address: IPv6Address) -> PeerEntry | None:
        """Return the entry of one device."""
        return self._entries.get(address)

    def is_up(self, address: IPv6Address) -> bool:
        """Return whether a device is up."""
        entry = self._entries.get(address)
        return entry is not None and entry.state is PeerState.UP

    def entries(self) -> list[PeerEntry]:
        """Return all entries, sorted by address."""
        return [self._entries[address] for address in sorted(self._entries, key=int)]

    def addresses_up(self) -> set[IPv6Address]:
        """Return the address of every device that is up."""
        return set(self._up)

    def instances_up(self) -> list[tuple[IPv6Address, int]]:
        """Return address and start-up time-stamp of every device that is up, sorted."""
        return [
            (entry.address, entry.startup_wall_ns)
            for entry in self.entries()
            if entry.state is PeerState.UP
        ]

    def falling_silent(self, now_mono_ns: int) -> tuple[IPv6Address, ...]:
        """Return the devices that are up and to be asked (IDP-36)."""
        return tuple(
            [
                entry.address
                for entry in self._entries.values()
                if now_mono_ns - entry.last_mono_ns >= entry.asked_after_ns
                and entry.state is PeerState.UP
            ]
        )

    @property
    def up_count(self) -> int:
        """Number of devices that are up."""
        return len(self._up)

    @property
    def next_deadline_mono_ns(self) -> int | None:
        """When the first of the devices that are up would be down; None if none is up."""
        deadlines = [e.deadline_mono_ns for e in self._entries.values() if e.state is PeerState.UP]
        return min(deadlines, default=None)

    def heard(
        self,
        peer: Peer,
        startup_wall_ns: int,
        hello: Hello,
        now_mono_ns: int,
        entry: PeerEntry | None = None,
    ) -> Change | None:
        """Take in an authenticated, checked hello.

        Args:
            peer: who sent it.
            startup_wall_ns: of which instance.
            hello: what it says.
            now_mono_ns: when it arrived.
            entry: what we have of that device, if that has been looked up.

        Returns:
            The change that follows, or None if the device was known to be up.

        Raises:
            PeerError: an older instance (IDP-5), or no room (IDP-6); the table is as before.
        """
        entry = entry or self._entries.get(peer.address)
        if entry is None:
            self._make_room()
            entry = PeerEntry(
                address=peer.address,
                name=peer.name,
                nation=peer.nation,
                startup_wall_ns=startup_wall_ns,
                first_mono_ns=now_mono_ns,
                last_mono_ns=now_mono_ns,
                state=PeerState.ABSENT,
                fingerprint=peer.fingerprint,
                hello=hello,
            )
            self._entries[peer.address] = entry
            return self._move(entry, PeerEvent.HELLO_LATER_STARTUP)
        check_startup_not_older(startup_wall_ns, entry.startup_wall_ns)
        entry.last_mono_ns = now_mono_ns
        if hello is not entry.hello:  # a light one repeats what we have
            entry.follow(hello)
        entry.fingerprint = peer.fingerprint
        if startup_wall_ns == entry.startup_wall_ns:
            if entry.state is PeerState.UP:
                return None
            return self._move(entry, PeerEvent.HELLO_SAME_STARTUP)
        entry.name, entry.nation = peer.name, peer.nation
        entry.startup_wall_ns = startup_wall_ns
        entry.first_mono_ns = now_mono_ns
        return self._move(entry, PeerEvent.HELLO_LATER_STARTUP)

    def expire(self, now_mono_ns: int) -> list[Change]:
        """Move every device that was silent for its dead interval; in the order of addresses."""
        silent = [
            entry
            for entry in self._entries.values()
            if entry.state is PeerState.UP
            and is_silent(entry.last_mono_ns, entry.dead_interval_ns, now_mono_ns)
        ]
        changes = []
        for entry in sorted(silent, key=lambda entry: int(entry.address)):
            change = self._move(entry, PeerEvent.SILENT)
            assert change is not None
            changes.append(change)
        return changes

    def remove(self, unacceptable: Callable[[bytes], bool]) -> list[Change]:
        """Forget every device whose certificate (by fingerprint) is not acceptable any more."""
        changes = []
        for entry in self.entries():
            if unacceptable(entry.fingerprint):
                change = self._move(entry, PeerEvent.UNACCEPTABLE)
                del self._entries[entry.address]
                if change is not None:
                    changes.append(change)
        return changes

    def excuse(self, now_mono_ns: int) -> None:
        """Let no device be down for a hello interval: we did not listen, silence proves nothing."""
        for entry in self._entries.values():
            until_mono_ns = now_mono_ns + entry.hello_interval_ms * 1_000_000
            if entry.state is PeerState.UP and entry.deadline_mono_ns < until_mono_ns:
                entry.last_mono_ns = until_mono_ns - entry.dead_interval_ns

    def _make_room(self) -> None:
        """Evict the longest lost device if the table is full; refuse if all are up."""
        if len(self._entries) < self._max_peers:
            return
        lost = [entry for entry in self._entries.values() if entry.state is PeerState.LOST]
        check_table_room(len(self._entries) - len(lost), self._max_peers)
        oldest = min(lost, key=lambda entry: (entry.last_mono_ns, entry.address))
        self._move(oldest, PeerEvent.EVICTED)
        del self._entries[oldest.address]

    def _move(self, entry: PeerEntry, event: PeerEvent) -> Change | None:
        """Make one move of `TRANSITIONS`."""
        entry.state, kind = TRANSITIONS[entry.state, event]
        if entry.state is PeerState.UP:
            self._up.add(entry.address)
        else:
            self._up.discard(entry.address)
        if kind is None:
            return None
        return Change(kind, entry.address, entry.name, entry.startup_wall_ns)
