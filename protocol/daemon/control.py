"""The control socket: one JSON object a line in, one out, over a Unix stream socket of mode 0600.

The server lives in the daemon's loop and never blocks it: requests and unread answers are bounded,
clients are few, and a client that stays silent in the middle of a line is dropped. `request` is the
client that the command lines and the testbed use.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from protocol.core.errors import LocalError
from protocol.daemon.loop import Loop

REQUEST_BYTES_MAX = 64 * 1024
ANSWER_BYTES_MAX = 16 * 1024 * 1024
"""What a client reads at most: far above a status of a full group."""

UNREAD_BYTES_MAX = 1024 * 1024
"""Answers waiting for a client that does not read; beyond that it is dropped."""

CLIENTS_MAX = 16
CLIENT_SILENCE_NS = 30_000_000_000
"""A client that says nothing for so long makes room if others want in, or sits in mid-line."""

_SWEEP_TIMER = "daemon.control_sweep"
_SUN_PATH_MAX = 107
"""Length of ``sun_path`` in Linux, less the terminating zero."""


class ControlError(LocalError):
    """The daemon does not answer, or said no; the text is one line."""


Handler = Callable[[dict[str, Any]], dict[str, Any]]
"""Gets a request (a JSON object with the text ``cmd``), returns the answer without ``ok``."""


class _Client:
    __slots__ = ("inbox", "last_mono_ns", "number", "outbox", "socket")

    def __init__(self, sock: socket.socket, now_mono_ns: int, number: int) -> None:
        self.socket = sock
        self.number = number
        self.inbox = bytearray()
        self.outbox = bytearray()
        self.last_mono_ns = now_mono_ns


class ControlServer:
    """Answers the control socket of one daemon.

    The socket file appears when the daemon is ready, so it may be waited for.

    Attributes:
        rejected_total: requests that were not a line of JSON with a command we have.
        client: while a request is handled, a number that stands for its connection, else 0.
        on_gone: called with that number when the connection has ended.
    """

    def __init__(self, path: Path, loop: Loop, handlers: Mapping[str, Handler]) -> None:
        self.rejected_total = 0
        self.client = 0
        self.on_gone: Callable[[int], None] = lambda client: None
        self._path = path
        self._loop = loop
        self._handlers = handlers
        self._clients: dict[int, _Client] = {}
        self._accepted = 0
        self._socket = _listen(path)
        self._inode = path.stat().st_ino
        loop.add_reader(self._socket.fileno(), self._accept)

    def close(self) -> None:
        """Close all and remove the socket file; idempotent."""
        for client in list(self._clients.values()):
            self._drop(client)
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            try:
                if self._path.lstat().st_ino == self._inode:
                    self._path.unlink()
            except OSError:
                return

    def _accept(self) -> None:
        try:
            sock, _ = self._socket.accept()
        except OSError:
            return
        now_mono_ns = time.monotonic_ns()
        if len(self._clients) >= CLIENTS_MAX:
            oldest = min(self._clients.values(), key=lambda client: client.last_mono_ns)
            self._drop(oldest)
        sock.setblocking(False)
        self._accepted += 1
        client = _Client(sock, now_mono_ns, self._accepted)
        fd = sock.fileno()
        try:
            self._loop.add_reader(fd, lambda: self._readable(client))
        except LocalError:
            sock.close()
            return
        self._clients[fd] = client
        self._loop.set_timer(_SWEEP_TIMER, now_mono_ns + CLIENT_SILENCE_NS, self._sweep)

    def _sweep(self, _name: str) -> None:
        """Drop clients that sit in the middle of a line or do not read their answer."""
        now_mono_ns = time.monotonic_ns()
        for client in list(self._clients.values()):
            stuck = client.inbox or client.outbox
            if stuck and now_mono_ns - client.last_mono_ns >= CLIENT_SILENCE_NS:
                self._drop(client)
        if self._clients:
            self._loop.set_timer(_SWEEP_TIMER, now_mono_ns + CLIENT_SILENCE_NS, self._sweep)

    def _drop(self, client: _Client) -> None:
        fd = client.socket.fileno()
        if fd >= 0:
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)
            self._clients.pop(fd, None)
            client.socket.close()
            self.on_gone(client.number)

    def _readable(self, client: _Client) -> None:
        try:
            data = client.socket.recv(REQUEST_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        client.last_mono_ns = time.monotonic_ns()
        client.inbox += data
        while client.socket.fileno() >= 0:
            end = client.inbox.find(b"\n")
            if end < 0:
                break
            line = bytes(client.inbox[:end])
            del client.inbox[: end + 1]
            if len(line) > REQUEST_BYTES_MAX:
                client.inbox[:] = line
                break
            if line.strip():
                self.client = client.number
                answer = self._dispatch(line)
                self.client = 0
                self._answer(client, answer)
        if len(client.inbox) > REQUEST_BYTES_MAX and client.socket.fileno() >= 0:
            self.rejected_total += 1
            error = f"a request has at most {REQUEST_BYTES_MAX} bytes"
            self._answer(client, {"ok": False, "error": error})
            self._drop(client)

    def _dispatch(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            self.rejected_total += 1
            return {"ok": False, "error": "not a line of JSON"}
        command = request.get("cmd") if isinstance(request, dict) else None
        handler = self._handlers.get(command) if isinstance(command, str) else None
        if handler is None:
            self.rejected_total += 1
            known = ", ".join(self._handlers)
            return {"ok": False, "error": f"no such command (known: {known})"}
        try:
            return {"ok": True, **handler(request)}
        except LocalError as error:
            return {"ok": False, "error": " ".join(str(error).splitlines())}
        except Exception as error:
            # A fault of our own: whoever asked is told, the protocol goes on.
            text = " ".join(str(error).splitlines())
            return {"ok": False, "error": f"internal error: {type(error).__name__}: {text}"}

    def _answer(self, client: _Client, answer: Mapping[str, Any]) -> None:
        client.outbox += json.dumps(answer, default=str).encode() + b"\n"
        self._flush(client)
        fd = client.socket.fileno()
        if fd < 0:
            return
        if len(client.outbox) > UNREAD_BYTES_MAX:
            self._drop(client)
        elif client.outbox:
            self._loop.add_writer(fd, lambda: self._flush(client))

    def _flush(self, client: _Client) -> None:
        try:
            while client.outbox:
                sent = client.socket.send(client.outbox)
                del client.outbox[:sent]
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        self._loop.remove_writer(client.socket.fileno())


def request(path: Path | str, message: Mapping[str, Any], timeout_s: float = 5.0) -> dict[str, Any]:
    """Send one request to a daemon and return its answer, ``ok`` included.

    Raises:
        ControlError: nobody listens, no answer in time, not an answer, or ``ok`` is false.
    """
    path = Path(path)
    deadline_s = time.monotonic() + timeout_s
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        _connect(sock, path, deadline_s)
        sock.settimeout(timeout_s)
        sock.sendall(json.dumps(dict(message)).encode() + b"\n")
        answer = _read_line(sock, deadline_s)
    except TimeoutError as error:
        raise ControlError(f"{path}: no answer within {timeout_s:g} s") from error
    except OSError as error:
        reason = {errno.ENOENT: "no such socket", errno.ECONNREFUSED: "nobody listens"}.get(
            error.errno or 0, str(error)
        )
        raise ControlError(f"{path}: {reason} (is the daemon running?)") from error
    finally:
        sock.close()
    if answer.get("ok") is not True:
        raise ControlError(str(answer.get("error", "the daemon refused without a reason")))
    return answer


def _connect(sock: socket.socket, path: Path, deadline_s: float) -> None:
    """Connect; a full queue of clients empties soon."""
    sock.setblocking(False)
    with short_path(path) as short:
        while (number := sock.connect_ex(short)) == errno.EAGAIN:
            if time.monotonic() >= deadline_s:
                raise TimeoutError
            time.sleep(0.005)
    if number != 0:
        raise OSError(number, os.strerror(number))


def _read_line(sock: socket.socket, deadline_s: float) -> dict[str, Any]:
    data = bytearray()
    while not data.endswith(b"\n"):
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        sock.settimeout(left_s)
        part = sock.recv(65536)
        if not part or len(data) > ANSWER_BYTES_MAX:
            raise ControlError("the daemon closed the control socket without an answer")
        data += part
    try:
        answer = json.loads(data)
    except ValueError as error:
        raise ControlError("the daemon's answer is not JSON") from error
    if not isinstance(answer, dict):
        raise ControlError("the daemon's answer is not a JSON object")
    return answer


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """Give a name that fits a socket address, through the directory's descriptor if need be."""
    text = str(path)
    if len(os.fsencode(text)) <= _SUN_PATH_MAX:
        yield text
        return
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


def _listen(path: Path) -> socket.socket:
    """Bind the control socket; take over the file of a dead daemon, never that of a living one.

    Its name appears when it listens: whoever waits for the file may connect at once.
    """
    unnamed = path.with_name(f".{path.name}.{os.getpid()}")
    sock = socket.socket(
        socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    )
    try:
        _remove_stale(path)
        before = os.umask(0o177)
        try:
            with short_path(unnamed) as short:
                sock.bind(short)
        finally:
            os.umask(before)
        sock.listen(CLIENTS_MAX)
        unnamed.rename(path)
    except OSError as error:
        sock.close()
        unnamed.unlink(missing_ok=True)
        raise ControlError(f"{path}: cannot open the control socket: {error.strerror}") from error
    except ControlError:
        sock.close()
        raise
    return sock


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ControlError(f"{path}: exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(1.0)
        try:
            with short_path(path) as short:
                probe.connect(short)
        except ConnectionRefusedError:
            path.unlink()
            return
    raise ControlError(f"{path}: another daemon is running here (stop it first)")
