"""What red multicast was sent in which epoch, to be compared with what tshark decrypted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

FORMING = ""
"""Epoch of the SAs that were replaced before the group was complete; nothing is sent in it."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What tshark says of the ESP packets of one SA of a sender (`testbed.witness.EspCount`).

    Attributes:
        spi: of the SA.
        packets: different ESP packets.
        decrypted: those of them that decrypt with a good integrity check value.
        inner: source and destination inside -> how many of the decrypted ones.
    """

    spi: int
    packets: int
    decrypted: int
    inner: Mapping[tuple[str, str], int]


@dataclass(slots=True)
class Ledger:
    """The packets sent, by epoch, and the SPIs of the epochs' SAs.

    Attributes:
        groups: red multicast groups of the streams, as text.
        spis: epoch -> SPIs of its SAs, in the order of the epochs.
        sent: (epoch, inner source) -> packets that the sender's kernel took.
        early: the same, of packets sent before the sender's LAN had its multicast routes: its
            router may lose some of them, so that they never reach the device.
    """

    groups: frozenset[str]
    spis: dict[str, frozenset[int]] = field(default_factory=dict)
    sent: Counter[tuple[str, str]] = field(default_factory=Counter)
    early: Counter[tuple[str, str]] = field(default_factory=Counter)

    def enter(self, epoch: str, spis: Iterable[int]) -> None:
        """Note that the group is now in this epoch, with these SAs."""
        self.spis[epoch] = frozenset(spis)

    def add(self, epoch: str, source: str, packets: int, *, early: bool = False) -> None:
        """Note packets with this inner source, sent while the whole group was in this epoch."""
        (self.early if early else self.sent)[epoch, source] += packets

    def rows(self, counted: Iterable[Counted], sources: Iterable[str]) -> list[dict[str, Any]]:
        """Compare one device's part with what tshark counted on a link that all of it crosses.

        Args:
            counted: tshark's counts of the device's SAs.
            sources: inner sources behind the device: its own red addresses and its LAN's.

        Returns:
            One row per epoch: ``packets``, ``decrypted``, ``red`` (decrypted stream packets),
            ``other`` (what else was decrypted), ``sent``, ``sent_early``, and ``equal``: every
            packet decrypts, and red is sent, and beyond that at most what was sent early.
        """
        inside = set(sources)
        epoch_of = {spi: epoch for epoch, spis in self.spis.items() for spi in spis}
        rows: dict[str, dict[str, Any]] = {
            epoch: {"epoch": epoch, "packets": 0, "decrypted": 0, "red": 0}
            for epoch in (FORMING, *self.spis)
        }
        for one in counted:
            row = rows[epoch_of.get(one.spi, FORMING)]
            row["packets"] += one.packets
            row["decrypted"] += one.decrypted
            row["red"] += sum(
                count
                for (source, group), count in one.inner.items()
                if source in inside and group in self.groups
            )
        for epoch, row in rows.items():
            row["sent"] = sum(self.sent[epoch, source] for source in inside)
            row["sent_early"] = sum(self.early[epoch, source] for source in inside)
            row["other"] = row["decrypted"] - row["red"]
            wanted = range(row["sent"], row["sent"] + row["sent_early"] + 1)
            row["equal"] = row["packets"] == row["decrypted"] and row["red"] in wanted
        return list(rows.values())
