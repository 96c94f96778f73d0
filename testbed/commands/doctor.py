"""``testbed doctor``."""

from __future__ import annotations

import sys

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def doctor(as_json: bool) -> None:
    """Say what this machine can do, what is missing, and the command that cures it.

    \b
    Examples:
      testbed doctor
      testbed doctor --json | jq .vm
    """
    from testbed.preflight import render_json, render_text, survey

    report = survey()
    click.echo(render_json(report) if as_json else render_text(report))
    sys.exit(report.exit_code)
