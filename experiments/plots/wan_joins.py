"""Joins over a wide area network: latency and dispersal against delay, and against loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments import analysis, wansummary
from experiments.analysis import Run, select
from experiments.plan import Variant
from experiments.plots import style

COLOURS = {"source-specific": style.BLUE, "any-source": style.VERMILION}


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw it if joins ran over a WAN; return the files."""
    variants = [v for v in wansummary.planned(run) if not select(run.steps, "join", v.name).empty]
    if not variants:
        return []
    lossless = [v for v in variants if not v.wan_loss_percent]
    lossy = _with_twins(variants)
    rows = 2 if lossy else 1
    made, axes = style.figure(2, rows, width=10.5, height=4.6 * rows + 1.2, share_y=False)
    summary = wansummary.summarise(run)
    found = summary["variants"]
    _panels(run, axes[:2], lossless, _delay, "one-way delay between border routers (ms)")
    _budget(axes[0], found, lossless)
    if lossy:
        delays = " and ".join(dict.fromkeys(f"{_delay(v):g} ms" for v in lossy))
        label = f"loss of each WAN link, per direction (%), at {delays} one way"
        _panels(run, axes[2:], lossy, lambda v: float(v.wan_loss_percent or 0), label)
    counted = style.counts_of(
        {v.name: wansummary.slowest(select(run.latencies, "join", v.name)) for v in variants}
    )
    measured = [
        f"{name} {data['one_way_ms']:.1f} ms"
        for name, data in found.items()
        if data["one_way_ms"] is not None
    ]
    settled = [c["pim_s"] for c in summary["convergence_s"] if c["pim_s"]]
    routing = f"; routing had converged before, in {max(settled):.1f} s" if settled else ""
    subtitle = f"one way as measured: {', '.join(measured)}{routing}\n{counted}"
    style.dress(made, run, "Joins over a wide area network", subtitle)
    return style.save(made, run, "wan_joins", folder)


def _delay(variant: Variant) -> float:
    return float(variant.wan_delay_ms or 0)


def _with_twins(variants: Sequence[Variant]) -> list[Variant]:
    """Return the variants with loss and those without, of the same delay and kind of groups."""
    kinds = {(v.wan_delay_ms, v.black_groups) for v in variants if v.wan_loss_percent}
    return [v for v in variants if (v.wan_delay_ms, v.black_groups) in kinds]


def _panels(
    run: Run,
    axes: Sequence[Any],
    variants: Sequence[Variant],
    place: Callable[[Variant], float],
    label: str,
) -> None:
    """Draw latency on the first axis and dispersal on the second."""
    ticks = sorted({place(v) for v in variants})
    width = 0.018 * (max(ticks) - min(ticks) or 1.0)
    for variant in variants:
        rows = select(run.latencies, "join", variant.name)
        groups = variant.black_groups
        shift = width * 1.6 if groups == "any-source" else 0.0
        at = place(variant) + shift
        colour = COLOURS[groups]
        monitor = rows[rows["role"] == "monitor"]
        _values(axes[0], run, at, width, monitor, "total_ms", colour, f"{groups} groups")
        spread = analysis.dispersal(rows)
        _values(axes[1], run, at, width, spread, "dispersal_ms", colour, f"{groups} groups")
    for axis, what in zip(
        axes, ("SAs written minus trigger (ms)", "last minus first device (ms)"), strict=True
    ):
        axis.set_xlabel(label)
        axis.set_ylabel(what)
        axis.set_xticks(ticks)
        axis.set_ylim(0, max(axis.get_ylim()[1], 1.0) * 1.05)
    axes[0].set_title("join latency at the monitor", loc="left")
    axes[1].set_title("dispersal over all devices", loc="left")


def _values(
    axis: Any,
    run: Run,
    at: float,
    width: float,
    frame: pd.DataFrame,
    column: str,
    colour: str,
    label: str,
) -> None:
    """Draw every value, the median with its interval, and how many steps failed."""
    ok = (frame["ok"].astype(float) == 1) & frame[column].notna()
    good = frame.loc[ok, column].to_numpy(dtype=float)
    axis.scatter(
        at + style.spread(len(good), width * 0.6),
        good,
        s=16,
        color=colour,
        alpha=0.5,
        linewidths=0,
        label=f"{label}: each join",
        zorder=3,
    )
    estimate = wansummary.estimate(run, frame, column)
    if estimate["median_ms"] is not None:
        low = estimate["low_ms"] if estimate["low_ms"] is not None else estimate["median_ms"]
        high = estimate["high_ms"] if estimate["high_ms"] is not None else np.max(good)
        median = estimate["median_ms"]
        axis.errorbar(
            at,
            median,
            yerr=[[median - low], [high - median]],
            fmt="_",
            markersize=15,
            markeredgewidth=2.4,
            color=colour,
            elinewidth=1.2,
            capsize=3,
            label=f"{label}: median, 95 % interval",
            zorder=4,
        )
    failed = int((~ok).sum())
    if failed:
        axis.text(
            at,
            0.985,
            f"x{failed}",
            transform=axis.get_xaxis_transform(),
            ha="center",
            va="top",
            fontsize=8,
            color=colour,
            fontweight="bold",
        )


def _budget(axis: Any, found: dict[str, Any], variants: Sequence[Variant]) -> None:
    """Draw the switch-only latency plus three one-way delays."""
    for groups in dict.fromkeys(v.black_groups for v in variants):
        points = sorted(
            (_delay(v), found[v.name]["budget_ms"])
            for v in variants
            if v.black_groups == groups and found[v.name]["budget_ms"] is not None
        )
        if groups == "source-specific" and points:
            axis.plot(
                *zip(*points, strict=True),
                color=style.PAPER,
                linestyle=(0, (5, 3)),
                linewidth=1.3,
                zorder=2,
                label="budget: without delay + 3 x one way as measured",
            )
