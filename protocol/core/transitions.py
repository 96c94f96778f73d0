"""State tables as data: the moves that are allowed, a guarded setter, and a diagram for the docs.

An engine declares one `TransitionTable` per state machine and moves through a `StateCell` only, so
a move that the table does not list fails at once, and the diagrams in the docs are drawn from the
very table that the code obeys. A forbidden move is our own bug, hence `AssertionError`; a peer's
illegal message is refused by the rules long before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

S = TypeVar("S", bound=Enum)


@dataclass(frozen=True, slots=True)
class Move(Generic[S]):
    """One allowed move.

    Attributes:
        source: state before.
        target: state after (may be the same).
        cause: the event, in a few words, for the diagram.
    """

    source: S
    target: S
    cause: str


class TransitionTable(Generic[S]):
    """The allowed moves of one state machine.

    Attributes:
        name: for messages and diagrams.
        initial: the first state.
        moves: all moves, in the order in which the diagram shows them.
    """

    __slots__ = ("_allowed", "initial", "moves", "name")

    def __init__(self, name: str, initial: S, moves: Sequence[Move[S]]) -> None:
        self.name = name
        self.initial = initial
        self.moves = tuple(moves)
        self._allowed = frozenset((move.source, move.target) for move in moves)

    def allows(self, source: S, target: S) -> bool:
        """Say whether this move is in the table."""
        return (source, target) in self._allowed

    def unreachable(self) -> list[S]:
        """Return the states that no path from the initial state reaches, in their own order."""
        reached = [self.initial]
        for state in reached:
            reached += [
                move.target
                for move in self.moves
                if move.source is state and move.target not in reached
            ]
        return [state for state in type(self.initial) if state not in reached]


class StateCell(Generic[S]):
    """Holds the state of one machine; the only way to change it is `move`."""

    __slots__ = ("_state", "_table")

    def __init__(self, table: TransitionTable[S]) -> None:
        self._table = table
        self._state = table.initial

    @property
    def state(self) -> S:
        """The present state."""
        return self._state

    def move(self, target: S) -> None:
        """Change the state; a move that is not in the table is a bug and fails."""
        if not self._table.allows(self._state, target):
            raise AssertionError(
                f"{self._table.name}: forbidden move {self._state.name} to {target.name}"
            )
        self._state = target


def to_mermaid(table: TransitionTable[S]) -> str:
    """Draw a table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {table.initial.name}"]
    lines += [f"    {m.source.name} --> {m.target.name}: {m.cause}" for m in table.moves]
    return "\n".join(lines) + "\n"


def to_text(table: TransitionTable[S]) -> str:
    """Draw a table as aligned text: one move a line."""
    source_width = max((len(m.source.name) for m in table.moves), default=0)
    target_width = max((len(m.target.name) for m in table.moves), default=0)
    lines = [f"{table.name} (starts in {table.initial.name})"]
    lines += [
        f"  {m.source.name:{source_width}} -> {m.target.name:{target_width}}  {m.cause}"
        for m in table.moves
    ]
    return "\n".join(lines) + "\n"
