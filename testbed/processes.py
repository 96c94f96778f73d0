"""The run's own processes: started without a shell, watched, and stopped within a bounded time.

Every process carries the run id in its environment (`testbed.runs`), its output goes to files, and
one that ends before it was told to is named at the next `ProcessTable.check`, which all waiting
loops call.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from testbed.errors import DaemonDiedError, ProcessGoneError, TestbedError, naming_the_gone
from testbed.runs import RUN_ID_VARIABLE

MNEXEC: Final = "mnexec"
_TAIL_BYTES: Final = 2000


class Handle(Protocol):
    """A running process, however it was started."""

    @property
    def pid(self) -> int:
        """Process id in the run's PID namespace."""

    def poll(self) -> int | None:
        """Return how it ended (negative: the signal), None while it runs."""

    def terminate(self) -> None:
        """Ask it to end (SIGTERM); nothing happens if it has ended."""

    def wait(self, timeout: float) -> int:
        """Wait for its end; raises `subprocess.TimeoutExpired`."""

    def kill_all(self) -> None:
        """Kill it and its children; return when it is gone.

        Raises:
            TestbedError: it does not end.
        """


class Child:
    """A process that we started ourselves, the leader of its own session."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        """Return how it ended (negative: the signal), None while it runs."""
        return self._process.poll()

    def terminate(self) -> None:
        """Ask it to end (SIGTERM)."""
        self._process.terminate()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; raises `subprocess.TimeoutExpired`."""
        return self._process.wait(timeout)

    def kill_all(self) -> None:
        """Kill it and its children; return when it is gone."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


@dataclass(slots=True)
class OwnedProcess:
    """A process of the run.

    Attributes:
        name: for messages, e.g. ``d3/miked``.
        handle: the process itself.
        output: file of its standard output and error.
        must_live: whether its end is a fault.
    """

    name: str
    handle: Handle
    output: Path
    must_live: bool = True

    @property
    def pid(self) -> int:
        """Process id in the run's PID namespace."""
        return self.handle.pid

    def signal(self, number: int) -> None:
        """Send it a signal.

        Raises:
            ProcessGoneError: it has ended, and how, if that is known.
        """
        doing = f"cannot send it {signal.Signals(number).name}"
        if (code := self.handle.poll()) is not None:
            raise ProcessGoneError(self.name, f"{doing}, it ended with {code}")
        with naming_the_gone(self.name, doing):
            os.kill(self.pid, number)


def find_mnexec() -> str:
    """Return the path of Mininet's helper, which enters a node's namespaces and executes.

    Raises:
        TestbedError: it is not installed.
    """
    path = shutil.which(MNEXEC)
    if path is None:
        raise TestbedError("Mininet's helper mnexec is not installed; run 'make setup'")
    return path


class ProcessTable:
    """All owned processes of a run."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._processes: dict[str, OwnedProcess] = {}

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        output: Path,
        node_pid: int | None = None,
        environment: Mapping[str, str] | None = None,
        must_live: bool = True,
    ) -> OwnedProcess:
        """Start a process, in a node's namespaces if ``node_pid`` is given.

        Raises:
            TestbedError: the name is taken or the program cannot be started.
        """
        if name in self._processes:
            raise TestbedError(f"process {name} runs already")
        line = list(command)
        if node_pid is not None:
            line = [find_mnexec(), "-a", str(node_pid), *line]
        variables = {**os.environ, **(environment or {}), RUN_ID_VARIABLE: self._run_id}
        try:
            with output.open("ab") as stream:
                handle = subprocess.Popen(
                    line,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    env=variables,
                    start_new_session=True,
                )
        except OSError as error:
            raise TestbedError(f"cannot start {name} ({line[0]}): {error.strerror}") from None
        return self.adopt(name, Child(handle), output=output, must_live=must_live)

    def adopt(
        self, name: str, handle: Handle, *, output: Path, must_live: bool = True
    ) -> OwnedProcess:
        """Own a process that somebody else started for us.

        Raises:
            TestbedError: the name is taken.
        """
        if name in self._processes:
            raise TestbedError(f"process {name} runs already")
        process = OwnedProcess(name, handle, output, must_live)
        self._processes[name] = process
        return process

    def __getitem__(self, name: str) -> OwnedProcess:
        """Return a process.

        Raises:
            ProcessGoneError: there is none of this name: not started, or killed.
        """
        if name not in self._processes:
            raise ProcessGoneError(name)
        return self._processes[name]

    def __contains__(self, name: str) -> bool:
        return name in self._processes

    def names(self) -> list[str]:
        """Return the names of all processes in the table, in order of start."""
        return list(self._processes)

    def check(self) -> None:
        """Raise if a process that must live has ended.

        Raises:
            DaemonDiedError: names the process, how it ended and the end of its output.
        """
        for process in self._processes.values():
            if process.must_live and (code := process.handle.poll()) is not None:
                raise DaemonDiedError(process.name, code, last_line(process.output))

    def kill(self, name: str) -> None:
        """Kill a process on purpose (fault injection) and forget it.

        Raises:
            ProcessGoneError: there is none of this name.
            TestbedError: it does not end.
        """
        handle = self[name].handle
        del self._processes[name]
        handle.kill_all()

    def stop(self, names: Iterable[str] | None = None, grace_s: float = 3.0) -> list[str]:
        """Stop processes, all by default: SIGTERM, a bounded wait, SIGKILL.

        Returns:
            The names of those that had to be killed.
        """
        chosen = [self._processes.pop(name) for name in (list(names) if names else self.names())]
        for process in chosen:
            process.handle.terminate()
        deadline = time.monotonic() + grace_s
        killed = []
        for process in chosen:
            try:
                process.handle.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                killed.append(process.name)
            process.handle.kill_all()
        return killed


def last_line(path: Path) -> str:
    """Return the last line of a log that is not empty, for an error message."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = stream.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1].strip() if lines else ""
