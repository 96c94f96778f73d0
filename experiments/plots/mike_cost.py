"""What an event costs MIKE, in both modes, by group size: drawn from counted rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.ticker import NullFormatter

from experiments.plots import fig7_mike_delay, style

EVENTS = ("join", "leave", "take-over")
LOOKS = {
    "ka": (style.BLUE, "o", "key agreement (KA)"),
    "kd": (style.VERMILION, "s", "key distribution (KD)"),
}
MEASURES = {
    "bytes": "UDP payload (bytes)",
    "datagrams": "datagrams to all",
    "member_operations": "X25519 operations,\nbusiest member",
    "all_operations": "X25519 operations,\nall together",
    "path_cpu_ms": "processor time (ms),\nTM and busiest other",
    "all_cpu_ms": "processor time (ms),\nall together",
}
PAPER_MEASURE = "path_cpu_ms"


Crossings = Sequence[tuple[str, str, int | None]]
"""Event, measure, and the size from which on KD costs less (None: from none)."""


def draw(rows: Sequence[Mapping[str, Any]], folder: Path, crossings: Crossings = ()) -> list[Path]:
    """Draw them into a folder; return the files.

    Args:
        rows: columns as of `testbed.sim.scale.Cost`.
        folder: made if it is not there.
        crossings: drawn as lines, where they lie between the sizes.
    """
    frame = pd.DataFrame(rows)
    frame["bytes"] += frame["newcomer_bytes"]
    busiest = frame[["member_cpu_ms", "newcomer_cpu_ms"]].max(axis="columns")
    frame["path_cpu_ms"] = frame["tm_cpu_ms"] + busiest
    where = {(event, name): size for event, name, size in crossings}
    with style.mpl.rc_context(style.RC):
        made, axes = style.figure(len(EVENTS), len(MEASURES), width=11.0, height=15.0)
        for place, axis in enumerate(axes):
            name = list(MEASURES)[place // len(EVENTS)]
            event = EVENTS[place % len(EVENTS)]
            _panel(axis, frame[frame["event"] == event], name, where.get((event, name)))
            if name == PAPER_MEASURE and event == "join":
                fig7_mike_delay.draw_paper(axis, int(frame["members"].max()))
            if place < len(EVENTS):
                axis.set_title(event, loc="left")
            if place % len(EVENTS) == 0:
                axis.set_ylabel(MEASURES[name])
            if place >= len(EVENTS) * (len(MEASURES) - 1):
                axis.set_xlabel("members before the event")
        made.suptitle(
            "MIKE: what an event costs, counted and timed by `testbed cost` (nothing lost)",
            x=0.02,
            ha="left",
            fontweight="bold",
        )
        style.legend_of(made, axes, columns=2)
        made.subplots_adjust(top=0.94, bottom=0.09, left=0.09, right=0.98, hspace=0.25)
        return style.written(made, "mike_cost", folder)


def _panel(axis: Any, frame: pd.DataFrame, name: str, crossing: int | None) -> None:
    """Draw both modes, and where KD begins to cost less."""
    for mode, (colour, marker, label) in LOOKS.items():
        of_mode = frame[frame["mode"] == mode]
        axis.plot(of_mode["members"], of_mode[name], color=colour, marker=marker, label=label)
    axis.set_xscale("log")
    if name == "all_operations":
        axis.set_yscale("symlog", linthresh=1)  # a leave costs none in KD
    else:
        axis.set_yscale("linear" if name == "member_operations" else "log")
    axis.xaxis.set_minor_formatter(NullFormatter())
    if crossing is not None and crossing > frame["members"].min():
        axis.axvline(
            crossing,
            color=style.GREY,
            linestyle=":",
            label="from here on KD costs less, at all sizes that both modes have",
        )
