"""The part of a summary about attacks: what each achieved, and what it cost."""

from __future__ import annotations

from typing import Any

import pandas as pd

from experiments import analysis
from experiments.analysis import Run
from experiments.campaign import FLOODS

NOTHING = "nothing"
NOT_RUN = "not run"


def joins(run: Run) -> pd.DataFrame:
    """Return one row per join of the attack campaign."""
    return analysis.read_table(run.path, "attack_joins.csv")


def summarise(run: Run) -> dict[str, Any]:
    """Return verdict and costs of each attack; empty if there was none."""
    rows = analysis.read_table(run.path, "attacks.csv")
    if rows.empty:
        return {}
    measured = joins(run)
    steps = run.steps[run.steps["campaign"] == "attacks"]
    limits = next(c for c in run.manifest["plan"]["campaigns"] if c["kind"] == "attacks")
    attacks = {
        str(name): _attack(group, measured[measured["attack"] == name], steps, measured)
        for name, group in rows.groupby("attack", sort=True)
    }
    judged = [a for a in attacks.values() if a["achieved"] is not None]
    ratios = [a["busy_ratio"] for name, a in attacks.items() if name in FLOODS and a["busy_ratio"]]
    return {
        "attacks": attacks,
        "tried": len(judged),
        "not_run": sorted(name for name, a in attacks.items() if a["achieved"] is None),
        "successes": sum(bool(a["achieved"]) for a in judged),
        "violations": [f"{row.method}: {row.reason}" for row in steps.itertuples() if row.reason],
        "quiet_join_ms": _median(measured, "quiet"),
        "join_ratio_max": max(ratios, default=None),
        "join_ratio_limit": limits["join_ratio_max"],
        "growth_mib_max": analysis.plain(rows["growth_kib"].max() / 1024),
        "growth_mib_limit": limits["growth_mib_max"],
        "red": {name: int(rows[f"red_{name}"].sum()) for name in ("sent", "lost", "twice")},
        "ok": bool((steps["status"] == "ok").all()) and bool(judged),
    }


def _attack(
    rows: pd.DataFrame, own: pd.DataFrame, steps: pd.DataFrame, everything: pd.DataFrame
) -> dict[str, Any]:
    achieved = [str(text) for text in rows["achieved"].dropna()]
    run = [text for text in achieved if not text.startswith(NOT_RUN)]
    quiet = _median(everything, "quiet")["median_ms"]
    under = _median(own, "attack")
    done = steps[steps["method"] == rows["attack"].iloc[0]]
    return {
        "who": str(rows["who"].iloc[0]),
        "ok": bool((done["status"] == "ok").all()),
        "achieved": [text for text in run if text != NOTHING] if run else None,
        "rate_pps": analysis.plain(rows["rate_pps"].median()),
        "join_rate_pps": analysis.plain(own.loc[own["condition"] == "attack", "rate_pps"].median()),
        "join_ms": {name: _median(own, name) for name in ("quiet", "attack", "busy")},
        "join_ratio": analysis.plain(under["median_ms"] / quiet)
        if under["median_ms"] is not None and quiet
        else None,
        "busy_ratio": analysis.plain(rows["busy_ratio"].median()),
        "growth_kib": analysis.plain(rows["growth_kib"].max()),
        **{
            name: analysis.plain(rows[name].median())
            for daemon in ("idpd", "miked")
            for name in (f"{daemon}_cpu_percent", f"{daemon}_us_per_frame")
        },
        **{
            name: int(rows[name].fillna(0).sum())
            for name in ("sent", "refused", "buffer_full", "guard_dropped", "esp_refused", "tried")
        },
    }


def _median(rows: pd.DataFrame, condition: str) -> dict[str, Any]:
    values = rows.loc[rows["condition"] == condition, "last_ms"] if len(rows) else pd.Series([])
    good = values.dropna().astype(float)
    return {
        "median_ms": analysis.plain(good.median()) if len(good) else None,
        "max_ms": analysis.plain(good.max()) if len(good) else None,
        "n": len(good),
    }


def text(found: dict[str, Any]) -> list[str]:
    """Return lines for a terminal, none if there is nothing."""
    if not found:
        return []
    quiet = found["quiet_join_ms"]
    lines = [
        f"attacks: {found['tried']} tried, {found['successes']} achieved something; join under a "
        f"flood at most {_number(found['join_ratio_max'], 2)} times one beside as many frames to "
        f"nobody (limit {found['join_ratio_limit']:g}); quiet join "
        f"{_number(quiet['median_ms'], 0)} ms (n = {quiet['n']}); a daemon grew by at most "
        f"{_number(found['growth_mib_max'], 1)} MiB (limit {found['growth_mib_limit']:g})"
    ]
    if found["not_run"]:
        lines.append(
            "not judged, for there are no kernel SAs or the step failed: "
            + ", ".join(found["not_run"])
        )
    head = ("attack", *_COLUMNS)
    table = [head, *_table(found)]
    widths = [max(len(row[place]) for row in table) for place in range(len(head))]
    for row in table:
        lines.append(
            "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip()
        )
    return lines


_COLUMNS = (
    "who",
    "achieved",
    "sent/s",
    "sent/s in joins",
    "join ms (n)",
    "to quiet",
    "busy ms",
    "to busy",
    "us/frame",
    "grew KiB",
)


def _table(found: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for name, a in found["attacks"].items():
        achieved = NOT_RUN if a["achieved"] is None else _said(a["achieved"])
        under = a["join_ms"]["attack"]
        rows.append(
            (
                name,
                a["who"],
                achieved,
                _number(a["rate_pps"], 0),
                _number(a["join_rate_pps"], 0),
                f"{_number(under['median_ms'], 0)} ({under['n']})" if under["n"] else "-",
                _number(a["join_ratio"], 2),
                _number(a["join_ms"]["busy"]["median_ms"], 0),
                _number(a["busy_ratio"], 2),
                _number((a["idpd_us_per_frame"] or 0) + (a["miked_us_per_frame"] or 0), 0),
                _number(a["growth_kib"], 0),
            )
        )
    return rows


def _said(achieved: list[str]) -> str:
    return "SOMETHING" if achieved else NOTHING


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or pd.isna(value) else f"{value:.{digits}f}"


def markdown(found: dict[str, Any]) -> list[str]:
    """Return lines for summary.md, none if there is nothing."""
    if not found:
        return []
    lines = text(found)
    head = [line for line in lines if line.startswith(("attacks:", "not judged,"))]
    names = ("attack", *_COLUMNS)
    return [
        "",
        "## Attacks",
        "",
        *(f"* {line}" for line in head),
        "",
        f"| {' | '.join(names)} |",
        f"|{'---|' * len(names)}",
        *(f"| {' | '.join(row)} |" for row in _table(found)),
        "",
        "*sent/s*: while nothing else happened (floods: to the TM and another member), and while a "
        "device joined (floods: to the TM and the joiner). *busy*: joins beside as many frames to "
        "a group that nobody is in. *us/frame*: processor time of the idpd and the miked that paid "
        "most. The attacker computes only when nobody else wants to, so these rates are those that "
        "the victims left it.",
    ]
