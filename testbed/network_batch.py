"""Runs ``ip -batch`` and ``tc -batch``: one process per namespace, whatever is to be set there.

``pyroute2`` would do the same in-process, but importing it costs more in the emulated guest (1.6 to
2 s) than all batches of ten devices together (docs/decisions/0005-links-by-ip-batch.md).
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from typing import Any, Final

from testbed.errors import TestbedError

_BATCH_TIMEOUT_S: Final = 60.0


class NetworkError(TestbedError):
    """The network could not be built as the topology asks."""


def attempt(program: str, lines: Iterable[str]) -> subprocess.CompletedProcess[str]:
    """Run lines of ``ip`` or ``tc`` in the calling thread's namespace, whether they succeed or not.

    Raises:
        NetworkError: the program is missing or does not end.
    """
    text = "\n".join(lines) + "\n"
    try:
        return subprocess.run(
            [program, "-j", "-batch", "-"],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=_BATCH_TIMEOUT_S,
        )
    except FileNotFoundError:
        raise NetworkError(
            f"{program} is not installed (package iproute2); run 'make setup'"
        ) from None
    except subprocess.TimeoutExpired:
        raise NetworkError(f"{program} did not end within {_BATCH_TIMEOUT_S:g} s") from None


def batch(program: str, lines: list[str], where: str) -> str:
    """Run lines in one process in the calling thread's namespace; return what it printed.

    Raises:
        NetworkError: a line failed; names it and what the kernel said.
    """
    if not lines:
        return ""
    done = attempt(program, lines)
    complaints = [line for line in done.stderr.splitlines() if "quantum of class" not in line]
    if done.returncode != 0:
        failed = next((line for line in complaints if line.startswith("Command failed")), "")
        number = failed.rpartition(":")[2].strip()
        which = lines[int(number) - 1] if number.isdigit() else program
        reason = next((line for line in complaints if line is not failed), "unknown reason")
        raise NetworkError(f"{where}: '{program} {which}' failed: {reason}")
    return done.stdout


def json_values(text: str) -> list[Any]:
    """Return the JSON documents among the lines of a text; ``tc`` mixes them with plain ones."""
    return [json.loads(line) for line in text.splitlines() if line.startswith(("[", "{"))]
