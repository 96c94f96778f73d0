"""A new device: when all others know it and when it knows them, by number of devices."""

from __future__ import annotations

from pathlib import Path

from experiments import idpsummary
from experiments.analysis import Run
from experiments.plots import style

LIMIT_REACH = 1.09
"""How far the line of the goal goes beyond the sizes, so that it is seen with one size too."""

_SERIES = (
    ("detected_ms", "others know the new device", style.BLUE, 0.94),
    ("answered_ms", "the new device knows others", style.VERMILION, 1.06),
)


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw it if it was measured; return the files."""
    rows = idpsummary.good_rows(run)
    rows = rows[rows["campaign"] == "discovery"]
    names = sorted(set(rows["variant"]), reverse=True)
    if not names:
        return []
    made, axes = style.figure(len(names), width=5.2 * len(names) + 0.6, height=5.8)
    sizes = sorted(rows["group_size"].unique())
    for axis, name in zip(axes, names, strict=True):
        of_variant = rows[rows["variant"] == name]
        for measure, label, colour, shift in _SERIES:
            there = of_variant[of_variant["measure"] == measure]
            axis.scatter(
                there["group_size"] * shift,
                there["value"],
                s=14,
                color=colour,
                alpha=0.3,
                linewidths=0,
                label=f"{label}: each device",
                zorder=3,
            )
            last = there.groupby(["group_size", "repetition"])["value"].max()
            middle = last.groupby("group_size").median()
            axis.plot(
                middle.index * shift,
                middle,
                color=colour,
                marker="D",
                markersize=5,
                linewidth=1.2,
                label=f"{label}: the last (median over repetitions)",
                zorder=4,
            )
        rtt = of_variant[of_variant["measure"] == "rtt_ms"].groupby("group_size")["value"].median()
        limit = rtt + idpsummary.DISCOVERY_LIMIT_MS
        axis.plot(
            [*rtt.index[:1] / LIMIT_REACH, *rtt.index, *rtt.index[-1:] * LIMIT_REACH],
            [*limit[:1], *limit, *limit[-1:]],
            color=style.GREY,
            linestyle=(0, (5, 3)),
            linewidth=1.3,
            label=f"round trip + {idpsummary.DISCOVERY_LIMIT_MS:g} ms (the goal at 10 devices)",
            zorder=2,
        )
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks(sizes, [f"{size:g}" for size in sizes])
        axis.minorticks_off()
        axis.set_xlabel("devices, the new one included")
        axis.set_title(name, loc="left")
    axes[0].set_ylabel("since the new device's trigger (ms)")
    spreads = {
        variant["name"]: variant["hello_answer_spread_ms"]
        for campaign in run.manifest["plan"]["campaigns"]
        for variant in campaign["variants"]
    }
    answers = "; ".join(f"{n}: answers spread over {spreads[n]} ms" for n in names)
    subtitle = (
        f"idpd alone (no MIKE), all on this machine's processors; {answers}\n"
        f"n = {rows['repetition'].nunique()} per size"
    )
    style.dress(made, run, "Discovery of a new device", subtitle, legend_columns=2)
    return style.save(made, run, "discovery", folder)
