"""Dispersal: how far apart the devices write the SAs of one epoch."""

from __future__ import annotations

from pathlib import Path

from experiments import analysis
from experiments.analysis import Run
from experiments.plots import style


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw it for joins and leaves; return the files."""
    spread = analysis.dispersal(run.latencies)
    campaigns = list(dict.fromkeys(spread["campaign"]))
    if not campaigns:
        return []
    made, axes = style.figure(len(campaigns), width=5.4 * len(campaigns) + 1, height=5.2)
    notes, described = [], []
    for axis, campaign in zip(axes, campaigns, strict=True):
        mine = spread[spread["campaign"] == campaign]
        names = list(dict.fromkeys(mine["variant"]))
        width = 0.44 if len(names) > 1 else 0.0
        for number, name in enumerate(names):
            frame = mine[mine["variant"] == name]
            shift = (number - (len(names) - 1) / 2) * width
            colour = style.variant_colour(name, names)
            style.points_by_size(
                axis, frame, "dispersal_ms", colour=colour, label=name, shift=shift
            )
            notes.append(f"{campaign}, {name}: {style.counts(frame)}")
        style.integer_sizes(axis, mine, "group size after the step (members)")
        axis.set_title(f"{campaign}s", loc="left")
        described.append(style.conditions(run, names, campaign))
    axes[0].set_ylim(0, axes[0].get_ylim()[1] * 1.05)
    axes[0].set_ylabel("last minus first device written (ms)")
    lines = list(dict.fromkeys("\n".join(described).split("\n")))
    subtitle = "\n".join(lines) + "\n" + "; ".join(notes)
    style.dress(made, run, "Dispersal over all devices of one epoch", subtitle)
    return style.save(made, run, "dispersal", folder)
