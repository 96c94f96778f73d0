"""The part of a summary about IDP: discovery, hellos, flapping links, leaves and returns."""

from __future__ import annotations

from typing import Any

import pandas as pd

from experiments import analysis
from experiments.analysis import Run

CPU_LIMIT_PERCENT = 2.0
"""What hellos may take of one processor at a hundred devices."""

DISCOVERY_LIMIT_MS = 5.0
"""In addition to one round trip: until all others know a new device, at ten devices."""

DEAD_FACTOR = 4

TM_LOSS_MS = 100.0
"""A TM that dies costs at most one hello interval more than the dead interval and this."""

KEYS = ["campaign", "variant", "method", "group_size", "hello_interval_ms", "period_intervals"]


def good_rows(run: Run) -> pd.DataFrame:
    """Return the rows of steps that are ok, with the period of the flapping beside each."""
    rows = analysis.read_table(run.path, "hellos.csv")
    if rows.empty:
        return rows.assign(period_intervals=pd.Series(dtype=float))
    step = ["campaign", "variant", "repetition", "step"]
    done = run.steps[run.steps["status"] == "ok"][step]
    rows = rows.merge(done, on=step)
    periods = rows[rows["measure"] == "period_intervals"][[*step, "value"]]
    rows = rows.merge(periods.rename(columns={"value": "period_intervals"}), on=step, how="left")
    return rows.assign(period_intervals=rows["period_intervals"].fillna(0.0))


def of(rows: pd.DataFrame, campaign: str, measure: str) -> pd.DataFrame:
    """Return the rows of one measure of one kind of campaign."""
    return rows[(rows["campaign"] == campaign) & (rows["measure"] == measure)]


def summarise(run: Run) -> dict[str, Any]:
    """Return median, extremes and number of each measure; empty if no campaign is about IDP."""
    rows = good_rows(run)
    found: dict[str, Any] = {}
    for key, group in rows.groupby(KEYS, sort=False):
        values: Any = key
        campaign, variant, method, size, interval, period = values
        measures = {
            str(name): {
                "median": analysis.plain(of_measure["value"].median()),
                "min": analysis.plain(of_measure["value"].min()),
                "max": analysis.plain(of_measure["value"].max()),
                "n": len(of_measure),
            }
            for name, of_measure in group.groupby("measure", sort=False)
        }
        entry = {
            "variant": str(variant),
            "method": str(method),
            "group_size": int(size),
            "hello_interval_ms": int(interval),
            "period_intervals": analysis.plain(period) if period else None,
            "measures": measures,
        }
        found.setdefault(str(campaign), []).append(entry)
    return found


def text(found: dict[str, Any]) -> list[str]:
    """Return lines for a terminal, none if there is nothing."""
    lines = []
    for campaign, entries in found.items():
        for entry in entries:
            line = _LINES[campaign](entry, entry["measures"])
            lines.append(f"{campaign}, {entry['variant']}: {line}")
    return lines


def _discovery(entry: dict[str, Any], measures: dict[str, Any]) -> str:
    detected, answered, rtt = (measures[f"{n}_ms"] for n in ("detected", "answered", "rtt"))
    limit = rtt["median"] + DISCOVERY_LIMIT_MS
    verdict = f"; limit {limit:.1f} ms at 10 devices" if entry["group_size"] == 10 else ""
    return (
        f"{entry['group_size']} devices: a new one known to others after {detected['median']:.1f} "
        f"ms (last {detected['max']:.1f}{verdict}), they to it after {answered['median']:.0f} ms "
        f"(last {answered['max']:.0f}), round trip {rtt['median']:.2f} ms; n = {detected['n']}"
    )


def _cost(entry: dict[str, Any], measures: dict[str, Any]) -> str:
    cpu = measures["cpu_percent"]
    heard = measures["light_per_s"]["median"] + measures["signed_per_s"]["median"]
    verdict = ""
    if entry["group_size"] == 100 and entry["hello_interval_ms"] == 1000:
        kept = cpu["max"] <= CPU_LIMIT_PERCENT
        verdict = f", {'within' if kept else 'ABOVE'} the {CPU_LIMIT_PERCENT:g} %"
    return (
        f"{entry['group_size']} devices: idpd takes {cpu['median']:.2f} % of a processor "
        f"(most {cpu['max']:.2f} %{verdict}) for {heard:.0f} hellos/s; n = {cpu['n']}"
    )


def _interval(entry: dict[str, Any], measures: dict[str, Any]) -> str:
    found, wire = measures["detection_ms"], measures["bytes_per_s"]
    return (
        f"death noticed after {found['median']:.0f} ms ({found['min']:.0f} to {found['max']:.0f}), "
        f"{wire['median']:.0f} bytes/s and device; n = {found['n']}"
    )


def _flapping(entry: dict[str, Any], measures: dict[str, Any]) -> str:
    rekeys, flaps = measures["rekeys"], measures["flaps"]
    return (
        f"period of {entry['period_intervals']:g} hello intervals, half of it cut: "
        f"{rekeys['min']:.0f} to {rekeys['max']:.0f} rekeys by {flaps['median']:.0f} flaps; "
        f"n = {rekeys['n']}"
    )


def _leave(entry: dict[str, Any], measures: dict[str, Any]) -> str:
    found, written, rekeys = (measures[n] for n in ("detection_ms", "written_ms", "rekeys"))
    return (
        f"{entry['method']}: noticed after {found['median']:.0f} ms, new SAs everywhere after "
        f"{written['max']:.0f} ms at worst (median {written['median']:.0f}), "
        f"{rekeys['min']:.0f} to {rekeys['max']:.0f} rekeys; n = {rekeys['n']}"
    )


def new_key_limit_ms(hello_interval_ms: int) -> float:
    """Return within what time of the TM's death all others must have another TM's key."""
    return (DEAD_FACTOR + 1) * hello_interval_ms + TM_LOSS_MS


def _fault(entry: dict[str, Any], measures: dict[str, Any]) -> str:
    recovered, rekeys, key = (measures.get(n) for n in ("recovered_ms", "rekeys", "new_key_ms"))
    line = entry["method"]
    if recovered and rekeys:
        line += (
            f": all well {recovered['median'] / 1000:.1f} s after it ended (at worst "
            f"{recovered['max'] / 1000:.1f} s), {rekeys['min']:.0f} to {rekeys['max']:.0f} rekeys"
        )
    if key:
        limit = new_key_limit_ms(entry["hello_interval_ms"])
        kept = "within" if key["max"] <= limit else "ABOVE"
        line += (
            f"; new key {key['median']:.0f} ms after the TM died (at worst {key['max']:.0f}), "
            f"{kept} the limit of {limit:.0f}"
        )
    return f"{line}; n = {recovered['n'] if recovered else 0}"


_LINES = {
    "faults": _fault,
    "discovery": _discovery,
    "hello-cost": _cost,
    "hello-interval": _interval,
    "flapping": _flapping,
    "idp-leave": _leave,
}


def markdown(found: dict[str, Any]) -> list[str]:
    """Return lines for summary.md, none if there is nothing."""
    if not found:
        return []
    return ["", "## IDP", "", *(f"* {line}" for line in text(found))]
