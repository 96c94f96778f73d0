"""Leave latency at the monitor, from the trigger and from the detection; shutdown beside cable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments import paper
from experiments.analysis import Run, select, variants
from experiments.plots import style

METHODS = (("shutdown", style.BLUE, "IDP shut down", -0.2), ("cut", style.ORANGE, "cable cut", 0.2))


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw one figure per variant with leaves; return the files."""
    names = variants(run.latencies, "leave")
    files: list[Path] = []
    for name in names:
        suffix = f"_{name.replace('+', '-')}" if len(names) > 1 else ""
        files += _draw(run, name, f"leave_latency{suffix}", folder)
    return files


def _draw(run: Run, name: str, file_name: str, folder: Path) -> list[Path]:
    frame = select(run.latencies, "leave", name, role="monitor")
    made, axes = style.figure(2, 1, width=10.5, height=5.2, share_y=False)
    notes = []
    for axis, value, title in (
        (axes[0], "total_ms", "from the trigger (includes the dead interval)"),
        (axes[1], "from_detection_ms", "from the detection (LEAVE at the TM's IDP)"),
    ):
        for method, colour, label, shift in METHODS:
            chosen = frame[frame["method"] == method]
            style.points_by_size(axis, chosen, value, colour=colour, label=label, shift=shift)
            if value == "total_ms":
                notes.append(f"{label}: {style.counts(chosen)}")
        style.integer_sizes(axis, frame, "group size after the leave (members)")
        axis.set_title(title, loc="left")
    dead_ms = _dead_interval_ms(run, name)
    axes[0].axhline(
        dead_ms,
        color=style.GREY,
        linestyle=":",
        linewidth=1.4,
        zorder=2,
        label=f"dead interval: 4 hello intervals = {dead_ms:.0f} ms",
    )
    for axis in axes:
        axis.set_ylim(0, axis.get_ylim()[1] * 1.05)
    axes[0].set_ylabel("SAs of the new epoch written (ms)")
    subtitle = style.conditions(run, [name], "leave") + "\n" + "; ".join(notes)
    subtitle += "; the paper gives no leave latency"
    style.dress(made, run, "Leave latency at the monitor", subtitle)
    return style.save(made, run, file_name, folder)


def _dead_interval_ms(run: Run, name: str) -> float:
    found: list[Any] = [
        variant["hello_interval_ms"]
        for campaign in run.manifest["plan"]["campaigns"]
        if campaign["kind"] == "leave"
        for variant in campaign["variants"]
        if variant["name"] == name
    ]
    return float(found[0]) * paper.value("dead_factor")
