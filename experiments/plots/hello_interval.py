"""Hello interval: when a dead device is noticed, and what the hellos take of the wire."""

from __future__ import annotations

from pathlib import Path

from experiments import idpsummary
from experiments.analysis import Run
from experiments.plots import style


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw it if it was measured; return the files."""
    rows = idpsummary.good_rows(run)
    found = idpsummary.of(rows, "hello-interval", "detection_ms")
    wire = idpsummary.of(rows, "hello-interval", "bytes_per_s")
    if found.empty:
        return []
    made, axes = style.figure(2, width=10.6, height=5.4, share_y=False)
    intervals = sorted(found["hello_interval_ms"].unique())
    for axis, there, colour in ((axes[0], found, style.BLUE), (axes[1], wire, style.VERMILION)):
        axis.scatter(
            there["hello_interval_ms"],
            there["value"],
            s=16,
            color=colour,
            alpha=0.4,
            linewidths=0,
            label="each device and death" if axis is axes[0] else "each device",
            zorder=3,
        )
        middle = there.groupby("hello_interval_ms")["value"].median()
        axis.plot(
            middle.index, middle, color=colour, marker="_", markersize=12, linewidth=1.1, zorder=4
        )
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks(intervals, [f"{ms:g}" for ms in intervals])
        axis.minorticks_off()
        axis.set_xlabel("hello interval (ms)")
    for factor, style_of in ((idpsummary.DEAD_FACTOR, (0, (5, 3))), (3, (0, (1, 2)))):
        axes[0].plot(
            intervals,
            [factor * ms for ms in intervals],
            color=style.GREY,
            linestyle=style_of,
            linewidth=1.2,
            label=f"{factor} hello intervals",
            zorder=2,
        )
    ticks = [idpsummary.DEAD_FACTOR * ms for ms in intervals]
    axes[0].set_yticks(ticks, [f"{ms:g}" for ms in ticks])
    rates = [round(rate) for rate in wire.groupby("hello_interval_ms")["value"].median()]
    axes[1].set_yticks(rates, [f"{rate}" for rate in rates])
    for axis in axes:
        axis.minorticks_off()
    axes[0].set_ylabel("death noticed after (ms)")
    axes[1].set_ylabel("sent by each device (bytes/s on the link)")
    subtitle = (
        f"{found['group_size'].max():g} devices, idpd alone (no MIKE); bytes with Ethernet, IPv6 "
        "and UDP headers, neighbour discovery included; one hello of sixteen signed\n"
        f"n = {found['repetition'].nunique()} deaths per interval"
    )
    style.dress(made, run, "Hello interval, detection and traffic", subtitle)
    return style.save(made, run, "hello_interval", folder)
