"""``testbed delay``."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from testbed.commands.cost import json_option, members_option, mode_option, table
from testbed.errors import TestbedError

if TYPE_CHECKING:
    from testbed.sim.crowd import Delay

HEADER = (
    "mode", "event", "members", "seed", "engines", "ms: newcomer", "TM", "median", "last",
    "datagrams", "bytes", "to the newcomer", "PK at the TM", "at a member", "at the newcomer",
    "CPU ms: TM", "a member", "newcomer",
)  # fmt: skip


@click.command()
@mode_option
@members_option
@click.option(
    "--event",
    type=click.Choice(["join", "leave", "take-over"]),
    multiple=True,
    help="What happens (default: each; may be repeated).",
)
@click.option(
    "--runs", type=click.IntRange(1, 1000), default=1, help="So often each, with seeds 1 to RUNS."
)
@json_option
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write mike_scale.csv and a figure into this folder, too.",
)
def delay(
    *,
    mode: tuple[str, ...],
    members: tuple[int, ...],
    event: tuple[str, ...],
    runs: int,
    as_json: bool,
    output: Path | None,
) -> None:
    """Say how long a join, a leave and a lost TM take in large groups, in virtual time.

    Every device is miked's engine with real cryptography and a processor of its own, as fast as
    this machine's; a datagram is under way for 0.2 to 0.4 ms, and none is lost. From IDP's signal
    to the key: at a newcomer, at the TM, at the members in the median, at the last device. No
    sockets, no kernel, no IDP: `testbed run mike-delay` measures the daemons themselves.

    \b
    Above 1023 members (mode kd only) the TM and 50 of the members are engines; members only
    listen in that mode. Without --mode, sizes that a mode does not have are left out.

    \b
    Examples:
      testbed delay --members 10,50,100
      testbed delay --mode kd --members 10000 --event join --json
      testbed delay --members 10,50,100,300,1000 --runs 3 --output results/mike-scale
    """
    from protocol.mike.config import Mode
    from testbed.progress import Progress
    from testbed.sim.costing import EVENTS
    from testbed.sim.crowd import delay as measured
    from testbed.sim.scale import SIZES

    modes = [Mode(name) for name in mode or ("ka", "kd")]
    wanted = [(which, size) for which in modes for size in members if size < SIZES[which]]
    if mode and len(wanted) < len(modes) * len(members):
        limits = " and ".join(f"mode {which} at most {SIZES[which] - 1}" for which in modes)
        raise click.UsageError(f"a group that somebody joins has in {limits} members")
    if not wanted:
        raise click.UsageError(f"no mode has groups of {', '.join(map(str, members))} members")
    if not as_json:
        click.echo("  ".join(HEADER))
    rows: list[dict[str, Any]] = []
    events = event or EVENTS
    with Progress(len(wanted) * len(events) * runs, "delay") as progress:
        for which, size in wanted:
            for what in events:
                for seed in range(1, runs + 1):
                    progress.stage(f"{what}, {which}, {size} members")
                    found = measured(which, size, what, seed)
                    row = _row(found, seed)
                    rows.append(row)
                    click.echo(json.dumps(row) if as_json else _line(row))
                    progress.step()
    if output is not None:
        _write(rows, output)


def _row(found: Delay, seed: int) -> dict[str, Any]:
    """Put the seed behind what was asked for."""
    values = found.as_json()
    asked = {name: values.pop(name) for name in ("mode", "event", "members")}
    return {**asked, "seed": seed, **values}


def _write(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    mike_scale = importlib.import_module("experiments.plots.mike_scale")
    try:
        files = mike_scale.draw(rows, folder)
        table(folder / "mike_scale.csv", rows)
    except OSError as error:
        raise TestbedError(f"cannot write to {folder}: {error.strerror}") from None
    click.echo(f"{folder}: mike_scale.csv and {', '.join(path.name for path in files)}", err=True)


def _line(row: dict[str, Any]) -> str:
    values = [
        "-" if value is None else f"{value:.2f}" if isinstance(value, float) else value
        for value in row.values()
    ]
    return "  ".join(f"{value!s:>{len(name)}}" for name, value in zip(HEADER, values, strict=True))
