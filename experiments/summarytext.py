"""The summary as text, for a terminal and as summary.md: ours against the paper's."""

from __future__ import annotations

from typing import Any

from experiments.sections import SECTIONS

MEMORY_MARK = "WITHOUT KERNEL SAs (memory backend)"


def _interval(estimate: dict[str, Any] | None, unit: str = "ms") -> str:
    if not estimate or not estimate.get("n"):
        return "-"
    if estimate.get("median_ms") is None:
        return f"beyond the deadline ({estimate['failed']} of {estimate['n']} failed)"
    value, low, high = (estimate[k] for k in ("median_ms", "low_ms", "high_ms"))
    digits = 3 if value < 10 else 1
    top = f"{high:.{digits}f}" if high is not None else "?"
    bottom = f"{low:.{digits}f}" if low is not None else "?"
    failed = f", {estimate['failed']} failed" if estimate["failed"] else ""
    return f"{value:.{digits}f} {unit} [{bottom}, {top}] (n={estimate['n']}{failed})"


def _slope(estimate: dict[str, Any]) -> str:
    if estimate.get("slope") is None:
        return "-"
    return f"{estimate['slope']:.2f} ms per member [{estimate['low']:.2f}, {estimate['high']:.2f}]"


def table(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the rows (quantity, ours, the paper's) of the summary table."""
    known = summary["paper"]
    rows: list[tuple[str, str, str]] = []
    about400 = f"about {known['join_latency_ms']['value']:.0f} ms"
    for variant, data in summary["join"].items():
        sizes = data["monitor"]["by_size"]
        for size in dict.fromkeys([min(sizes, key=int), max(sizes, key=int)] if sizes else []):
            rows.append(
                (f"join, monitor, {size} members, {variant}", _interval(sizes[size]), about400)
            )
        last = max(data["joiner"]["by_size"], key=int, default=None)
        if last:
            text = _interval(data["joiner"]["by_size"][last])
            rows.append((f"join, joining device, {last} members, {variant}", text, "-"))
        slope = _slope(data["monitor"]["slope_ms_per_member"])
        rows.append((f"join, slope, {variant}", slope, "too little to be visible"))
        grown = data["monitor"]["growth_3_to_max"]
        if grown["ratio"] is not None:
            name = f"join, growth {grown['from']} to {grown['to']} members, {variant}"
            rows.append((name, f"{grown['ratio']:.2f} x", "hardly increases"))
    for variant, data in summary["mike"].items():
        last = max(data["joiner"], key=int, default=None)
        said = {
            "10": f"about {known['mike_at_10_ms']['value']:.0f} ms",
            "50": f"will not exceed {known['mike_at_50_ms']['value']:.0f} ms",
        }
        for size in [s for s in data["joiner"] if s in said or s == last]:
            for key, name in (
                ("joiner", "joining device"),
                ("slowest_member", "slowest member"),
                ("spread_over_members", "spread over members"),
            ):
                text = _interval(data[key][size])
                theirs = said.get(size, "-") if key != "spread_over_members" else "-"
                rows.append((f"MIKE alone, {name}, {size} members, {variant}", text, theirs))
    rows += _leave_rows(summary)
    for campaign, data in summary["dispersal"].items():
        for variant, sizes in data.items():
            last = max(sizes, key=int)
            name = f"dispersal, {campaign}, {last} members, {variant}"
            rows.append((name, _interval(sizes[last]), "minimal"))
    for backend, operations in summary["sa_write"].items():
        for operation, estimate in operations.items():
            said = f"{known['sa_write_ms']['value']:.0f} ms" if operation == "write" else "-"
            text = estimate.get("reason") if estimate["median_ms"] is None else None
            rows.append((f"SA {operation}, {backend}", text or _interval(estimate), said))
    ratios = summary["ratios"]
    for key, name in (
        ("sa_netlink_to_command", "SA delete+write, netlink batched / command"),
        ("sa_netlink_single_to_command", "SA delete+write, netlink / command"),
        ("join_netlink_to_command", "join at the largest group, netlink / command+paper"),
    ):
        if ratios[key] is not None:
            rows.append((name, f"1/{1 / ratios[key]:.1f}", "-"))
    return rows


def _leave_rows(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    for variant, methods in summary["leave"].items():
        for method, data in methods.items():
            head = f"leave by {method}, monitor, {variant}"
            rows.append((f"{head}, from trigger", _interval(data["from_trigger"]), "-"))
            rows.append((f"{head}, from detection", _interval(data["from_detection"]), "-"))
    return rows


def checks_lines(summary: dict[str, Any]) -> list[str]:
    """Return one line per campaign and variant: what passed and what did not."""
    lines = []
    for campaign, data in summary["checks"].items():
        for variant, c in data.items():
            packet = f"packets {c['packet_passed']} passed, {c['packet_failed']} failed"
            if not summary["kernel_sas"] and not c["packet_passed"] + c["packet_failed"]:
                packet = "packets not applicable without kernel SAs"
            lines.append(
                f"{campaign} {variant}: {c['ok']} of {c['planned']} steps ok, "
                f"{c['failed']} failed, {c['not_run']} not run; SADs {c['sad_passed']} passed, "
                f"{c['sad_failed']} failed; {packet}; starved {c['starved']}, "
                f"hand-overs {c['handovers']}, clock flags {c['clock_flagged']}"
            )
    return lines


def text(summary: dict[str, Any]) -> str:
    """Return the summary for a terminal."""
    rows = table(summary)
    if rows:
        rows.insert(0, ("", "ours: median [95 % interval]", "the paper's"))
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
    lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in rows]
    for key, section in SECTIONS.items():
        lines += section.text(summary[key])
    head = [f"{summary['run']}: {summary['environment']}"]
    if not summary["kernel_sas"]:
        head.append(MEMORY_MARK)
    if not summary["complete"]:
        head.append("INCOMPLETE: not every planned repetition is there (--resume goes on)")
    return "\n".join([*head, *lines, *checks_lines(summary)]) + "\n"


def markdown(summary: dict[str, Any]) -> str:
    """Return summary.md."""
    lines = [f"# {summary['experiment']}: {summary['run']}", "", summary["environment"] + "."]
    if not summary["kernel_sas"]:
        lines += ["", f"**{MEMORY_MARK}**: protocol timing only."]
    if "TCG" in summary["environment"]:
        lines += ["", "Software emulation: absolute times are functional only; ratios count."]
    if not summary["complete"]:
        lines += ["", "**Incomplete**: not every planned repetition is there."]
    rows = table(summary)
    if rows:
        lines += ["", "| | ours: median [95 % interval] | the paper's |", "|---|---|---|"]
        lines += [f"| {a} | {b} | {c} |" for a, b, c in rows]
        lines += ["", "Failed steps count as slower than every measured one."]
    for key, section in SECTIONS.items():
        lines += section.markdown(summary[key])
    lines.append("")
    lines += [f"* {line}" for line in checks_lines(summary)]
    clock = summary["clock"]
    if clock["rows"]:
        lines.append(
            f"* clocks: largest offset {clock['largest_offset_ms']} ms, largest error bound "
            f"{clock['largest_bound_ms']} ms, limit {clock['limit_ms']} ms"
        )
    check = summary["kernel_check"]
    if check["n"]:
        lines.append(
            f"* t_written minus the kernel's notification: median {check['median_ms']:.3f} ms, "
            f"{check['min_ms']:.3f} to {check['max_ms']:.3f} ms (n={check['n']})"
        )
    if summary["failures"]:
        lines += ["", "## Steps that are not ok", ""]
        lines += [
            f"* {f['campaign']} {f['variant']}, repetition {f['repetition']}, step {f['step']}: "
            f"{f['status']}: {f['reason']}"
            for f in summary["failures"]
        ]
    return "\n".join(lines) + "\n"
