"""``testbed topology``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from testbed.spec import Topology


@click.group()
def topology() -> None:
    """List and show topologies."""


@topology.command("list")
def list_() -> None:
    r"""List the topologies that are there, and the families that are computed.

    \b
    Example:
      testbed topology list
    """
    from topologies import find, names

    for name in names():
        click.echo(f"{name:<14} {find(name).title}")
    click.echo(f"{'star(N)':<14} N IPsec devices on one black switch (also: star-N)")


@topology.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def show(name: str, as_json: bool) -> None:
    r"""Show a topology: its drawing, its nodes and links. NAME may be a path to a file.

    \b
    Examples:
      testbed topology show measurement
      testbed topology show 'star(3)' --json
      testbed topology show ./my/topology.toml
    """
    from topologies import find

    found = find(name)
    click.echo(json.dumps(found.as_json(), indent=2) if as_json else _text(found))


def _text(topology: Topology) -> str:
    lines = [f"{topology.name}: {topology.title}", ""]
    for switch in topology.switches:
        lines.append(f"{switch.name} (switch)")
        cables = [link for link in topology.links if switch.name in link.ends]
        for link in cables:
            device = topology.node(link.ends[0])
            limit = f"{link.bandwidth_mbit:g} Mbit/s" if link.bandwidth_mbit else "unlimited"
            mark = "└" if link is cables[-1] else "├"
            lines.append(
                f" {mark}─ {device.name:<6} {device.nation or '':<10} black {device.black!s:<22} "
                f"red {device.red!s:<16} {limit}"
            )
    group = topology.group
    lines += ["", f"ESP to {group.black_group}, xfrm interface id {group.if_id}, MTU {group.mtu}"]
    return "\n".join(lines)
