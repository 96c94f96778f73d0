"""The parts of a summary that belong to one kind of campaign: a new one is one entry here."""

from __future__ import annotations

from typing import Any, Protocol

from experiments import (
    attacksummary,
    deliverysummary,
    firstsummary,
    idpsummary,
    rekeylosssummary,
    throughputsummary,
    unicastsummary,
    wansummary,
)
from experiments.analysis import Run


class Section(Protocol):
    """A part of the summary about one kind of campaign, in a module of its own."""

    def summarise(self, run: Run) -> dict[str, Any]:
        """Return what stands under its key in summary.json; empty if the run has nothing of it."""

    def text(self, found: dict[str, Any]) -> list[str]:
        """Return lines for a terminal, none if there is nothing."""

    def markdown(self, found: dict[str, Any]) -> list[str]:
        """Return lines for summary.md, none if there is nothing."""


SECTIONS: dict[str, Section] = {
    "wan": wansummary,
    "delivery": deliverysummary,
    "first_packets": firstsummary,
    "unicast": unicastsummary,
    "throughput": throughputsummary,
    "rekey_loss": rekeylosssummary,
    "idp": idpsummary,
    "attacks": attacksummary,
}
"""The parts with tables of their own, by their key in summary.json."""
