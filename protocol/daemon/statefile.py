"""What a daemon must still know after a power cut: a few numbers that only grow.

They are kept twice, in ``DAEMON.state`` and ``DAEMON.state.copy``. Each is written beside its
place, put on the disk (fsync), renamed into place, and the directory put on the disk; the copy only
after the first is safe. So whenever the power goes, one of the two is whole and holds the newest
numbers that were ever relied upon; a file that a disk spoils all the same is noticed by its digest
and made good from the other one.

A disk that refuses (full, read-only, broken) stops nothing: the numbers stay in memory, it is said
once in the log, and the next idle moment tries again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from protocol.core.errors import LocalError
from protocol.daemon import atomicfile

FORMAT = "idpmike state 1"
NUMBER_MAX = (1 << 64) - 1
DIGEST_HEX = 16
FILE_BYTES_MAX = 512


class StateError(LocalError):
    """The state cannot be read; the text is one line."""


class StateFile:
    """Numbers by name, kept over restarts.

    Attributes:
        error: why the last attempt to write failed, or an empty string.
        repaired: what was found spoiled when it was read, one line each.
    """

    def __init__(self, directory: Path, daemon: str, names: tuple[str, ...]) -> None:
        """Read what an earlier process left; the first start of a device finds zeros.

        Args:
            directory: on a disk; made if there is none.
            daemon: names the files.
            names: of the numbers.

        Raises:
            StateError: files are there, and neither of them is whole.
        """
        self.error = ""
        self.repaired: list[str] = []
        self._paths = (directory / f"{daemon}.state", directory / f"{daemon}.state.copy")
        self._wanted = dict.fromkeys(names, 0)
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StateError(f"{directory}: {error.strerror}") from error
        found = [self._read(path) for path in self._paths]
        whole = [numbers for numbers in found if numbers is not None]
        if self.repaired and not whole:
            raise StateError(
                f"{self._paths[0]} and its copy are spoiled: without them an epoch's number could"
                " be used twice; remove both only if this device was in no group since it started"
            )
        for numbers in whole:
            for name, number in numbers.items():
                self._wanted[name] = max(self._wanted[name], number)
        self._stored = dict(self._wanted) if len(whole) == len(self._paths) else None

    @property
    def pending(self) -> bool:
        """Whether something has to be written."""
        return self._stored != self._wanted

    def __getitem__(self, name: str) -> int:
        return self._wanted[name]

    def raise_to(self, **numbers: int) -> None:
        """Take larger numbers; smaller ones change nothing. `write` puts them on the disk."""
        for name, number in numbers.items():
            self._wanted[name] = max(self._wanted[name], number)

    def lower(self, name: str, number: int) -> None:
        """Take a smaller number: only for who knows that what lies above was never used."""
        self._wanted[name] = number

    def write(self) -> bool:
        """Put everything on the disk; return whether all of it is there. Never raises."""
        if not self.pending:
            return True
        data = encode(self._wanted)
        try:
            for path in self._paths:
                atomicfile.replace(path, data, durable=True)
        except OSError as error:
            self.error = error.strerror or str(error)
            return False
        self.error = ""
        self._stored = dict(self._wanted)
        return True

    def _read(self, path: Path) -> dict[str, int] | None:
        """Return the numbers in a file, None if there is none or it is spoiled."""
        try:
            with path.open("rb") as file:
                data = file.read(FILE_BYTES_MAX + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"{path}: {error.strerror}") from error
        try:
            return decode(data, tuple(self._wanted))
        except ValueError as error:
            self.repaired.append(f"{path}: {error}")
            return None


def encode(numbers: Mapping[str, int]) -> bytes:
    """Return the bytes of a state file: a line for each number, closed by a digest of all."""
    text = f"{FORMAT}\n" + "".join(f"{name} {number}\n" for name, number in numbers.items())
    return text.encode() + _digest(text.encode())


def decode(data: bytes, names: tuple[str, ...]) -> dict[str, int]:
    """Read a state file.

    Raises:
        ValueError: it is not exactly what `encode` made of these names.
    """
    body, digest = data[: -DIGEST_HEX - 1], data[-DIGEST_HEX - 1 :]
    if len(data) > FILE_BYTES_MAX or digest != _digest(body):
        raise ValueError("spoiled: its digest does not fit")
    try:
        head, *lines = body.decode("ascii").splitlines()
        numbers = {name: int(number) for name, number in (line.split(" ") for line in lines)}
    except ValueError:
        raise ValueError("not a state file") from None
    if head != FORMAT or tuple(numbers) != names or encode(numbers) != data:
        raise ValueError("not a state file of this version and daemon")
    if any(not 0 <= number <= NUMBER_MAX for number in numbers.values()):
        raise ValueError("a number is out of range")
    return numbers


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:DIGEST_HEX].encode() + b"\n"
