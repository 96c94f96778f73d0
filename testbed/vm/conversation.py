"""What host and guest tell each other while a command runs, and when to stop listening."""

import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

BOOT_SECONDS: Final = 180
CLEAN_UP_SECONDS: Final = 60
INTERRUPTED: Final = 130
_CHUNK: Final = 65536


class GuestDiedError(Exception):
    """The guest went away before its command ended."""

    def __init__(self, what: str, *, booted: bool) -> None:
        super().__init__(what)
        self.booted = booted


@dataclass(frozen=True)
class Wires:
    """The host's ends: the command's output and error, the control line, our own signals."""

    out: socket.socket
    err: socket.socket
    control: socket.socket
    signals: socket.socket


@contextmanager
def signals_caught() -> Iterator[socket.socket]:
    """Turn SIGINT and SIGTERM into bytes on a socket for as long as the guest lives."""
    reader, writer = socket.socketpair()
    for end in (reader, writer):
        end.setblocking(False)
    caught = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, lambda *_: None) for number in caught}
    previous_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(previous_fd)
        for number, handler in previous.items():
            signal.signal(number, handler)
        reader.close()
        writer.close()


class Conversation:
    """Carries a command's bytes from the guest and interruptions to it.

    Args:
        qemu: The process that is the guest.
        wires: The host's ends of its serial ports, and the signals that this process gets.
        boot_seconds: How long the guest may take to answer first.
        clean_up_seconds: How long an interrupted command may take to end.
    """

    def __init__(
        self,
        qemu: subprocess.Popen[bytes],
        wires: Wires,
        *,
        boot_seconds: float = BOOT_SECONDS,
        clean_up_seconds: float = CLEAN_UP_SECONDS,
    ) -> None:
        self._qemu = qemu
        self._wires = wires
        self._boot_seconds = boot_seconds
        self._clean_up_seconds = clean_up_seconds
        self._pending = b""
        self._ready = False
        self._interrupted = False
        self._status: int | None = None
        self._deadline: float | None = time.monotonic() + boot_seconds
        self._sinks: dict[socket.socket, int | None] = {wires.out: 1, wires.err: 2}
        self._selector = selectors.DefaultSelector()
        for source in (wires.out, wires.err, wires.control, wires.signals):
            self._selector.register(source, selectors.EVENT_READ)
        self._open_ports = 3

    def follow(self) -> int:
        """Serve the guest until its command has ended; return the command's exit status.

        Raises:
            GuestDiedError: When the guest does not boot, or goes before the command ends.
        """
        with self._selector:
            while self._status is None and self._open_ports:
                left = None if self._deadline is None else self._deadline - time.monotonic()
                if left is not None and left <= 0:
                    return self._give_up()
                self._serve(left)
            # The status came last: what the command wrote is in our sockets, and no more is due.
            while self._open_ports and self._serve(0):
                pass
        if self._status is not None:
            return self._status
        if self._interrupted:
            return INTERRUPTED
        what = "the guest died before its command ended" if self._ready else "the guest died"
        raise GuestDiedError(what, booted=self._ready)

    def _serve(self, timeout: float | None) -> bool:
        """Handle what is ready; tell whether anything was."""
        handlers: dict[object, Callable[[socket.socket], bool]] = {
            self._wires.control: self._listen,
            self._wires.signals: self._interrupt,
        }
        events = self._selector.select(timeout)
        for key, _ in events:
            source = key.fileobj
            assert isinstance(source, socket.socket)
            if handlers.get(source, self._relay)(source):
                self._selector.unregister(source)
                self._open_ports -= 1
        return bool(events)

    def _give_up(self) -> int:
        """End the wait: the deadline has passed, of booting or of cleaning up."""
        if not self._interrupted:
            what = f"the guest did not boot in {self._boot_seconds:g} s"
            raise GuestDiedError(what, booted=False)
        print(
            f"testbed: the interrupted command did not end in {self._clean_up_seconds:g} s: "
            "guest killed",
            file=sys.stderr,
        )
        return INTERRUPTED

    def _relay(self, source: socket.socket) -> bool:
        """Pass on what the command wrote; tell whether the port has closed."""
        data = source.recv(_CHUNK)
        ended = not data
        sink = self._sinks[source]
        while data and sink is not None:
            try:
                data = data[os.write(sink, data) :]
            except BrokenPipeError:
                # Nobody reads any more (`| head`): the command learns it as it would of Ctrl-C.
                self._sinks[source] = sink = None
                self._ask_to_stop()
        return ended

    def _listen(self, control: socket.socket) -> bool:
        """Take the agent's messages; tell whether the port has closed."""
        data = control.recv(_CHUNK)
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            verb, _, argument = line.partition(b" ")
            if verb == b"ready":
                self._ready = True
                self._deadline = None
                control.sendall(b"time %d\n" % time.time_ns())
            elif verb == b"exit":
                self._status = int(argument)
        return not data

    def _interrupt(self, signals: socket.socket) -> bool:
        """Pass a first signal on to a running command; end the guest for any other."""
        for _ in signals.recv(_CHUNK):
            if self._ready and not self._interrupted:
                self._ask_to_stop()
            else:
                self._interrupted = True
                self._qemu.kill()
        return False

    def _ask_to_stop(self) -> None:
        self._interrupted = True
        self._deadline = time.monotonic() + self._clean_up_seconds
        with suppress(OSError):
            self._wires.control.sendall(b"signal %d\n" % signal.SIGINT)
