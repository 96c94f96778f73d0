"""The registry of runs: who runs, what a crashed run left, and the removal of exactly that.

Every run has an id and a directory ``/run/idpmike-testbed/<run-id>`` (mode 0700: it holds private
keys) with ``run.json``. Its processes carry ``TESTBED_RUN_ID=<run-id>`` in their environment, and
nothing is ever found by a name pattern. A run lives in its own namespaces, so a crash normally
leaves only the directory behind.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

from testbed.errors import TestbedError
from testbed.namespaces import unmount

RUN_ID_VARIABLE: Final = "TESTBED_RUN_ID"
BASE_VARIABLE: Final = "TESTBED_RUN_BASE"
_REAP_DEADLINE_S: Final = 5.0
_STALE_AFTER_S: Final = 60.0


def base_directory() -> Path:
    """Return where runs are registered (``TESTBED_RUN_BASE`` overrides it)."""
    if chosen := os.environ.get(BASE_VARIABLE):
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/run/idpmike-testbed")
    user_directory = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return Path(user_directory) / f"idpmike-testbed-{os.geteuid()}"


def new_run_id() -> str:
    """Return a fresh run id: UTC time and four random hex digits; sorts by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


@dataclass(frozen=True, slots=True)
class Reaped:
    """What a clean-up removed."""

    processes: int = 0
    mounts: int = 0
    directories: int = 0


class Run:
    """One registered run.

    Attributes:
        run_id: its name.
        directory: its private directory.
    """

    def __init__(self, run_id: str, base: Path | None = None) -> None:
        self.run_id = run_id
        self.directory = (base or base_directory()) / run_id

    @classmethod
    def create(cls, command: Sequence[str], run_id: str | None = None) -> Self:
        """Register a run of this process.

        Raises:
            TestbedError: the id is taken, or the directory cannot be made.
        """
        run = cls(run_id or new_run_id())
        try:
            run.directory.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            run.directory.mkdir(mode=0o700)
            run.update(command=list(command), started_ns=time.time_ns(), **_identify(os.getpid()))
        except FileExistsError:
            raise TestbedError(f"a run {run.run_id} exists already; 'testbed clean'") from None
        except OSError as error:
            raise TestbedError(
                f"cannot make {run.directory}: {error.strerror}; "
                f"run as root, or set {BASE_VARIABLE}"
            ) from None
        return run

    def record(self) -> dict[str, Any]:
        """Return ``run.json``; empty if it is not there or torn."""
        try:
            values = json.loads((self.directory / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}

    def update(self, **values: Any) -> None:
        """Add values to ``run.json`` in one step."""
        target = self.directory / "run.json"
        temporary = target.with_suffix(".new")
        temporary.write_text(json.dumps(self.record() | values, indent=1), encoding="utf-8")
        temporary.replace(target)

    def alive(self) -> bool:
        """Return whether the process that registered the run still lives."""
        record = self.record()
        if not record:
            try:  # just being created, or a torn leftover
                age = time.time() - self.directory.stat().st_mtime
            except OSError:
                return False
            return age < _STALE_AFTER_S
        return _identify(int(record.get("pid", 0))) == {
            key: record.get(key) for key in ("pid", "start_ticks", "boot_id")
        }

    def reap(self) -> Reaped:
        """Remove everything that belongs to the run: processes, mounts, the directory."""
        processes = _kill_all(self.run_id)
        mounts = _unmount_below(self.directory)
        directories = 0
        if self.directory.is_dir():
            shutil.rmtree(self.directory, ignore_errors=True)
            directories = 1
        return Reaped(processes, mounts, directories)


def all_runs() -> list[Run]:
    """Return every registered run, oldest first."""
    base = base_directory()
    if not base.is_dir():
        return []
    return [Run(path.name, base) for path in sorted(base.iterdir()) if path.is_dir()]


def processes_of(run_id: str) -> list[int]:
    """Return the processes whose environment carries the run id, except ourselves."""
    tag = f"{RUN_ID_VARIABLE}={run_id}".encode()
    found = []
    for path in Path("/proc").iterdir():
        if not path.name.isdigit() or int(path.name) == os.getpid():
            continue
        try:
            environment = (path / "environ").read_bytes().split(b"\0")
        except OSError:  # gone, or not ours to look at
            continue
        if tag in environment:
            found.append(int(path.name))
    return sorted(found)


def _kill_all(run_id: str) -> int:
    """Kill the run's processes and wait until they are gone; return how many there were."""
    seen: set[int] = set()
    deadline = time.monotonic() + _REAP_DEADLINE_S
    while (left := processes_of(run_id)) and time.monotonic() < deadline:
        for pid in left:
            seen.add(pid)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.02)
    return len(seen)


def _unmount_below(directory: Path) -> int:
    """Detach every mount at or below a directory, innermost first."""
    count = 0
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    points = [line.split(" ")[4].replace("\\040", " ") for line in lines]
    for point in reversed(points):
        if Path(point).is_relative_to(directory):
            unmount(point)
            count += 1
    return count


def _identify(pid: int) -> dict[str, Any]:
    """Return what tells a process from a later one with the same number."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return {}
    fields = stat.rpartition(")")[2].split()
    if fields[0] in {"Z", "X"}:
        return {}
    return {"pid": pid, "start_ticks": int(fields[19]), "boot_id": boot}
