"""Leave by shut-down, by cable, and the return: when noticed, when rekeyed, how many rekeys."""

from __future__ import annotations

from pathlib import Path

from experiments import idpsummary
from experiments.analysis import Run
from experiments.plots import style

_METHODS = ("shutdown", "cut", "restore")
_SERIES = (
    ("detection_ms", "noticed by each other device", style.BLUE, -0.14),
    ("written_ms", "SAs of the last new epoch written, each member", style.VERMILION, 0.14),
)


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw it if it was measured; return the files."""
    rows = idpsummary.good_rows(run)
    rows = rows[rows["campaign"] == "idp-leave"]
    if rows.empty:
        return []
    made, axes = style.figure(2, width=10.6, height=5.4, share_y=False)
    methods = [name for name in _METHODS if name in set(rows["method"])]
    for measure, label, colour, shift in _SERIES:
        for place, method in enumerate(methods):
            there = rows[(rows["measure"] == measure) & (rows["method"] == method)]["value"]
            axes[0].scatter(
                place + shift + style.spread(len(there), 0.08),
                there,
                s=16,
                color=colour,
                alpha=0.4,
                linewidths=0,
                label=label,
                zorder=3,
            )
            axes[0].hlines(
                there.median(), place + shift - 0.11, place + shift + 0.11, color=colour, zorder=4
            )
    rekeys = rows[rows["measure"] == "rekeys"]
    for place, method in enumerate(methods):
        there = rekeys[rekeys["method"] == method]["value"]
        axes[1].scatter(
            place + style.spread(len(there), 0.12),
            there,
            s=22,
            color=style.GREEN,
            alpha=0.6,
            linewidths=0,
            label="each repetition",
            zorder=3,
        )
        axes[1].annotate(
            f"median {there.median():g}", (place, there.max() + 0.12), ha="center", fontsize=8.5
        )
    interval = float(rows["hello_interval_ms"].max())
    axes[0].axhline(
        idpsummary.DEAD_FACTOR * interval,
        color=style.GREY,
        linestyle=(0, (5, 3)),
        linewidth=1.2,
        label=f"{idpsummary.DEAD_FACTOR} hello intervals",
        zorder=2,
    )
    for axis in axes:
        axis.set_xticks(range(len(methods)), methods)
        axis.set_xlim(-0.5, len(methods) - 0.5)
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("since shut-down, cut or return of the cable (ms)")
    axes[1].set_ylabel("rekeys caused")
    axes[1].set_ylim(0, rekeys["value"].max() + 0.6)
    axes[1].yaxis.get_major_locator().set_params(integer=True)
    subtitle = (
        f"{rows['group_size'].max():g} devices, hello interval {interval:g} ms; restore: the cable "
        f"is back after the group has gone on without; n = {rows['repetition'].nunique()} each"
    )
    style.dress(made, run, "Leave and return of a device", subtitle)
    return style.save(made, run, "idp_leave", folder)
