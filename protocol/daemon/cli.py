"""The daemons' command lines, with help that teaches; see `protocol.daemon.entry`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from protocol.core.errors import LocalError
from protocol.daemon import entry
from protocol.daemon.control import request
from protocol.daemon.launch import DAEMONS, GATEWAY, PROXY
from protocol.daemon.tables import load_run_files

_TITLES = {
    "idpd": "The IPsec discovery protocol (IDP): finds the other devices, writes the SAs.",
    "miked": "The group key protocol (MIKE): agrees with the other devices on the group key.",
    "mproxyd": "The multicast proxy: forwards red multicast between LANs and tunnel (RFC 4605).",
    "gatewayd": "The IDP security gateway: joins partitions that have groups of their own.",
}

_EXAMPLE_HELP = """\b
Examples:
  {daemon} run d3.toml                    # parked until told to start
  {daemon} start --config d3.toml         # start now
  {daemon} status --config d3.toml        # what it knows
  {daemon} status --socket /run/d3/{daemon}.sock --json
  {daemon} stop --config d3.toml          # leave the group, stay loaded
"""

_PROXY_EXAMPLE_HELP = """\b
Examples:
  mproxyd run d3.toml                     # beside idpd and miked, from the same file
  mproxyd run lan.toml                    # a LAN router: [device] and [mproxy] are enough
  mproxyd status --socket /run/d3/mproxyd.sock --json
"""

_GATEWAY_EXAMPLE_HELP = """\b
Examples:
  gatewayd run g1.toml                    # beside idpd and miked of each leg
  gatewayd status --config g1.toml        # partitions, prefixes, who speaks
"""

_RUN_HELP = """Run the daemon of the device described in CONFIG, a TOML file, in the foreground.

It loads everything, then waits for `start` unless the file says `park = false`. SIGTERM or
Ctrl-C leaves the group, removes its SAs and policies, and ends; a second one ends at once.
"""

_PROXY_RUN_HELP = """Run the proxy described in section [mproxy] of CONFIG, a TOML file.

It forwards from the start until SIGTERM or Ctrl-C; then, or if it dies, nothing is forwarded.
"""


_GATEWAY_RUN_HELP = """Run the gateway described in section [gateway] of CONFIG, a TOML file.

It relays from the start until SIGTERM or Ctrl-C, as soon as the legs' daemons run.
"""


def command_line(daemon: str) -> click.Group:
    """Return the click group of one daemon."""
    parks = daemon in DAEMONS
    other_help = {PROXY: _PROXY_EXAMPLE_HELP, GATEWAY: _GATEWAY_EXAMPLE_HELP}
    examples = other_help.get(daemon) or _EXAMPLE_HELP.format(daemon=daemon)

    @click.group(
        name=daemon,
        help=f"{_TITLES[daemon]}\n\n{examples}",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    def group() -> None:
        """Hold the commands together."""

    group.add_command(_run_command(daemon))
    group.add_command(_status_command(daemon))
    if parks:
        group.add_command(_start_command(daemon))
        group.add_command(
            _simple_command(daemon, "stop", "Leave the group and park; answers when done.")
        )
    group.add_command(_simple_command(daemon, "shutdown", "Stop and end the daemon process."))
    group.add_command(_simple_command(daemon, "flush", "Write trace and log out now."))
    if parks:
        group.add_command(_trust_command(daemon))
    if daemon == "miked":
        group.add_command(_handover_command(daemon))
        group.add_command(_rekey_command(daemon))
    if daemon == "idpd":
        group.add_command(_prefix_commands(daemon))
    return group


def _run_command(daemon: str) -> click.Command:
    help_text = {PROXY: _PROXY_RUN_HELP, GATEWAY: _GATEWAY_RUN_HELP}.get(daemon, _RUN_HELP)

    @click.command("run", short_help="Run the daemon in the foreground.", help=help_text)
    @click.argument("config", type=click.Path(path_type=Path))
    @click.option(
        entry.EXIT_WITH_PARENT,
        "with_parent",
        is_flag=True,
        help="End, in order, when the program that started the daemon ends.",
    )
    @click.option(
        entry.RECORD_DATAGRAMS,
        "record",
        is_flag=True,
        help="Write every event to the trace, datagrams in full (never keys), for replay.",
    )
    @click.option(
        entry.RECORD_SECRETS,
        "draws",
        is_flag=True,
        hidden=daemon not in entry.DEVICE_DAEMONS,
        help=f"For tests: write every secret drawn to {daemon}.secrets (mode 0600), for replay.",
    )
    @click.option(
        entry.BATCH,
        "batch",
        is_flag=True,
        help="Share the machine with other devices' daemons: do not push them aside (SCHED_BATCH).",
    )
    @click.option(entry.DEBUG, "debug", is_flag=True, help="Log debug lines too.")
    def run(
        *, config: Path, with_parent: bool, record: bool, draws: bool, debug: bool, batch: bool
    ) -> None:
        if draws and daemon not in entry.DEVICE_DAEMONS:
            raise click.UsageError(f"{daemon} has no option {entry.RECORD_SECRETS}")
        flags = {
            entry.EXIT_WITH_PARENT: with_parent,
            entry.RECORD_DATAGRAMS: record,
            entry.RECORD_SECRETS: draws,
            entry.DEBUG: debug,
            entry.BATCH: batch,
        }
        sys.exit(entry.run(daemon, config, frozenset(name for name, on in flags.items() if on)))

    return run


def _status_command(daemon: str) -> click.Command:
    @click.command("status", short_help="Show what the daemon knows.")
    @_where
    @click.option("--json", "as_json", is_flag=True, help="Everything, as one JSON object.")
    def status(socket: Path | None, config: Path | None, as_json: bool) -> None:
        """Show what the daemon does and knows, and what it refused and why."""
        answer = _ask(daemon, socket, config, {"cmd": "status"})
        answer.pop("ok")
        if as_json:
            click.echo(json.dumps(answer, indent=2))
        else:
            click.echo("\n".join(status_lines(answer)))

    return status


def _start_command(daemon: str) -> click.Command:
    @click.command("start", short_help="Start the protocol, now or at a given time.")
    @_where
    @click.option(
        "--at-wall-ns",
        type=int,
        default=None,
        metavar="NS",
        help="Trigger time on the device's clock, UTC nanoseconds since 1970.",
    )
    def start(socket: Path | None, config: Path | None, at_wall_ns: int | None) -> None:
        """Start a parked daemon's protocol instance, now or at a pre-calculated time."""
        answer = _ask(daemon, socket, config, {"cmd": "start", "at_wall_ns": at_wall_ns})
        click.echo(f"{answer['state']}, trigger {_time(answer['trigger_wall_ns'])}")

    return start


def _simple_command(daemon: str, name: str, text: str) -> click.Command:
    @click.command(name, help=text)
    @_where
    def simple(socket: Path | None, config: Path | None) -> None:
        answer = _ask(daemon, socket, config, {"cmd": name}, timeout_s=30.0)
        click.echo(answer.get("state", "done"))

    return simple


def _trust_command(daemon: str) -> click.Group:
    @click.group("trust", short_help="Certificates and revocation lists.")
    def trust() -> None:
        """Say whom the device trusts."""

    @trust.command("reload")
    @_where
    def reload(socket: Path | None, config: Path | None) -> None:
        """Read anchors, certificates, revocation lists and the domain policy again.

        idpd hands what is new to miked, and new revocation lists to all other devices. What a
        malformed file would change stays as it is.
        """
        answer = _ask(daemon, socket, config, {"cmd": "trust_reload"}, timeout_s=30.0)
        certificates, lists = answer["certificates"], answer["revocation_lists"]
        click.echo(f"new: {certificates} certificates, {lists} revocation lists")
        if answer["policy"] is not None:
            click.echo(f"domain policy in the file: version {answer['policy']}")

    return trust


def _handover_command(daemon: str) -> click.Command:
    @click.command("handover", short_help="Make another member transaction manager (TM).")
    @_where
    @click.argument("to", metavar="ADDRESS")
    def handover(socket: Path | None, config: Path | None, to: str) -> None:
        """Hand the role of transaction manager to the member with this black address."""
        answer = _ask(daemon, socket, config, {"cmd": "handover", "to": to})
        click.echo(f"handing over to {answer['to']}")

    return handover


_REKEY_HELP = """Renew this device's share in the group key, and thereby the key.

Whoever copied this device's secrets before cannot compute the keys after it; renewals by other
devices do not heal that. Members stay members and traffic goes on (make before break). A share is
renewed at most every rekey_interval_min_ms. For renewals by time set rekey_interval_ms in [mike].

\b
Example:
  miked rekey --config d3.toml && miked status --config d3.toml    # "key since", "share since"
"""


def _rekey_command(daemon: str) -> click.Command:
    @click.command("rekey", short_help="Renew our share and the group key.", help=_REKEY_HELP)
    @_where
    def rekey(socket: Path | None, config: Path | None) -> None:
        answer = _ask(daemon, socket, config, {"cmd": "rekey"})
        click.echo(f"renewing as {answer['role']}, after epoch {answer['epoch']}")

    return rekey


def _prefix_commands(daemon: str) -> click.Group:
    @click.group("prefix", short_help="Change the red prefixes that are announced.")
    def prefix() -> None:
        """Say which red prefixes this device announces, until the daemon ends."""

    def change(name: str, command: str, text: str) -> None:
        @prefix.command(name, help=text)
        @_where
        @click.argument("prefix", metavar="PREFIX")
        def one(socket: Path | None, config: Path | None, prefix: str) -> None:
            answer = _ask(daemon, socket, config, {"cmd": command, "prefix": prefix})
            click.echo("\n".join(answer["own_prefixes"]) or "nothing is announced")

    change("add", "prefix_add", "Announce PREFIX too; our certificate must authorise it.")
    change("remove", "prefix_remove", "Announce PREFIX no longer.")

    @prefix.command("list")
    @_where
    def listed(socket: Path | None, config: Path | None) -> None:
        """Show the prefixes of all devices, and whose they are."""
        answer = _ask(daemon, socket, config, {"cmd": "status"})
        lines = [f"{own} own" for own in answer["own_prefixes"]]
        lines += [f"{item['prefix']} {item['peer']}" for item in answer["prefixes"]]
        click.echo("\n".join(lines) or "no prefixes")

    return prefix


def _where(function: Any) -> Any:
    """Add the two ways to say which daemon is meant."""
    path = click.Path(path_type=Path)
    socket = click.option("--socket", type=path, help="Control socket of the daemon.")
    config = click.option("--config", type=path, help="TOML file of the device.")
    return socket(config(function))


def _ask(
    daemon: str,
    socket: Path | None,
    config: Path | None,
    message: Mapping[str, Any],
    timeout_s: float = 5.0,
) -> dict[str, Any]:
    if (socket is None) == (config is None):
        raise click.UsageError("give either --socket or --config")
    try:
        if config is not None:
            socket = load_run_files(config).control_socket(daemon)
        assert socket is not None
        return request(socket, message, timeout_s)
    except LocalError as error:
        click.echo(f"{daemon}: {error}", err=True)
        sys.exit(1)


def status_lines(answer: Mapping[str, Any]) -> list[str]:
    """Return a status as lines for people."""
    place = f" ({answer['nation']}), {answer['address']}" if "nation" in answer else ""
    lines = [
        f"{answer['daemon']} of {answer['device']}{place}:"
        f" {answer['state']}, process {answer['pid']}"
    ]
    for name in ("role", "tm", "epoch", "active_epoch", "backend", "sa_mode"):
        if answer.get(name) is not None:
            lines.append(f"  {name.replace('_', ' '):13} {answer[name]}")
    for name in ("key_since", "share_since"):
        since = answer.get("rekey", {}).get(f"{name}_wall_ns")
        if since is not None:
            lines.append(f"  {name.replace('_', ' '):13} {_time(since)}")
    for name in ("members", "peers"):
        entries = answer.get(name)
        if entries:
            lines.append(f"  {name}")
            lines += [f"    {_entry(item)}" for item in entries]
    lines += _trust_lines(answer)
    lines += _proxy_lines(answer)
    lines += _gateway_lines(answer)
    for refusal in answer.get("refused", []):
        lines.append(
            f"  refused {refusal.get('peer')}: {refusal.get('reason')}"
            f" (last {_time(refusal.get('last_wall_ns'))})"
        )
    if answer.get("trace_error"):
        lines.append(f"  trace cannot be written: {answer['trace_error']}")
    counters = answer.get("counters", {})
    if counters:
        lines.append("  counters")
        lines += [f"    {name} {count}" for name, count in counters.items()]
    return lines


def _trust_lines(answer: Mapping[str, Any]) -> list[str]:
    """Return the domain policy that a device keeps to, and what it learned about trust."""
    lines = []
    policy, trust = answer.get("policy"), answer.get("trust")
    if policy:
        lines.append(f"  {'policy':13} {policy['version']} of {policy['domain']}")
    if trust:
        lists = ", ".join(f"{i['issuer']} {i['number']}" for i in trust["revocation_lists"])
        lines.append(f"  {'learned':13} {trust['learned']} certificates")
        lines.append(f"  {'revocations':13} {lists or 'none'}")
    return lines


def _proxy_lines(answer: Mapping[str, Any]) -> list[str]:
    """Return what only a proxy has: its interfaces with their groups, and its flows."""
    if "upstream" not in answer:
        return []
    upstream = answer["upstream"]
    joined = ", ".join(item["group"] for item in upstream["joined"]) or "nothing joined"
    lines = [f"  upstream {upstream['interface']}: {joined}"]
    for port in answer["downstream"]:
        querier = f", querier {port['querier']}" if port["querier"] else ""
        place = f"  downstream {port['interface']} IPv{port['family']}"
        lines.append(f"{place}: {port['state']}{querier}")
        lines += [f"    {item['group']} from {_sources(item)}" for item in port["groups"]]
    return lines + _flow_lines(answer)


def _flow_lines(answer: Mapping[str, Any]) -> list[str]:
    return [
        f"  flow {flow['source']} {flow['group']}: "
        f"{flow['in']} to {', '.join(flow['outs']) or 'nowhere'}"
        for flow in answer["flows"]
    ]


def _gateway_lines(answer: Mapping[str, Any]) -> list[str]:
    """Return what only a gateway has: its legs, and the partitions that it knows."""
    if "legs" not in answer:
        return []
    lines = []
    for leg in answer["legs"]:
        spoken = ", ".join(leg["speaks_for"]) or "nobody"
        state = f"epoch {leg['epoch']}" if leg["counts"] else "down"
        lines.append(f"  leg {leg['partition']} {leg['address']}: {state}, speaks for {spoken}")
        lines += [f"    gateway {one['name']} {one['address']}" for one in leg["gateways"]]
    for item in answer["partitions"]:
        through = f" through {item['gateway']}" if item["gateway"] else ""
        lines.append(f"  partition {item['partition']}: {item['hops']} gateways away{through}")
        lines += [f"    {net}" for net in item["prefixes"]]
        lines += [f"    {one['address']} {one['name']}" for one in item["members"]]
    return lines + _flow_lines(answer)


def _sources(item: Mapping[str, Any]) -> str:
    sources = item["sources"]
    return sources if isinstance(sources, str) else ", ".join(sources)


def _entry(item: object) -> str:
    if isinstance(item, Mapping):
        heard = item.get("last_hello_ms")
        tail = "" if heard is None else f", heard {heard} ms ago"
        if item.get("prefixes"):
            tail += f", behind it {', '.join(item['prefixes'])}"
        return f"{item.get('address')} {item.get('name')}: {item.get('state')}{tail}"
    return str(item)


def _time(wall_ns: object) -> str:
    if not isinstance(wall_ns, int):
        return "never"
    return datetime.fromtimestamp(wall_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S.%f UTC")
