"""The part of a summary about throughput: the highest rate that gets through, and what is lost."""

from __future__ import annotations

from typing import Any

import pandas as pd

from experiments import analysis
from experiments.analysis import Run

LOSS_MAX_PERCENT = 1.0
"""A rate gets through if no more than this is lost, over all receivers together."""

SENDER_SHARE = 0.95
"""A sender that reached less of the rate asked for was itself the limit of that level."""


def levels(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row per level: what was sent, and what all receivers together lost of it."""
    keys = ["variant", "protection", "size_bytes", "repetition", "rate_pps"]
    good = rows[rows["ok"].astype(float) == 1] if not rows.empty else rows
    if good.empty:
        return pd.DataFrame(columns=[*keys, "sent_pps", "lost_percent", "idle_percent"])
    found = good.groupby(keys, as_index=False, sort=False).agg(
        sent_pps=("sent_pps", "first"),
        sent=("sent", "sum"),
        received=("received", "sum"),
        idle_percent=("idle_percent", "first"),
    )
    return found.assign(lost_percent=100.0 * (1 - found["received"] / found["sent"]))


def highest(of_repetition: pd.DataFrame) -> float:
    """Return the rate sent at the last level before the first that lost too much; 0: none."""
    best = 0.0
    for _, level in of_repetition.sort_values("rate_pps").iterrows():
        if level["lost_percent"] > LOSS_MAX_PERCENT:
            break
        best = max(best, float(level["sent_pps"]))
    return best


def summarise(run: Run) -> dict[str, Any]:
    """Return per variant and size what gets through; empty if there were no streams."""
    found = levels(analysis.read_table(run.path, "throughput.csv"))
    if found.empty:
        return {}
    result: dict[str, Any] = {"loss_max_percent": LOSS_MAX_PERCENT, "variants": {}, "ratios": {}}
    for (variant, protection, size), group in found.groupby(
        ["variant", "protection", "size_bytes"], sort=False
    ):
        each = [highest(one) for _, one in group.groupby("repetition")]
        top = group[group["rate_pps"] == group["rate_pps"].max()]
        median = pd.Series(each).median()
        data = result["variants"].setdefault(
            str(variant), {"protection": str(protection), "sizes": {}}
        )
        data["sizes"][str(int(size))] = {
            "highest_pps": analysis.plain(median),
            "highest_pps_each": [analysis.plain(value) for value in each],
            "highest_mbit": analysis.plain(median * float(size) * 8e-6),
            "beyond_the_plan": bool((top["lost_percent"] <= LOSS_MAX_PERCENT).all()),
            "sender_limited": bool((group["sent_pps"] < SENDER_SHARE * group["rate_pps"]).any()),
            "idle_percent_at_highest": _idle_at(group, median),
            "loss_percent": {
                str(int(rate)): analysis.plain(of_rate["lost_percent"].median())
                for rate, of_rate in group.groupby("rate_pps")
            },
        }
    result["ratios"] = _ratios(result["variants"])
    return result


def _idle_at(group: pd.DataFrame, rate_pps: float) -> float | None:
    nearest = (group["sent_pps"] - rate_pps).abs()
    return analysis.plain(group.loc[nearest.idxmin(), "idle_percent"]) if rate_pps else None


def _ratios(variants: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return IPsec's highest rate over that in clear text, per size.

    Where clear text got through at the plan's highest rate its true limit is unknown, and the ratio
    is an upper bound.
    """
    kinds = {data["protection"]: data["sizes"] for data in variants.values()}
    with_ipsec, without = kinds.get("ipsec", {}), kinds.get("clear-text", {})
    return {
        size: {
            "ratio": analysis.ratio(with_ipsec[size]["highest_pps"], without[size]["highest_pps"]),
            "upper_bound": without[size]["beyond_the_plan"],
        }
        for size in with_ipsec
        if size in without
    }


def ratio_text(ratio: dict[str, Any]) -> str:
    """Return a ratio, marked if it is an upper bound."""
    return f"{ratio['ratio']:.2f}{' or less' if ratio['upper_bound'] else ''}"


def text(found: dict[str, Any]) -> list[str]:
    """Return lines for a terminal, none if there is nothing."""
    if not found:
        return []
    lines = []
    for name, data in found["variants"].items():
        mark = " (CLEAR TEXT, nothing is protected)" if data["protection"] != "ipsec" else ""
        for size, values in data["sizes"].items():
            more = ", the plan's highest" if values["beyond_the_plan"] else ""
            lines.append(
                f"throughput, {name}{mark}, {size} bytes: {values['highest_pps']:.0f} packets/s "
                f"({values['highest_mbit']:.2f} Mbit/s) with at most "
                f"{found['loss_max_percent']:g} % lost{more}"
            )
    for size, ratio in found["ratios"].items():
        if ratio["ratio"] is not None:
            shown = ratio_text(ratio)
            lines.append(f"throughput with IPsec / in clear text, {size} bytes: {shown}")
    return lines


def markdown(found: dict[str, Any]) -> list[str]:
    """Return lines for summary.md, none if there is nothing."""
    if not found:
        return []
    return ["", "## Throughput", "", *(f"* {line}" for line in text(found))]
