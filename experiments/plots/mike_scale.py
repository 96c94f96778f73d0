"""How long an event takes in MIKE by group size, in virtual time: drawn from measured rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.ticker import NullFormatter

from experiments.plots import fig7_mike_delay, style

EVENTS = ("join", "leave", "take-over")
COLOURS = {"ka": (style.BLUE, "KA"), "kd": (style.VERMILION, "KD")}
LINES = {
    "newcomer_ms": ("-", "o", "newcomer"),
    "median_ms": ("--", "s", "members, median"),
    "last_ms": (":", "^", "last device"),
}


def draw(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Draw them into a folder; return the files.

    Args:
        rows: columns as of `testbed.sim.crowd.Delay`, and ``seed``.
        folder: made if it is not there.
    """
    frame = pd.DataFrame(rows)
    events = [event for event in EVENTS if event in set(frame["event"])]
    counts = frame.groupby(["mode", "event", "members"]).size()
    few, many = int(counts.min()), int(counts.max())
    runs = f"{few}" if few == many else f"{few} to {many}"
    with style.mpl.rc_context(style.RC):
        made, axes = style.figure(len(events), width=4.6 * max(2, len(events)), height=5.2)
        for axis, event in zip(axes, events, strict=False):
            _panel(axis, frame[frame["event"] == event])
            if event == "join":
                fig7_mike_delay.draw_paper(axis, int(frame["members"].max()))
            axis.set_title(event, loc="left")
            axis.set_xlabel("members before the event")
        axes[0].set_ylabel("IDP's signal to the new key (ms)")
        for axis in axes[len(events) :]:
            axis.set_axis_off()
        made.suptitle(
            "MIKE in large groups: engines in virtual time over a modelled network\n"
            f"real cryptography, a processor for each device, no kernel; {runs} run(s) a size,"
            " lines are medians",
            x=0.02,
            ha="left",
            fontweight="bold",
        )
        style.legend_of(made, axes, columns=4)
        made.subplots_adjust(top=0.84, bottom=0.27, left=0.08, right=0.98)
        return style.written(made, "mike_scale", folder)


def _panel(axis: Any, frame: pd.DataFrame) -> None:
    """Draw each run as a point, and the medians as lines."""
    for mode, (colour, name) in COLOURS.items():
        of_mode = frame[frame["mode"] == mode]
        for column, (line, marker, what) in LINES.items():
            shown = of_mode.dropna(subset=[column])
            if shown.empty:
                continue
            axis.scatter(
                shown["members"], shown[column], color=colour, marker=marker, s=9, alpha=0.5
            )
            middle = shown.groupby("members")[column].median()
            axis.plot(
                middle.index,
                middle.values,
                color=colour,
                linestyle=line,
                marker=marker,
                markersize=4,
                label=f"{name}, {what}",
            )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.xaxis.set_minor_formatter(NullFormatter())
