"""The part of a summary about streams while others join and leave: what was lost by which event."""

from __future__ import annotations

from typing import Any

import pandas as pd

from experiments import analysis
from experiments.analysis import Run

METHODS = {"start": "joins", "shutdown": "graceful leaves"}


def events(run: Run) -> pd.DataFrame:
    """Return one row per event: packets sent, lost, doubled, overtaken at all receivers."""
    rows = analysis.read_table(run.path, "rekey_loss.csv")
    rows = rows[rows["method"] != "steady"]
    keys = ["variant", "sa_mode", "repetition", "step", "method", "rate_pps"]
    if rows.empty:
        return pd.DataFrame(columns=[*keys, "sent", "lost", "duplicated", "reordered"])
    return rows.groupby(keys, as_index=False, sort=False).agg(
        senders=("sender", "nunique"),
        sent=("sent", "sum"),
        lost=("lost", "sum"),
        duplicated=("duplicated", "sum"),
        reordered=("reordered", "sum"),
        gap_max_ms=("gap_max_ms", "max"),
        idle_percent=("idle_percent", "first"),
    )


def summarise(run: Run) -> dict[str, Any]:
    """Return what each variant lost; empty if there were no such streams."""
    found: dict[str, Any] = {}
    for (variant, mode), of_variant in events(run).groupby(["variant", "sa_mode"], sort=False):
        found[str(variant)] = {
            "sa_mode": str(mode),
            "rate_pps": sorted({int(rate) for rate in of_variant["rate_pps"]}),
            "senders": int(of_variant["senders"].max()),
            "methods": {
                str(method): {
                    "events": len(group),
                    **{
                        name: int(group[name].sum())
                        for name in ("sent", "lost", "duplicated", "reordered")
                    },
                    "events_with_loss": int((group["lost"] > 0).sum()),
                    "lost_max": int(group["lost"].max()),
                    "gap_max_ms": analysis.plain(group["gap_max_ms"].max()),
                }
                for method, group in of_variant.groupby("method", sort=False)
            },
        }
    return found


def text(found: dict[str, Any]) -> list[str]:
    """Return lines for a terminal, none if there is nothing."""
    lines = []
    for variant, data in found.items():
        rates = " or ".join(str(rate) for rate in data["rate_pps"])
        for method, values in data["methods"].items():
            lines.append(
                f"{variant}: {values['events']} {METHODS[method]} of others, {data['senders']} "
                f"senders of {rates} packets/s: {values['lost']} of {values['sent']} packets "
                f"lost ({values['events_with_loss']} events with loss, at most "
                f"{values['lost_max']}), {values['duplicated']} doubled, {values['reordered']} "
                "overtaken"
            )
    return lines


def markdown(found: dict[str, Any]) -> list[str]:
    """Return lines for summary.md, none if there is nothing."""
    if not found:
        return []
    return ["", "## Streams while others join and leave", "", *(f"* {x}" for x in text(found))]
