"""Writing a file in one step: under its name is the old content or the new one, never a part."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

NEW = ".new"
"""Ends the name under which a file is written before it gets its own."""


def replace(path: Path, data: bytes, *, durable: bool, mode: int = 0o600) -> None:
    """Write a file beside its place and rename it.

    Args:
        path: of the file.
        data: its whole content.
        durable: return only when file and name are on the disk (fsync of both): a power cut after
            that changes nothing. Without it a power cut may leave the old content, or a part of
            the new, so whoever reads must be able to tell.
        mode: of the file.

    Raises:
        OSError: the disk refused; the old content is still there, and nothing is left beside it.
    """
    new = path.with_name(path.name + NEW)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(new, flags, 0o600)
        try:
            os.fchmod(descriptor, mode)
            left = memoryview(data)
            while left:
                left = left[os.write(descriptor, left) :]
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        new.replace(path)
        if durable:
            descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except OSError:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise
