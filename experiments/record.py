"""A run directory: written one repetition at a time, resumable, and never overwriting.

A repetition's tables are written into a hidden directory that is renamed to ``parts/<key>`` when it
is complete; so a part either is there as a whole or is not there. The tables at the top of the run
are merged from the parts and may be made again at any time.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from experiments.errors import RecordError
from experiments.plan import Plan
from experiments.schema import FILES, SCHEMA_VERSION

Row = Mapping[str, Any]
MEMORY_SUFFIX = "_memory-no-kernel-sa"
SA_WRITE_KEY = "sa-write"


def new_run_id(plan: Plan, now: datetime | None = None) -> str:
    """Return a run id that sorts by time and says if the run has no kernel SAs."""
    moment = now or datetime.now(UTC)
    return f"{moment:%Y%m%d-%H%M%S}-s{plan.seed}" + (MEMORY_SUFFIX if plan.memory else "")


def cell(value: Any) -> str:
    """Return a CSV cell: empty for None, 0 or 1 for booleans, milliseconds with nanoseconds."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, float):
        return f"{value:.6f}".rstrip("0").rstrip(".")
    if isinstance(value, (list, tuple, dict)):
        return json.dumps(value, separators=(",", ":"))
    return str(value)


def _table(columns: Iterable[str], rows: Iterable[Row]) -> str:
    names = list(columns)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        unknown = set(row) - set(names)
        if unknown:
            raise RecordError(f"undocumented column {sorted(unknown)[0]!r}")
        writer.writerow([cell(row.get(name)) for name in names])
    return out.getvalue()


def _write(path: Path, text: str) -> None:
    """Replace a file in one step."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise RecordError(f"cannot write {path.name}: {error.strerror}") from error


class RunDirectory:
    """One run's directory, locked while it is open for writing."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self._lock: int | None = None

    @classmethod
    def create(cls, path: Path, plan: Plan, about: Mapping[str, Any]) -> RunDirectory:
        """Make a new run directory with its manifest.

        Raises:
            RecordError: it holds a run already, or cannot be written.
        """
        if (path / "manifest.json").exists():
            raise RecordError(f"{path} holds a run already: use --resume, or another --output")
        try:
            (path / "parts").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecordError(f"cannot make {path}: {error.strerror}") from error
        manifest: dict[str, Any] = {
            "schema": SCHEMA_VERSION,
            "run": path.name,
            "experiment": plan.name,
            "state": "created",
            "memory": plan.memory,
            "seed": plan.seed,
            "topology": f"{plan.topology}, {plan.devices} devices",
            "sa": [
                f"{c.kind}: {v.name}: backend {v.sa_backend}, mode {v.sa_mode}, {v.suite}"
                for c in plan.campaigns
                for v in c.variants
            ],
            "plan": plan.as_json(),
            **about,
            "sessions": [],
        }
        run = cls(path, manifest)
        run._acquire()
        run.save_manifest()
        return run

    @classmethod
    def open(cls, path: Path, *, write: bool = True) -> RunDirectory:
        """Open an existing run.

        Raises:
            RecordError: not a run, made by another version, or in use.
        """
        try:
            manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RecordError(f"{path} is not a run: it has no manifest.json") from None
        except (OSError, json.JSONDecodeError) as error:
            raise RecordError(f"{path / 'manifest.json'} cannot be read: {error}") from error
        if manifest.get("schema") != SCHEMA_VERSION:
            raise RecordError(f"{path.name} has layout {manifest.get('schema')}, not 1")
        run = cls(path, manifest)
        if write:
            run._acquire()
            run._sweep()
        return run

    @property
    def plan(self) -> Plan:
        """The plan this run follows, from its manifest."""
        return Plan.from_json(self.manifest["plan"])

    def _acquire(self) -> None:
        """Lock the run; the kernel releases the lock when the process ends, however it ends."""
        lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise RecordError(f"{self.path.name} is being written by another process") from error
        except OSError:
            pass  # a shared folder of a guest may lack locks; the host holds the run then
        self._lock = lock

    def _sweep(self) -> None:
        """Remove what an interrupted write left; finished parts are never touched."""
        (self.path / "parts").mkdir(exist_ok=True)
        for left in (self.path / "parts").glob(".tmp-*"):
            shutil.rmtree(left, ignore_errors=True)

    def close(self) -> None:
        """Release the lock; idempotent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def save_manifest(self, **changes: Any) -> None:
        """Write the manifest with these changes."""
        self.manifest.update(changes)
        _write(self.path / "manifest.json", json.dumps(self.manifest, indent=2) + "\n")

    def has(self, key: str) -> bool:
        """Whether this part is finished."""
        return (self.path / "parts" / key).is_dir()

    def write_part(self, key: str, tables: Mapping[str, Iterable[Row]], about: Row) -> None:
        """Write one finished part, as a whole or not at all.

        Args:
            key: name of the part.
            tables: rows by file name; the columns are those of `experiments.schema`.
            about: what else is known of the part, as JSON.

        Raises:
            RecordError: the part exists (nothing is ever overwritten), or the disk refused.
        """
        final = self.path / "parts" / key
        if final.exists():
            raise RecordError(f"{key} is recorded already and is not overwritten")
        temporary = final.with_name(f".tmp-{key}")
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            for name, rows in tables.items():
                text = _table(FILES[name], ({"run": self.path.name, **row} for row in rows))
                (temporary / name).write_text(text, encoding="utf-8")
            (temporary / "part.json").write_text(
                json.dumps({"key": key, **about}, indent=2) + "\n", encoding="utf-8"
            )
            temporary.rename(final)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise RecordError(f"cannot record {key}: {error.strerror}") from error

    def clock_offsets(self) -> dict[str, dict[str, int]]:
        """Return what the clock exchanges of the whole run found, per device, in ns."""
        found: dict[str, dict[str, int]] = {}
        for row in self.rows("clocks.csv"):
            if row["when"] == "wan":  # over impaired links: measures these, not the clocks
                continue
            offset, bound = int(float(row["offset_ns"])), int(float(row["bound_ns"]))
            device = found.setdefault(
                row["device"], {"offset_min": offset, "offset_max": offset, "bound_max": bound}
            )
            device["offset_min"] = min(device["offset_min"], offset)
            device["offset_max"] = max(device["offset_max"], offset)
            device["bound_max"] = max(device["bound_max"], bound)
        return found

    def keys(self) -> list[str]:
        """Return the planned part names in running order, finished or not."""
        plan = self.plan
        first = [SA_WRITE_KEY] if plan.sa_write() else []
        return first + [repetition.key for repetition in plan.repetitions()]

    def parts(self) -> list[Path]:
        """Return the finished parts in running order."""
        return [self.path / "parts" / key for key in self.keys() if self.has(key)]

    def merge(self) -> None:
        """Make the tables at the top of the run from its finished parts."""
        for name, columns in FILES.items():
            chunks = []
            for part in self.parts():
                if (part / name).exists():
                    text = (part / name).read_text(encoding="utf-8")
                    chunks.append(text.split("\n", 1)[1])
            if chunks:
                _write(self.path / name, _table(columns, ()) + "".join(chunks))

    def rows(self, name: str) -> Iterator[dict[str, str]]:
        """Yield the rows of one table from the finished parts, as text."""
        for part in self.parts():
            if (part / name).exists():
                with (part / name).open(encoding="utf-8", newline="") as stream:
                    yield from csv.DictReader(stream)


def latest(root: Path, experiment: str | None = None) -> Path:
    """Return the newest run below the results folder.

    Raises:
        RecordError: there is none.
    """
    pattern = f"{experiment or '*'}/*/manifest.json"
    found = [p.parent for p in root.glob(pattern) if p.parent.parent.name != "reference"]
    if not found:
        raise RecordError(f"no run of {experiment or 'any experiment'} in {root}")
    return max(found, key=lambda path: (path.name, path.stat().st_mtime))
