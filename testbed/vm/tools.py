"""Running the programs that build the guest's files, one builder at a time."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from testbed.vm import layout
from testbed.vm.layout import TestbedEnvironmentError


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock among processes; it goes with the process, whatever ends it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def require_tool(tool: str, package: str) -> str:
    """Return where a program is.

    Raises:
        TestbedEnvironmentError: When it is missing.
    """
    found = shutil.which(tool, path=layout.search_path())
    if found is None:
        raise TestbedEnvironmentError(
            f"{tool} (Debian package {package}) is missing; run 'make setup'"
        )
    return found


def run_tool(argv: Sequence[str], *, stdin: bytes = b"", cwd: Path = Path("/")) -> bytes:
    """Run a program and return its output; its complaints travel in the exception."""
    return subprocess.run(
        argv,
        check=True,
        cwd=cwd,
        env={**os.environ, "PATH": layout.search_path()},
        input=stdin,
        capture_output=True,
    ).stdout


def cause_of(error: OSError | subprocess.CalledProcessError) -> str:
    """Return in a few words why a build failed."""
    if isinstance(error, subprocess.CalledProcessError):
        lines = (error.stderr or b"").decode(errors="replace").strip().splitlines()
        return f"{error.cmd[0]}: {lines[-1] if lines else f'exit status {error.returncode}'}"
    return str(error)
