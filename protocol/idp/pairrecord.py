"""What one device keeps for each peer: the SAs wanted, by epoch, and what the kernel may hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from protocol.core.transitions import Move, TransitionTable
from protocol.ipsec.model import Policy, PolicyId, Prefix, SaId, SecurityAssociation
from protocol.ipsec.pairpolicy import PairPath


class PairPhase(StrEnum):
    """Where one generation of a peer's SAs stands."""

    NEW = "new"
    STANDBY = "standby"
    ACTIVE = "active"
    TRAILING = "trailing"


PAIR = TransitionTable(
    "pair",
    PairPhase.NEW,
    [
        Move(PairPhase.NEW, PairPhase.ACTIVE, "written, no other is in use"),
        Move(PairPhase.NEW, PairPhase.STANDBY, "written beside the one in use"),
        Move(PairPhase.STANDBY, PairPhase.ACTIVE, "activation delay over"),
        Move(PairPhase.STANDBY, PairPhase.TRAILING, "overtaken"),
        Move(PairPhase.ACTIVE, PairPhase.TRAILING, "a newer one is active, or we cannot follow"),
    ],
)
"""Every move of a generation of a peer's SAs (docs/idp.md section 11)."""


@dataclass(slots=True, eq=False)
class Generation:
    """The two SAs of one epoch; ``due_mono_ns``: of the next step (STANDBY, TRAILING)."""

    epoch: str
    outbound: SecurityAssociation
    inbound: SecurityAssociation
    phase: PairPhase = PairPhase.NEW
    handed_out: bool = False
    due_mono_ns: int = 0

    def move(self, phase: PairPhase, due_mono_ns: int = 0) -> None:
        """Make a move that the table allows."""
        assert PAIR.allows(self.phase, phase), f"{self.phase} -> {phase}"
        self.phase, self.due_mono_ns = phase, due_mono_ns


@dataclass(slots=True, eq=False)
class Link:
    """What one peer's entries in the kernel follow from."""

    path: PairPath
    generations: list[Generation] = field(default_factory=list)
    prefixes: tuple[Prefix, ...] = ()

    def current(self) -> Generation | None:
        """The generation that our policies name."""
        for phase in (PairPhase.ACTIVE, PairPhase.NEW, PairPhase.TRAILING):
            for generation in reversed(self.generations):
                if generation.phase is phase:
                    return generation
        return None


@dataclass(slots=True)
class Record:
    """What the kernel may hold for one peer.

    Attributes:
        sas: by id.
        policies: by id.
        routes: in the order in which they were added.
        led: SPI and prefixes from which policies and routes follow, and nothing else is there; None
            if that has to be found out.
    """

    sas: dict[SaId, SecurityAssociation] = field(default_factory=dict)
    policies: dict[PolicyId, Policy] = field(default_factory=dict)
    routes: dict[Prefix, None] = field(default_factory=dict)
    led: tuple[int, tuple[Prefix, ...]] | None = None
