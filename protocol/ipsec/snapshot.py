"""What an SAD holds, in a form that may be compared, logged and stored: digests, never keys."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from protocol.core.addresses import text_of
from protocol.ipsec.model import SecurityAssociation


class SnapshotEntry(NamedTuple):
    """One SA: what must be equal on every device of the group."""

    spi: int
    source: str
    destination: str
    suite: str
    key_digest: str


@dataclass(frozen=True, slots=True)
class SadSnapshot:
    """The sorted SAs of one device at one moment.

    Attributes:
        entries: sorted by SPI, then source.
    """

    entries: tuple[SnapshotEntry, ...]

    @classmethod
    def of(cls, sas: Iterable[SecurityAssociation]) -> SadSnapshot:
        """Build a snapshot of what a backend's ``dump_sas`` returned."""
        return cls(
            tuple(
                sorted(
                    SnapshotEntry(
                        sa.spi,
                        text_of(sa.source),
                        text_of(sa.destination),
                        sa.suite.value,
                        sa.key.digest,
                    )
                    for sa in sas
                )
            )
        )

    @property
    def digest(self) -> str:
        """Equal on two devices if and only if they hold the same SAs with the same keys."""
        return _digest("|".join(map(str, entry)) for entry in self.entries)

    @property
    def digest_without_source(self) -> str:
        """As `digest` for SA mode ``paper``, in which each device's source is its own address."""
        return _digest(
            "|".join(map(str, (entry.spi, entry.destination, entry.suite, entry.key_digest)))
            for entry in self.entries
        )

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values for a record."""
        return {"digest": self.digest, "entries": [entry._asdict() for entry in self.entries]}


def _digest(lines: Iterable[str]) -> str:
    """Return 16 hex digits over the lines."""
    return hashlib.sha256("\n".join(["idpmike sad", *lines]).encode()).hexdigest()[:16]
