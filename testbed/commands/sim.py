"""``testbed sim``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from testbed.sim.run import Verdict
    from testbed.sim.scenario import Scenario

SEEDS = re.compile(r"([0-9]+)\.\.([0-9]+)")


class SeedRange(click.ParamType[range]):
    """``A..B``, both included."""

    name = "A..B"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> range:
        """Read a range."""
        matched = SEEDS.fullmatch(str(value))
        if matched is None or int(matched[1]) > int(matched[2]):
            self.fail(f"{value!r} is no range of seeds, for example 1..1000", param, ctx)
        return range(int(matched[1]), int(matched[2]) + 1)


@click.command()
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="One seed, described.")
@click.option("--seeds", type=SeedRange(), help="All seeds of a range.")
@click.option(
    "--replay",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Scenarios, one JSON object a line, as a failing seed prints them.",
)
@click.option(
    "--recording",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Trace of an idpd run with --record-datagrams: its engine once more.",
)
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Configuration of the device of that recording.",
)
@click.option(
    "--members", type=click.IntRange(2, 60), metavar="N", help="Devices (default: drawn, 2 to 10)."
)
@click.option(
    "--theme",
    type=click.Choice(["any", "flap", "death", "soak"]),
    help="What the runs are about (default: drawn, but never soak: minutes with few faults).",
)
@click.option(
    "--mode",
    type=click.Choice(["ka", "kd", "auto"]),
    default="ka",
    show_default=True,
    help="MIKE's mode.",
)
@click.option(
    "--crypto",
    type=click.Choice(["modelled", "real"]),
    default="modelled",
    show_default=True,
    help="Stand-ins for Ed25519 and X25519, or the real ones.",
)
@click.option(
    "--topology",
    type=click.Choice(["one", "gateways"]),
    default="one",
    show_default=True,
    help="One network, or three partitions that gateways join (drawn).",
)
@click.option("--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes.")
@click.option(
    "--summary",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Add the seeds run to this CSV file; those it has of this kind are not run again.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a run.")
@click.option("--trace", "with_trace", is_flag=True, help="Print what happened, too (one run).")
def sim(
    *,
    seed: int | None,
    seeds: range | None,
    replay: Path | None,
    recording: Path | None,
    config: Path | None,
    members: int | None,
    theme: str | None,
    mode: str,
    crypto: str,
    topology: str,
    jobs: int,
    summary: Path | None,
    as_json: bool,
    with_trace: bool,
) -> None:
    """Run the engines of both daemons in a deterministic simulation with faults.

    One seed decides everything: devices, network, faults, keys. A seed at which a checker objects
    is shrunk to few faults, its trace is printed, and the exit status is 1.

    \b
    Examples:
      testbed sim --seed 17                    one seed: what was drawn, and the verdict
      testbed sim --seeds 1..1000 --jobs 2     many
      testbed sim --seeds 1..9999 --summary results/simulation/seeds.csv
      testbed sim --seeds 1..20 --theme soak   minutes each, a fault in 30 to 120 s
      testbed sim --seed 17 --crypto real      with the real cryptography
      testbed sim --seed 17 --topology gateways   three partitions, gateways between them
      testbed sim --recording run/idpd.trace.jsonl --config d1.toml
    """
    from testbed.sim.gateways.draws import draw_gateways
    from testbed.sim.ledger import Ledger, Row, engines_commit
    from testbed.sim.people import Crypto
    from testbed.sim.run import run_all
    from testbed.sim.scenario import Scenario, Theme, draw

    if sum(source is not None for source in (seed, seeds, replay, recording)) != 1:
        raise click.UsageError("give one of --seed, --seeds, --replay and --recording")
    if (recording is None) != (config is None):
        raise click.UsageError("--recording and --config go together")
    if summary is not None and seeds is None:
        raise click.UsageError("--summary goes with --seeds")
    if recording is not None and config is not None:
        _play(config, recording)
        return
    ledger: Ledger | None = None
    if replay is not None:
        lines = [line.strip() for line in replay.read_text().splitlines()]
        scenarios = [Scenario.from_json(line) for line in lines if line and line[0] != "#"]
    else:
        numbers = list(seeds or [seed or 0])
        about = None if theme is None else Theme(theme)
        if summary is not None:
            themes = theme or "drawn"
            if topology == "gateways":
                themes = f"gateways, {themes}"
            kind = Row(engines_commit(), mode, crypto, str(members or "drawn"), themes)
            ledger = Ledger(summary, kind)
            numbers = ledger.missing(numbers)
        drawing = draw
        if topology == "gateways":
            drawing = draw_gateways
            if theme in ("flap", "soak") or members == 2:
                raise click.UsageError("--topology gateways: at least 3 members, any or death")
        scenarios = [
            drawing(n, members=members, theme=about, mode=mode, crypto=Crypto(crypto))
            for n in numbers
        ]
    if with_trace and len(scenarios) != 1:
        raise click.UsageError("--trace goes with one seed, or a file of one scenario")
    if seed is not None and not as_json:
        click.echo("\n".join(scenarios[0].describe()))
    verdicts = run_all(scenarios, jobs)
    if ledger is not None:
        verdicts = ledger.noting(verdicts)
    failed = [
        verdict
        for verdict in _counted(verdicts, len(scenarios), as_json=as_json)
        if verdict.violation is not None
    ]
    if with_trace:
        _trace(scenarios[0])
    if not failed:
        return
    if not as_json:
        _explain(failed[0])
    names = ", ".join(str(verdict.scenario.seed) for verdict in failed[:10])
    more = "" if len(failed) <= 10 else f" and {len(failed) - 10} more"
    raise click.ClickException(f"{failed[0].violation} (seeds that fail: {names}{more})")


def _counted(verdicts: Iterator[Verdict], total: int, *, as_json: bool) -> Iterator[Verdict]:
    """Pass verdicts on; show progress, print what each is worth, and a sum."""
    import time

    from testbed.progress import Progress

    begun = time.monotonic()
    virtual_ms = 0.0
    epochs = datagrams = 0
    left_out: set[str] = set()
    with Progress(total, "sim") if total > 1 else nullcontext() as progress:
        for verdict in verdicts:
            virtual_ms += verdict.virtual_ms
            epochs += verdict.epochs
            datagrams += verdict.datagrams
            left_out.update(verdict.left_out)
            if progress is not None:
                progress.step()
            if as_json:
                click.echo(json.dumps(verdict.as_json()))
            elif total == 1:
                click.echo(f"agreed after {verdict.agreed_ms} ms; digest {verdict.digest}")
            yield verdict
    spent = time.monotonic() - begun
    if not as_json:
        click.echo(
            f"{total} runs, {virtual_ms / 1000:.0f} virtual seconds in {spent:.1f} s"
            f" ({virtual_ms / 1000 / spent:.0f} a second), {epochs} keys, {datagrams} datagrams"
        )
        if left_out:
            click.echo(f"not modelled, and not performed: {', '.join(sorted(left_out))}")


def _play(config: Path, recording: Path) -> None:
    """Hand a daemon's recording to the same engine, and compare."""
    from testbed.sim.recorded import replay

    played = replay(config, recording)
    click.echo(f"{played.events} events of {played.device}, {played.points} points compared")
    if played.skipped:
        click.echo(f"events not recorded in full, left out: {', '.join(played.skipped)}")
    if played.difference is not None:
        raise click.ClickException(played.difference)
    click.echo("the engine says the same again")


def _trace(scenario: Scenario) -> None:
    from testbed.sim.run import trace

    click.echo("\n".join(trace(scenario)))


def _explain(verdict: Verdict) -> None:
    """Print the shortest trace of a failing run, and how to repeat it."""
    from testbed.sim.run import shrink

    seed = verdict.scenario.seed
    click.echo(f"seed {seed} fails: {verdict.violation}; shrinking ...")
    shortest = shrink(verdict)
    before, after = len(verdict.scenario.faults), len(shortest.scenario.faults)
    click.echo(f"{before} faults became {after}; the trace:")
    _trace(shortest.scenario)
    click.echo("scenario, for --replay or tests/simulation/regressions.txt:")
    click.echo(shortest.scenario.to_json())
