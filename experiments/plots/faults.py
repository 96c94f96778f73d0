"""Time from the end of a fault until all invariants hold again, by kind of fault."""

from __future__ import annotations

from pathlib import Path

from experiments import idpsummary
from experiments.analysis import Run
from experiments.plots import style


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw it if it was measured; return the files."""
    rows = idpsummary.good_rows(run)
    recovered = idpsummary.of(rows, "faults", "recovered_ms")
    steps = run.steps[run.steps["campaign"] == "faults"]
    if recovered.empty:
        return []
    kinds = list(dict.fromkeys(steps["method"].sort_values()))
    made, (axis,) = style.figure(1, width=9.5, height=0.36 * len(kinds) + 2.4)
    for place, kind in enumerate(kinds):
        seconds = recovered.loc[recovered["method"] == kind, "value"] / 1000
        axis.scatter(
            seconds,
            place + style.spread(len(seconds), 0.25),
            s=18,
            color=style.BLUE,
            alpha=0.5,
            linewidths=0,
            zorder=3,
        )
        if len(seconds):
            axis.plot([seconds.median()] * 2, [place - 0.3, place + 0.3], color=style.BLUE, lw=2)
    good = steps.assign(ok=steps["status"] == "ok").groupby("method")["ok"]
    counts = good.agg(["sum", "size"])
    labels = [f"{kind} ({counts['sum'][kind]} of {counts['size'][kind]})" for kind in kinds]
    axis.set_yticks(range(len(kinds)), labels)
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.set_xlabel("from the end of the fault until all is well (s)")
    well = int((steps["status"] == "ok").sum())
    compared = "" if run.memory else ", SADs alike, red packets of all arrive at all"
    subtitle = (
        f"{well} of {len(steps)} faults recovered without help; in brackets: recovered of all\n"
        f"well: one group, one epoch in use everywhere{compared}"
    )
    style.dress(made, run, "Faults and recovery", subtitle)
    return style.save(made, run, "faults", folder)
