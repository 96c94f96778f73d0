"""Fig. 6: the monitor's t_written minus the joiner's t_start; the same at the joining device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments import paper
from experiments.analysis import Run, select, variants
from experiments.plots import style

ROLES = (("monitor", "at the monitor (as in the paper)"), ("joiner", "at the joining device"))


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw it if the run has joins; return the files.

    The first row has the paper's value on its axis; if ours are far below it, a second row shows
    them again, enlarged.
    """
    names = variants(run.latencies, "join")
    if not names:
        return []
    joins = run.latencies[run.latencies["campaign"] == "join"]
    small = style.enlarged(joins["total_ms"], paper.value("join_latency_ms"))
    made, axes = style.figure(2, 2 if small else 1, width=10.5, height=8.6 if small else 5.6)
    for place, axis in enumerate(axes):
        role, title = ROLES[place % 2]
        _panel(axis, run, names, role)
        axis.set_title(f"{title}, enlarged" if place >= 2 else title, loc="left")
        if place < 2:
            style.paper_line(
                axis, paper.value("join_latency_ms"), "the paper: about 400 ms (at the monitor)"
            )
        style.integer_sizes(axis, joins)
        if place % 2 == 0:
            axis.set_ylabel("SAs written minus trigger time (ms)")
    for axis in axes[::2]:  # the rows share their y axis, which is only complete now
        axis.set_ylim(0, axis.get_ylim()[1] * 1.05)
    notes = [
        f"{name}: {style.counts(select(run.latencies, 'join', name, role='monitor'))}"
        for name in names
    ]
    subtitle = style.conditions(run, names, "join") + "\n" + "; ".join(notes)
    style.dress(made, run, "Join latency (the paper's Fig. 6)", subtitle)
    return style.save(made, run, "fig6_join_latency", folder)


def _panel(axis: Any, run: Run, names: list[str], role: str) -> None:
    width = 0.44 if len(names) > 1 else 0.0
    for number, name in enumerate(names):
        frame = select(run.latencies, "join", name, role=role)
        shift = (number - (len(names) - 1) / 2) * width
        colour = style.variant_colour(name, names)
        style.points_by_size(axis, frame, "total_ms", colour=colour, label=name, shift=shift)
