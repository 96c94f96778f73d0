"""Host and guest talking, with a guest that is a thread on the other ends of the sockets."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import cast

import pytest

from testbed.vm.conversation import (
    INTERRUPTED,
    Conversation,
    GuestDiedError,
    Wires,
    signals_caught,
)


class FakeGuest:
    """The guest's ends of the wires; killing it closes them, as QEMU's death does."""

    def __init__(self) -> None:
        pairs = [socket.socketpair() for _ in range(3)]
        self.host = [pair[0] for pair in pairs]
        self.out, self.err, self.control = (pair[1] for pair in pairs)
        self.control_lines = self.control.makefile("rb")
        self.killed = threading.Event()

    def kill(self) -> None:
        self.killed.set()
        self.control_lines.close()
        for end in (self.out, self.err, self.control):
            end.close()

    def boot(self) -> None:
        self.control.sendall(b"ready\n")
        assert self.control_lines.readline().startswith(b"time ")


@pytest.fixture
def guest() -> Iterator[FakeGuest]:
    made = FakeGuest()
    yield made
    made.kill()
    for end in made.host:
        end.close()


def converse(guest: FakeGuest, script: Callable[[], None], **limits: float) -> int:
    thread = threading.Thread(target=script)
    with signals_caught() as signals:
        thread.start()
        wires = Wires(*guest.host, signals)
        try:
            return Conversation(cast("object", guest), wires, **limits).follow()  # type: ignore[arg-type]
        finally:
            thread.join()


def test_output_error_and_status_come_back(
    guest: FakeGuest, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    def script() -> None:
        guest.boot()
        for number in range(100):  # more than one message: the port must stay registered
            guest.out.sendall(b"%d\r" % number)
            guest.err.sendall(b"e")
        guest.control.sendall(b"ex")
        guest.control.sendall(b"it 7\n")

    assert converse(guest, script) == 7
    captured = capfdbinary.readouterr()
    assert captured.out == b"".join(b"%d\r" % number for number in range(100))
    assert captured.err == b"e" * 100


def test_a_guest_that_dies_early_has_not_booted(guest: FakeGuest) -> None:
    with pytest.raises(GuestDiedError) as caught:
        converse(guest, guest.kill)
    assert not caught.value.booted


def test_a_guest_that_dies_later_is_an_error_too(guest: FakeGuest) -> None:
    def script() -> None:
        guest.boot()
        guest.kill()

    with pytest.raises(GuestDiedError, match="before its command ended") as caught:
        converse(guest, script)
    assert caught.value.booted


def test_a_guest_that_never_answers_is_given_up(guest: FakeGuest) -> None:
    with pytest.raises(GuestDiedError, match=r"did not boot in 0\.05 s"):
        converse(guest, lambda: None, boot_seconds=0.05)


def test_the_first_interruption_reaches_the_command(guest: FakeGuest) -> None:
    def script() -> None:
        guest.boot()
        os.kill(os.getpid(), signal.SIGINT)
        assert guest.control_lines.readline() == b"signal 2\n"
        guest.out.sendall(b"cleaned up\n")
        guest.control.sendall(b"exit 130\n")

    assert converse(guest, script) == INTERRUPTED
    assert not guest.killed.is_set()


def test_the_second_interruption_ends_the_guest(guest: FakeGuest) -> None:
    def script() -> None:
        guest.boot()
        os.kill(os.getpid(), signal.SIGTERM)
        assert guest.control_lines.readline() == b"signal 2\n"
        os.kill(os.getpid(), signal.SIGINT)

    assert converse(guest, script) == INTERRUPTED
    assert guest.killed.is_set()


def test_an_interruption_while_booting_ends_the_guest(guest: FakeGuest) -> None:
    assert converse(guest, lambda: os.kill(os.getpid(), signal.SIGINT)) == INTERRUPTED
    assert guest.killed.is_set()


def test_an_interrupted_command_has_limited_time(
    guest: FakeGuest, capfd: pytest.CaptureFixture[str]
) -> None:
    def script() -> None:
        guest.boot()
        os.kill(os.getpid(), signal.SIGINT)

    assert converse(guest, script, clean_up_seconds=0.05) == INTERRUPTED
    assert "did not end in 0.05 s" in capfd.readouterr().err


def test_signal_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with signals_caught():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
