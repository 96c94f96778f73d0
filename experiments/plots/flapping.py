"""A cable that goes out and in: rekeys caused, by period."""

from __future__ import annotations

from pathlib import Path

from experiments import idpsummary
from experiments.analysis import Run
from experiments.plots import style


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw it if it was measured; return the files."""
    rows = idpsummary.good_rows(run)
    rekeys = idpsummary.of(rows, "flapping", "rekeys")
    if rekeys.empty:
        return []
    flaps = idpsummary.of(rows, "flapping", "flaps")["value"].median()
    made, (axis,) = style.figure(1, width=8.0, height=5.2)
    axis.scatter(
        rekeys["period_intervals"] + style.spread(len(rekeys), 0.12),
        rekeys["value"] / flaps,
        s=22,
        color=style.BLUE,
        alpha=0.5,
        linewidths=0,
        label="each repetition",
        zorder=3,
    )
    middle = (rekeys.groupby("period_intervals")["value"].median()) / flaps
    axis.plot(
        middle.index,
        middle,
        color=style.BLUE,
        marker="_",
        markersize=14,
        markeredgewidth=2,
        linestyle="none",
        label="median",
        zorder=4,
    )
    factor = idpsummary.DEAD_FACTOR
    axis.axvspan(2 * (factor - 1), 2 * factor, color=style.YELLOW, alpha=0.35, linewidth=0)
    axis.annotate(
        f"out for {factor - 1} to {factor} hello intervals:\nthe silence may reach {factor}",
        (2 * factor - 1, 0.98),
        xycoords=("data", "axes fraction"),
        ha="center",
        va="top",
        fontsize=8,
        color="#555555",
    )
    axis.set_ylim(bottom=-0.1)
    axis.set_xticks(sorted(rekeys["period_intervals"].unique()))
    axis.tick_params(axis="x", labelsize=8)
    axis.set_xlabel("period in hello intervals; the cable is out for half of it")
    axis.set_ylabel("rekeys per flap")
    interval = rekeys["hello_interval_ms"].max()
    subtitle = (
        f"{rekeys['group_size'].max():g} devices, hello interval {interval:g} ms, down after "
        f"{factor}; {flaps:g} flaps each, n = {rekeys['repetition'].nunique()} per period"
    )
    style.dress(made, run, "Flapping links and rekeys", subtitle)
    return style.save(made, run, "flapping", folder)
