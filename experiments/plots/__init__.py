"""Figures: each file reads a run's CSV and JSON only, and draws one figure (import contract)."""

from __future__ import annotations

from pathlib import Path


def draw_all(path: Path, folder: Path | None = None) -> list[Path]:
    """Draw every figure that the run has data for; return the files written."""
    from experiments.analysis import read_run
    from experiments.plots import (
        dispersal,
        fig6_join_latency,
        fig8_phases,
        fig9_sa_write,
        leave_latency,
        mike_alone,
        style,
    )

    run = read_run(path)
    target = folder or path / "figures"
    modules = (
        fig6_join_latency,
        fig8_phases,
        fig9_sa_write,
        leave_latency,
        dispersal,
        mike_alone,
    )
    files: list[Path] = []
    with style.mpl.rc_context(style.RC):
        for module in modules:
            files += module.draw(run, target)
    return files
