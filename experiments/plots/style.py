"""What all figures share: colours, titles that name the conditions, files as PNG and PDF."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from experiments.analysis import Run
from experiments.summary import environment_label
from experiments.summarytext import MEMORY_MARK

MEMORY_SUFFIX = "_memory-no-kernel-sa"

# Okabe and Ito's palette, told apart by colour-blind readers; black is kept for the paper.
BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
VERMILION = "#D55E00"
PURPLE = "#CC79A7"
SKY = "#56B4E9"
YELLOW = "#F0E442"
PAPER = "#222222"
GREY = "#8A8A8A"

PHASE_COLOURS = {
    "idp_startup_ms": (SKY, "IDP start-up"),
    "idp_to_mike_ms": (YELLOW, "IDP to MIKE signalling"),
    "mike_ms": (GREEN, "MIKE key agreement"),
    "mike_to_idp_ms": (PURPLE, "MIKE to IDP signalling"),
    "delete_ms": (VERMILION, "delete old group SA"),
    "write_ms": (BLUE, "write group SAs"),
}
"""In the order of the paper's Fig. 8, from the bottom."""

VARIANT_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE)

RC = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titleweight": "normal",
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "pdf.fonttype": 42,
}


def figure(
    columns: int = 1,
    rows: int = 1,
    *,
    width: float = 9.0,
    height: float = 5.2,
    share_y: bool | str = "row",
) -> tuple[Any, list[Any]]:
    """Return (figure, axes row by row) in the house style."""
    with mpl.rc_context(RC):
        made, axes = plt.subplots(
            rows, columns, figsize=(width, height), sharey=share_y, squeeze=False, layout=None
        )
    return made, list(axes.flat)


def enlarged(values: pd.Series, paper_ms: float) -> bool:
    """Return whether ours are so far below the paper's that they need an axis of their own."""
    largest = values.max()
    return bool(np.isfinite(largest) and largest < 0.4 * paper_ms)


def variant_colour(name: str, names: Sequence[str]) -> str:
    """Return a variant's colour: ours blue, the 2008 way vermilion, others in order."""
    if name.startswith("command"):
        return VERMILION
    if name.endswith(("+kd", "+auto")):
        return GREEN if name.endswith("+kd") else PURPLE
    if name.startswith(("netlink+per-sender", "memory")):
        return BLUE
    return VARIANT_COLOURS[(list(names).index(name) + 2) % len(VARIANT_COLOURS)]


def counts(frame: pd.DataFrame) -> str:
    """Return ``n = 80, 0 failed`` of rows that count per step."""
    good = int((frame["ok"].astype(float) == 1).sum())
    return f"n = {good}, {len(frame) - good} failed"


def counts_of(frames: Mapping[str, pd.DataFrame]) -> str:
    """Return the counts of several variants, once if they are the same."""
    texts = {name: counts(frame) for name, frame in frames.items()}
    if len(texts) > 1 and len(set(texts.values())) == 1:
        return f"each variant: {next(iter(texts.values()))}"
    return "; ".join(f"{name}: {text}" for name, text in texts.items())


def conditions(run: Run, variants: Sequence[str], campaign: str) -> str:
    """Return one line per variant: backend, SA mode, suite, hello interval, CPU arrangement."""
    lines = []
    for planned in run.manifest["plan"]["campaigns"]:
        if planned["kind"] != campaign:
            continue
        for variant in planned["variants"]:
            if variant["name"] in variants:
                lines.append(
                    f"{variant['name']}: SA backend {variant['sa_backend']}, SA mode "
                    f"{variant['sa_mode']}, {variant['suite']}, "
                    f"hello {variant['hello_interval_ms']} ms, CPU {variant.get('cpu', 'equal')}, "
                    f"MIKE mode {variant.get('mike_mode', 'ka')}"
                )
    return "\n".join(lines)


def dress(made: Any, run: Run, title: str, subtitle: str, *, legend_columns: int = 3) -> None:
    """Put title, conditions, legend and footer on a figure and leave room for them.

    Args:
        made: the figure.
        run: what it shows.
        title: without the marks for runs without kernel SAs, which are added here.
        subtitle: lines after the environment.
        legend_columns: of the common legend below the axes; 0: the axes have their own.
    """
    width, height = made.get_size_inches()
    if run.memory:
        title = f"{title}: {MEMORY_MARK}"
    if run.manifest.get("synthetic"):
        title = f"SYNTHETIC DATA, {title}"
    marked = run.memory or run.manifest.get("synthetic")
    top = 0.12
    for line in textwrap.wrap(title, int(width * 8.8)):
        made.text(
            0.12 / width,
            1 - top / height,
            line,
            ha="left",
            va="top",
            fontsize=12.5,
            fontweight="bold",
            color=VERMILION if marked else "black",
        )
        top += 0.24
    lines: list[str] = []
    for part in [environment_label(run.manifest), *subtitle.split("\n")]:
        lines += textwrap.wrap(part, int(width * 14))
    made.text(
        0.12 / width,
        1 - (top + 0.04) / height,
        "\n".join(lines),
        ha="left",
        va="top",
        fontsize=8.5,
        color="#444444",
        linespacing=1.35,
    )
    top += 0.1 + 0.172 * len(lines)
    bottom = _foot(made, run)
    if legend_columns:
        bottom = _legend(made, legend_columns, bottom)
    made.tight_layout(rect=(0, bottom / height, 1, 1 - top / height))


def _foot(made: Any, run: Run) -> float:
    """Write the small print; return the room it takes in inches."""
    width, height = made.get_size_inches()
    foot = f"run {run.manifest['run']}; the paper's values are drawn as the paper gives them"
    if (run.steps["status"] != "ok").any():
        foot += "; x1, x2, ...: failed steps, which count as slower than all others"
    if "TCG" in environment_label(run.manifest):
        foot += "; software emulation: absolute times are functional only, ratios count"
    lines = textwrap.wrap(foot, int(width * 17))
    made.text(
        0.12 / width,
        0.06 / height,
        "\n".join(lines),
        ha="left",
        va="bottom",
        fontsize=7,
        color=GREY,
    )
    return 0.12 + 0.13 * len(lines)


def _legend(made: Any, columns: int, bottom: float) -> float:
    """Put one legend of all axes below them; return the room taken so far in inches."""
    height = made.get_figheight()
    handles: dict[str, Any] = {}
    for axis in made.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    made.legend(
        handles.values(),
        handles.keys(),
        loc="lower center",
        ncols=columns,
        bbox_to_anchor=(0.5, bottom / height),
        borderaxespad=0,
    )
    return bottom + 0.1 + 0.19 * -(-len(handles) // columns)


def save(made: Any, run: Run, name: str, folder: Path) -> list[Path]:
    """Write a run's figure; a run without kernel SAs says so in the file name."""
    return written(made, f"{name}{MEMORY_SUFFIX if run.memory else ''}", folder)


def written(made: Any, name: str, folder: Path) -> list[Path]:
    """Write a figure as PNG and PDF into a folder, made if need be; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for ending, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        path = folder / f"{name}.{ending}"
        made.savefig(path, metadata=metadata)
        paths.append(path)
    plt.close(made)
    return paths


def spread(count: int, width: float) -> np.ndarray:
    """Return offsets that lay points side by side, the same every time."""
    if count < 2:
        return np.zeros(count)
    return np.linspace(-width, width, count)


BARS_MAX = 30
"""Sizes of which each median is a bar of its own."""


def points_by_size(
    axis: Any, frame: pd.DataFrame, value: str, *, colour: str, label: str, shift: float = 0.0
) -> None:
    """Draw every value, the medians as bars, and the number of failed steps at the top.

    Of many sizes the bars would be dots behind the values: then a line joins the medians.
    """
    first = True
    medians: list[tuple[float, float]] = []
    joined = frame["group_size"].nunique() > BARS_MAX
    for size, group in frame.groupby("group_size"):
        ok = (group["ok"].astype(float) == 1) & group[value].notna()
        good = group.loc[ok, value].to_numpy(dtype=float)
        x = float(size) + shift
        axis.scatter(
            x + spread(len(good), 0.13),
            good,
            s=15,
            color=colour,
            alpha=0.55,
            linewidths=0,
            label=f"{label}: each value" if first else None,
            zorder=3,
        )
        values = np.concatenate([good, np.full(int((~ok).sum()), np.inf)])
        median = float(np.median(values)) if len(values) else np.nan
        medians.append((x, median if np.isfinite(median) else np.nan))
        if np.isfinite(median) and not joined:
            axis.hlines(
                median,
                x - 0.2,
                x + 0.2,
                color=colour,
                linewidth=2.4,
                zorder=4,
                label=f"{label}: median" if first else None,
            )
        failed = int((~ok).sum())
        if failed:
            axis.text(
                x,
                0.985,
                f"x{failed}",
                transform=axis.get_xaxis_transform(),
                ha="center",
                va="top",
                fontsize=8,
                color=colour,
                fontweight="bold",
                zorder=5,
            )
        first = False
    if joined:
        places, values = zip(*medians, strict=True)
        axis.plot(places, values, color=colour, linewidth=1.8, zorder=4, label=f"{label}: median")


def integer_sizes(
    axis: Any, frame: pd.DataFrame, label: str = "group size (members)", every: int = 1
) -> None:
    """Put one tick per group size on the x axis, or at the smallest and at multiples only."""
    sizes = sorted({int(size) for size in frame["group_size"]})
    axis.set_xticks([s for s in sizes if every == 1 or s % every == 0 or s == sizes[0]])
    if sizes:
        axis.set_xlim(sizes[0] - 0.7, sizes[-1] + 0.7)
    axis.set_xlabel(label)


def paper_line(axis: Any, value_ms: float, label: str) -> None:
    """Draw the paper's value as a labelled dashed line."""
    axis.axhline(value_ms, color=PAPER, linestyle=(0, (5, 3)), linewidth=1.3, zorder=2, label=label)


def legend_of(made: Any, axes: Sequence[Any], *, columns: int) -> None:
    """Put one legend of all axes below them; what has a label in several is in it once."""
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    made.legend(handles.values(), handles.keys(), loc="lower center", ncols=columns)
