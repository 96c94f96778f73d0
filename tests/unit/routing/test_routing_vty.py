"""The client of FRR's control socket, against a daemon of the test's own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from testbed.routing.vty import Vty, VtyError


@contextmanager
def daemon(folder: Path, answers: Sequence[Sequence[bytes]]) -> Iterator[tuple[Vty, list[bytes]]]:
    """Serve one connection: each command gets the next answer, piece by piece, then hang up."""
    path = folder / "zebra.vty"
    heard: list[bytes] = []
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            for pieces in answers:
                command = b""
                while not command.endswith(b"\0"):
                    command += connection.recv(100)
                heard.append(command)
                for piece in pieces:
                    connection.sendall(piece)

    thread = threading.Thread(target=serve)
    thread.start()
    vty = Vty("r1/zebra", path, timeout_s=5)
    try:
        yield vty, heard
    finally:
        vty.close()
        thread.join(5)
        server.close()


def test_answers_are_told_apart_however_they_are_cut(tmp_path: Path) -> None:
    answers = [[b"one\n\0\0\0\0"], [b"tw", b"o\n\0", b"\0\0", b"\0"], [b"\0\0\0\0"]]
    with daemon(tmp_path, answers) as (vty, heard):
        assert [vty("a"), vty("b"), vty("c")] == ["one\n", "two\n", ""]
    assert heard == [b"a\0", b"b\0", b"c\0"]


def test_configuring_returns_only_what_was_said(tmp_path: Path) -> None:
    with daemon(tmp_path, [[b"\0\0\0\0"], [b"No Path\n\0\0\0\0"]]) as (vty, _):
        assert vty.tell(["enable", "ipv6 pim rp"]) == ["No Path"]


def test_a_question_is_asked_in_json(tmp_path: Path) -> None:
    with daemon(tmp_path, [[b'{"a": 1}\n\0\0\0\0'], [b"% what?\0\0\0\0"]]) as (vty, heard):
        assert vty.ask("show it") == {"a": 1}
        with pytest.raises(VtyError, match="r1/zebra answers 'show it' with no JSON: '% what"):
            vty.ask("show it")
    assert heard[0] == b"show it json\0"


def test_a_refusal_says_why(tmp_path: Path) -> None:
    with (
        daemon(tmp_path, [[b"% [PIM6] Unknown command: nonsense\n\0\0\0\2"]]) as (vty, _),
        pytest.raises(VtyError, match=r"refuses 'nonsense' \(code 2\): .*Unknown command"),
    ):
        vty("nonsense")


def test_a_daemon_that_hangs_up_is_named(tmp_path: Path) -> None:
    with (
        daemon(tmp_path, [[b"half"]]) as (vty, _),
        pytest.raises(VtyError, match="r1/zebra does not answer 'show it'"),
    ):
        vty("show it")


def test_a_daemon_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(VtyError, match="r2/pim6d does not answer 'x': No such file"):
        Vty("r2/pim6d", tmp_path / "pim6d.vty")("x")


def test_a_path_that_no_socket_can_have_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(VtyError, match="choose a shorter TESTBED_RUN_BASE"):
        Vty("r1/zebra", tmp_path / ("x" * 100) / "zebra.vty")
