"""The key directory: how miked hands a group key to idpd.

MIKE's status carries only a pointer; the key itself lies in a file that nobody but the daemons'
user can read, in a directory nobody else can enter. ``run_directory`` belongs on a tmpfs, so that
keys do not reach a disk; hence also no fsync.

Where the daemons are two users, whoever prepared the device made the directory beforehand: of
miked's, mode 0750, its group the one that both share. Then idpd can read the keys and nothing else.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from protocol.core.errors import LocalError

GROUP_KEY_BYTES_MAX = 64
POINTER_PATTERN = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,95}")
"""A plain name: no separator, no dot, so never a path out of the directory or a hidden file."""

_NEW_SUFFIX = ".new"


class KeyDirectoryError(LocalError):
    """The key directory cannot be used, or a pointer is not a plain name."""


SHARED_MODE = 0o750
"""Of a key directory that was made for two users of one group."""


class KeyDirectory:
    """Files of mode 0600 in a directory of mode 0700, or 0640 in one of mode 0750."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mode = 0o600

    def create(self) -> None:
        """Make the directory, owned by us and closed to others; one made to be shared stays so."""
        try:
            self._path.mkdir(mode=0o700, exist_ok=True)
            info = self._path.lstat()
            if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
                raise KeyDirectoryError(f"{self._path}: not a directory of this user")
            if stat.S_IMODE(info.st_mode) == SHARED_MODE and info.st_gid == os.getegid():
                self._mode = 0o640
            else:
                self._path.chmod(0o700)
        except OSError as error:
            raise KeyDirectoryError(f"{self._path}: {error.strerror}") from error

    def clean(self) -> int:
        """Remove every key left by an earlier instance; return how many."""
        removed = 0
        try:
            for path in sorted(self._path.iterdir()):
                path.unlink()
                removed += 1
        except OSError as error:
            raise KeyDirectoryError(f"{self._path}: cannot clean: {error.strerror}") from error
        return removed

    def publish(self, pointer: str, group_key: bytes) -> None:
        """Write one key; it appears under its name complete or not at all.

        Raises:
            KeyDirectoryError: the pointer is not a plain name, or the file system refused.
        """
        path = self._file(pointer)
        new = path.with_name(pointer + _NEW_SUFFIX)
        try:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.fchmod(fd, self._mode)
                written = os.write(fd, group_key)
            finally:
                os.close(fd)
            if written != len(group_key):
                new.unlink()
                raise KeyDirectoryError(f"{path}: no space for a key")
            new.rename(path)
        except OSError as error:
            raise KeyDirectoryError(f"{path}: cannot write a key: {error.strerror}") from error

    def fetch(self, pointer: str) -> bytes | None:
        """Read one key; None if there is none, or if others could have written or read it."""
        if POINTER_PATTERN.fullmatch(pointer) is None:
            return None
        try:
            fd = os.open(
                self._path / pointer, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            )
        except OSError:
            return None
        try:
            info = os.fstat(fd)
            if not self._is_ours(info) or not 0 < info.st_size <= GROUP_KEY_BYTES_MAX:
                return None
            return os.read(fd, GROUP_KEY_BYTES_MAX)
        except OSError:
            return None
        finally:
            os.close(fd)

    def _is_ours(self, info: os.stat_result) -> bool:
        """Say whether nobody but the daemons can have written or read this file."""
        mode = stat.S_IMODE(info.st_mode)
        if not stat.S_ISREG(info.st_mode) or mode & 0o037:
            return False
        if info.st_uid == os.geteuid() and not mode & 0o040:
            return True
        home = self._path.stat()
        shared = stat.S_IMODE(home.st_mode) == SHARED_MODE and home.st_gid == info.st_gid
        return shared and home.st_uid == info.st_uid

    def retire(self, pointer: str) -> bool:
        """Overwrite and remove one key; return whether there was one."""
        path = self._file(pointer)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.write(fd, bytes(os.fstat(fd).st_size))
            finally:
                os.close(fd)
            path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise KeyDirectoryError(
                f"{self._path}: cannot remove a key: {error.strerror}"
            ) from error
        return True

    def _file(self, pointer: str) -> Path:
        if POINTER_PATTERN.fullmatch(pointer) is None:
            raise KeyDirectoryError(f"{pointer!r} is not a key pointer")
        return self._path / pointer
