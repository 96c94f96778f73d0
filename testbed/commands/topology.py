"""``testbed topology``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click


@click.group()
def topology() -> None:
    """List, show and draw topologies."""


@topology.command("list")
def list_() -> None:
    """List the topologies that are there, and the families that are computed.

    \b
    Example:
      testbed topology list
    """
    from topologies import find, names
    from topologies.families import FAMILIES, usage

    for name in names():
        click.echo(f"{name:<14} {find(name).title}")
    for family, function in FAMILIES.items():
        summary = (function.__doc__ or "").partition("\n")[0].removeprefix("Return ")
        click.echo(f"{usage(family)}: {summary}")


@topology.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.option(
    "--plot",
    type=Path,
    is_flag=False,
    flag_value=Path(),
    default=None,
    metavar="[FILE]",
    help="Draw it into a file (png, pdf or svg; NAME.png if none is named).",
)
def show(name: str, as_json: bool, plot: Path | None) -> None:
    """Show a topology: its nodes and links, or a drawing. NAME may be a path to a file.

    \b
    Examples:
      testbed topology show measurement
      testbed topology show 'coalition(5,2)' --json
      testbed topology show coalition --plot
      testbed topology show ./my/topology.toml --plot my.pdf
    """
    from topologies import find

    found = find(name)
    if plot is not None:
        from testbed.drawing import draw

        stem = re.sub(r"[^a-z0-9-]+", "-", found.name).strip("-")
        target = Path(f"{stem}.png") if plot == Path() else plot
        draw(found, target)
        click.echo(target)
        return
    from testbed.listing import listing

    click.echo(json.dumps(found.as_json(), indent=2) if as_json else listing(found))
