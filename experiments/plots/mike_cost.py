"""What an event costs MIKE, in both modes, by group size: drawn from counted rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

from experiments.plots import style

EVENTS = ("join", "leave", "take-over")
LOOKS = {
    "ka": (style.BLUE, "o", "key agreement (KA)"),
    "kd": (style.VERMILION, "s", "key distribution (KD)"),
}
MEASURES = {
    "bytes": "UDP payload to all (bytes)",
    "datagrams": "datagrams to all",
    "member_operations": "X25519 operations, busiest member",
}


def draw(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Draw them into a folder; return the files.

    Args:
        rows: columns as of `testbed.sim.scale.Cost`.
        folder: made if it is not there.
    """
    frame = pd.DataFrame(rows)
    with style.mpl.rc_context(style.RC):
        made, axes = style.figure(len(EVENTS), len(MEASURES), width=11.0, height=9.0)
        for place, axis in enumerate(axes):
            measure = list(MEASURES)[place // len(EVENTS)]
            event = EVENTS[place % len(EVENTS)]
            for mode, (colour, marker, label) in LOOKS.items():
                of_mode = frame[(frame["mode"] == mode) & (frame["event"] == event)]
                axis.plot(
                    of_mode["members"], of_mode[measure], color=colour, marker=marker, label=label
                )
            axis.set_xscale("log")
            axis.set_yscale("linear" if measure == "member_operations" else "log")
            if place < len(EVENTS):
                axis.set_title(event, loc="left")
            if place % len(EVENTS) == 0:
                axis.set_ylabel(MEASURES[measure])
            if place >= len(EVENTS) * (len(MEASURES) - 1):
                axis.set_xlabel("members before the event")
        made.suptitle(
            "MIKE: what an event costs, counted by `testbed cost` (no engines, nothing lost)",
            x=0.02,
            ha="left",
            fontweight="bold",
        )
        made.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=2)
        made.subplots_adjust(top=0.91, bottom=0.11, left=0.08, right=0.98, hspace=0.25)
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"mike_cost.{kind}" for kind in ("png", "pdf")]
        for file in files:
            made.savefig(file)
        plt.close(made)
    return files
