"""The states of a MIKE instance, and every move that is allowed between them.

docs/mike.md draws its diagram from `MOVES` (a test compares them).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv6Address

from protocol.mike.messages import Tree
from protocol.mike.rekeying import Rekey
from protocol.mike.rules import Standing
from protocol.mike.schedule import NodeSecret


class State(Enum):
    """What this instance is doing."""

    PARKED = "parked"
    IDLE = "idle"
    JOINING = "joining"
    MEMBER = "member"
    TM = "tm"


MOVES: dict[State, dict[State, str]] = {
    State.PARKED: {State.IDLE: "Started"},
    State.IDLE: {
        State.JOINING: "IDP signals JOIN or RESTORE of this device",
        State.PARKED: "Stopped",
    },
    State.JOINING: {
        State.MEMBER: "an epoch that names us is established",
        State.TM: "founded a group (MIKE-17)",
        State.IDLE: "IDP signals LEAVE of this device",
        State.PARKED: "Stopped",
    },
    State.MEMBER: {
        State.TM: "HANDOVER to us, or elected (MIKE-13)",
        State.JOINING: "excluded (MIKE-21), or the group dissolves (MIKE-16)",
        State.IDLE: "IDP signals LEAVE of this device",
        State.PARKED: "Stopped",
    },
    State.TM: {
        State.MEMBER: "handed over, or another TM's epoch is followed",
        State.JOINING: "excluded (MIKE-21), or the group dissolves (MIKE-16)",
        State.IDLE: "IDP signals LEAVE of this device",
        State.PARKED: "Stopped",
    },
}
"""From, to, why."""

STANDING: dict[State, Standing] = {
    State.PARKED: Standing.OUTSIDE,
    State.IDLE: Standing.OUTSIDE,
    State.JOINING: Standing.JOINING,
    State.MEMBER: Standing.MEMBER,
    State.TM: Standing.TM,
}


def may_move(before: State, after: State) -> bool:
    """Say whether the table allows this move."""
    return after in MOVES[before]


@dataclass(slots=True)
class Attempt:
    """Our unanswered JOIN.

    Attributes:
        nonce: names it.
        leaf: the fresh leaf secret.
        whom: the TM that is asked first, None: whoever is TM.
        repetitions: how often it was repeated.
    """

    nonce: bytes
    leaf: NodeSecret
    whom: IPv6Address | None = None
    repetitions: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A JOIN that waits for IDP's word.

    Attributes:
        attempt: what it asks with.
        datagram: signed, ready to be sent.
        made_mono_ns: when it was signed.
        highest: the largest epoch number that it names.
    """

    attempt: Attempt
    datagram: bytes = field(repr=False)
    made_mono_ns: int = 0
    highest: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """An epoch that waits for our IDP's verdict on the old TM (MIKE-14).

    Attributes:
        message: the TREE or REKEY.
        sender: who claims to be TM.
    """

    message: Tree | Rekey
    sender: IPv6Address
