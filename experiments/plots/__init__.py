"""Figures: each file reads a run's CSV and JSON only, and draws one figure (import contract)."""

from __future__ import annotations

from pathlib import Path


def draw_all(path: Path, folder: Path | None = None) -> list[Path]:
    """Draw every figure that the run has data for; return the files written.

    Joins over a WAN have figures of their own: by delay and loss, not by group size.
    """
    from experiments import wansummary
    from experiments.analysis import read_run
    from experiments.plots import (
        attacks,
        delivery,
        discovery,
        dispersal,
        faults,
        fig6_join_latency,
        fig7_mike_delay,
        fig8_phases,
        fig9_sa_write,
        first_packets,
        flapping,
        hello_cost,
        hello_interval,
        idp_leave,
        leave_latency,
        rekey_loss,
        style,
        throughput,
        unicast,
        wan_joins,
        wan_phases,
    )

    run = read_run(path)
    target = folder or path / "figures"
    by_size = (fig6_join_latency, fig7_mike_delay, fig8_phases, dispersal)
    over_a_wan = (wan_joins, wan_phases)
    joins = over_a_wan if wansummary.planned(run) else by_size
    others = (
        fig9_sa_write,
        leave_latency,
        first_packets,
        unicast,
        throughput,
        delivery,
        rekey_loss,
    )
    about_idp = (discovery, hello_cost, hello_interval, flapping, idp_leave, faults, attacks)
    modules = (*joins, *others, *about_idp)
    files: list[Path] = []
    with style.mpl.rc_context(style.RC):
        for module in modules:
            files += module.draw(run, target)
    return files
