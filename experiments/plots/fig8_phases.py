"""Fig. 8: the join delay at the monitor split into phases, at the smallest and largest group."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments import paper
from experiments.analysis import Run, select, variants
from experiments.plots import style


@dataclass(frozen=True, slots=True)
class Bar:
    """One step's phases, from the bottom, in ms."""

    variant: str
    size: int
    phases: dict[str, float]
    measured: int

    @property
    def total(self) -> float:
        """Their sum."""
        return sum(self.phases.values())


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw it if the run has measured joins; return the files.

    Each bar is of the step with the median total (the mean of the middle two if their number is
    even), so that its phases sum to the median; medians of single phases would not. If ours are
    far below the paper's total, a second panel shows them again, enlarged.
    """
    names = sorted(variants(run.latencies, "join"), key=lambda n: not n.startswith("command"))
    bars = [bar for name in names for bar in _bars(run, name)]
    if not bars:
        return []
    limit = paper.value("join_latency_ms")
    small = style.enlarged(pd.Series([bar.total for bar in bars]), limit)
    made, axes = style.figure(
        2 if small else 1, width=11.5 if small else 9.5, height=5.9, share_y=False
    )
    _panel(axes[0], bars, max(limit, *(bar.total for bar in bars)) * 1.18)
    style.paper_line(axes[0], limit, "the paper's total: about 400 ms")
    if small:
        _panel(axes[1], bars, max(bar.total for bar in bars) * 1.25)
        axes[1].set_title("enlarged", loc="left")
    axes[0].set_ylabel("time since the trigger (ms)")
    handles, labels = axes[0].get_legend_handles_labels()
    axes[-1].legend(handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(1.01, 1.0))
    notes = [
        f"{name}: {style.counts(select(run.latencies, 'join', name, role='monitor'))}"
        for name in names
    ]
    subtitle = (
        f"{style.conditions(run, names, 'join')}\n{'; '.join(notes)}; "
        "each bar is the measured step with the median total at the monitor"
    )
    title = "Join delay split up (the paper's Fig. 8)"
    style.dress(made, run, title, subtitle, legend_columns=0)
    return style.save(made, run, "fig8_phases", folder)


def _bars(run: Run, name: str) -> list[Bar]:
    """Return a variant's bars at its smallest and largest group."""
    frame = select(run.latencies, "join", name, role="monitor")
    good = frame[(frame["ok"].astype(float) == 1) & frame["total_ms"].notna()]
    sizes = sorted(good["group_size"].unique())
    bars = []
    for size in dict.fromkeys(sizes[:1] + sizes[-1:]):
        group = good[good["group_size"] == size].sort_values("total_ms")
        middle = group.iloc[(len(group) - 1) // 2 : len(group) // 2 + 1]
        phases = {
            phase: max(0.0, float(middle[phase].fillna(0.0).mean()))
            for phase in style.PHASE_COLOURS
        }
        bars.append(Bar(name, int(size), phases, len(group)))
    return bars


def _panel(axis: Any, bars: list[Bar], limit: float) -> None:
    places = _places(bars)
    bottoms = np.zeros(len(bars))
    for phase, (colour, label) in style.PHASE_COLOURS.items():
        heights = np.array([bar.phases[phase] for bar in bars])
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
        dark = colour in (style.BLUE, style.VERMILION, style.GREEN)
        for place, bottom, height in zip(places, bottoms, heights, strict=True):
            if height > limit * 0.035:
                axis.text(
                    place,
                    bottom + height / 2,
                    f"{height:.1f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if dark else "black",
                )
        bottoms += heights
    for place, bar in zip(places, bars, strict=True):
        axis.text(
            place,
            bar.total + limit * 0.012,
            f"{bar.total:.1f} ms\nn = {bar.measured}",
            ha="center",
            va="bottom",
            fontsize=8.5,
        )
    axis.set_ylim(0, limit)
    axis.set_xlim(places[0] - 0.7, places[-1] + 0.7)
    axis.set_xticks(places, [f"{bar.size}\nmembers" for bar in bars])
    names = list(dict.fromkeys(bar.variant for bar in bars))
    for name in names:
        mine = [place for place, bar in zip(places, bars, strict=True) if bar.variant == name]
        axis.text(
            float(np.mean(mine)),
            -0.15,
            name,
            transform=axis.get_xaxis_transform(),
            ha="center",
            va="top",
            fontsize=10,
            fontweight="bold",
            color=style.variant_colour(name, names),
        )


def _places(bars: list[Bar]) -> np.ndarray:
    """Return x positions: variants are set apart."""
    places, x = [], 0.0
    for number, bar in enumerate(bars):
        if number and bar.variant != bars[number - 1].variant:
            x += 0.55
        places.append(x)
        x += 1.0
    return np.array(places)
