"""Loss of red multicast against its rate, through IPsec and in clear text on the same way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from experiments import analysis, throughputsummary
from experiments.analysis import Run
from experiments.plots import style
from experiments.summary import environment_label

_LOOKS = {
    "ipsec": (style.BLUE, "o", "AES-GCM (IPsec)"),
    "clear-text": (style.VERMILION, "s", "CLEAR TEXT (no IPsec)"),
}
_LOSS_TOP = 100.0


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw it if there were streams; return the files."""
    levels = throughputsummary.levels(analysis.read_table(run.path, "throughput.csv"))
    if levels.empty:
        return []
    found = throughputsummary.summarise(run)
    sizes = sorted(int(size) for size in levels["size_bytes"].unique())
    made, axes = style.figure(len(sizes), 2, width=5.2 * len(sizes) + 0.6, height=8.2)
    for column, size in enumerate(sizes):
        of_size = levels[levels["size_bytes"] == size]
        for (variant, protection), rows in of_size.groupby(["variant", "protection"], sort=False):
            colour, marker, label = _LOOKS[str(protection)]
            look = {"color": colour, "marker": marker, "label": f"{variant}: {label}"}
            _curve(axes[column], rows, "lost_percent", look)
            _curve(axes[len(sizes) + column], rows, "idle_percent", look)
            best = found["variants"][str(variant)]["sizes"][str(size)]["highest_pps"]
            if best:
                axes[column].axvline(best, color=colour, linewidth=1.1, alpha=0.6)
                axes[column].annotate(
                    f"{best:.0f}/s",
                    (best, 0.02 if protection == "ipsec" else 0.10),
                    xycoords=("data", "axes fraction"),
                    xytext=(4, 0),
                    textcoords="offset points",
                    color=colour,
                    fontsize=8.5,
                )
        _dress_axis(axes[column], f"payload of {size} bytes")
        ratio = found["ratios"].get(str(size), {"ratio": None})
        lower = axes[len(sizes) + column]
        lower.set_xscale("log")
        lower.set_ylim(0, 100)
        _ticks(lower, of_size)
        _ticks(axes[column], of_size)
        lower.set_xlabel("packets per second sent")
        if ratio["ratio"] is not None:
            shown = throughputsummary.ratio_text(ratio)
            lower.set_title(f"IPsec / clear text: {shown} of the rate", loc="left")
    axes[0].set_ylabel("lost on the way (%), all receivers")
    axes[len(sizes)].set_ylabel("CPU idle (%)")
    emulated = "TCG" in environment_label(run.manifest)
    subtitle = (
        "one client to the red LANs of all other nations; vertical lines: the highest rate with at "
        f"most {throughputsummary.LOSS_MAX_PERCENT:g} % lost; "
        f"n = {levels['repetition'].nunique()} per level\n"
        "the sender has one processor, everything that forwards shares another\n"
        "the clear-text way is GRE to the same group over the same routers, guard off: nothing on "
        "it is protected"
    )
    if emulated:
        subtitle += "\nSOFTWARE EMULATION: this measures the emulated processor; ratios only"
    style.dress(made, run, "Red multicast: loss by rate, with IPsec and in CLEAR TEXT", subtitle)
    return style.save(made, run, "throughput", folder)


def _curve(axis: Any, rows: pd.DataFrame, column: str, look: dict[str, Any]) -> None:
    """Draw every level, and a line through the medians."""
    axis.scatter(
        rows["sent_pps"],
        rows[column],
        s=16,
        color=look["color"],
        marker=look["marker"],
        alpha=0.45,
        linewidths=0,
        zorder=3,
    )
    middle = rows.groupby("rate_pps")[["sent_pps", column]].median().sort_values("sent_pps")
    axis.plot(middle["sent_pps"], middle[column], linewidth=1.6, markersize=4.5, zorder=4, **look)


def _dress_axis(axis: Any, title: str) -> None:
    axis.set_title(title, loc="left")
    axis.set_xscale("log")
    axis.set_yscale("symlog", linthresh=1.0, linscale=0.6)
    axis.set_ylim(-0.05, _LOSS_TOP * 1.3)
    axis.set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    axis.axhline(
        throughputsummary.LOSS_MAX_PERCENT,
        color=style.PAPER,
        linestyle=(0, (5, 3)),
        linewidth=1.2,
        label=f"{throughputsummary.LOSS_MAX_PERCENT:g} % lost",
        zorder=2,
    )


def _ticks(axis: Any, rows: pd.DataFrame) -> None:
    rates = sorted({int(rate) for rate in rows["rate_pps"]})
    shown = rates if len(rates) <= 7 else rates[::2]
    axis.set_xticks(shown, [str(rate) for rate in shown])
    axis.minorticks_off()
