"""FRR's vty: the socket through which a daemon takes commands, as vtysh uses it.

Speaking to the socket costs a millisecond where a vtysh costs a process, which counts in the
emulated guest. A request is a line and a zero octet. The answer is text, three zero octets, and
an octet that says how it went (FRR's ``lib/vty.c``, ``vtysh_read``; codes in ``lib/command.h``).
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from testbed.errors import TestbedError

_SUCCESS: Final = 0
_END: Final = b"\0\0\0"
_CHUNK: Final = 65536
_PATH_MAX: Final = 107  # sun_path of unix(7), less its final zero octet


class VtyError(TestbedError):
    """A routing daemon refused a command or does not answer."""


class VtyLostError(VtyError):
    """It does not answer: it is not there yet, or not there any more."""


class Vty:
    """A connection to a daemon's vty, opened at the first command.

    Args:
        name: of the daemon, for messages, for example ``r1/zebra``.
        path: of its socket.
        timeout_s: longest wait for a piece of an answer.
    """

    def __init__(self, name: str, path: Path, timeout_s: float = 20.0) -> None:
        if len(str(path)) > _PATH_MAX:
            raise VtyError(
                f"the path of the control socket of {name} has over {_PATH_MAX} characters "
                f"({path}); choose a shorter TESTBED_RUN_BASE"
            )
        self.name = name
        self.path = path
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None

    def __call__(self, command: str) -> str:
        """Return what the daemon says to a command.

        Raises:
            VtyError: it refuses, or is not there (`VtyLostError`).
        """
        try:
            text, code = self._exchange(command)
        except OSError as error:
            self.close()
            raise VtyLostError(
                f"{self.name} does not answer '{command}': {error.strerror or error}"
            ) from None
        if code != _SUCCESS:
            said = text.strip().splitlines()
            raise VtyError(
                f"{self.name} refuses '{command}' (code {code}): {said[-1] if said else 'silent'}"
            )
        return text

    def tell(self, commands: Sequence[str]) -> list[str]:
        """Give commands one after the other; return what was said, lines without text left out.

        Raises:
            VtyError: one was refused.
        """
        return [text.strip() for command in commands if (text := self(command)).strip()]

    def ask(self, command: str) -> Any:
        """Return the JSON value that a show command answers.

        Raises:
            VtyError: it refuses, or the answer is no JSON.
        """
        text = self(f"{command} json")
        try:
            return json.loads(text)
        except ValueError:
            raise VtyError(f"{self.name} answers '{command}' with no JSON: {text[:80]!r}") from None

    def close(self) -> None:
        """Close the connection; idempotent."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None

    def _exchange(self, command: str) -> tuple[str, int]:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.settimeout(self._timeout_s)
            self._socket.connect(str(self.path))
        self._socket.sendall(command.encode() + b"\0")
        answer = bytearray()
        # Text holds no zero octet, so the first one begins the end.
        while (at := answer.find(0)) < 0 or len(answer) < at + len(_END) + 1:
            piece = self._socket.recv(_CHUNK)
            if not piece:
                raise ConnectionResetError("it closed the connection")
            answer += piece
        return answer[:at].decode(errors="replace"), answer[at + len(_END)]


def listens(path: Path) -> bool:
    """Return whether a process accepts connections on a socket; the file alone proves nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True
