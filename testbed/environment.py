"""Where a command runs: on this machine's kernel, or inside a virtual machine.

`python -m testbed.environment --env auto|native|vm -- COMMAND...` runs any command there.
"""

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from testbed import preflight
from testbed.vm import layout
from testbed.vm.layout import TestbedEnvironmentError

__all__ = [
    "Choice",
    "EnvironmentKind",
    "TestbedEnvironmentError",
    "choose",
    "describe",
    "in_guest",
    "rerun_in_vm",
]

DEFAULT_MEMORY_MIB: Final = 3072
INTERRUPTED: Final = 130
# What of the host's environment a command in the guest may depend on.
_PASSED_PREFIXES: Final = ("TESTBED_", "PYTEST_", "HYPOTHESIS_")
_PASSED: Final = frozenset(
    {"CI", "NO_COLOR", "PYTHONHASHSEED", "QUICK", "SOURCE_DATE_EPOCH", "TERM"}
)
_CLOCK_SOURCE: Final = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")


class EnvironmentKind(StrEnum):
    """What a user may ask for."""

    AUTO = "auto"
    NATIVE = "native"
    VM = "vm"


@dataclass(frozen=True)
class Choice:
    """The environment chosen (never AUTO), and why."""

    kind: EnvironmentKind
    reason: str


def in_guest() -> bool:
    """Tell whether this process runs inside the virtual machine."""
    return os.environ.get("TESTBED_GUEST") == "1"


def choose(kind: EnvironmentKind, *, needs_esp: bool) -> Choice:
    """Choose where to run.

    Args:
        kind: What the user asked for.
        needs_esp: Whether the run needs kernel security associations.

    Raises:
        TestbedEnvironmentError: When what the user asked for cannot be had here.
    """
    if in_guest():
        return Choice(EnvironmentKind.NATIVE, "inside the virtual machine")
    if kind is EnvironmentKind.VM:
        return Choice(EnvironmentKind.VM, "asked for")
    probes = [preflight.check_root, preflight.check_namespaces, preflight.check_nftables]
    if needs_esp:
        probes.append(preflight.check_esp)
    for probe in probes:
        check = probe()
        if check.state is not preflight.State.OK:
            if kind is EnvironmentKind.NATIVE:
                raise TestbedEnvironmentError(
                    f"native run impossible: {check.name}: {check.detail}; {check.cure}, "
                    "or use --env vm"
                )
            return Choice(EnvironmentKind.VM, f"{check.name}: {check.detail}")
    return Choice(EnvironmentKind.NATIVE, "this machine has what the run needs")


def rerun_in_vm(
    argv: Sequence[str],
    *,
    writable: Sequence[Path],
    memory_mib: int = DEFAULT_MEMORY_MIB,
) -> int:
    """Run a command inside the virtual machine and return its exit status.

    The guest has the project and its virtual environment at the same paths. Output and error come
    back as they are written; SIGINT and SIGTERM reach the command as SIGINT.

    Args:
        argv: The command.
        writable: Directories (made where missing) whose files the command may change on the host;
            whatever else it writes vanishes with the guest.
        memory_mib: The guest's memory.

    Raises:
        TestbedEnvironmentError: When the guest cannot be booted, or dies before the command ends.
    """
    from testbed.vm.launcher import run_guest
    from testbed.vm.shipment import Job

    shares = {}
    for number, folder in enumerate(writable):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TestbedEnvironmentError(
                f"cannot make {folder}: {error.strerror}; choose another directory"
            ) from error
        shares[f"share{number}"] = str(folder.resolve())
    job = Job(
        argv=list(argv),
        cwd=str(Path.cwd()),
        environment=guest_environment(),
        shares=shares,
    )
    try:
        return run_guest(job, memory_mib)
    except OSError as error:
        raise TestbedEnvironmentError(
            f"the virtual machine cannot run: {error}; check the free space and who owns .cache"
        ) from error


def guest_environment() -> dict[str, str]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_PASSED_PREFIXES) or name in _PASSED
    }
    environment["HOME"] = "/root"
    environment["LANG"] = "C.UTF-8"
    environment["PATH"] = f"{layout.VENV}/bin:{layout.SYSTEM_PATH}"
    environment["PYTHONUNBUFFERED"] = "1"
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    environment["TESTBED_GUEST"] = "1"
    environment.setdefault("TESTBED_COMMIT", project_commit())
    if sys.stderr.isatty():
        environment["TESTBED_TTY"] = "1"
        environment["COLUMNS"] = str(os.get_terminal_size(sys.stderr.fileno()).columns)
    return environment


def project_commit() -> str:
    """Return the project's git commit, with `-dirty` where files differ from it, or `unknown`.

    The guest has neither git nor the history: there the host's answer is in TESTBED_COMMIT.
    """
    known = os.environ.get("TESTBED_COMMIT")
    if known:
        return known
    argv = ["git", "-C", str(layout.PROJECT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        answer = subprocess.run(argv, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return answer.stdout.strip()


def describe() -> dict[str, str]:
    """Return what a manifest says of the environment."""
    accelerator = os.environ.get("TESTBED_ACCELERATOR", "none") if in_guest() else "none"
    try:
        clock = _CLOCK_SOURCE.read_text().strip()
    except OSError:
        clock = "unknown"
    return {
        "environment": "vm" if in_guest() else "native",
        "accelerator": accelerator,
        "kernel": platform.release(),
        "cpus": str(len(os.sched_getaffinity(0))),
        "clocksource": clock,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command in the environment asked for; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m testbed.environment", description=__doc__)
    parser.add_argument(
        "--env",
        type=EnvironmentKind,
        default=EnvironmentKind.AUTO,
        choices=list(EnvironmentKind),
        help="where to run (default: auto)",
    )
    parser.add_argument("--no-esp", action="store_true", help="the command needs no kernel SAs")
    parser.add_argument(
        "--writable",
        type=Path,
        action="append",
        metavar="DIR",
        help="directory whose files the command may change (default: results)",
    )
    parser.add_argument(
        "--memory",
        type=int,
        default=DEFAULT_MEMORY_MIB,
        metavar="MIB",
        help="the guest's memory (default: %(default)s)",
    )
    parser.add_argument("command", nargs="+", help="the command and its arguments, after --")
    options = parser.parse_args(arguments)
    try:
        choice = choose(options.env, needs_esp=not options.no_esp)
        if choice.kind is EnvironmentKind.VM:
            writable = options.writable or [layout.PROJECT / "results"]
            return rerun_in_vm(options.command, writable=writable, memory_mib=options.memory)
        return run_natively(options.command)
    except TestbedEnvironmentError as error:
        print(f"testbed: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def run_natively(argv: Sequence[str]) -> int:
    """Run a command on this machine and return its exit status as a shell would.

    Raises:
        TestbedEnvironmentError: When there is no such command.
    """
    try:
        process = subprocess.Popen(argv)
    except OSError as error:
        raise TestbedEnvironmentError(f"cannot run {argv[0]}: {error.strerror}") from error
    while True:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            # The terminal told the command too: it ends when it has cleaned up.
            continue
        return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
