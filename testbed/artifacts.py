"""Run directories that are never overwritten, written atomically. SKELETON: signatures final."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self


def new_run_id() -> str:
    """Return a fresh run id: UTC time and four random hex digits, sorts by time."""
    raise NotImplementedError


def provenance(command: Sequence[str] | None = None) -> dict[str, Any]:
    """Return what every manifest starts with.

    Keys: ``command``, ``created`` (UTC), ``git`` {commit, dirty}, ``versions`` (Python and the
    packages used), ``kernel``, ``environment`` (testbed.environment.describe()).
    """
    raise NotImplementedError


class RunDirectory:
    """``results/<experiment>/<run-id>/``.

    Attributes:
        path: the directory.
        run_id: its name.
    """

    path: Path
    run_id: str

    @classmethod
    def create(cls, root: Path, experiment: str, run_id: str | None = None) -> Self:
        """Make a new directory; fails with one line if it is there already or cannot be written."""
        raise NotImplementedError

    @classmethod
    def resume(cls, path: Path) -> Self:
        """Open an existing run to continue it."""
        raise NotImplementedError

    def write_text(self, name: str, text: str) -> Path:
        """Write a file in one step (temporary file, rename); an error keeps the old one."""
        raise NotImplementedError

    def write_json(self, name: str, value: Any) -> Path:
        """Write JSON in one step."""
        raise NotImplementedError

    def write_manifest(self, values: Mapping[str, Any]) -> Path:
        """Write ``manifest.json``."""
        raise NotImplementedError

    def manifest(self) -> dict[str, Any]:
        """Read ``manifest.json``; empty if there is none yet."""
        raise NotImplementedError

    def folder(self, name: str) -> Path:
        """Return a sub-directory, made when missing."""
        raise NotImplementedError
