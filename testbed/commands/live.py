"""``testbed up``, ``status``, ``exec``, ``do``, ``down``: a network that stays up."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from testbed.holder import Mailbox
    from testbed.live import UpOptions
    from testbed.runs import Run

_EPOCH_DIGITS: Final = 16

_run_option = click.option(
    "--run", "run_id", metavar="ID", help="Which network, if several are up (see 'testbed status')."
)


@click.command()
@click.argument("topology")
@click.option("--devices", type=click.IntRange(min=1), help="Only the first N devices.")
@click.option(
    "--env",
    type=click.Choice(["auto", "native", "vm"]),
    default="auto",
    show_default=True,
    help="This machine's kernel, or a virtual machine.",
)
@click.option(
    "--sa-backend",
    type=click.Choice(["netlink", "command", "pfkey", "memory"]),
    default="netlink",
    show_default=True,
    help="How SAs are written; memory: no kernel SAs.",
)
@click.option(
    "--sa-mode",
    type=click.Choice(["per-sender", "paper"]),
    default="per-sender",
    show_default=True,
    help="One SA per sender, or one for all as in the paper.",
)
@click.option(
    "--mike-mode",
    type=click.Choice(["ka", "kd", "auto"]),
    default="ka",
    show_default=True,
    help="Key agreement, key distribution, or by the size of the group.",
)
@click.option("--parked", is_flag=True, help="Do not start the protocol ('testbed do start d1').")
@click.option("--foreground", is_flag=True, help="Stay here until Ctrl-C.")
@click.option(
    "--keep", type=click.Path(path_type=Path), help="Keep logs and traces in this folder."
)
@click.option("--capture", is_flag=True, help="Record every black cable (needs --keep).")
@click.option("--learn", is_flag=True, help="No pre-deployed certificates: devices learn them.")
@click.option("--mailbox", type=click.Path(path_type=Path), hidden=True)
def up(mailbox: Path | None, foreground: bool, **options: Any) -> None:
    """Build TOPOLOGY, start idpd and miked in every device, and keep it up in the background.

    \b
    Examples:
      testbed up measurement
      testbed up 'star(3)' --sa-backend memory      natively, without kernel SAs
      testbed up measurement --env vm --devices 4
      testbed up coalition                          routers, red LANs and clients too
    """
    from testbed import live
    from topologies import find

    wanted = live.UpOptions(**options)
    topology = find(wanted.topology)
    if wanted.devices is not None:
        topology = topology.limited_to(wanted.devices)
    if mailbox is not None:
        live.hold_here(topology, wanted, mailbox)
    elif foreground:
        live.hold_in_foreground(topology, wanted)
    else:
        _report_up(live.hold_in_background(topology, wanted), wanted)


@click.command()
@_run_option
@click.option("--json", "as_json", is_flag=True, help="Print all that the daemons say.")
def status(run_id: str | None, as_json: bool) -> None:
    """Show what a network says: devices (state, members, epoch, SAs), routers, proxies, gateways.

    \b
    Examples:
      testbed status
      testbed status --json | jq .devices.d1.miked.members
    """
    run, mailbox = _network(run_id)
    answer = mailbox.ask("status")
    if as_json:
        click.echo(json.dumps({"run": run.run_id, **answer}, indent=2))
        return
    click.echo(f"{answer['topology']} is up as run {run.run_id}")
    click.echo(_table(answer["devices"]))
    for line in _others(answer):
        click.echo(line)
    if answer["fault"]:
        raise click.ClickException(answer["fault"])


@click.command(
    "exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@_run_option
@click.argument("node")
@click.argument("argv", metavar="COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
def execute(run_id: str | None, node: str, argv: tuple[str, ...]) -> None:
    """Run COMMAND in the namespaces of NODE (device, router, client); its exit status is ours.

    \b
    Examples:
      testbed exec d1 ip -6 addr
      testbed exec d2 ip xfrm state count
      testbed exec d3 ping -c 3 2001:db8:b::1
      testbed exec c1a ping -c 3 fd00:1::1          a client of 'coalition'
      testbed exec r1 ip -6 mroute                  a black router
    """
    _, mailbox = _network(run_id)
    code = mailbox.execute(node, argv, sys.stdout, sys.stderr)
    sys.exit(code if code >= 0 else 128 - code)


@click.command()
@_run_option
@click.argument("action", type=click.Choice(["start", "stop", "cut", "heal", "handover"]))
@click.argument("device")
def do(run_id: str | None, action: str, device: str) -> None:
    """Start or stop the protocol on DEVICE, cut or heal its cable, or make it the TM.

    \b
    Examples:
      testbed do cut d3
      testbed do handover d2
    """
    _, mailbox = _network(run_id)
    mailbox.ask(action, device=device)


@click.command()
@_run_option
@click.option("--all", "everything", is_flag=True, help="Every network that is up.")
def down(run_id: str | None, everything: bool) -> None:
    """Take a network down; nothing of it stays.

    \b
    Examples:
      testbed down
      testbed down --all
    """
    from testbed import live

    runs = live.networks() if everything else [_network(run_id)[0]]
    for run in runs:
        click.echo(f"{run.run_id}: {live.take_down(run)}")
    if not runs:
        click.echo("no network is up")


def _network(run_id: str | None) -> tuple[Run, Mailbox]:
    from testbed import live

    run = live.choose(run_id)
    return run, live.mailbox_of(run)


def _report_up(run: Run, options: UpOptions) -> None:
    record = run.record()
    where = "in a virtual machine" if record.get("in_vm") else "on this machine's kernel"
    click.echo(f"{options.topology} is up as run {run.run_id} {where}")
    click.echo("next: testbed status | testbed exec d1 ip -6 addr | testbed down")


def _others(answer: dict[str, Any]) -> list[str]:
    """Return a line for each router, each multicast proxy and each gateway."""
    lines = [f"router {name}: {text}" for name, text in answer["routers"].items()]
    for node, proxy in answer["proxies"].items():
        text = proxy.get("error") or f"{proxy['groups']} groups heard, {proxy['flows']} flows"
        lines.append(f"proxy {node}: {text}")
    for node, spoken in answer["gateways"].items():
        into = (f"for {', '.join(names)} in {place}" for place, names in spoken.items() if names)
        text = spoken.get("error") or "; ".join(into) or "stands by"
        lines.append(f"gateway {node}: {text}")
    return lines


def _table(devices: dict[str, Any]) -> str:
    header = ("device", "idpd", "miked", "peers", "members", "epoch", "active", "SAs")
    rows = [header]
    for name, answer in devices.items():
        if "error" in answer:
            rows.append((name, answer["error"], "", "", "", "", "", ""))
            continue
        idp, mike = answer["idpd"], answer["miked"]
        sas = answer["sas"]
        rows.append(
            (
                name,
                str(idp.get("state")),
                f"{mike.get('state')}/{mike.get('role')}",
                str(sum(peer.get("state") == "up" for peer in idp.get("peers") or ())),
                str(len(mike.get("members") or ())),
                str(mike.get("epoch") or "-")[:_EPOCH_DIGITS],
                str(idp.get("active_epoch") or "-")[:_EPOCH_DIGITS],
                "memory" if sas is None else str(sas),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return os.linesep.join(lines)
