"""Unpredictable bytes for the engines, from the operating system."""

from __future__ import annotations

import os
from pathlib import Path

from protocol.core.errors import LocalError


class OsKeySource:
    """A `protocol.core.engine.KeySource` that asks the kernel."""

    def random_bytes(self, length: int) -> bytes:
        """Return ``length`` fresh bytes from the kernel's generator."""
        return os.urandom(length)


class RecordingKeySource(OsKeySource):
    """Writes down what it gives, for a replay of the engine, and what else is secret.

    Lines: ``draw HEX``, and ``key POINTER HEX`` for a group key that the engine was given. Whoever
    reads the file has every secret of the process. It is made anew with mode 0600.

    Raises:
        LocalError: the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LocalError(f"cannot write {path}: {error.strerror}") from error
        self._file = os.fdopen(fd, "w")

    def random_bytes(self, length: int) -> bytes:
        """Return fresh bytes, after they were written down."""
        drawn = super().random_bytes(length)
        self._write(f"draw {drawn.hex()}")
        return drawn

    def note_key(self, pointer: str, group_key: bytes) -> None:
        """Write down a group key."""
        self._write(f"key {pointer} {group_key.hex()}")

    def _write(self, line: str) -> None:
        self._file.write(f"{line}\n")
        self._file.flush()
