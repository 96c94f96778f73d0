"""Fig. 6: the monitor's t_written minus the joiner's t_start; the same at the joining device."""

from __future__ import annotations

from pathlib import Path

from experiments import paper
from experiments.analysis import Run, select, variants
from experiments.plots import style


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw it if the run has joins; return the files."""
    names = variants(run.latencies, "join")
    if not names:
        return []
    made, axes = style.figure(2, width=10.5, height=5.6)
    width = 0.44 if len(names) > 1 else 0.0
    notes = []
    for axis, role, title in (
        (axes[0], "monitor", "at the monitor (as in the paper)"),
        (axes[1], "joiner", "at the joining device"),
    ):
        for number, name in enumerate(names):
            frame = select(run.latencies, "join", name, role=role)
            shift = (number - (len(names) - 1) / 2) * width
            colour = style.variant_colour(name, names)
            style.points_by_size(axis, frame, "total_ms", colour=colour, label=name, shift=shift)
            if role == "monitor":
                notes.append(f"{name}: {style.counts(frame)}")
        style.paper_line(
            axis, paper.value("join_latency_ms"), "the paper: about 400 ms (at the monitor)"
        )
        style.integer_sizes(axis, run.latencies[run.latencies["campaign"] == "join"])
        axis.set_title(title, loc="left")
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("SAs written minus trigger time (ms)")
    top = axes[0].get_ylim()[1]
    axes[0].set_ylim(0, top * 1.05)
    subtitle = style.conditions(run, names, "join") + "\n" + "; ".join(notes)
    style.dress(made, run, "Join latency (the paper's Fig. 6)", subtitle)
    return style.save(made, run, "fig6_join_latency", folder)
