"""``testbed cost``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from testbed.sim.scale import Cost

HEADER = (
    "mode", "event", "members", "messages", "datagrams", "bytes", "to the newcomer",
    "PK at the TM", "PK at a member", "unwraps",
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


@click.command()
@click.option(
    "--mode",
    type=click.Choice(["ka", "kd"]),
    multiple=True,
    help="MIKE's mode (default: both; may be repeated).",
)
@click.option("--members", type=Sizes(), default=(10, 50, 100), help="Sizes of the group.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def cost(*, mode: tuple[str, ...], members: tuple[int, ...], as_json: bool) -> None:
    """Count what a join, a leave and a lost TM cost in groups of some sizes.

    Counted, not timed: messages for all, their datagrams and bytes, what only a newcomer gets,
    public-key operations (X25519) at the TM and at the member with most of them, symmetric unwraps
    at the member with most. Nothing is lost, and no event comes beside it. Signatures: one for each
    datagram at its sender, one check at each receiver.

    \b
    Examples:
      testbed cost --members 3,10,50,100
      testbed cost --mode kd --members 1000,10000 --json
    """
    from protocol.mike.config import Mode
    from testbed.sim.scale import SIZES, costs

    modes = [Mode(name) for name in mode or ("ka", "kd")]
    if not as_json:
        click.echo("  ".join(HEADER))
    for which in modes:
        for size in members:
            if size >= SIZES[which]:
                raise click.UsageError(f"mode {which} has at most {SIZES[which]} members")
            for found in costs(which, size):
                click.echo(json.dumps(found.as_json()) if as_json else _line(found))


def _line(found: Cost) -> str:
    values = found.as_json().values()
    return "  ".join(f"{value!s:>{len(name)}}" for name, value in zip(HEADER, values, strict=True))
