"""Which seeds were run, with what, and what came of it: a CSV file that runs add to.

A row is a range of seeds without a gap that one state of the engines ran with the same options. A
run skips the seeds that the file has of its own kind already, so one that was ended goes on.
"""

from __future__ import annotations

import csv
import os
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from testbed.errors import TestbedError
from testbed.sim.run import Verdict
from testbed.vm.layout import PROJECT

SOURCES = ("protocol", "testbed/sim")
"""What decides about a run: the engines and the simulator."""

WRITE_INTERVAL_S = 15.0
"""So much of a run is lost at most when it is killed."""


@dataclass(frozen=True, slots=True)
class Row:
    """Seeds that were run.

    Attributes:
        commit: the last one that changed engines or simulator; ``-dirty`` where files differ.
        mode: of MIKE.
        crypto: ``modelled`` or ``real``.
        members: devices of each run, or ``drawn``.
        theme: what the runs were about, or ``drawn``.
        first: first seed.
        last: last seed.
        runs: how many that are.
        violations: runs that a checker objected to.
        failed: their seeds.
        virtual_s: virtual seconds.
        cpu_s: CPU seconds that they took.
        keys: group keys made, of all devices.
        datagrams: copies of datagrams that arrived.
    """

    commit: str
    mode: str
    crypto: str
    members: str
    theme: str
    first: int = 0
    last: int = -1
    runs: int = 0
    violations: int = 0
    failed: str = ""
    virtual_s: float = 0.0
    cpu_s: float = 0.0
    keys: int = 0
    datagrams: int = 0

    @property
    def kind(self) -> tuple[str, ...]:
        """What rows must have in common to be one."""
        return (self.commit, self.mode, self.crypto, self.members, self.theme)

    def joined(self, later: Row) -> Row:
        """Return this row with the next one, which begins where this one ends."""
        return replace(
            self,
            last=later.last,
            runs=self.runs + later.runs,
            violations=self.violations + later.violations,
            failed=" ".join(filter(None, (self.failed, later.failed))),
            virtual_s=round(self.virtual_s + later.virtual_s, 3),
            cpu_s=round(self.cpu_s + later.cpu_s, 3),
            keys=self.keys + later.keys,
            datagrams=self.datagrams + later.datagrams,
        )


@dataclass(slots=True)
class Ledger:
    """The file, and what this run adds to it.

    Attributes:
        path: of the file; it need not exist.
        kind: a row without seeds: the state of the engines and the options of this run.
    """

    path: Path
    kind: Row
    _rows: list[Row] = field(default_factory=list)
    _written_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._rows = _read(self.path)

    def missing(self, seeds: Iterable[int]) -> list[int]:
        """Return the seeds that no run of our kind had yet."""
        had = [(row.first, row.last) for row in self._rows if row.kind == self.kind.kind]
        return [seed for seed in seeds if not any(low <= seed <= high for low, high in had)]

    def noting(self, verdicts: Iterable[Verdict]) -> Iterator[Verdict]:
        """Pass verdicts on; note each, and write the file now and then and in the end."""
        try:
            for verdict in verdicts:
                self._note(verdict)
                if time.monotonic() - self._written_s > WRITE_INTERVAL_S:
                    self._write()
                yield verdict
        finally:
            self._write()

    def _note(self, verdict: Verdict) -> None:
        seed = verdict.scenario.seed
        failed = verdict.violation is not None
        row = replace(
            self.kind,
            first=seed,
            last=seed,
            runs=1,
            violations=int(failed),
            failed=str(seed) if failed else "",
            virtual_s=round(verdict.virtual_ms / 1000, 3),
            cpu_s=round(verdict.cpu_s, 3),
            keys=verdict.epochs,
            datagrams=verdict.datagrams,
        )
        newest = self._rows[-1] if self._rows else None
        if newest is not None and newest.kind == row.kind and newest.last + 1 == seed:
            self._rows[-1] = newest.joined(row)
        else:
            self._rows.append(row)

    def _write(self) -> None:
        """Replace the file as a whole: whoever reads it never sees half of it."""
        self._written_s = time.monotonic()
        beside = self.path.with_name(self.path.name + ".new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with beside.open("w", newline="") as file:
                writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(asdict(row) for row in _merged(self._rows))
            os.replace(beside, self.path)  # noqa: PTH105 - the pair of names says what happens
        except OSError as error:
            raise TestbedError(f"cannot write {self.path}: {error.strerror}") from error


_COLUMNS = tuple(column.name for column in fields(Row))
_READERS = {"int": int, "float": float, "str": str}


def _merged(rows: Sequence[Row]) -> list[Row]:
    """Return rows with those joined that continue one another; the order of kinds stays."""
    kinds = {row.kind: number for number, row in reversed(list(enumerate(rows)))}
    found: list[Row] = []
    for row in sorted(rows, key=lambda row: (kinds[row.kind], row.first)):
        if found and found[-1].kind == row.kind and found[-1].last + 1 == row.first:
            found[-1] = found[-1].joined(row)
        else:
            found.append(row)
    return found


def _read(path: Path) -> list[Row]:
    """Read the rows of a file; none if there is no file."""
    readers = {column.name: _READERS[str(column.type)] for column in fields(Row)}
    try:
        with path.open(newline="") as file:
            return [
                Row(**{name: readers[name](text) for name, text in line.items()})
                for line in csv.DictReader(file)
            ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TestbedError(f"{path} is no summary of seeds: {error}") from error


def engines_commit() -> str:
    """Return the last commit that changed what decides about a run, or ``unknown``.

    ``-dirty`` follows where those files differ from it.
    """
    commit = _git("log", "-1", "--format=%H", "--", *SOURCES)
    if commit is None:
        return "unknown"
    return f"{commit}-dirty" if _git("status", "--porcelain", "--", *SOURCES) else commit


def _git(*words: str) -> str | None:
    """Return what git says; None if it says nothing, because there is no history here."""
    argv = ["git", "-C", str(PROJECT), *words]
    try:
        answer = subprocess.run(argv, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip() or None
