"""``testbed completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print what makes SHELL complete testbed's commands and options.

    \b
    Examples:
      testbed completion bash > ~/.local/share/bash-completion/completions/testbed
      eval "$(testbed completion zsh)"
    """
    from testbed.cli import command_line

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(command_line, {}, "testbed", "_TESTBED_COMPLETE").source())
