"""``testbed clean``."""

from __future__ import annotations

import click


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
def clean(dry_run: bool) -> None:
    """Remove what finished and crashed runs left: processes, mounts, run directories.

    Runs are found by their ids, never by a name pattern. Living runs are left alone ('testbed
    down' ends a network). Results are never touched.

    \b
    Examples:
      testbed clean --dry-run
      testbed clean
    """
    from testbed.runs import all_runs, processes_of

    runs = all_runs()
    for run in runs:
        if run.alive():
            click.echo(f"{run.run_id}: still running, left alone")
        elif dry_run:
            left = len(processes_of(run.run_id))
            click.echo(f"{run.run_id}: would remove {left} processes and {run.directory}")
        else:
            gone = run.reap()
            click.echo(
                f"{run.run_id}: removed {gone.processes} processes, {gone.mounts} mounts, "
                f"{gone.directories} directories"
            )
    if not runs:
        click.echo("nothing to clean")
