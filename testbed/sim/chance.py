"""All chance of a simulation: one seed, split by label: no part's draws shift another's."""

from __future__ import annotations

from random import Random


class Chance:
    """Hands out generators that depend on the seed and their label only.

    Strings seed a `random.Random` through SHA-512, so nothing depends on the interpreter's hash
    seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def stream(self, label: str) -> Random:
        """Return the generator of this label, at its beginning."""
        return Random(f"{self.seed} {label}")  # noqa: S311 - to be repeated, not secret


class SeededKeys:
    """A `protocol.core.engine.KeySource` of the simulation.

    Attributes:
        drawn: all it gave so far, for whoever judges secrecy.
    """

    def __init__(self, source: Random) -> None:
        self.drawn: list[bytes] = []
        self._source = source

    def random_bytes(self, length: int) -> bytes:
        """Return fresh bytes."""
        drawn = self._source.randbytes(length)
        self.drawn.append(drawn)
        return drawn
