"""The commands `run join|leave|sa-write|experiment` and `plot`; testbed.cli mounts them lazily.

Where the machine's kernel cannot do it, the same command runs inside the VM and records into the
same run directory; the figures are drawn on the host, so the guest needs no plotting library.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from experiments.campaign import BACKENDS, MIKE_MODES, SA_MODES, Repetition, Variant
from experiments.errors import ExperimentError
from experiments.kinds import KINDS
from experiments.plan import Overrides, Plan, load
from experiments.record import RunDirectory, latest, new_run_id

if TYPE_CHECKING:
    from testbed.spec import Topology

PROJECT = Path(__file__).resolve().parents[1]
RESULTS = PROJECT / "results"
TOPOLOGY_FILE = "topology.toml"
"""Copy of the network's file in a run's folder, if it was given as a file."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as a shell gives it (128 + SIGINT)."""

_OPTIONS: tuple[Callable[..., Any], ...] = (
    click.option("--devices", type=click.IntRange(3, 200), help="Number of IPsec devices."),
    click.option(
        "--topology",
        metavar="NAME|FILE",
        help="Another network, such as 'coalition(5,1)'; all its devices unless --devices says.",
    ),
    click.option("--repetitions", type=click.IntRange(min=1), help="Repetitions per variant."),
    click.option("--seed", type=int, help="Decides order, trigger jitter and packet senders."),
    click.option(
        "--env",
        type=click.Choice(["auto", "native", "vm"]),
        default="auto",
        show_default=True,
        help="This machine's kernel, or a VM that runs the same command.",
    ),
    click.option(
        "--sa-backend",
        type=click.Choice(BACKENDS),
        help="How SAs are written; memory: without kernel SAs, marked as such everywhere.",
    ),
    click.option("--sa-mode", type=click.Choice(SA_MODES), help="SA per sender, or the paper's."),
    click.option(
        "--mike-mode",
        type=click.Choice(MIKE_MODES),
        help="Key agreement, key distribution, or one of them by the size of the group.",
    ),
    click.option("--suite", help="Algorithm suite of the SAs, e.g. aes-gcm-128 or 3des-sha1."),
    click.option("--hello-interval-ms", type=click.IntRange(min=50), help="IDP's hello interval."),
    click.option(
        "--keep-captures",
        is_flag=True,
        help="Keep the captures of the black wire, clean or not (delivery).",
    ),
    click.option(
        "--attacks",
        metavar="NAME,...",
        callback=lambda _context, _option, text: tuple(text.split(",")) if text else (),
        help="Only these (attacks).",
    ),
    click.option("--quick", is_flag=True, help="Few repetitions."),
    click.option(
        "--resume",
        is_flag=False,
        flag_value="latest",
        default=None,
        metavar="[RUN]",
        help="Go on with a run (its folder; without a value the newest of this experiment).",
    ),
    click.option(
        "--output",
        type=click.Path(file_okay=False, path_type=Path),
        default=RESULTS,
        show_default="results",
        help="Folder for results; the run goes to OUTPUT/EXPERIMENT/RUN-ID.",
    ),
    click.option(
        "--figures/--no-figures", default=True, help="Draw figures and summary at the end."
    ),
)


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.group()
def run() -> None:
    """Measure: joins, leaves, SA writes, or all of it.

    \b
    Examples:
      testbed run experiment                      the main job, ten devices, ten repetitions
      testbed run join --devices 10 --repetitions 10
      testbed run join --sa-backend memory        protocol timing without kernel SAs
      testbed run mike-delay --devices 100        how MIKE's delay grows with the group
      testbed run leave --mike-mode kd            with key distribution instead of key agreement
      testbed run coalition-multicast             who receives whose red multicast; leaks; tshark
      testbed run coalition-multicast --topology 'coalition(5,1)'
      testbed run experiment --resume             go on where the newest run stopped
    """


def _command(name: str, text: str) -> None:
    @run.command(name, help=text)
    @_options
    def command(**options: Any) -> None:
        sys.exit(_guarded(name, options))


_command("join", "Join latency: the TM and the monitor first, then one device at a time.")
_command("leave", "Leave latency: one device at a time, by shutdown and by cable in turns.")
_command("wan", "Joins over a wide area network, by delay and loss; when red packets get through.")
_command(
    "coalition-multicast",
    "Red multicast from every LAN to every other: delivery, leaks, tshark's count; joins, leaves.",
)
_command("mike-delay", "MIKE's delay by group size (Fig. 7), to 50 devices; without kernel SAs.")
_command("throughput", "Red multicast with AES-GCM and, on the same way, in clear text.")
_command("unicast", "Joins with unicast SAs, policies and routes to all red LANs besides.")
_command("discovery", "One device more: how soon all others know it and it knows them.")
_command("hello-cost", "What hellos cost a device, by number of devices, signed and light.")
_command("hello-interval", "How soon a dead device is noticed, and bytes per second, by interval.")
_command("flapping", "A cable that goes out and in: rekeys by its period.")
_command("idp-leave", "Leaves by shut-down and cable, and the return: latency and rekeys.")
_command("faults", "Faults one after the other: how long until all invariants hold again.")
_command("attacks", "An attacker on the black switch: what it achieves, and what it costs a join.")
_command("rekey-loss", "Red streams while others join and leave: packets lost, doubled, overtaken.")
_command("sa-write", "Time per SA write and per delete plus write, by kernel interface.")
_command("experiment", "The main job: SA writes, joins (command+paper, netlink), and leaves.")


@click.command()
@click.argument("run_path", metavar="[RUN]", required=False, type=click.Path(path_type=Path))
@click.option("--latest", "newest", is_flag=True, help="The newest run in results/.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder for the figures.")
def plot(run_path: Path | None, newest: bool, output: Path | None) -> None:
    """Draw the figures and the summary of a run again, from its CSV files alone.

    \b
    Examples:
      testbed plot results/experiment/20260101-120000-s2008
      testbed plot --latest
    """
    if (run_path is None) == (not newest):
        raise click.UsageError("name a run, or say --latest")
    try:
        path = run_path if run_path is not None else latest(RESULTS)
        if (path / "parts").is_dir():
            RunDirectory.open(path, write=False).merge()
        click.echo(_finish(path, output))
    except ExperimentError as error:
        raise click.ClickException(str(error)) from error


def _guarded(name: str, options: dict[str, Any]) -> int:
    """Run a campaign; every expected error is one line and a non-zero exit status."""
    from testbed.errors import TestbedError, one_line
    from testbed.vm.layout import TestbedEnvironmentError

    try:
        return _campaign(name, options)
    except (ExperimentError, TestbedError, TestbedEnvironmentError) as error:
        click.echo(f"testbed: error: {error}", err=True)
    except OSError as error:
        click.echo(f"testbed: error: {one_line(error)}", err=True)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 1


def _campaign(name: str, options: dict[str, Any]) -> int:
    from testbed.artifacts import portable, provenance
    from testbed.environment import EnvironmentKind, choose, rerun_in_vm

    directory, plan = _directory(name, options)
    try:
        if directory is not None:
            plan = directory.plan
        choice = choose(EnvironmentKind(options["env"]), needs_esp=not plan.memory)
        in_vm = choice.kind is EnvironmentKind.VM
        if directory is None:
            about = {
                "command": portable(sys.argv),
                "host": provenance(sys.argv),
                "reason": choice.reason,
            }
            path = options["output"].resolve() / plan.name / new_run_id(plan)
            directory = RunDirectory.create(path, plan, about)
            _keep_topology(directory, options["topology"])
        path = directory.path
        click.echo(f"run {path.name}: {choice.kind} ({choice.reason}); results in {path}")
        if in_vm:
            directory.close()
            inner = [sys.executable, "-m", "experiments.commands", name]
            inner += ["--resume", str(path), "--env", "native", "--no-figures"]
            status = rerun_in_vm(inner, writable=[path])
        else:
            status = _native(directory)
    finally:
        if directory is not None:
            directory.close()
    return _conclude(path, status, name, figures=options["figures"])


def _directory(name: str, options: dict[str, Any]) -> tuple[RunDirectory | None, Plan]:
    """Return the run to go on with, or None and the plan of a new one."""
    known = Overrides.__dataclass_fields__
    overrides = Overrides(**{key: value for key, value in options.items() if key in known})
    if options["resume"] is None:
        return None, _with_topology(load(name, overrides), overrides)
    if overrides != Overrides():
        raise ExperimentError("--resume goes on with the run's own plan: no other plan options")
    chosen = options["resume"]
    path = latest(options["output"], name) if chosen == "latest" else Path(chosen).resolve()
    directory = RunDirectory.open(path)
    if directory.manifest["experiment"] != name:
        directory.close()
        raise ExperimentError(f"{path.name} is a run of {directory.manifest['experiment']}")
    return directory, directory.plan


def _with_topology(plan: Plan, overrides: Overrides) -> Plan:
    """Take all devices of a network that was asked for, unless their number was asked for, too.

    Of the path of a file only its name goes into the plan: `_keep_topology` copies the file.
    """
    from testbed.spec import TopologyError
    from topologies import find

    if overrides.topology is None:
        return plan
    topology = find(overrides.topology)
    if topology.gateways:
        raise TopologyError(
            f"{topology.name} has partitions with their own groups; experiments measure one group"
        )
    devices = overrides.devices or len(topology.devices)
    return replace(plan, devices=devices, topology=Path(overrides.topology).name)


def _keep_topology(directory: RunDirectory, topology: str | None) -> None:
    """Copy a topology's file into its run: a guest sees no other, and the run tells what it was."""
    if topology is not None and topology.endswith(".toml"):
        text = Path(topology).read_text(encoding="utf-8")
        (directory.path / TOPOLOGY_FILE).write_text(text, encoding="utf-8")


def _topology(directory: RunDirectory) -> Topology:
    """Return the run's network, with as many devices as its plan says."""
    from topologies import families, find

    plan = directory.plan
    own = directory.path / TOPOLOGY_FILE
    topology = find(str(own) if own.exists() else plan.topology)
    if plan.devices > len(topology.devices) and not topology.routers:
        topology = families.star(plan.devices)
    return topology.limited_to(plan.devices)


def _native(directory: RunDirectory) -> int:
    """Measure on this machine's kernel; return an exit status."""
    from experiments.runner import Runner, failed_steps, step_count
    from experiments.sa_write import measure
    from testbed.artifacts import portable, provenance
    from testbed.environment import describe
    from testbed.progress import Progress
    from testbed.session import begin

    begin(sys.argv)
    session = {
        "environment": describe(),
        "provenance": provenance(sys.argv),
        "argv": portable(sys.argv),
    }
    try:
        with Progress(step_count(directory), directory.plan.name) as progress:
            Runner(directory, _fleets(directory), measure, progress).execute(session)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 1 if failed_steps(directory) else 0


def _fleets(directory: RunDirectory) -> Callable[..., Any]:
    """Return what loads a fleet for a repetition's variant."""
    from testbed.fleet import Fleet, FleetOptions
    from testbed.sourcespecific import source_specific

    plan = directory.plan

    def load_fleet(repetition: Repetition, logs: str) -> Fleet:
        variant = repetition.variant
        topology = _topology(directory)
        options = FleetOptions(
            keep=directory.path / "logs" / logs,
            sa_backend=variant.sa_backend,
            sa_mode=variant.sa_mode,
            suite=variant.suite,
            idp=_idp(variant),
            mike=_mike(variant),
            ipsec={
                "activation_delay_ms": variant.activation_delay_ms,
                "deactivation_delay_ms": variant.deactivation_delay_ms,
                "unicast": variant.unicast,
            },
            domain_policy=variant.domain_policy,
            clear_text=variant.protection == "clear-text",
            guard=variant.protection != "clear-text",
            capture=KINDS[repetition.campaign.kind].capture,
            seed=plan.seed,
        )
        if variant.black_groups == "source-specific":
            topology, options = source_specific(topology, options)
        return Fleet(topology, options)

    return load_fleet


def _idp(variant: Variant) -> dict[str, int]:
    """Return IDP's settings; what must be shorter than the hello interval shrinks with it."""
    interval_ms = variant.hello_interval_ms
    return {
        "hello_interval_ms": interval_ms,
        "jitter_ms": min(20, interval_ms // 4),
        "triggered_hello_spread_ms": min(variant.hello_answer_spread_ms, interval_ms),
        "full_hello_every": variant.full_hello_every,
    }


_PATIENT = (
    "join_retry_ms",
    "join_retry_max_ms",
    "founding_delay_ms",
    "tm_silence_ms",
    "repair_delay_ms",
    "repair_retry_max_ms",
    "tree_retry_ms",
    "sponsor_timeout_ms",
    "handover_retry_ms",
    "election_timeout_ms",
    "takeover_grace_ms",
)
"""MIKE's timers that act only when something was lost or somebody is silent."""


def _mike(variant: Variant) -> dict[str, int | str]:
    """Return MIKE's settings: its mode, and its default repair timers times the patience."""
    from protocol.mike.config import MikeConfig

    usual = MikeConfig()
    patient = {name: getattr(usual, name) * variant.mike_patience for name in _PATIENT}
    return {"mode": variant.mike_mode, **patient}


def _conclude(path: Path, status: int, name: str, *, figures: bool) -> int:
    """Merge, summarise, draw, print; return the exit status of the command."""
    from experiments.runner import missing_parts

    directory = RunDirectory.open(path, write=False)
    left = missing_parts(directory)
    if figures and directory.parts():
        directory.merge()
        click.echo(_finish(path, None))
    if left:
        done = len(directory.parts())
        click.echo(
            f"incomplete: {done} of {done + left} parts are recorded; go on with: "
            f"testbed run {name} --resume {os.path.relpath(path)}",
            err=True,
        )
        return status or 1
    if status == 1:
        click.echo("a step's check failed: see summary.md and steps.csv", err=True)
    return status


def _finish(path: Path, output: Path | None) -> str:
    """Write summary and figures; return the text to print."""
    from experiments import summary, summarytext
    from experiments.plots import draw_all

    found = summary.write(path)
    files = draw_all(path, output)
    names = ", ".join(file.name for file in files if file.suffix == ".png")
    folder = files[0].parent if files else path
    return f"{summarytext.text(found)}figures in {os.path.relpath(folder)}: {names or 'none'}"


if __name__ == "__main__":
    run()
