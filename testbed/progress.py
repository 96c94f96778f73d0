"""Progress of a run for people: a bar on a terminal, a line now and then elsewhere. SKELETON."""

from __future__ import annotations

from types import TracebackType
from typing import Self, TextIO


class Progress:
    """Counts steps; shows repetition, step and the time left."""

    def __init__(self, total: int, label: str, stream: TextIO | None = None) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        """Start showing."""
        raise NotImplementedError

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the bar."""
        raise NotImplementedError

    def stage(self, text: str) -> None:
        """Say what is being done now, e.g. ``repetition 3/10``; does not count."""
        raise NotImplementedError

    def step(self, text: str = "", count: int = 1) -> None:
        """Count steps as done."""
        raise NotImplementedError

    def note(self, text: str) -> None:
        """Print a line without disturbing the bar."""
        raise NotImplementedError
