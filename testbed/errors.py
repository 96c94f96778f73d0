"""What the testbed raises on purpose: one sentence that names the cause and the cure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from typing import Final

_OURS: Final = ("testbed", "experiments", "protocol")


class TestbedError(Exception):
    """One line for the user; the command line prints it without a traceback and exits with 1."""

    __test__ = False  # the name is no test class of pytest's


class DaemonDiedError(TestbedError):
    """A process that the run needs ended before it was told to.

    Attributes:
        name: which one, for example ``d3/miked``.
        code: its exit code, negative for a signal.
    """

    def __init__(self, name: str, code: int, detail: str = "") -> None:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        super().__init__(f"{name} {how} unasked" + (f": {detail}" if detail else ""))
        self.name = name
        self.code = code


class ProcessGoneError(TestbedError):
    """A process ended between being looked up and being signalled, entered, read or moved.

    Attributes:
        name: which one, for example ``d3/miked``.
    """

    def __init__(self, name: str, doing: str = "") -> None:
        super().__init__(f"{name} is gone" + (f": {doing}" if doing else ""))
        self.name = name


@contextmanager
def naming_the_gone(name: str, doing: str = "") -> Iterator[None]:
    """Say who was gone where the kernel says only that there is no such process.

    Args:
        name: the process that the body signals, enters, reads or moves.
        doing: what for.

    Raises:
        ProcessGoneError: it has ended: ESRCH, or no ``/proc/PID`` any more.
    """
    try:
        yield
    except (ProcessLookupError, FileNotFoundError) as error:
        raise ProcessGoneError(name, doing) from error


def one_line(error: Exception) -> str:
    """Return an error in one line; of a bare error of the system, also what raised it."""
    if not isinstance(error, OSError):
        return " ".join(str(error).split())
    text = error.strerror or str(error)
    if error.filename is not None:
        text += f": {error.filename}"
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] in _OURS:
            place = f"{Path(frame.f_code.co_filename).name}, {frame.f_code.co_name}"
            return f"{text} (raised in {place})"
    return text


class DeadlineError(TestbedError):
    """Something awaited did not happen in time; the text says what was seen instead."""
