"""The summary of delivery campaigns: who got what, leaks, tshark's count beside ours, times."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from experiments.analysis import Run, plain, select, variants

LIMIT_S = 120
"""From the command to the first red packet everywhere: what the network has to reach at most."""


def summarise(run: Run) -> dict[str, Any]:
    """Return the numbers of each variant (experiments/schema.py, `delivery`)."""
    deliveries = run.table("deliveries.csv")
    return {variant: _variant(run, variant) for variant in variants(deliveries, "delivery")}


def _variant(run: Run, variant: str) -> dict[str, Any]:
    tables = {
        name: select(run.table(f"{name}.csv"), "delivery", variant)
        for name in ("deliveries", "listeners", "convergence", "leaks", "witness", "counters")
    }
    return {
        "repetitions": int(tables["deliveries"]["repetition"].nunique()),
        "all_delivered": _all_delivered(tables["deliveries"]),
        "matrix": matrix(tables["deliveries"]),
        "listeners": _listeners(tables["listeners"]),
        "leaks": _leaks(tables["leaks"]),
        "witness": _witness(tables["witness"]),
        "convergence": _convergence(tables["convergence"]),
        "guard_drops": _drops(tables["counters"]),
    }


def repetitions(found: dict[str, Any]) -> str:
    """Return how many there were, as text."""
    return f"{found['repetitions']} repetition" + "s" * (found["repetitions"] != 1)


def _all_delivered(rows: pd.DataFrame) -> bool:
    """Return whether all that was expected came, and nothing else, in every phase."""
    wanted = rows["must_arrive"] == 1
    came = (rows.loc[wanted, "delivered"] == 1).all()
    return bool(len(rows) and came and (rows.loc[~wanted, "received"] == 0).all())


def matrix(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return one record per sender, place of arrival and address family, over all repetitions.

    A place of arrival is a LAN (all its clients that are not the sender) or a device.
    """
    counted = rows[(rows["phase"] == "matrix") & (rows["must_arrive"] == 1)]
    keys = ["family", "sender_kind", "sender_lan", "receiver_kind", "receiver_lan"]
    records = []
    for values, group in counted.groupby(keys, sort=True):
        slowest = group.groupby("repetition")["first_arrival_ms"].agg(
            lambda times: times.max(skipna=False)
        )
        records.append(
            {
                **dict(zip(keys, values, strict=True)),
                "family": int(values[0]),
                "streams": len(group),
                "delivered": int((group["delivered"] == 1).sum()),
                "sent": int(group["sent"].sum()),
                "received": int(group["received"].sum()),
                "duplicates": int(group["duplicates"].sum()),
                "first_arrival_ms": plain(slowest.median(skipna=False)),
            }
        )
    return records


def _listeners(rows: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {
            "stage": str(stage),
            "family": int(family),
            "changes": len(group),
            "ok": int((group["ok"] == 1).sum()),
            "frames": int(group["frames"].sum()),
            "expected_frames": int(group["expected_frames"].sum()),
            "change_ms": plain(group["change_ms"].median()),
        }
        for (stage, family), group in rows.groupby(["stage", "family"], sort=False)
    ]


def _leaks(rows: pd.DataFrame) -> dict[str, Any]:
    kinds = rows.groupby("traffic")["frames"].sum()
    per_link = rows.groupby(["repetition", "link"])["not_captured"].max()
    return {
        "captures": len(per_link),
        "links": int(rows["link"].nunique()),
        "frames": int(rows["frames"].sum()),
        "leaks": int(kinds.get("leak", 0)) if len(rows) else None,
        "not_captured": int(per_link.sum()),
        "by_traffic": {str(kind): int(frames) for kind, frames in kinds.items()},
    }


def _witness(rows: pd.DataFrame) -> dict[str, Any]:
    names = ("packets", "decrypted", "red", "sent", "sent_early", "other")
    sums = {name: int(rows[name].sum()) for name in names}
    return {**sums, "counts": len(rows), "equal": int((rows["equal"] == 1).sum())}


def _convergence(rows: pd.DataFrame) -> dict[str, Any]:
    return {
        str(stage): {
            "since": str(group["since"].iloc[0]),
            "median_s": plain(group["seconds"].median()),
            "max_s": plain(group["seconds"].max()),
            "n": len(group),
        }
        for stage, group in rows.groupby("stage", sort=False)
    }


def _drops(rows: pd.DataFrame) -> dict[str, int]:
    dropped = rows[rows["source"] == "guard"].groupby("counter")["value"].sum()
    return {str(name): int(value) for name, value in dropped.items() if value}


# --- text ----------------------------------------------------------------------------------------


def verdict_lines(found: dict[str, Any]) -> list[str]:
    """Return the verdicts of one variant: leaks, tshark's count, listeners, time from up."""
    return [
        _leak_line(found["leaks"]),
        _witness_line(found["witness"]),
        _listener_line(found["listeners"]),
        _convergence_line(found),
        "guards dropped: "
        + (", ".join(f"{n} {name}" for name, n in found["guard_drops"].items()) or "nothing"),
    ]


def _leak_line(leaks: dict[str, Any]) -> str:
    if leaks["leaks"] is None:
        return "leaks: NOT JUDGED"
    return (
        f"leaks: {leaks['leaks']} in {leaks['frames']} frames on {leaks['links']} black links; "
        f"{leaks['not_captured']} frames not captured"
    )


def _witness_line(witness: dict[str, Any]) -> str:
    if not witness["counts"]:
        return "tshark: NOT ASKED"
    return (
        f"tshark decrypted {witness['decrypted']} of {witness['packets']} multicast ESP packets: "
        f"{witness['red']} red, {witness['other']} others; we sent {witness['sent']}, and "
        f"{witness['sent_early']} while routes were forming, of which "
        f"{witness['red'] - witness['sent']} left their LAN ({witness['equal']} of "
        f"{witness['counts']} counts per device and epoch agree)"
    )


def _listener_line(listeners: list[dict[str, Any]]) -> str:
    silent = [one for one in listeners if one["stage"] in ("left", "member-left")]
    heard = [one for one in listeners if one not in silent]
    return (
        f"listeners come and go: {sum(one['ok'] for one in listeners)} of "
        f"{sum(one['changes'] for one in listeners)} as they must; LANs without listeners or "
        f"membership saw {sum(one['frames'] for one in silent)} frames, the others "
        f"{sum(one['frames'] for one in heard)} of {sum(one['expected_frames'] for one in heard)}"
    )


def _convergence_line(found: dict[str, Any]) -> str:
    stages = found["convergence"]

    def text(stage: str) -> str:
        one = stages.get(stage)
        if one is None:
            return "never"
        seldom = f", {one['n']} of {found['repetitions']}" * (one["n"] < found["repetitions"])
        return f"{one['median_s']:.1f} s (max {one['max_s']:.1f}{seldom})"

    families = sorted({one["family"] for one in found["matrix"]}, reverse=True)
    first = ", ".join(f"IPv{family} {text(f'first-packet-ipv{family}')}" for family in families)
    rest = [
        f"{label} {text(stage)}"
        for stage, label in (
            ("loaded", "network and daemons"),
            ("group", "group key everywhere"),
            ("routing-pim", "routers among themselves"),
        )
        if stage in stages
    ]
    return (
        f"first red packet everywhere after up: {first or 'never'}; limit {LIMIT_S} s "
        f"({', '.join(rest)})"
    )


def _place(kind: str, lan: str) -> str:
    return f"LAN of {lan}" if kind == "client" else lan


def _tables(found: dict[str, Any]) -> Iterator[tuple[int, list[list[str]]]]:
    """Yield, per address family, the matrix as rows of cells with a heading."""
    for family in sorted({one["family"] for one in found["matrix"]}, reverse=True):
        mine = [one for one in found["matrix"] if one["family"] == family]
        rows = dict.fromkeys((one["sender_kind"], one["sender_lan"]) for one in mine)
        columns = dict.fromkeys(sorted((one["receiver_kind"], one["receiver_lan"]) for one in mine))
        cells = {
            (
                (one["sender_kind"], one["sender_lan"]),
                (one["receiver_kind"], one["receiver_lan"]),
            ): f"{one['received']}/{one['sent']}" + "!" * (one["delivered"] < one["streams"])
            for one in mine
        }
        head = [f"IPv{family}, from", *(_place(*column) for column in columns)]
        body = [[_place(*row), *(cells.get((row, c), "") for c in columns)] for row in rows]
        yield family, [head, *body]


def text(found: dict[str, Any]) -> list[str]:
    """Return lines for a terminal."""
    lines = []
    for variant, one in found.items():
        lines.append(
            f"delivery, {variant}: red packets received / sent, per sender (row) and place"
        )
        for _, table in _tables(one):
            widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
            lines += [
                "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
                for row in table
            ]
        lines += verdict_lines(one)
        lines.append("all delivered" if one["all_delivered"] else "NOT ALL DELIVERED")
    return lines


def markdown(found: dict[str, Any]) -> list[str]:
    """Return lines for summary.md."""
    lines = []
    for variant, one in found.items():
        lines += ["", f"## Delivery, {variant}", ""]
        verdict = "All delivered" if one["all_delivered"] else "**Not all delivered**"
        lines += [
            f"{verdict}; {repetitions(one)}. Red packets received / sent, summed "
            "over the clients of a LAN (row: sender, column: place of arrival).",
        ]
        for _, table in _tables(one):
            lines += ["", "| " + " | ".join(table[0]) + " |", "|---" * len(table[0]) + "|"]
            lines += ["| " + " | ".join(row) + " |" for row in table[1:]]
        lines += ["", *(f"* {line}" for line in verdict_lines(one))]
    return lines
