"""Run directories that are never overwritten, written atomically, with their provenance.

``results/<experiment>/<run-id>/`` is made once; every file in it appears complete or not at all
(written beside its place, then renamed). When the disk is full, the error is one line and what was
finished stays.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Self

from testbed.errors import TestbedError
from testbed.runs import new_run_id

__all__ = ["ArtifactError", "RunDirectory", "new_run_id", "provenance", "write_file"]

MANIFEST: Final = "manifest.json"
_PACKAGES: Final = ("click", "cryptography", "matplotlib", "mininet", "pandas", "tqdm")
_NAME: Final = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class ArtifactError(TestbedError):
    """A result could not be written or read."""


def portable(words: Sequence[str]) -> list[str]:
    """Return a command line without places of this machine: results travel.

    What is in the project is named from there, any other absolute path by its last part alone.
    """
    from testbed.vm.layout import PROJECT

    inside = [word.replace(f"{PROJECT}/", "").replace(str(PROJECT), ".") for word in words]
    return [_without_place(word) for word in inside]


def _without_place(word: str) -> str:
    option, equals, path = word.partition("=") if word.startswith("-") else ("", "", word)
    return f"{option}{equals}.../{Path(path).name}" if path.startswith("/") else word


def provenance(command: Sequence[str] | None = None) -> dict[str, Any]:
    """Return what every manifest starts with.

    Keys: ``command``, ``created`` (UTC), ``git`` {commit, dirty}, ``versions`` (Python and the
    packages used), ``environment`` (`testbed.environment.describe`; kernel and accelerator).
    """
    from testbed import environment

    commit = environment.project_commit()
    return {
        "command": shlex.join(portable(command if command is not None else sys.argv)),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": {"commit": commit.removesuffix("-dirty"), "dirty": commit.endswith("-dirty")},
        "versions": _versions(),
        "environment": environment.describe(),
    }


def write_file(path: Path, data: bytes) -> None:
    """Write a file in one step; on an error the old one stays.

    Raises:
        ArtifactError: one line; says so if the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    # A file size limit shall be an error of write(2), not a signal that ends us.
    before = _ignore_file_size_signal()
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if error.errno in _FULL:
            raise ArtifactError(
                f"no space left for {path}; free some and continue with --resume "
                "(what is finished is kept)"
            ) from None
        raise ArtifactError(f"cannot write {path}: {error.strerror}") from None
    finally:
        _restore_file_size_signal(before)


class RunDirectory:
    """``results/<experiment>/<run-id>/``.

    Attributes:
        path: the directory.
        run_id: its name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_id = path.name

    @classmethod
    def create(cls, root: Path, experiment: str, run_id: str | None = None) -> Self:
        """Make a new directory.

        Raises:
            ArtifactError: it is there already, has an unusable name, or cannot be made.
        """
        name = run_id or new_run_id()
        for part in (experiment, name):
            if not _NAME.match(part):
                raise ArtifactError(f"{part!r} cannot name a directory of results")
        path = root / experiment / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
        except FileExistsError:
            raise ArtifactError(
                f"{path} exists already and is not overwritten; use --resume to continue it"
            ) from None
        except OSError as error:
            raise ArtifactError(f"cannot make {path}: {error.strerror}") from None
        return cls(path)

    @classmethod
    def resume(cls, path: Path) -> Self:
        """Open an existing run to continue it.

        Raises:
            ArtifactError: there is none.
        """
        if not (path / MANIFEST).is_file():
            raise ArtifactError(f"{path} is no run that can be continued: it has no {MANIFEST}")
        return cls(path)

    def write_text(self, name: str, text: str) -> Path:
        """Write a file in one step."""
        return self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, data: bytes) -> Path:
        """Write a file in one step."""
        path = self.path / name
        write_file(path, data)
        return path

    def write_json(self, name: str, value: Any) -> Path:
        """Write JSON in one step."""
        return self.write_text(name, json.dumps(value, indent=2, default=str) + "\n")

    def write_manifest(self, values: Mapping[str, Any]) -> Path:
        """Write ``manifest.json``."""
        return self.write_json(MANIFEST, dict(values))

    def manifest(self) -> dict[str, Any]:
        """Read ``manifest.json``; empty if there is none yet.

        Raises:
            ArtifactError: it is there and no JSON object.
        """
        path = self.path / MANIFEST
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ArtifactError(f"cannot read {path}: {error}") from None
        if not isinstance(values, dict):
            raise ArtifactError(f"cannot read {path}: not a JSON object")
        return values

    def folder(self, name: str) -> Path:
        """Return a sub-directory, made when missing."""
        path = self.path / name
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactError(f"cannot make {path}: {error.strerror}") from None
        return path


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "missing"
    return versions


def _ignore_file_size_signal() -> Any:
    try:
        return signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    except ValueError:  # not in the main thread: Python ignores it from the start anyway
        return None


def _restore_file_size_signal(before: Any) -> None:
    if before is not None:
        signal.signal(signal.SIGXFSZ, before)
