"""The one run that this process is: registered, isolated, and cleaned up whatever happens.

`begin` registers the run, then splits the process (`testbed.isolation`): the warden outside removes
the run's leftovers when it has ended, by its id.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

from testbed import isolation
from testbed.neighbours import make_room
from testbed.receivebuffers import raise_limit
from testbed.runs import RUN_ID_VARIABLE, Run

T = TypeVar("T")

_state: dict[str, Run] = {}


def begin(command: Sequence[str], run_id: str | None = None) -> Run:
    """Make this process a run, or return the run that it is already.

    The calling process continues as process 1 of new namespaces; its former self is the warden.

    Raises:
        TestbedError: no rights for namespaces, or the run cannot be registered.
    """
    if "run" in _state:
        return _state["run"]
    make_room()  # before we leave the machine's own network namespace
    raise_limit()
    run = Run.create(command, run_id)
    os.environ[RUN_ID_VARIABLE] = run.run_id
    try:
        isolation.enter(at_end=run.reap)
    except BaseException:
        run.reap()
        raise
    _state["run"] = run
    return run


def call(function: Callable[[], T], command: Sequence[str] = ("call",)) -> T:
    """Run a function as a run of its own in a forked process; return what it returned.

    Raises:
        TestbedError: the function raised; the text is its traceback.
    """
    return isolation.call_isolated(function, lambda: begin(command))
