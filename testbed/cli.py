"""The command ``testbed``: a thin shell around the packages, each command loaded when it is used.

Every expected error is one line with cause and cure and exit status 1; wrong usage is 2; an
interrupted run cleans up and ends with 130. ``--debug`` shows the traceback instead.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, Final, NoReturn

import click

EXIT_ERROR: Final = 1
EXIT_INTERRUPTED: Final = 130

# Name -> module, attribute, and the line that --help shows without importing the module.
COMMANDS: Final[dict[str, tuple[str, str, str]]] = {
    "doctor": ("testbed.commands.doctor", "doctor", "Say what this machine can do."),
    "pki": ("testbed.commands.pki", "pki", "Make the certificates of a coalition."),
    "topology": ("testbed.commands.topology", "topology", "List and show topologies."),
    "up": ("testbed.commands.live", "up", "Build a network, start its daemons, keep it up."),
    "status": ("testbed.commands.live", "status", "Show devices, epochs and SAs of a network."),
    "exec": ("testbed.commands.live", "execute", "Run a command in a device."),
    "do": ("testbed.commands.live", "do", "Start, stop, cut or heal a device; hand the TM over."),
    "capture": (
        "testbed.commands.capture",
        "capture",
        "Record the black wire, with keys if asked.",
    ),
    "down": ("testbed.commands.live", "down", "Take a network down."),
    "run": ("experiments.commands", "run", "Measure joins, leaves, SA writes, or all of it."),
    "plot": ("experiments.commands", "plot", "Draw a run's figures again, from its CSVs alone."),
    "reliability": (
        "experiments.reliability",
        "reliability",
        "Make the README's table from the reference runs.",
    ),
    "sim": ("testbed.commands.sim", "sim", "Run the engines in a seeded simulation with faults."),
    "cost": ("testbed.commands.cost", "cost", "Count what a join or leave costs in large groups."),
    "delay": ("testbed.commands.delay", "delay", "Say how long it takes in large groups."),
    "clean": ("testbed.commands.clean", "clean", "Remove what crashed runs left behind."),
    "completion": ("testbed.commands.completion", "completion", "Print shell completion."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit status: 0 done, 1 error, 2 wrong usage, 130 interrupted.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="idpmike-testbed", prog_name="testbed")
def command_line(debug: bool) -> None:
    """IDP, MIKE and kernel IPsec in an emulated coalition network, measured.

    \b
    Examples:
      testbed doctor                              what can this machine do?
      testbed run experiment --quick              measure joins and leaves, draw the figures
      testbed up measurement --devices 3          build a network and keep it up
      testbed status                              what do its devices say?
      testbed exec d1 ping -c1 2001:db8:b::2      run a command in a device
      testbed down                                take it down
    """


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point of the command ``testbed``."""
    words = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in words[: words.index("--") if "--" in words else len(words)]
    words = [word for word in words if word != "--debug"] if debug else words
    code: Any = EXIT_ERROR
    try:
        code = command_line.main(words, prog_name="testbed", standalone_mode=False)
    except click.exceptions.Exit as exit_:
        code = exit_.exit_code
    except click.UsageError as error:
        error.show()
        code = error.exit_code
    except click.ClickException as error:
        _complain(error.format_message())
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        if debug:
            raise
        sys.stderr.write("testbed: interrupted\n")
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone, which is no error
    except Exception as error:
        if debug or not _expected(error):
            raise
        _complain(str(error))
    sys.exit(code if isinstance(code, int) else 0)


def _complain(text: str) -> None:
    sys.stderr.write(f"testbed: error: {' '.join(text.split())}\n")


def _expected(error: Exception) -> bool:
    """Return whether an error is ours to explain in one line, and no bug."""
    from protocol.core.errors import ProtocolError
    from testbed.errors import TestbedError
    from testbed.vm.layout import TestbedEnvironmentError

    return isinstance(error, (TestbedError, TestbedEnvironmentError, ProtocolError, OSError))


if __name__ == "__main__":
    main()
