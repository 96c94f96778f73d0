"""Join latency under each attack, beside the quiet one, and what is only the attacker's process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments import analysis, attacksummary
from experiments.analysis import Run
from experiments.campaign import FLOODS
from experiments.plots import style

_MARKS = (
    ("quiet", style.GREY, "o", "without an attack"),
    ("busy", style.SKY, "s", "beside as many frames to nobody"),
    ("attack", style.VERMILION, "^", "under the attack"),
)


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw it if it was measured; return the files."""
    rows = analysis.read_table(run.path, "attacks.csv")
    joins = attacksummary.joins(run)
    if rows.empty or joins.empty:
        return []
    found = attacksummary.summarise(run)
    names = sorted(set(joins["attack"]), key=lambda name: (name not in FLOODS, name))
    made, (axis,) = style.figure(1, width=10.5, height=0.33 * len(names) + 3.4)
    quiet_ms = found["quiet_join_ms"]["median_ms"]
    for condition, colour, mark, label in _MARKS:
        first = True
        for place, name in enumerate(names):
            chosen = (joins["attack"] == name) & (joins["condition"] == condition)
            values = joins.loc[chosen, "last_ms"].dropna().astype(float)
            axis.scatter(
                values,
                place + style.spread(len(values), 0.18),
                s=26 if mark == "o" else 30,
                color=colour,
                marker=mark,
                alpha=0.75,
                linewidths=0,
                zorder=3,
                label=label if first and len(values) else None,
            )
            first = first and not len(values)
    if quiet_ms is not None:
        limit = found["join_ratio_limit"]
        axis.axvline(quiet_ms, color=style.GREY, lw=1.2, label="median of all quiet joins")
        axis.axvline(
            limit * quiet_ms,
            color=style.PAPER,
            lw=1.2,
            ls="--",
            label=f"{limit:g} times that",
        )
    axis.set_xscale("log")
    axis.set_yticks(range(len(names)), [_label(name, found["attacks"][name]) for name in names])
    axis.invert_yaxis()
    axis.grid(axis="x", which="both")
    axis.set_xlabel("from the trigger until the last device has the new SAs (ms)")
    subtitle = (
        f"{found['tried']} attacks, {found['successes']} achieved something; in brackets: what was "
        "achieved, frames per second while joins were measured\n"
        "not judged, for lack of kernel SAs or because the step failed: "
        f"{', '.join(found['not_run']) or 'none'}"
    )
    style.dress(made, run, "Joins under attack", subtitle, legend_columns=2)
    return style.save(made, run, "attacks", folder)


def _label(name: str, attack: dict[str, Any]) -> str:
    rate = attack["join_rate_pps"]
    verdicts = {None: "not judged", True: "SOMETHING", False: "nothing"}
    achieved = verdicts[None if attack["achieved"] is None else bool(attack["achieved"])]
    return f"{name} ({achieved}{f', {rate:.0f}/s' if rate else ''})"
