"""The part of a summary about joins over a wide area network: by delay, by loss, by groups.

A variant is measured against the *switch-only* one: the variant without delay and loss that joins
its groups in the same way. Its budget is three one-way delays (JOIN, TREE, PATH) more. The one-way
delay is measured: half the round trip of clock exchanges over the impaired links.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from experiments import analysis
from experiments.analysis import Run, select
from experiments.plan import Plan, Variant

ONE_WAY_DELAYS = 3
"""JOIN to the TM, TREE to the members, PATH to the members."""

REPAIR_MS = 300.0
"""A join slower by this than the slowest without loss has waited for a repair timer, of which the
shortest in use is twice as long."""


def planned(run: Run) -> list[Variant]:
    """Return the variants of the join campaign that set delay or loss, in the plan's order."""
    plan = Plan.from_json(run.manifest["plan"])
    return [
        variant
        for variant in plan.variants("join")
        if variant.wan_delay_ms is not None or variant.wan_loss_percent is not None
    ]


def switch_only(variant: Variant, among: Iterable[Variant]) -> Variant | None:
    """Return the variant without delay and loss that a variant is compared with."""
    for other in among:
        plain = not other.wan_delay_ms and not other.wan_loss_percent
        if plain and other.black_groups == variant.black_groups:
            return other
    return None


def slowest(frame: pd.DataFrame) -> pd.DataFrame:
    """Return per step the last device's total and whether all of them count."""
    return frame.groupby(["repetition", "step", "group_size"], as_index=False).agg(
        total_ms=("total_ms", "max"), ok=("ok", "min")
    )


def one_way_ms(run: Run, variant: str) -> dict[str, float | None]:
    """Return half of the shortest round trip from the monitor to each device over the WAN."""
    rows = run.clocks[(run.clocks["variant"] == variant) & (run.clocks["when"] == "wan")]
    return {
        str(device): analysis.plain(group["delay_ns"].astype(float).min() / 2e6)
        for device, group in rows.groupby("device")
    }


def estimate(run: Run, frame: pd.DataFrame, column: str = "total_ms") -> dict[str, Any]:
    """Return the median of a column with its interval; failed rows count as slower than all."""
    ok = frame["ok"].astype(float) == 1
    return analysis.median_interval(analysis.censored(frame[column], ok), run.seed)


def summarise(run: Run) -> dict[str, Any]:
    """Return what is known per variant; empty without a WAN."""
    variants = planned(run)
    if not variants:
        return {}
    found: dict[str, Any] = {v.name: _variant(run, v) for v in variants}
    for variant in variants:
        _compare(run, found, variant, variants)
    return {"variants": found, "convergence_s": _convergence(run)}


def _variant(run: Run, variant: Variant) -> dict[str, Any]:
    rows = select(run.latencies, "join", variant.name)
    spread = analysis.dispersal(rows)
    delays = one_way_ms(run, variant.name)
    known = [delay for delay in delays.values() if delay is not None]
    return {
        "delay_ms": variant.wan_delay_ms,
        "loss_percent": variant.wan_loss_percent,
        "black_groups": variant.black_groups,
        "one_way_ms": max(known, default=None),
        "one_way_to_ms": delays,
        "monitor": estimate(run, rows[rows["role"] == "monitor"]),
        "joiner": estimate(run, rows[rows["role"] == "joiner"]),
        "slowest": estimate(run, slowest(rows)),
        "dispersal": estimate(run, spread, "dispersal_ms"),
    }


def _compare(run: Run, found: dict[str, Any], variant: Variant, variants: list[Variant]) -> None:
    """Add the budget of three one-way delays, and how many joins kept it."""
    mine = found[variant.name]
    base = switch_only(variant, variants)
    plain_ms = found[base.name]["monitor"]["median_ms"] if base else None
    budget_ms = None
    if plain_ms is not None and mine["one_way_ms"] is not None:
        budget_ms = plain_ms + ONE_WAY_DELAYS * mine["one_way_ms"]
    mine["switch_only"] = base.name if base else None
    mine["budget_ms"] = analysis.plain(budget_ms) if budget_ms is not None else None
    median_ms = mine["monitor"]["median_ms"]
    mine["within_budget"] = (
        None if budget_ms is None else median_ms is not None and median_ms <= budget_ms
    )
    mine["repaired"] = _repaired(run, variant, variants)


def _repaired(run: Run, variant: Variant, variants: list[Variant]) -> dict[str, int] | None:
    """Count the joins of a lossy variant that waited for a repair of MIKE's."""
    if not variant.wan_loss_percent:
        return None
    twins = [
        other.name
        for other in variants
        if not other.wan_loss_percent
        and other.wan_delay_ms == variant.wan_delay_ms
        and other.black_groups == variant.black_groups
    ]
    if not twins:
        return None
    usual_ms = slowest(select(run.latencies, "join", twins[0]))["total_ms"].max()
    joins = slowest(select(run.latencies, "join", variant.name))
    late = joins["total_ms"].isna() | (joins["total_ms"] > usual_ms + REPAIR_MS)
    return {"joins": len(joins), "waited_for_a_repair": int(late.sum())}


def _convergence(run: Run) -> list[dict[str, Any]]:
    """Return how long the routers took at each loading of a network, apart from all joins."""
    loads = [load for s in run.manifest.get("sessions", []) for load in s.get("loads", [])]
    keys = ("adjacencies_s", "routes_s", "pim_s")
    return [
        {"variant": load["variant"], **{key: reports.get(key) for key in keys}}
        for load in loads
        if (reports := (load.get("facts") or {}).get("convergence"))
    ]


def text(found: dict[str, Any]) -> list[str]:
    """Return lines for a terminal, none if there is nothing."""
    if not found:
        return []
    lines = []
    for name, data in found["variants"].items():
        budget = data["budget_ms"]
        verdict = ""
        if budget is not None:
            kept = "within" if data["within_budget"] else "ABOVE"
            verdict = f", {kept} the budget of {budget:.0f} ms"
        repaired = data["repaired"]
        if repaired:
            verdict += f", {repaired['waited_for_a_repair']} of {repaired['joins']} repaired"
        one_way = data["one_way_ms"]
        lines.append(
            f"{name}: one way {'?' if one_way is None else f'{one_way:.1f}'} ms measured; join at "
            f"the monitor {_median(data['monitor'])}, last device {_median(data['slowest'])}, "
            f"dispersal {_median(data['dispersal'])}{verdict}"
        )
    routes = [c["pim_s"] for c in found["convergence_s"] if c["pim_s"] is not None]
    if routes:
        lines.append(
            f"routing (OSPF and PIM) converged in {min(routes):.1f} to {max(routes):.1f} s after "
            "the routers' start, before the first join and no part of any"
        )
    return lines


def markdown(found: dict[str, Any]) -> list[str]:
    """Return lines for summary.md, none if there is nothing."""
    if not found:
        return []
    return ["", "## Over a wide area network", "", *(f"* {line}" for line in text(found))]


def _median(estimate_ms: dict[str, Any]) -> str:
    if not estimate_ms["n"]:
        return "-"
    if estimate_ms["median_ms"] is None:
        return f"beyond the deadline ({estimate_ms['failed']} of {estimate_ms['n']} failed)"
    failed = f", {estimate_ms['failed']} failed" if estimate_ms["failed"] else ""
    return f"{estimate_ms['median_ms']:.0f} ms (n={estimate_ms['n']}{failed})"
