"""Keeps a network up in the background and answers questions about it through a mailbox.

The mailbox is a directory: a request is a file, so is its answer, and both appear by a rename. That
works the same on one machine and across the border of the virtual machine, where the directory is
shared. A command in a device writes its output to files there, which the asking side follows; a
recording of the black wire leaves its files there, which the asking side takes.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from testbed.errors import DaemonDiedError, TestbedError
from testbed.processes import find_mnexec
from testbed.runs import RUN_ID_VARIABLE

if TYPE_CHECKING:
    from testbed.fleet import Fleet
    from testbed.recording import Recording

POLL_S: Final = 0.1
ANSWER_DEADLINE_S: Final = 60.0
CANCEL_DEADLINE_S: Final = 10.0
ACTIONS: Final = ("start", "stop", "cut", "heal", "handover")


class Holder:
    """Serves a fleet until told to go down.

    Args:
        fleet: entered.
        mailbox: existing directory.
    """

    def __init__(self, fleet: Fleet, mailbox: Path) -> None:
        self._fleet = fleet
        self._mailbox = mailbox
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._recordings: dict[str, Recording] = {}
        self._fault = ""
        self._down = False

    def serve(self) -> None:
        """Answer until a request says ``down``; passes KeyboardInterrupt on."""
        try:
            # Without its mailbox nobody could ever reach the network again.
            while not self._down and self._mailbox.is_dir():
                self._watch()
                for path in sorted(self._mailbox.glob("*.request")):
                    self._handle(path)
                for number in list(self._children):
                    self._finish(number)
                for number in list(self._recordings):
                    self._record(number)
                time.sleep(POLL_S)
        finally:
            for child in self._children.values():
                child.kill()
                child.wait()
            for recording in self._recordings.values():
                recording.close()

    def _watch(self) -> None:
        try:
            self._fleet.check_alive()
        except DaemonDiedError as error:
            if not self._fault:
                sys.stderr.write(f"testbed: {error}\n")
                sys.stderr.flush()
            self._fault = str(error)

    def _handle(self, path: Path) -> None:
        number = path.stem
        try:
            request = json.loads(path.read_text(encoding="utf-8"))
            path.unlink()
            answer = self._answer(number, request)
        except TestbedError as error:
            answer = {"ok": False, "error": str(error)}
        except (OSError, ValueError, KeyError, TypeError) as error:
            with contextlib.suppress(OSError):
                path.unlink()
            answer = {"ok": False, "error": f"bad request: {error}"}
        if answer is not None:
            _put(self._mailbox / f"{number}.answer", answer)

    def _answer(self, number: str, request: dict[str, Any]) -> dict[str, Any] | None:
        match request["cmd"]:
            case "status":
                return {"ok": True, **self._status()}
            case "exec":
                self._execute(number, str(request["device"]), list(request["argv"]))
                return None
            case "capture":
                self._recordings[number] = self._start_recording(number, request)
                return None
            case "down":
                self._down = True
                return {"ok": True}
            case action if action in ACTIONS:
                result = getattr(self._fleet, action)(str(request["device"]))
                return {"ok": True, "result": result}
        return {"ok": False, "error": f"unknown request {request['cmd']!r}"}

    def _status(self) -> dict[str, Any]:
        devices: dict[str, dict[str, Any]] = {}
        for name in self._fleet.devices:
            try:
                idp, mike = (self._fleet.status(name, daemon) for daemon in ("idpd", "miked"))
                devices[name] = {"idpd": idp, "miked": mike, "sas": self._fleet.sa_count(name)}
            except TestbedError as error:
                devices[name] = {"error": str(error)}
        return {
            "topology": self._fleet.topology.name,
            "facts": self._fleet.facts,
            "fault": self._fault,
            "devices": devices,
            **self._fleet.surroundings.status(),
        }

    def _execute(self, number: str, device: str, argv: list[str]) -> None:
        pid = self._fleet.network.pid(device)
        output = self._mailbox / f"{number}.out"
        errors = self._mailbox / f"{number}.err"
        with output.open("wb") as out, errors.open("wb") as err:
            self._children[number] = subprocess.Popen(
                [find_mnexec(), "-a", str(pid), *argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                env={**os.environ, RUN_ID_VARIABLE: str(self._fleet.facts["run_id"])},
            )

    def _start_recording(self, number: str, request: dict[str, Any]) -> Recording:
        from testbed.recording import Recording

        folder = _files_of(self._mailbox, number)
        folder.mkdir(mode=0o700)
        return Recording(
            self._fleet,
            folder,
            seconds=float(request["seconds"]),
            decrypt=bool(request["decrypt"]),
            link=str(request["link"]),
        )

    def _record(self, number: str) -> None:
        recording = self._recordings[number]
        if not _files_of(self._mailbox, number).is_dir():  # whoever asked has given up
            recording.close()
            del self._recordings[number]
            return
        answer: dict[str, Any] | None
        if (self._mailbox / f"{number}.cancel").exists():
            answer = {"ok": False, "error": "the recording was cancelled"}
        else:
            try:
                result = recording.tick()
                answer = None if result is None else {"ok": True, **result}
            except (TestbedError, OSError) as error:
                answer = {"ok": False, "error": str(error)}
        if answer is not None:
            recording.close()
            del self._recordings[number]
            _put(self._mailbox / f"{number}.answer", answer)

    def _finish(self, number: str) -> None:
        child = self._children[number]
        if (self._mailbox / f"{number}.cancel").exists():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        code = child.poll()
        if code is not None:
            del self._children[number]
            _put(self._mailbox / f"{number}.answer", {"ok": True, "code": code})


class Mailbox:
    """The asking side.

    Args:
        directory: the mailbox.
        alive: whether the holder still lives.
    """

    def __init__(self, directory: Path, alive: Callable[[], bool]) -> None:
        self._directory = directory
        self._alive = alive

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Ask and wait for the answer.

        Raises:
            TestbedError: the holder refused, died, or does not answer.
        """
        number = self._post(command, arguments)
        try:
            return self._await_answer(number, command, ANSWER_DEADLINE_S)
        finally:
            self._forget(number)

    def record(self, target: Path, *, seconds: float, decrypt: bool, link: str) -> dict[str, Any]:
        """Have the black wire recorded and put the files into an existing folder.

        Returns:
            The holder's answer (`testbed.recording.Recording.tick`).

        Raises:
            TestbedError: the holder refused, died, or does not answer.
        """
        arguments = {"seconds": seconds, "decrypt": decrypt, "link": link}
        number = self._post("capture", arguments)
        try:
            answer = self._await_answer(number, "capture", seconds + 2 * ANSWER_DEADLINE_S)
            for path in sorted(_files_of(self._directory, number).iterdir()):
                _copy_private(path, target / path.name)
        except KeyboardInterrupt:
            (self._directory / f"{number}.cancel").touch()
            self._await_end(number)
            raise
        else:
            return answer
        finally:
            self._forget(number)

    def _await_answer(self, number: str, command: str, deadline_s: float) -> dict[str, Any]:
        limit = time.monotonic() + deadline_s
        while time.monotonic() < limit:
            answer = self._take(number)
            if answer is not None:
                return _checked(answer)
            time.sleep(POLL_S / 2)
        raise TestbedError(f"the network does not answer '{command}' within {deadline_s:g} s")

    def execute(self, device: str, argv: Sequence[str], output: TextIO, errors: TextIO) -> int:
        """Run a command in a device, pass its output on as it comes, return its exit code."""
        number = self._post("exec", {"device": device, "argv": list(argv)})
        offsets = [0, 0]
        streams = ((f"{number}.out", output), (f"{number}.err", errors))
        try:
            while True:
                answer = self._take(number)
                for index, (name, stream) in enumerate(streams):
                    offsets[index] += _copy(self._directory / name, offsets[index], stream)
                if answer is not None:
                    return int(_checked(answer)["code"])
                time.sleep(POLL_S / 2)
        except KeyboardInterrupt:
            (self._directory / f"{number}.cancel").touch()
            self._await_end(number)
            raise
        finally:
            self._forget(number)

    def _await_end(self, number: str) -> None:
        limit = time.monotonic() + CANCEL_DEADLINE_S
        while self._take(number) is None and time.monotonic() < limit:
            time.sleep(POLL_S / 2)

    def _post(self, command: str, arguments: dict[str, Any]) -> str:
        if not self._alive():
            raise TestbedError("the network is not up any more; 'testbed clean', 'testbed up'")
        number = f"{time.time_ns():020d}-{secrets.token_hex(2)}"
        _put(self._directory / f"{number}.request", {"cmd": command, **arguments})
        return number

    def _take(self, number: str) -> dict[str, Any] | None:
        try:
            text = (self._directory / f"{number}.answer").read_text(encoding="utf-8")
        except FileNotFoundError:
            if not self._alive():
                raise TestbedError("the network went down before it answered") from None
            return None
        answer = json.loads(text)
        return answer if isinstance(answer, dict) else None

    def _forget(self, number: str) -> None:
        for path in self._directory.glob(f"{number}.*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
                continue
            with contextlib.suppress(OSError):
                path.unlink()


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    if answer.get("ok") is not True:
        raise TestbedError(str(answer.get("error", "the network refused without a reason")))
    return answer


def _files_of(mailbox: Path, number: str) -> Path:
    """Return the folder in which the files of an answer lie."""
    return mailbox / f"{number}.files"


def _copy_private(source: Path, target: Path) -> None:
    """Copy a file that may hold keys: nobody but its owner may read it at any moment."""
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with source.open("rb") as origin, os.fdopen(descriptor, "wb") as copy:
        shutil.copyfileobj(origin, copy)


def _put(path: Path, value: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(value, default=str), encoding="utf-8")
    temporary.replace(path)


def _copy(path: Path, offset: int, stream: TextIO) -> int:
    try:
        with path.open("rb") as source:
            source.seek(offset)
            data = source.read()
    except FileNotFoundError:
        return 0
    if data:
        stream.write(data.decode(errors="replace"))
        stream.flush()
    return len(data)
