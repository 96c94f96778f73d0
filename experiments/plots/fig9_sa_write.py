"""Fig. 9: time per SA write and per delete plus write, by kernel interface; log axis."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments import paper
from experiments.analysis import Run, censored, median_interval
from experiments.plots import style

ORDER = ("netlink batched", "netlink", "pfkey", "ip -batch", "exec", "command")


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw it if the run measured SA writes; return the files."""
    frame = run.sa_writes
    good = frame[frame["ok"].astype(float) == 1]
    if good.empty:
        return []
    present = list(dict.fromkeys(good["backend"]))
    backends = [b for b in ORDER if b in present] + [b for b in present if b not in ORDER]
    made, (axis,) = style.figure(1, width=9.5, height=5.4)
    for operation, shift, colour in (
        ("write", -0.19, style.BLUE),
        ("delete+write", 0.19, style.ORANGE),
    ):
        for number, backend in enumerate(backends):
            chosen = frame[(frame["backend"] == backend) & (frame["operation"] == operation)]
            values = censored(chosen["ms_per_sa"], chosen["ok"].astype(float) == 1)
            measured = values[np.isfinite(values)]
            estimate = median_interval(values, run.seed)
            label = {"write": "write one SA", "delete+write": "delete the old and write the new"}
            axis.scatter(
                number + shift + style.spread(len(measured), 0.11),
                measured,
                s=10,
                color=colour,
                alpha=0.4,
                linewidths=0,
                zorder=3,
            )
            median = estimate["median_ms"]
            if median is not None:
                axis.hlines(
                    median,
                    number + shift - 0.16,
                    number + shift + 0.16,
                    color=colour,
                    linewidth=2.6,
                    zorder=4,
                    label=label[operation] if number == 0 else None,
                )
                axis.text(
                    number + shift,
                    median * 1.16,
                    f"{median:.3g} ms",
                    ha="center",
                    va="bottom",
                    fontsize=8.5,
                    color="#222222",
                    zorder=6,
                    bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.0},
                )
    style.paper_line(axis, paper.value("sa_write_ms"), "the paper: setkey, 201 ms (2.53 GHz P4)")
    axis.set_yscale("log")
    low = float(good["ms_per_sa"].min())
    high = max(float(good["ms_per_sa"].max()), paper.value("sa_write_ms"))
    axis.set_ylim(low / 2, high * 2.5)
    axis.grid(visible=True, which="major", axis="y")
    axis.set_xticks(range(len(backends)), [_named(backend) for backend in backends])
    axis.set_xlim(-0.6, len(backends) - 0.4)
    axis.set_ylabel("time per SA (ms), log scale")
    rounds = int(frame["repetition"].max())
    failed = int((frame["ok"].astype(float) != 1).sum())
    suites = ", ".join(dict.fromkeys(good["suite"]))
    lacking = [b for b in dict.fromkeys(frame["backend"]) if b not in present]
    subtitle = (
        f"{suites}; {rounds} rounds, backends taking turns; bars and numbers are medians; "
        f"n = {len(good)}, {failed} failed"
    )
    if lacking:
        subtitle += f"\nnot available here: {', '.join(lacking)}"
    style.dress(made, run, "Time per SA write (the paper's Fig. 9)", subtitle)
    return style.save(made, run, "fig9_sa_write", folder)


def _named(backend: str) -> str:
    return {
        "netlink": "netlink",
        "netlink batched": "netlink,\nbatched",
        "pfkey": "PF_KEY",
        "command": "a command per SA\n(shell, process)",
        "exec": "a process per SA,\nno shell",
        "ip -batch": "ip -batch\n(one process)",
    }.get(backend, backend)
