"""Starts many daemons at the price of one: imports everything once, then forks for each.

A daemon's start is imports, some hundred milliseconds of CPU natively and ten times that under
software emulation. For an experiment with twenty daemons on two cores the testbed starts one
nursery and asks it for the daemons. Each is a process of its own, in the network namespace named
for it; it does exactly what ``idpd run`` and its like do, and ends when the nursery ends. What all
join with was run through once before (`protocol.daemon.rehearsal`): under software emulation the
first join of a process that was not takes longer by a third than its second.

Line by line, JSON in both directions: a request gets ``{"pid": n}`` or ``{"error": "one line"}``,
and the end of a daemon is told as ``{"ended": n, "status": s}`` (negative: the signal).
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any, NoReturn

from protocol.core.errors import LocalError

GRACE_S = 10.0
"""How long daemons may take to stop in order when the nursery closes."""


class NurseryError(LocalError):
    """The nursery did not start, has ended, or could not start a daemon."""


class Nursery:
    """The client: starts the nursery's process and asks it for daemons; a context manager.

    Attributes:
        process: the nursery's process.
    """

    def __init__(self, errors: Path) -> None:
        """Start the nursery; its own standard error goes to the file ``errors``."""
        from protocol.daemon import launch

        with errors.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-S", "-P", __file__],
                env=launch.environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                bufsize=0,
                start_new_session=True,
            )
        self._errors = errors
        self._statuses: dict[int, int] = {}
        self._buffer = bytearray()
        self._answers: list[dict[str, Any]] = []

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def spawn(
        self,
        daemon: str,
        config: Path,
        *flags: str,
        namespace: str | int | None = None,
        output: Path,
        timeout_s: float = 60.0,
    ) -> int:
        """Start a daemon; return its process id.

        Args:
            daemon: ``idpd``, ``miked``, ``mproxyd`` or ``gatewayd``.
            config: TOML file of the device, or of the LAN router.
            flags: flags of ``run``.
            namespace: nsfs path, or id of a process that lives in the network namespace.
            output: file for standard output and error.
            timeout_s: for the nursery's answer.

        Raises:
            NurseryError: with cause, in one line.
        """
        request = {
            "daemon": daemon,
            "config": str(config),
            "flags": flags,
            "namespace": namespace,
            "output": str(output),
        }
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise self._gone() from error
        deadline_s = time.monotonic() + timeout_s
        while not self._answers:
            self._read(deadline_s - time.monotonic())
        answer = self._answers.pop(0)
        if "pid" not in answer:
            raise NurseryError(str(answer.get("error")))
        return int(answer["pid"])

    def status(self, pid: int) -> int | None:
        """Return how a daemon ended (negative: the signal), or None while it runs."""
        while select.select([self._stdout()], [], [], 0)[0]:
            self._read(0.0)
        return self._statuses.get(pid)

    def wait(self, pid: int, timeout_s: float) -> int:
        """Wait for the end of a daemon.

        Raises:
            NurseryError: it still runs.
        """
        deadline_s = time.monotonic() + timeout_s
        while pid not in self._statuses:
            self._read(deadline_s - time.monotonic())
        return self._statuses[pid]

    def close(self) -> None:
        """End all daemons in order, then the nursery; idempotent."""
        process = self.process
        if process.stdin is not None and not process.stdin.closed:
            process.stdin.close()
        try:
            process.wait(GRACE_S + 5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._stdout().close()

    def _stdout(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def _gone(self) -> NurseryError:
        lines = self._errors.read_text(errors="replace").strip().splitlines()
        return NurseryError(f"the nursery has ended: {lines[-1] if lines else 'no word'}")

    def _read(self, left_s: float) -> None:
        """Take in what the nursery says."""
        readable, _, _ = select.select([self._stdout()], [], [], max(left_s, 0))
        if not readable:
            raise NurseryError("the nursery gave no answer in time")
        data = os.read(self._stdout().fileno(), 65536)
        if not data:
            raise self._gone()
        self._buffer += data
        *lines, rest = bytes(self._buffer).split(b"\n")
        self._buffer[:] = rest
        for line in lines:
            message = json.loads(line)
            if "ended" in message:
                self._statuses[message["ended"]] = message["status"]
            else:
                self._answers.append(message)


def serve() -> int:
    """Fork daemons as asked on standard input, until it closes."""
    import protocol.daemon.gatewayservice
    import protocol.daemon.mproxyservice
    import protocol.xfrm.namespace  # noqa: F401
    from protocol.daemon.privileges import preload
    from protocol.daemon.rehearsal import rehearse
    from protocol.daemon.warmup import warm_up

    preload()
    warm_up()
    rehearse()
    gc.collect()
    gc.freeze()
    children: dict[int, int] = {}
    buffer = bytearray()
    while True:
        readable, _, _ = select.select([0, *children], [], [])
        for fd in readable:
            if fd != 0:
                _report(fd, children.pop(fd))
                continue
            data = os.read(0, 65536)
            if not data:
                return _end(children)
            buffer += data
            *lines, rest = bytes(buffer).split(b"\n")
            buffer[:] = rest
            for line in lines:
                _start(json.loads(line), children)


def _say(message: dict[str, Any]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def _report(fd: int, pid: int) -> None:
    os.close(fd)
    _, status = os.waitpid(pid, 0)
    _say({"ended": pid, "status": os.waitstatus_to_exitcode(status)})


def _start(request: dict[str, Any], children: dict[int, int]) -> None:
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        output = os.open(request["output"], flags, 0o640)
    except OSError as error:
        _say({"error": f"{request['output']}: {error.strerror}"})
        return
    pid = os.fork()
    if pid == 0:
        _become(request, output, children)
    os.close(output)
    children[os.pidfd_open(pid)] = pid
    _say({"pid": pid})


def _become(request: dict[str, Any], output: int, children: dict[int, int]) -> NoReturn:
    """Be a daemon: in the child, never returns."""
    status = 1
    try:
        from protocol.daemon import entry
        from protocol.xfrm.namespace import in_namespace

        for fd in children:
            os.close(fd)
        null = os.open(os.devnull, os.O_RDONLY)
        for fd, standard in ((null, 0), (output, 1), (output, 2)):
            os.dup2(fd, standard)
        os.close(null)
        os.close(output)
        daemon = request["daemon"]
        Path("/proc/self/comm").write_text(daemon)
        with in_namespace(request["namespace"]):
            child_flags = frozenset({entry.EXIT_WITH_PARENT, entry.BATCH, *request["flags"]})
            try:
                status = entry.run(daemon, Path(request["config"]), child_flags)
            except BaseException as error:
                _complain(daemon, error)
            os._exit(status)  # here: another user than root may not go back to our namespace
    except BaseException as error:
        _complain(request.get("daemon"), error)
    finally:
        os._exit(status)


def _complain(daemon: str | None, error: BaseException) -> None:
    os.write(2, f"{daemon}: {type(error).__name__}: {error}\n".encode())


def _end(children: dict[int, int]) -> int:
    """End the daemons in order; after the grace, at once."""
    for pid in children.values():
        os.kill(pid, signal.SIGTERM)
    deadline_s = time.monotonic() + GRACE_S
    while children:
        left_s = deadline_s - time.monotonic()
        readable, _, _ = select.select(list(children), [], [], max(left_s, 0))
        for fd in readable:
            os.waitpid(children.pop(fd), 0)
        if not readable:
            for pid in children.values():
                os.kill(pid, signal.SIGKILL)
            deadline_s = time.monotonic() + GRACE_S
    return 0


if __name__ == "__main__":
    sys.exit(serve())
