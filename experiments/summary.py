"""summary.json: the numbers of a run; `experiments.summarytext` makes texts of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from experiments import analysis, paper
from experiments.analysis import Run, select, variants
from experiments.plan import Plan
from experiments.schema import SCHEMA_VERSION, SUMMARY
from experiments.sections import SECTIONS
from experiments.summarytext import markdown

_FAILURES_SHOWN = 20


def environment_label(manifest: dict[str, Any]) -> str:
    """Return one line about where it was measured."""
    sessions = manifest.get("sessions") or [{}]
    known = sessions[0].get("environment") or {}
    where = known.get("environment", "unknown environment")
    accelerator = known.get("accelerator", "none")
    if where == "vm":
        kind = {"tcg": "TCG, software emulation"}.get(accelerator, accelerator)
        where = f"VM ({kind})"
    return f"{where}, kernel {known.get('kernel', 'unknown')}, {known.get('cpus', '?')} CPUs"


def summarise(run: Run) -> dict[str, Any]:
    """Return the documented keys of summary.json (experiments/schema.py)."""
    seed = run.seed
    plan = Plan.from_json(run.manifest["plan"])
    done = {path.name for path in (run.path / "parts").glob("*") if path.is_dir()}
    planned = {r.key for r in plan.repetitions()} | ({"sa-write"} if plan.sa_write() else set())
    summary: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "run": run.manifest["run"],
        "experiment": run.manifest["experiment"],
        "environment": environment_label(run.manifest),
        "kernel_sas": not run.memory,
        "complete": planned <= done if done else run.manifest.get("state") == "complete",
        "checks": _checks(run, plan),
        "join": {v: _join(run, v, seed) for v in variants(run.latencies, "join")},
        "phases": {
            v: analysis.phases(select(run.latencies, "join", v, role="monitor"), seed)
            for v in variants(run.latencies, "join")
        },
        "leave": {v: _leave(run, v, seed) for v in variants(run.latencies, "leave")},
        "dispersal": _dispersal(run, seed),
        "mike": {v: _mike(run, v, seed) for v in variants(run.latencies, "join")},
        "sa_write": _sa_writes(run, plan, seed),
        "clock": _clock(run, plan),
        "kernel_check": _kernel_check(run),
        "cold_start": _cold_start(run),
        "paper": paper.values(),
        "failures": _failures(run),
    }
    summary["ratios"] = _ratios(summary)
    for key, section in SECTIONS.items():
        summary[key] = section.summarise(run)
    return {name: summary[name] for name in SUMMARY}


def _sa_writes(run: Run, plan: Plan, seed: int) -> dict[str, Any]:
    """Return the estimates per backend in the plan's order: the rows are in that of the turns."""
    found = analysis.sa_writes(run.sa_writes, seed)
    campaign = plan.sa_write()
    order = campaign.backends if campaign else ()
    return {name: found[name] for name in order if name in found}


def _join(run: Run, variant: str, seed: int) -> dict[str, Any]:
    result = {}
    for role in ("monitor", "joiner"):
        frame = select(run.latencies, "join", variant, role=role)
        estimates = analysis.by_size(frame, "total_ms", seed)
        result[role] = {
            "values": int((frame["ok"].astype(float) == 1).sum()),
            "by_size": estimates,
            "slope_ms_per_member": analysis.slope_interval(frame, "total_ms", seed),
            "growth_3_to_max": analysis.growth(estimates),
        }
    return result


def _leave(run: Run, variant: str, seed: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    frame = select(run.latencies, "leave", variant, role="monitor")
    for method, group in frame.groupby("method"):
        ok = group["ok"].astype(float) == 1
        result[str(method)] = {
            "from_trigger": analysis.median_interval(
                analysis.censored(group["total_ms"], ok), seed
            ),
            "from_detection": analysis.median_interval(
                analysis.censored(group["from_detection_ms"], ok), seed
            ),
            "from_detection_by_size": analysis.by_size(group, "from_detection_ms", seed),
            "slope_ms_per_member": analysis.slope_interval(group, "from_detection_ms", seed),
        }
    return result


def _dispersal(run: Run, seed: int) -> dict[str, Any]:
    spread = analysis.dispersal(run.latencies)
    result: dict[str, Any] = {}
    for (campaign, variant), group in spread.groupby(["campaign", "variant"], sort=False):
        result.setdefault(str(campaign), {})[str(variant)] = analysis.by_size(
            group, "dispersal_ms", seed
        )
    return result


def _mike(run: Run, variant: str, seed: int) -> dict[str, Any]:
    """Return join sent to key computed at the joiner, and the slowest of all members per step."""
    joiner = select(run.latencies, "join", variant, role="joiner")
    everyone = select(run.latencies, "join", variant)
    slowest = analysis.slowest_keys(everyone)
    spread = analysis.key_dispersal(everyone)
    return {
        "joiner": analysis.by_size(joiner, "join_to_key_ms", seed),
        "slowest_member": analysis.by_size(slowest, "join_to_key_ms", seed),
        "spread_over_members": analysis.by_size(spread, "spread_ms", seed),
    }


def _checks(run: Run, plan: Plan) -> dict[str, Any]:
    result: dict[str, Any] = {}
    planned: Counter[tuple[str, str]] = Counter()
    for repetition in plan.repetitions():
        planned[repetition.campaign.kind, repetition.variant.name] += len(repetition.steps)
    for campaign in plan.campaigns:
        for variant in campaign.variants:
            steps = select(run.steps, campaign.kind, variant.name)
            rows = select(run.latencies, campaign.kind, variant.name)
            status = steps["status"]
            result.setdefault(campaign.kind, {})[variant.name] = {
                "planned": planned[campaign.kind, variant.name],
                "recorded": len(steps),
                "ok": int((status == "ok").sum()),
                "failed": int((status == "failed").sum()),
                "not_run": int((status == "not-run").sum()),
                "sad_passed": int((steps["sad_ok"].astype(float) == 1).sum()),
                "sad_failed": int((steps["sad_ok"].astype(float) == 0).sum()),
                "packet_passed": int((steps["packet_ok"].astype(float) == 1).sum()),
                "packet_failed": int((steps["packet_ok"].astype(float) == 0).sum()),
                "packets_resent": int((steps["packet_sendings"].astype(float) > 1).sum()),
                "handovers": int((steps["handover"].astype(float) == 1).sum()),
                "starved": int((steps["starved"].astype(float) == 1).sum()),
                "idle_percent_median": analysis.plain(steps["idle_percent"].median()),
                "clock_flagged": int(rows["flags"].str.contains("clock-bound").sum()),
            }
    return result


def _ratios(summary: dict[str, Any]) -> dict[str, Any]:
    writes = summary["sa_write"]
    medians_ms = {
        name: ((writes.get(name) or {}).get("delete+write") or {}).get("median_ms")
        for name in ("netlink", "netlink batched", "command")
    }
    theirs = medians_ms["command"]
    result: dict[str, Any] = {
        "sa_netlink_to_command": analysis.ratio(medians_ms["netlink batched"], theirs),
        "sa_of": (
            "delete+write of an SA over netlink, an epoch's SAs in one send, / the same with a "
            "command per SA"
        ),
        "sa_netlink_single_to_command": analysis.ratio(medians_ms["netlink"], theirs),
        "sa_single_of": "the same with one SA replaced in each send",
        "join_netlink_to_command": None,
        "join_of": "median join at the monitor, largest group, netlink+per-sender / command+paper",
    }
    joins = summary["join"]
    if {"netlink+per-sender", "command+paper"} <= set(joins):
        medians = []
        for name in ("netlink+per-sender", "command+paper"):
            sizes = joins[name]["monitor"]["by_size"]
            last = max(sizes, key=int, default=None)
            medians.append(sizes[last]["median_ms"] if last else None)
        result["join_netlink_to_command"] = analysis.ratio(*medians)
    return result


def _clock(run: Run, plan: Plan) -> dict[str, Any]:
    limit = min((c.clock_bound_ms for c in plan.campaigns), default=1.0)
    rows = run.latencies
    return {
        "largest_offset_ms": analysis.plain(rows["offset_ms"].abs().max()),
        "largest_bound_ms": analysis.plain(rows["clock_bound_ms"].max()),
        "limit_ms": limit,
        "rows": len(rows),
        "rows_above": int(rows["flags"].str.contains("clock-bound").sum()),
    }


def _kernel_check(run: Run) -> dict[str, Any]:
    found = run.latencies["kernel_written_difference_ms"].dropna().astype(float)
    if found.empty:
        return {"n": 0, "median_ms": None, "min_ms": None, "max_ms": None}
    return {
        "n": len(found),
        "median_ms": analysis.plain(found.median()),
        "min_ms": analysis.plain(found.min()),
        "max_ms": analysis.plain(found.max()),
    }


def _cold_start(run: Run) -> list[dict[str, Any]]:
    loads = [load for s in run.manifest.get("sessions", []) for load in s.get("loads", [])]
    return [
        {
            "variant": load["variant"],
            "load_s": load["seconds"],
            "timings_ms": (load.get("facts") or {}).get("timings_ms", {}),
        }
        for load in loads
    ]


def _failures(run: Run) -> list[dict[str, Any]]:
    bad = run.steps[run.steps["status"] != "ok"]
    names = ["campaign", "variant", "repetition", "step", "subject", "method", "status", "reason"]
    rows = bad[names].head(_FAILURES_SHOWN)
    return [
        {k: (int(v) if isinstance(v, (np.integer, float)) else v) for k, v in row.items()}
        for row in rows.to_dict("records")
    ]


def write(path: Path) -> dict[str, Any]:
    """Make summary.json and summary.md of a run; return the summary."""
    summary = summarise(analysis.read_run(path))
    (path / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    (path / "summary.md").write_text(markdown(summary), encoding="utf-8")
    return summary
