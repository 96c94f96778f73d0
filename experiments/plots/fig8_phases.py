"""Fig. 8: the join delay at the monitor split into phases, at the smallest and largest group."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments import paper
from experiments.analysis import Run, select, variants
from experiments.plots import style


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw it if the run has measured joins; return the files.

    Each bar is of the step with the median total, so that its phases sum to a delay that
    happened; medians of single phases would not sum.
    """
    names = sorted(variants(run.latencies, "join"), key=lambda n: not n.startswith("command"))
    bars = []
    notes = []
    for name in names:
        frame = select(run.latencies, "join", name, role="monitor")
        good = frame[(frame["ok"].astype(float) == 1) & frame["total_ms"].notna()]
        notes.append(f"{name}: {style.counts(frame)}")
        sizes = sorted(good["group_size"].unique())
        for size in dict.fromkeys(sizes[:1] + sizes[-1:]):
            group = good[good["group_size"] == size].sort_values("total_ms")
            bars.append((name, int(size), group.iloc[(len(group) - 1) // 2], len(group)))
    if not bars:
        return []
    made, (axis,) = style.figure(1, width=9.5, height=5.9)
    places = _places(bars)
    bottoms = np.zeros(len(bars))
    for phase, (colour, label) in style.PHASE_COLOURS.items():
        heights = np.array([max(0.0, float(np.nan_to_num(bar[2][phase]))) for bar in bars])
        axis.bar(
            places,
            heights,
            0.62,
            bottom=bottoms,
            color=colour,
            label=label,
            edgecolor="white",
            linewidth=0.6,
        )
        bottoms += heights
    limit = max(paper.value("join_latency_ms"), float(bottoms.max())) * 1.12
    for place, total, (_, _, _row, n) in zip(places, bottoms, bars, strict=True):
        axis.text(
            place,
            total + limit * 0.012,
            f"{total:.1f} ms\nn = {n}",
            ha="center",
            va="bottom",
            fontsize=8.5,
        )
    _label_shares(axis, places, bars, limit)
    style.paper_line(axis, paper.value("join_latency_ms"), "the paper's total: about 400 ms")
    axis.set_ylim(0, limit * 1.06)
    axis.set_xlim(places[0] - 0.7, places[-1] + 0.7)
    axis.set_xticks(places, [f"{bar[1]} members" for bar in bars])
    for name in names:
        mine = [p for p, bar in zip(places, bars, strict=True) if bar[0] == name]
        if mine:
            axis.text(
                np.mean(mine),
                -0.105,
                name,
                transform=axis.get_xaxis_transform(),
                ha="center",
                va="top",
                fontsize=10,
                fontweight="bold",
                color=style.variant_colour(name, names),
            )
    axis.set_ylabel("time since the trigger (ms)")
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(1.01, 1.0))
    subtitle = (
        style.conditions(run, names, "join")
        + "\n"
        + "; ".join(notes)
        + "; each bar is the step with the median total at the monitor"
    )
    style.dress(made, run, "Join delay split up (the paper's Fig. 8)", subtitle, legend_columns=0)
    return style.save(made, run, "fig8_phases", folder)


def _places(bars: list) -> np.ndarray:
    """Return x positions: variants are set apart."""
    places, x = [], 0.0
    for number, bar in enumerate(bars):
        if number and bar[0] != bars[number - 1][0]:
            x += 0.55
        places.append(x)
        x += 1.0
    return np.array(places)


def _label_shares(axis, places, bars, limit) -> None:
    """Write a phase's ms into its piece where there is room."""
    for place, (_, _, row, _) in zip(places, bars, strict=True):
        bottom = 0.0
        for phase, (colour, _) in style.PHASE_COLOURS.items():
            height = max(0.0, float(np.nan_to_num(row[phase])))
            if height > limit * 0.035:
                dark = colour in (style.BLUE, style.VERMILION, style.GREEN)
                axis.text(
                    place,
                    bottom + height / 2,
                    f"{height:.1f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if dark else "black",
                )
            bottom += height
