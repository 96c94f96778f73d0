"""States of an IDP instance: parked or running."""

from __future__ import annotations

from enum import StrEnum

from protocol.core.transitions import Move, TransitionTable


class EngineState(StrEnum):
    """State of the instance."""

    PARKED = "parked"
    RUNNING = "running"


INSTANCE = TransitionTable(
    "instance",
    EngineState.PARKED,
    [
        Move(EngineState.PARKED, EngineState.RUNNING, "Started"),
        Move(EngineState.RUNNING, EngineState.PARKED, "Stopped"),
    ],
)
"""Every move of the instance (docs/idp.md section 4). Elsewhere these events are ignored."""
