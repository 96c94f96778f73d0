"""State tables."""

from __future__ import annotations

from enum import Enum

import pytest

from protocol.core.transitions import Move, StateCell, TransitionTable, to_mermaid, to_text


class Light(Enum):
    OFF = 0
    ON = 1
    BROKEN = 2


TABLE = TransitionTable(
    "light",
    Light.OFF,
    [Move(Light.OFF, Light.ON, "switched"), Move(Light.ON, Light.OFF, "switched")],
)


def test_only_moves_of_the_table_are_possible() -> None:
    cell = StateCell(TABLE)
    assert cell.state is Light.OFF
    cell.move(Light.ON)
    assert cell.state is Light.ON
    with pytest.raises(AssertionError, match="light: forbidden move ON to BROKEN"):
        cell.move(Light.BROKEN)
    assert cell.state is Light.ON


def test_finds_states_that_cannot_be_reached() -> None:
    assert TABLE.unreachable() == [Light.BROKEN]


def test_diagrams_come_from_the_table() -> None:
    assert to_mermaid(TABLE) == (
        "stateDiagram-v2\n    [*] --> OFF\n    OFF --> ON: switched\n    ON --> OFF: switched\n"
    )
    assert to_text(TABLE) == (
        "light (starts in OFF)\n  OFF -> ON   switched\n  ON  -> OFF  switched\n"
    )
