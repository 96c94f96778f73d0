"""MIKE alone (the paper's Fig. 7): join sent to key computed, and the slowest member beside it."""

from __future__ import annotations

from pathlib import Path

from experiments import paper
from experiments.analysis import Run, select, variants
from experiments.plots import style


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw it if the run has joins; return the files."""
    names = variants(run.latencies, "join")
    if not names or run.latencies["join_to_key_ms"].dropna().empty:
        return []
    made, axes = style.figure(2, width=10.5, height=5.2)
    width = 0.44 if len(names) > 1 else 0.0
    notes = []
    for number, name in enumerate(names):
        colour = style.variant_colour(name, names)
        shift = (number - (len(names) - 1) / 2) * width
        joiner = select(run.latencies, "join", name, role="joiner")
        everyone = select(run.latencies, "join", name)
        slowest = everyone.groupby(["repetition", "step", "group_size"], as_index=False).agg(
            join_to_key_ms=("join_to_key_ms", "max"), ok=("ok", "min")
        )
        for axis, frame in ((axes[0], joiner), (axes[1], slowest)):
            style.points_by_size(
                axis, frame, "join_to_key_ms", colour=colour, label=name, shift=shift
            )
        notes.append(f"{name}: {style.counts(joiner)}")
    for axis, title in zip(axes, ("at the joining device", "at the slowest member"), strict=True):
        axis.set_title(title, loc="left")
        style.integer_sizes(axis, run.latencies[run.latencies["campaign"] == "join"])
        style.paper_line(
            axis, paper.value("mike_at_10_ms"), "the paper: about 50 ms at ten members"
        )
    axes[0].set_ylim(0, axes[0].get_ylim()[1] * 1.05)
    axes[0].set_ylabel("join sent to group key computed (ms)")
    subtitle = style.conditions(run, names, "join") + "\n" + "; ".join(notes)
    style.dress(made, run, "MIKE alone (the paper's Fig. 7, up to ten members)", subtitle)
    return style.save(made, run, "mike_alone", folder)
