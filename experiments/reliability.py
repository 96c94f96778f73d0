"""The README's table of reliability, made from the committed reference runs of three campaigns.

``testbed reliability`` rewrites what stands between the markers in README.md; ``--check`` only says
whether that would change anything. A campaign without a committed run has a row that says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from experiments.errors import ExperimentError
from experiments.idpsummary import new_key_limit_ms

BEGIN = "<!-- reliability: begin (made by `testbed reliability`; not to be changed by hand) -->"
END = "<!-- reliability: end -->"

REFERENCE = Path("results/reference")
HEAD = "| | measured | required | kept |\n|---|---|---|---|\n"

Row = tuple[str, str, str, bool | None]
"""What, measured, required, whether that was kept; None: nothing is required of it."""

FAULTS_MIN = 500
EVENTS_MIN = 100
"""Joins, and leaves, of other members: below this the run is too short to show anything."""


def section(root: Path) -> str:
    """Return the section of the README.

    Args:
        root: the working tree.

    Raises:
        ExperimentError: a committed summary is not what this version writes.
    """
    lines, sources = [], []
    for name, rows in CAMPAIGNS.items():
        path = root / REFERENCE / name / "summary.json"
        if not path.is_file():
            lines.append(f"| `testbed run {name}` | not run | | |")
            continue
        summary = json.loads(path.read_text(encoding="utf-8"))
        try:
            found = rows(summary)
        except (KeyError, TypeError, ValueError) as error:
            raise ExperimentError(f"{path.relative_to(root)}: unreadable: {error!r}") from error
        whole = "" if summary["complete"] else ", incomplete"
        sources.append(
            f"[{name}]({(REFERENCE / name).as_posix()}): {summary['environment']}{whole}"
        )
        lines += [
            f"| {what} | {measured} | {required} | {_verdict(kept, summary['complete'])} |"
            for what, measured, required, kept in found
        ]
    text = HEAD + "\n".join(lines) + "\n"
    if sources:
        text += "\nReference runs: " + "; ".join(sources) + ".\n"
    return text


def _verdict(kept: bool | None, complete: bool) -> str:
    if kept is None:
        return ""
    return "yes" if kept and complete else "**NO**"


def rewritten(readme: str, table: str) -> str:
    """Return a README with this table between the markers.

    Raises:
        ExperimentError: the markers are not there, once each and in order.
    """
    if (
        readme.count(BEGIN) != 1
        or readme.count(END) != 1
        or readme.index(BEGIN) > readme.index(END)
    ):
        raise ExperimentError(f"README.md lacks the lines {BEGIN!r} and {END!r}")
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{table}{END}{rest.split(END)[1]}"


def _rekey_loss(summary: dict[str, Any]) -> list[Row]:
    rows: list[Row] = []
    names = {"start": "joins", "shutdown": "leaves"}
    for mode, found in summary["rekey_loss"].items():
        low, high = min(found["rate_pps"]), max(found["rate_pps"])
        rate = f"{high}" if low == high else f"{low} to {high}"
        for method, events in found["methods"].items():
            what = (
                f"SA mode `{mode}`: red packets lost over {events['events']} {names[method]} of "
                f"others, {found['senders']} senders at {rate} packets/s each"
            )
            measured = f"{events['lost']} lost, {events['duplicated']} doubled of {events['sent']}"
            if mode == "per-sender":
                clean = events["lost"] == events["duplicated"] == 0
                kept = clean and events["sent"] > 0 and events["events"] >= EVENTS_MIN
                rows.append((what, measured, f"0 and 0 over {EVENTS_MIN}", kept))
            else:
                rows.append((what, measured, "for comparison", None))
    return rows


def _faults(summary: dict[str, Any]) -> list[Row]:
    checks = list(summary["checks"]["faults"].values())
    planned = sum(check["planned"] for check in checks)
    well = sum(check["ok"] for check in checks)
    entries = summary["idp"]["faults"]
    kinds = sorted({entry["method"] for entry in entries})
    recovered = [entry["measures"]["recovered_ms"] for entry in entries]
    worst = max(recovered, key=lambda found: float(found["max"]))
    slowest = entries[recovered.index(worst)]["method"]
    middle = sorted(float(found["median"]) for found in recovered)[len(recovered) // 2]
    rows: list[Row] = [
        (
            f"faults of {len(kinds)} kinds, recovered without an operator",
            f"{well} of {planned}; from the end of the fault typically {middle / 1000:.1f} s "
            f"(median of a kind), at worst {float(worst['max']) / 1000:.1f} s (`{slowest}`)",
            f"all of {FAULTS_MIN}",
            well == planned and planned >= FAULTS_MIN and summary["kernel_sas"],
        )
    ]
    crashes = [entry for entry in entries if "new_key_ms" in entry["measures"]]
    if crashes:
        slowest_ms = max(float(entry["measures"]["new_key_ms"]["max"]) for entry in crashes)
        count = sum(int(entry["measures"]["new_key_ms"]["n"]) for entry in crashes)
        limits = {new_key_limit_ms(entry["hello_interval_ms"]) for entry in crashes}
        rows.append(
            (
                f"crash of the TM, idle and at each moment of an epoch ({count} times), until all "
                "others have a new key",
                f"at worst {slowest_ms:.0f} ms",
                f"{min(limits):.0f} ms (5 hello intervals + 100 ms)",
                slowest_ms <= min(limits),
            )
        )
    return rows


def _attacks(summary: dict[str, Any]) -> list[Row]:
    found = summary["attacks"]
    left_out = f", {len(found['not_run'])} not judged" if found["not_run"] else ""
    ratio, ratio_limit = found["join_ratio_max"], found["join_ratio_limit"]
    growth, growth_limit = found["growth_mib_max"], found["growth_mib_limit"]
    return [
        (
            "attacks that achieved anything",
            f"{found['successes']} of {found['tried']}{left_out}",
            "0",
            found["successes"] == 0 and found["tried"] > 0 and not found["not_run"],
        ),
        (
            "join under a flood / join beside as many frames to nobody",
            "not measured" if ratio is None else f"at worst {ratio:.2f}{_to_quiet(found)}",
            f"at most {ratio_limit:g}",
            ratio is not None and ratio <= ratio_limit,
        ),
        (
            "growth of a daemon under attack",
            "not measured" if growth is None else f"at most {growth:.1f} MiB",
            f"at most {growth_limit:g} MiB",
            growth is not None and growth <= growth_limit,
        ),
    ]


def _to_quiet(found: dict[str, Any]) -> str:
    """Say how long the join took beside one with no attacker, who computes on our processors."""
    floods = (one for one in found["attacks"].values() if one["busy_ratio"])
    ratio = max((one["join_ratio"] for one in floods if one["join_ratio"]), default=None)
    return "" if ratio is None else f" (beside no frames at all: {ratio:.2f})"


CAMPAIGNS: dict[str, Callable[[dict[str, Any]], list[Row]]] = {
    "rekey-loss": _rekey_loss,
    "faults": _faults,
    "attacks": _attacks,
}
"""The campaigns by the name of their folder in the reference results."""


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit with 1 if README.md is not so.")
def reliability(check: bool) -> None:
    """Make the README's table of reliability from the committed reference runs.

    \b
    Examples:
      testbed reliability            after a new reference run was put into results/reference/
      testbed reliability --check    is the README what the runs say?
    """
    root = Path(__file__).parent.parent
    path = root / "README.md"
    try:
        before = path.read_text(encoding="utf-8")
        after = rewritten(before, section(root))
    except ExperimentError as error:
        raise click.ClickException(str(error)) from error
    if before == after:
        click.echo("README.md says what the reference runs say")
        return
    if check:
        raise click.ClickException("README.md differs from the runs: run 'testbed reliability'")
    path.write_text(after, encoding="utf-8")
    click.echo("README.md: the table of reliability was written anew")
