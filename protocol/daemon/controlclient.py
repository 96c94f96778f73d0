"""Asks another daemon's control socket without ever blocking our own loop."""

from __future__ import annotations

import errno
import json
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from protocol.daemon.control import ANSWER_BYTES_MAX, short_path
from protocol.daemon.loop import Loop

QUEUE_MAX = 1024
"""Requests that wait for an answer; more are answered at once: nobody there."""

Answer = Callable[[dict[str, Any] | None], None]
"""Gets the answer, or None if there is none."""


class ControlClient:
    """One connection, opened when it is needed and again after it broke; answers come in order.

    Args:
        path: of the control socket.
        loop: ours.
        name: of the timer.
        timeout_ms: without an answer for so long the connection is given up.
    """

    def __init__(self, path: Path, loop: Loop, name: str, timeout_ms: int) -> None:
        self._path = path
        self._loop = loop
        self._timer = name
        self._timeout_ns = timeout_ms * 1_000_000
        self._socket: socket.socket | None = None
        self._waiting: deque[Answer] = deque()
        self._inbox = bytearray()
        self._outbox = bytearray()

    @property
    def waiting(self) -> int:
        """How many requests have no answer yet."""
        return len(self._waiting)

    def ask(self, message: Mapping[str, Any], answer: Answer) -> None:
        """Send a request; ``answer`` is called later, or at once if nobody listens."""
        if len(self._waiting) >= QUEUE_MAX or not self._open():
            answer(None)
            return
        if not self._waiting:
            self._restart_timer()
        self._waiting.append(answer)
        self._outbox += json.dumps(dict(message)).encode() + b"\n"
        self._flush()

    def close(self) -> None:
        """Close without calling anybody; idempotent."""
        self._waiting.clear()
        self._drop()

    def _open(self) -> bool:
        if self._socket is not None:
            return True
        sock = socket.socket(
            socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        try:
            with short_path(self._path) as short:
                refused = sock.connect_ex(short)
        except OSError as error:
            refused = error.errno or errno.EIO
        if refused:
            sock.close()
            return False
        self._socket = sock
        self._loop.add_reader(sock.fileno(), self._readable)
        return True

    def _restart_timer(self) -> None:
        self._loop.set_timer(
            self._timer, time.monotonic_ns() + self._timeout_ns, lambda _: self._fail()
        )

    def _flush(self) -> None:
        assert self._socket is not None
        try:
            while self._outbox:
                sent = self._socket.send(self._outbox)
                del self._outbox[:sent]
        except BlockingIOError:
            self._loop.add_writer(self._socket.fileno(), self._flush)
            return
        except OSError:
            self._fail()
            return
        self._loop.remove_writer(self._socket.fileno())

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._inbox += data
        if not data or len(self._inbox) > ANSWER_BYTES_MAX:
            self._fail()
            return
        while (end := self._inbox.find(b"\n")) >= 0:
            line = bytes(self._inbox[:end])
            del self._inbox[: end + 1]
            try:
                answer = json.loads(line)
            except ValueError:
                answer = None
            if not isinstance(answer, dict) or not self._waiting:
                self._fail()
                return
            self._loop.cancel_timer(self._timer)
            call = self._waiting.popleft()
            if self._waiting:
                self._restart_timer()
            call(answer)

    def _fail(self) -> None:
        """Give the connection up; nobody who waits gets an answer."""
        waiting, self._waiting = self._waiting, deque()
        self._drop()
        for answer in waiting:
            answer(None)

    def _drop(self) -> None:
        self._loop.cancel_timer(self._timer)
        self._inbox.clear()
        self._outbox.clear()
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()
            self._socket = None
