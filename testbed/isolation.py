"""A run lives in its own network, mount and PID namespaces; when it dies, everything in them does.

`enter` splits the process in two. The *warden* stays outside, passes signals on and ends with the
run's exit status. The run itself is process 1 of a new PID namespace: when it ends, however it
ends, the kernel kills whatever it left. When the warden is killed, the kernel kills the run.

Interrupting: the first Ctrl-C or SIGTERM asks the run to clean up, the second kills it.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Final, NoReturn, TypeVar

from testbed.errors import TestbedError
from testbed.namespaces import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    die_with_parent,
    mount,
    unshare,
)

T = TypeVar("T")

EXIT_INTERRUPTED: Final = 130

_state = {"isolated": False}


def is_isolated() -> bool:
    """Return whether this process is a run inside its own namespaces."""
    return _state["isolated"]


def enter(at_end: Callable[[], object] | None = None) -> None:
    """Continue in new namespaces; the calling process becomes the warden and never returns.

    Args:
        at_end: run by the warden after the run has ended, whichever way.

    Raises:
        TestbedError: the namespaces cannot be made.
    """
    if is_isolated():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    alive_read, alive_write = os.pipe()
    try:
        unshare(CLONE_NEWPID)  # for the child; the warden's own view stays the machine's
    except OSError as error:
        raise TestbedError(
            f"cannot make namespaces ({error.strerror}); run as root, or use --env vm"
        ) from None
    child = os.fork()
    if child:
        os.close(alive_read)
        _guard(child, at_end)
    os.close(alive_write)
    _become_run(alive_read)


def call_isolated(function: Callable[[], T], begin: Callable[[], object] = enter) -> T:
    """Run a function in fresh namespaces in a forked process and return what it returned.

    For tests and libraries: the calling process stays as it is.

    Args:
        function: runs as process 1 of the new namespaces; its result must be picklable.
        begin: enters the namespaces.

    Raises:
        TestbedError: the function raised; the text is its traceback.
    """
    result_read, result_write = os.pipe()
    outer = os.fork()
    if outer == 0:
        os.close(result_read)
        code = 1
        try:
            begin()
            code = _answer(function, result_write)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(result_write)
    with os.fdopen(result_read, "rb") as stream:
        data = stream.read()
    _, status = os.waitpid(outer, 0)
    if not data:
        raise TestbedError(f"the isolated call ended without an answer (wait status {status})")
    ok, value = pickle.loads(data)  # noqa: S301  (our own child wrote it)
    if not ok:
        raise TestbedError(str(value))
    result: T = value
    return result


def _answer(function: Callable[[], Any], descriptor: int) -> int:
    try:
        message, code = (True, function()), 0
    except BaseException:
        message, code = (False, traceback.format_exc()), 1
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(pickle.dumps(message))
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _become_run(alive: int) -> None:
    """Finish the isolation inside the new PID namespace."""
    die_with_parent(signal.SIGKILL)
    if select.select([alive], [], [], 0)[0]:
        os._exit(1)  # the warden was gone before the kernel knew of our wish
    unshare(CLONE_NEWNET | CLONE_NEWNS)
    os.setpgid(0, 0)  # the terminal's Ctrl-C goes to the warden, which passes it on once
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _state["isolated"] = True


def _guard(child: int, at_end: Callable[[], object] | None) -> NoReturn:
    """Be the warden: pass signals on, wait, end as the run ended."""
    asked = 0

    def pass_on(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked += 1
        first = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
        with suppress(ProcessLookupError):  # it has just ended, and we go too
            os.kill(child, first if asked == 1 else signal.SIGKILL)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        code = EXIT_INTERRUPTED if asked else 128 - code
    try:
        if at_end is not None:
            at_end()
    except Exception as error:
        sys.stderr.write(f"testbed: cleaning up: {error}\n")
    finally:
        os._exit(code)
