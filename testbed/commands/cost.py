"""``testbed cost``."""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from testbed.errors import TestbedError

if TYPE_CHECKING:
    from testbed.sim.costing import Cost
    from testbed.sim.crossing import Crossover

HEADER = (
    "mode", "event", "members", "messages", "datagrams", "bytes", "to the newcomer",
    "PK at the TM", "PK at a member", "on average", "at the newcomer", "PK in total", "unwraps",
    "ms at the TM", "ms at a member", "at the newcomer", "ms in total",
)  # fmt: skip


class Sizes(click.ParamType[tuple[int, ...]]):
    """``N,N,...``."""

    name = "N,N,..."

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Read sizes."""
        if isinstance(value, tuple):
            return value
        try:
            sizes = tuple(int(text) for text in str(value).split(","))
        except ValueError:
            sizes = ()
        if not sizes or min(sizes) < 3:
            self.fail(f"{value!r} are no sizes of at least 3, for example 10,50,100", param, ctx)
        return sizes


mode_option = click.option(
    "--mode",
    type=click.Choice(["ka", "kd"]),
    multiple=True,
    help="MIKE's mode (default: both; may be repeated).",
)
members_option = click.option(
    "--members", type=Sizes(), default=(10, 50, 100), help="Sizes of the group."
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


@click.command()
@mode_option
@members_option
@json_option
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write mike_cost.csv and a figure into this folder, too.",
)
def cost(
    *, mode: tuple[str, ...], members: tuple[int, ...], as_json: bool, output: Path | None
) -> None:
    """Count and time what a join, a leave and a lost TM cost in groups of some sizes.

    Messages for all, their datagrams and bytes, what only a newcomer gets, public-key operations
    (X25519) at the TM, at the member with most of them, at the members on average, at a newcomer
    and of all together, symmetric unwraps at the member with most; and the processor time of all
    that, signatures included, on this machine. Nothing is lost, and no event comes beside it.
    Signatures: one for each datagram at its sender, one check at each receiver. With both modes,
    last: the size from which on KD costs less.

    \b
    Without --mode, sizes that a mode does not have are left out.

    \b
    Examples:
      testbed cost --members 3,10,50,100
      testbed cost --mode kd --members 1000,10000 --json
      testbed cost --members 3,10,50,250,1000,10000 --output results/mike-cost
    """
    from protocol.mike.config import Mode
    from testbed.sim.crossing import crossovers
    from testbed.sim.scale import SIZES, costs

    modes = [Mode(name) for name in mode or ("ka", "kd")]
    if not as_json:
        click.echo("  ".join(HEADER))
    rows: list[dict[str, Any]] = []
    for which in modes:
        for size in members:
            if size >= SIZES[which] and not mode:
                continue
            if size >= SIZES[which]:
                raise click.UsageError(f"mode {which} has at most {SIZES[which]} members")
            for found in costs(which, size):
                rows.append(found.as_json())
                click.echo(json.dumps(found.as_json()) if as_json else _line(found))
    crossings = crossovers(rows) if len(modes) > 1 else []
    if not as_json:
        for one in crossings:
            click.echo(f"{one.event}, {one.measure}: {_words(one)}")
    if output is not None:
        _write(rows, crossings, output)


def _words(one: Crossover) -> str:
    """Say where KD begins to cost less."""
    if not one.compared:
        return "no size in both modes"
    if one.members is None:
        return f"KD does not cost less at {one.compared[-1]} members"
    if one.members == one.compared[0]:
        return f"KD costs less at all sizes measured, from {one.members} members on"
    return f"KD costs less from {one.members} members on"


def _write(rows: list[dict[str, Any]], crossings: Sequence[Crossover], folder: Path) -> None:
    mike_cost = importlib.import_module("experiments.plots.mike_cost")
    try:
        files = mike_cost.draw(rows, folder, [(x.event, x.measure, x.members) for x in crossings])
        table(folder / "mike_cost.csv", rows)
        if crossings:
            places = [
                {"event": x.event, "measure": x.measure, "members": x.members, "words": _words(x)}
                for x in crossings
            ]
            table(folder / "crossover.csv", places)
    except OSError as error:
        raise TestbedError(f"cannot write to {folder}: {error.strerror}") from None
    click.echo(f"{folder}: mike_cost.csv and {', '.join(path.name for path in files)}", err=True)


def table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows that all have the columns of the first one."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _line(found: Cost) -> str:
    values = [
        f"{value:.2f}" if isinstance(value, float) else value for value in found.as_json().values()
    ]
    return "  ".join(f"{value!s:>{len(name)}}" for name, value in zip(HEADER, values, strict=True))
