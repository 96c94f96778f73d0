"""Joins over a wide area network split into phases: one bar per delay and loss."""

from __future__ import annotations

from pathlib import Path

from experiments import wansummary
from experiments.analysis import Run, select
from experiments.plots import style


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw it if joins ran over a WAN; return the files.

    Each bar is of the step with the median total at the monitor (the mean of the middle two if
    their number is even), so that its phases sum to the median.
    """
    rows = {}
    for variant in wansummary.planned(run):
        frame = select(run.latencies, "join", variant.name, role="monitor")
        if not frame.empty:
            rows[variant.name] = frame
    if not rows:
        return []
    made, (axis,) = style.figure(width=9.8, height=2.6 + 0.42 * len(rows))
    ends = [0.0]
    for place, frame in enumerate(rows.values()):
        good = frame[(frame["ok"].astype(float) == 1) & frame["total_ms"].notna()]
        good = good.sort_values("total_ms")
        middle = good.iloc[(len(good) - 1) // 2 : len(good) // 2 + 1]
        begin = 0.0
        for phase, (colour, label) in style.PHASE_COLOURS.items():
            value = max(0.0, float(middle[phase].fillna(0.0).mean())) if len(good) else 0.0
            axis.barh(place, value, left=begin, height=0.62, color=colour, label=label, zorder=3)
            begin += value
        text = f"{begin:.0f} ms" if len(good) else "none measured"
        axis.text(begin, place, f"  {text}", va="center", fontsize=8.5)
        ends.append(begin)
    axis.set_yticks(range(len(rows)), rows)
    axis.invert_yaxis()
    axis.set_xlim(0, max(ends) * 1.12 or 1.0)
    axis.grid(axis="x")
    axis.grid(visible=False, axis="y")
    axis.set_xlabel("time since the trigger, at the monitor (ms)")
    subtitle = f"each bar is the measured step with the median total\n{style.counts_of(rows)}"
    style.dress(made, run, "Joins over a wide area network, split up", subtitle)
    return style.save(made, run, "wan_phases", folder)
