"""Fig. 7, MIKE's delay: join sent to group key computed, and how far apart the members have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments import paper
from experiments.analysis import Run, key_dispersal, select, slowest_keys, variants
from experiments.plots import style

PAPER_POINTS = (
    (10, "mike_at_10_ms", "the paper: about {value:.0f} ms at {size} members"),
    (50, "mike_at_50_ms", "the paper: will not exceed {value:.0f} ms at {size} members"),
)
SIZES_LABELLED = 12
"""So many group sizes have a label at most."""


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw it if the run has joins; return the files."""
    names = variants(run.latencies, "join")
    if not names or run.latencies["join_to_key_ms"].dropna().empty:
        return []
    made, axes = style.figure(3, width=13.5, height=5.4, share_y=False)
    width = 0.44 if len(names) > 1 else 0.0
    notes = []
    for number, name in enumerate(names):
        colour = style.variant_colour(name, names)
        shift = (number - (len(names) - 1) / 2) * width
        joiner = select(run.latencies, "join", name, role="joiner")
        everyone = select(run.latencies, "join", name)
        for axis, frame, value in (
            (axes[0], joiner, "join_to_key_ms"),
            (axes[1], slowest_keys(everyone), "join_to_key_ms"),
            (axes[2], key_dispersal(everyone), "spread_ms"),
        ):
            style.points_by_size(axis, frame, value, colour=colour, label=name, shift=shift)
        notes.append(f"{name}: {style.counts(joiner)}")
    joins = run.latencies[run.latencies["campaign"] == "join"]
    largest = int(joins["group_size"].max())
    every = next(step for step in (1, 5, 10, 20, 50) if largest <= step * SIZES_LABELLED)
    titles = ("at the joining device", "at the slowest member", "dispersal: last minus first key")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, loc="left")
        style.integer_sizes(axis, joins, every=every)
        if axis is not axes[2]:
            draw_paper(axis, largest)
        axis.set_ylim(0, axis.get_ylim()[1] * 1.05)
    axes[0].set_ylabel("join sent to group key computed (ms)")
    axes[2].set_ylabel("ms")
    notes.append(
        "all emulated devices share the CPUs: with CPU measured-first those that are not measured "
        "compute last, so slowest member and dispersal are upper bounds"
    )
    subtitle = style.conditions(run, names, "join") + "\n" + "; ".join(notes)
    style.dress(made, run, f"MIKE's delay, 3 to {largest} members (the paper's Fig. 7)", subtitle)
    return style.save(made, run, "fig7_mike_delay", folder)


def draw_paper(axis: Any, largest: int) -> None:
    """Draw the paper's points as far as they lie in the range that was measured.

    A group smaller than the smallest of them gets that one as a line.
    """
    shown = [point for point in PAPER_POINTS if point[0] <= largest]
    for size, name, text in shown:
        value = paper.value(name)
        marker = "D" if size == PAPER_POINTS[0][0] else "v"
        label = text.format(value=value, size=size)
        axis.scatter([size], [value], marker=marker, s=46, color=style.PAPER, zorder=6, label=label)
    if not shown:
        size, name, text = PAPER_POINTS[0]
        value = paper.value(name)
        style.paper_line(axis, value, text.format(value=value, size=size))
