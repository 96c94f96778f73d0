"""Reading the files of an identity: bounded, and secrets only when nobody else can read them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from protocol.core.errors import LocalError

FILE_MAX = 1 << 20
"""Largest file read, in bytes; a CRL of ten thousand entries is half of it."""

SECRET_LENGTH = 32


def read_file(path: Path) -> bytes:
    """Read a file of at most `FILE_MAX` bytes."""
    return _read(path, private=False)


def read_private(path: Path) -> bytes:
    """Read a secret: a regular file of ours (or root's) with mode 0600 or 0400, else refuse.

    Root may give a secret to the group that a device's two daemons share: mode 0640 or 0440, and
    that group is this process's own. Root's own group is no such group.
    """
    return _read(path, private=True)


def _read(path: Path, *, private: bool) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise LocalError(f"{path}: not a regular file")
            if private:
                _check_private(path, os.fstat(descriptor))
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data = file.read(FILE_MAX + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise LocalError(f"{path}: {error.strerror}") from None
    if len(data) > FILE_MAX:
        raise LocalError(f"{path}: larger than {FILE_MAX} bytes")
    return data


def _check_private(path: Path, status: os.stat_result) -> None:
    """Refuse a secret that others may read or may have put there."""
    mode = stat.S_IMODE(status.st_mode)
    given = status.st_uid == 0 != status.st_gid
    shared = given and (status.st_gid == os.getegid() or os.geteuid() == 0)
    if mode not in (0o600, 0o400) and not (shared and mode in (0o640, 0o440)):
        raise LocalError(f"{path}: mode {mode:04o}, must be 0600")
    if status.st_uid not in (0, os.geteuid()):
        raise LocalError(f"{path}: belongs to user {status.st_uid}, must be ours")


def list_files(directory: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files of a directory with one of these suffixes, sorted by name."""
    try:
        entries = sorted(directory.iterdir())
    except OSError as error:
        raise LocalError(f"{directory}: {error.strerror}") from None
    return [entry for entry in entries if entry.suffix in suffixes]


def load_secret(path: Path) -> bytes:
    """Read the per-device secret of the local interface: 32 bytes in hexadecimal, mode 0600."""
    text = read_private(path)
    try:
        secret = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        secret = b""
    if len(secret) != SECRET_LENGTH:
        raise LocalError(f"{path}: not {SECRET_LENGTH} bytes in hexadecimal")
    return secret
