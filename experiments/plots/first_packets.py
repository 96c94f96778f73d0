"""When the first red multicast packet gets through to a joiner's LAN, and out of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments import analysis, firstsummary, wansummary
from experiments.analysis import Run, select
from experiments.plan import Plan
from experiments.plots import style

_COLOURS = {"to-joiner": style.GREEN, "from-joiner": style.PURPLE}


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw it if red streams ran during joins; return the files."""
    rows = analysis.read_table(run.path, "first_packets.csv")
    steps = firstsummary.per_step(rows)
    plan = Plan.from_json(run.manifest["plan"])
    variants = [v for v in plan.variants("join") if v.name in set(steps["variant"])]
    names = [variant.name for variant in variants]
    if not names:
        return []
    made, axes = style.figure(2, width=max(10.5, 1.1 * len(names) + 6), height=5.6)
    for axis, (direction, title) in zip(axes, firstsummary.DIRECTIONS.items(), strict=True):
        for place, name in enumerate(names):
            of_variant = steps[(steps["variant"] == name) & (steps["direction"] == direction)]
            _values(axis, place, of_variant, _COLOURS[direction])
            joins = wansummary.slowest(select(run.latencies, "join", name))
            written = joins.loc[joins["ok"].astype(float) == 1, "total_ms"].median()
            if np.isfinite(written):
                axis.hlines(
                    written,
                    place - 0.36,
                    place + 0.36,
                    color=style.GREY,
                    linewidth=1.4,
                    linestyle=(0, (3, 2)),
                    label="SAs written at the last device: median",
                    zorder=2,
                )
        axis.set_title(title, loc="left")
        axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axis.set_xlim(-0.6, len(names) - 0.4)
    axes[0].set_ylabel("first packet delivered minus trigger (ms)")
    axes[0].set_ylim(0, axes[0].get_ylim()[1] * 1.08)
    interval = rows["interval_ms"].median()
    counted = style.counts_of({name: steps[steps["variant"] == name] for name in names})
    delays = " or ".join(dict.fromkeys(f"{v.activation_delay_ms} ms" for v in variants))
    subtitle = (
        f"a packet every {interval:g} ms from one client in each direction; out of the joiner's "
        "LAN the last of the other LANs counts; arrivals stamped by the kernel\n"
        "a member sends with the new epoch's SA when all have confirmed it (make before break), "
        f"{delays} after it has written it at the latest: the joiner can read nothing before\n"
        f"{counted}"
    )
    style.dress(made, run, "Joins: first red multicast packet at a client", subtitle)
    return style.save(made, run, "first_packets", folder)


def _values(axis: Any, place: int, frame: pd.DataFrame, colour: str) -> None:
    ok = (frame["ok"] == 1) & frame["first_ms"].notna()
    good = frame.loc[ok, "first_ms"].to_numpy(dtype=float)
    axis.scatter(
        place + style.spread(len(good), 0.2),
        good,
        s=18,
        color=colour,
        alpha=0.6,
        linewidths=0,
        label="each join",
        zorder=3,
    )
    values = np.concatenate([good, np.full(int((~ok).sum()), np.inf)])
    median = float(np.median(values)) if len(values) else np.nan
    if np.isfinite(median):
        axis.hlines(
            median,
            place - 0.28,
            place + 0.28,
            color=colour,
            linewidth=2.4,
            label="median",
            zorder=4,
        )
        axis.annotate(
            f"{median:.0f}",
            (place, median),
            textcoords="offset points",
            xytext=(0, 5),
            ha="center",
            fontsize=8,
            color="#333333",
            zorder=5,
        )
    if (~ok).any():
        axis.text(
            place,
            0.985,
            f"x{int((~ok).sum())}",
            transform=axis.get_xaxis_transform(),
            ha="center",
            va="top",
            fontsize=8,
            color=colour,
            fontweight="bold",
        )
