"""The control socket under abuse: the daemon goes on, and says no in one line."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.core.errors import LocalError
from protocol.daemon import control
from protocol.daemon.control import ControlError, ControlServer, request
from protocol.daemon.loop import Loop
from tests.support.waiting import wait_until


def echo(message: dict[str, Any]) -> dict[str, Any]:
    if message.get("text") == "bad":
        raise LocalError("bad\ntext")
    return {"text": message.get("text")}


def bug(_: dict[str, Any]) -> dict[str, Any]:
    raise KeyError("a fault of our own")


class Served:
    """A server whose loop runs in a thread until the test ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.loop = Loop()
        self.server = ControlServer(
            path, self.loop, {"echo": echo, "big": lambda _: {"text": "x" * 300_000}, "bug": bug}
        )
        self._thread = threading.Thread(target=self.loop.run)
        self._thread.start()

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(5)

        def connected() -> bool:
            sock.connect(str(self.path))
            return True

        wait_until(connected, 5.0, "room in the queue", tolerate=(BlockingIOError,))
        return sock

    def end(self) -> None:
        self.loop.set_timer("end", 0, lambda _: self.loop.stop())
        with self.connect():
            self._thread.join(5)
        assert not self._thread.is_alive()
        self.server.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    running = Served(tmp_path / "d.sock")
    yield running
    running.end()


def read_line(sock: socket.socket) -> dict[str, Any]:
    data = b""
    while not data.endswith(b"\n"):
        part = sock.recv(65536)
        assert part, "closed"
        data += part
    answer = json.loads(data)
    assert isinstance(answer, dict)
    return answer


def is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(65536) == b""
    except ConnectionError:
        return True


def test_a_request_gets_its_answer(served: Served) -> None:
    assert request(served.path, {"cmd": "echo", "text": "hallo"}) == {"ok": True, "text": "hallo"}
    assert served.path.stat().st_mode & 0o777 == 0o600


def test_a_refusal_is_one_line(served: Served) -> None:
    with pytest.raises(ControlError, match=r"^bad text$"):
        request(served.path, {"cmd": "echo", "text": "bad"})


def test_a_fault_of_our_own_is_told_and_survived(served: Served) -> None:
    with pytest.raises(ControlError, match="internal error: KeyError"):
        request(served.path, {"cmd": "bug"})
    assert request(served.path, {"cmd": "echo", "text": 1})["ok"]


@pytest.mark.parametrize(
    "line",
    [
        b"\x00\xff\xfe junk",
        b"{",
        b"[]",
        b"null",
        b'"echo"',
        b'{"cmd": ["echo"]}',
        b'{"cmd": null}',
        b'{"cmd": "format"}',
        b"{}",
        b"[" * 60_000,
        b'{"cmd": "' + b"x" * 60_000 + b'"}',
        b"1" * 5_000,
    ],
)
def test_junk_is_refused_and_the_client_may_go_on(served: Served, line: bytes) -> None:
    with served.connect() as sock:
        sock.sendall(line + b"\n")
        answer = read_line(sock)
        assert answer["ok"] is False
        assert "\n" not in answer["error"]
        sock.sendall(b'\n\n{"cmd": "echo", "text": 1}\n')
        assert read_line(sock) == {"ok": True, "text": 1}
    assert served.server.rejected_total == 1


def test_a_huge_line_ends_the_client(served: Served) -> None:
    with served.connect() as sock:
        try:
            for _ in range(100):
                sock.sendall(b"x" * 65536)
        except ConnectionError:
            pass
        wait_until(lambda: is_closed(sock), 5.0, "the server hangs up")
    assert request(served.path, {"cmd": "echo", "text": 2})["text"] == 2


def test_half_open_clients_disturb_nobody(served: Served) -> None:
    clients = [served.connect() for _ in range(2 * control.CLIENTS_MAX)]
    for sock in clients:
        try:
            sock.send(b'{"cmd": "ec')
        except ConnectionError:
            continue
    assert request(served.path, {"cmd": "echo", "text": 3})["text"] == 3
    for sock in clients:
        sock.close()


def test_a_client_that_never_reads_is_dropped(served: Served) -> None:
    with served.connect() as sock:
        try:
            for _ in range(20):
                sock.sendall(b'{"cmd": "big"}\n')
        except ConnectionError:
            pass
        assert request(served.path, {"cmd": "echo", "text": 4})["text"] == 4


def test_large_answers_arrive_whole(served: Served) -> None:
    assert len(request(served.path, {"cmd": "big"})["text"]) == 300_000


def test_several_requests_in_one_packet_are_answered_in_order(served: Served) -> None:
    with served.connect() as sock:
        sock.sendall(b"".join(b'{"cmd": "echo", "text": %d}\n' % n for n in range(50)))
        data = b""
        while data.count(b"\n") < 50:
            data += sock.recv(65536)
    assert [json.loads(line)["text"] for line in data.splitlines()] == list(range(50))


def test_silent_clients_in_mid_line_are_swept(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "CLIENT_SILENCE_NS", 10_000_000)
    with served.connect() as stuck, served.connect() as quiet:
        stuck.sendall(b'{"cmd"')
        wait_until(lambda: is_closed(stuck), 5.0, "the stuck client is dropped")
        quiet.sendall(b'{"cmd": "echo", "text": 5}\n')
        assert read_line(quiet)["text"] == 5


def test_the_file_of_a_dead_daemon_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    server = ControlServer(path, Loop(), {})
    server.close()
    assert not path.exists()
    server.close()


def test_that_of_a_living_one_is_not(served: Served) -> None:
    with pytest.raises(ControlError, match="another daemon is running here"):
        ControlServer(served.path, Loop(), {})
    assert request(served.path, {"cmd": "echo", "text": 6})["text"] == 6


def test_a_file_that_is_no_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    path.write_text("precious")
    with pytest.raises(ControlError, match="is not a socket"):
        ControlServer(path, Loop(), {})
    assert path.read_text() == "precious"


def test_a_path_longer_than_a_socket_address(tmp_path: Path) -> None:
    directory = tmp_path / ("x" * 100) / ("y" * 100)
    directory.mkdir(parents=True)
    loop = Loop()
    handlers = {"echo": echo, "end": lambda _: loop.stop() or {}}
    server = ControlServer(directory / "d.sock", loop, handlers)
    thread = threading.Thread(target=loop.run)
    thread.start()
    assert request(directory / "d.sock", {"cmd": "echo", "text": 7})["text"] == 7
    assert not (directory / "e.sock").exists()
    with pytest.raises(ControlError, match="no such socket"):
        request(directory / "e.sock", {"cmd": "echo"})
    request(directory / "d.sock", {"cmd": "end"})
    thread.join(5)
    assert not thread.is_alive()
    server.close()


def test_the_socket_has_its_name_when_it_listens_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "d.sock"
    named: list[bool] = []

    class Watched(socket.socket):
        def listen(self, *backlog: int) -> None:
            named.append(path.exists())
            super().listen(*backlog)

    monkeypatch.setattr(socket, "socket", Watched)
    server = ControlServer(path, Loop(), {})
    assert named == [False]
    assert [entry.name for entry in tmp_path.iterdir()] == ["d.sock"]
    server.close()
    assert list(tmp_path.iterdir()) == []


def test_nobody_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="no such socket"):
        request(tmp_path / "none.sock", {"cmd": "status"})


def test_a_daemon_that_does_not_answer(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as mute:
        mute.bind(str(tmp_path / "d.sock"))
        mute.listen()
        with pytest.raises(ControlError, match=r"no answer within 0\.05 s"):
            request(tmp_path / "d.sock", {"cmd": "status"}, 0.05)


def test_the_end_of_a_connection_is_told_with_the_number_its_requests_had(tmp_path: Path) -> None:
    loop, gone, served = Loop(), [], []
    server = ControlServer(tmp_path / "numbered.sock", loop, {"who": lambda _: note()})

    def note() -> dict[str, Any]:
        served.append(server.client)
        return {}

    server.on_gone = gone.append
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        for _ in range(2):
            request(tmp_path / "numbered.sock", {"cmd": "who"})
        wait_until(lambda: len(gone) == 2, 5.0, "both connections' ends")
    finally:
        loop.set_timer("end", 0, lambda _: loop.stop())
        with socket.socket(socket.AF_UNIX) as wake:
            wake.connect(str(tmp_path / "numbered.sock"))
            thread.join(5)
        server.close()
    assert served == gone[:2]
    assert len(set(served)) == 2
    assert server.client == 0
