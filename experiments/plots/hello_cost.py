"""What the hellos of a settled network take of each device's processor, by number of devices."""

from __future__ import annotations

from pathlib import Path

from experiments import idpsummary
from experiments.analysis import Run
from experiments.plots import style

_LOOKS = {"light": (style.BLUE, "o"), "signed": (style.VERMILION, "s")}


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw it if it was measured; return the files."""
    rows = idpsummary.of(idpsummary.good_rows(run), "hello-cost", "cpu_percent")
    names = list(dict.fromkeys(rows["variant"]))
    if not names:
        return []
    made, (axis,) = style.figure(1, width=8.0, height=5.4)
    for number, name in enumerate(names):
        there = rows[rows["variant"] == name]
        colour, marker = _LOOKS.get(name, (style.VARIANT_COLOURS[number], "^"))
        axis.scatter(
            there["group_size"],
            there["value"],
            s=12,
            color=colour,
            alpha=0.25,
            linewidths=0,
            label=f"{name}: each device",
            zorder=3,
        )
        middle = there.groupby("group_size")["value"].median()
        axis.plot(
            middle.index,
            middle,
            color=colour,
            marker=marker,
            linewidth=1.4,
            label=f"{name}: median",
            zorder=4,
        )
        for size, value in middle.items():
            axis.annotate(
                f"{value:.2f} %",
                (size, value),
                xytext=(6, -12),
                textcoords="offset points",
                color=colour,
                fontsize=8.5,
            )
    axis.axhline(
        idpsummary.CPU_LIMIT_PERCENT,
        color=style.GREY,
        linestyle=(0, (5, 3)),
        linewidth=1.3,
        label=f"{idpsummary.CPU_LIMIT_PERCENT:g} % (the goal at 100 devices)",
        zorder=2,
    )
    axis.set_xticks(sorted(rows["group_size"].unique()))
    axis.set_xlim(0, rows["group_size"].max() * 1.12)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("devices")
    axis.set_ylabel("processor time of idpd (% of one)")
    interval = ", ".join(f"{ms:g}" for ms in sorted(rows["hello_interval_ms"].unique()))
    subtitle = (
        f"whole process, from /proc; idpd alone (no MIKE); hello interval {interval} ms\n"
        "light: one hello of sixteen is signed; signed: all are; "
        f"n = {rows['repetition'].nunique()} per size and variant"
    )
    style.dress(made, run, "What hellos cost a device", subtitle)
    return style.save(made, run, "hello_cost", folder)
