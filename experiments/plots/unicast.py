"""Joins: when the multicast SAs are there, and when all of unicast is, by group size."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments import analysis, paper, unicastsummary
from experiments.analysis import Run
from experiments.plots import style

_SERIES = (
    ("multicast_ms", "multicast SAs", style.BLUE, -0.08),
    ("complete_ms", "all of unicast", style.VERMILION, 0.08),
)


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw it if joins made unicast SAs; return the files."""
    rows = analysis.read_table(run.path, "unicast.csv")
    names = list(dict.fromkeys(rows["variant"])) if not rows.empty else []
    if not names:
        return []
    panels = [(name, place) for name in names for place in unicastsummary.PLACES]
    made, axes = style.figure(2, len(names), width=11.5, height=4.4 * len(names) + 1.2)
    extra_ms = paper.value("unicast_extra_ms")
    for axis, (name, where) in zip(axes, panels, strict=True):
        of_variant = unicastsummary.of_place(rows[rows["variant"] == name], where)
        sizes = sorted(of_variant["group_size"].unique())
        medians: dict[str, list[float]] = {}
        for column, label, colour, shift in _SERIES:
            for size in sizes:
                there = of_variant[of_variant["group_size"] == size]
                good = there[(there["ok"].astype(float) == 1) & there[column].notna()][column]
                place = size + shift
                axis.scatter(
                    place + style.spread(len(good), 0.1),
                    good,
                    s=16,
                    color=colour,
                    alpha=0.45,
                    linewidths=0,
                    label=f"{label}: each join",
                    zorder=3,
                )
                middle = float(good.median()) if len(good) else float("nan")
                medians.setdefault(column, []).append(middle)
            axis.plot(
                np.array(sizes) + shift,
                medians[column],
                color=colour,
                marker="_",
                markersize=14,
                markeredgewidth=2.2,
                linewidth=1.0,
                label=f"{label}: median",
                zorder=4,
            )
        theirs = np.array(medians["multicast_ms"]) + extra_ms
        axis.plot(
            sizes,
            theirs,
            color=style.PAPER,
            linestyle=(0, (5, 3)),
            linewidth=1.4,
            zorder=2,
            label=f"our multicast + {extra_ms:g} ms: the paper's difference",
        )
        axis.plot(
            sizes,
            unicastsummary.FACTOR * np.array(medians["multicast_ms"]),
            color=style.GREY,
            linestyle=(0, (1, 2)),
            linewidth=1.4,
            zorder=2,
            label=f"{unicastsummary.FACTOR:g} x our multicast: the paper's ratio",
        )
        axis.set_title(f"{name}: {unicastsummary.PLACES[where]}", loc="left")
        axis.set_xlabel("members after the join")
        axis.set_xticks(sizes)
        axis.set_ylabel("written minus trigger (ms)")
        axis.set_ylim(0, axis.get_ylim()[1] * 1.05)
    joins = {name: unicastsummary.of_place(rows[rows["variant"] == name], "last") for name in names}
    counted = style.counts_of(joins)
    subtitle = (
        "multicast first, as in the paper; all of unicast: SAs with every other device, policies "
        f"and routes to its red LAN\n{counted}"
    )
    style.dress(made, run, "Joins: unicast beside multicast", subtitle)
    return style.save(made, run, "unicast", folder)
