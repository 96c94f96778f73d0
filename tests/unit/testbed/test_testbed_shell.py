"""Mailbox and progress: what surrounds a fleet."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from testbed import progress
from testbed.commands.live import _others
from testbed.errors import TestbedError
from testbed.holder import Holder, Mailbox

# --- the mailbox ----------------------------------------------------------------------------------


class FakeFleet:
    devices = ("d1", "d2")
    facts: ClassVar[dict[str, str]] = {"run_id": "x"}
    topology = SimpleNamespace(name="fake")
    surroundings = SimpleNamespace(
        status=lambda: {
            "routers": {"r1": "OSPF 3 of 3 Full"},
            "proxies": {"l1": {"groups": 2, "flows": 5}, "d1": {"error": "d1/mproxyd: gone"}},
            "gateways": {
                "g1": {"a": ["b", "c"], "b": ["a"]},
                "g2": {"a": [], "b": []},
                "g3": {"error": "g3/gatewayd: gone"},
            },
        }
    )

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []

    def check_alive(self) -> None:
        return

    def status(self, device: str, daemon: str) -> dict[str, Any]:
        if device == "d2":
            raise TestbedError("d2/idpd does not answer")
        return {"daemon": daemon}

    def sa_count(self, _device: str) -> int:
        return 3

    def cut(self, device: str) -> int:
        self.done.append(("cut", device))
        return 7

    def handover(self, device: str) -> None:
        raise TestbedError(f"{device} knows no transaction manager")


def serve(fleet: FakeFleet, folder: Path) -> threading.Thread:
    thread = threading.Thread(target=Holder(fleet, folder).serve)  # type: ignore[arg-type]
    thread.start()
    return thread


def test_questions_are_answered_until_it_goes_down(tmp_path: Path) -> None:
    fleet = FakeFleet()
    thread = serve(fleet, tmp_path)
    mailbox = Mailbox(tmp_path, thread.is_alive)
    answer = mailbox.ask("status")
    assert answer["devices"]["d1"] == {
        "idpd": {"daemon": "idpd"},
        "miked": {"daemon": "miked"},
        "sas": 3,
    }
    assert answer["devices"]["d2"] == {"error": "d2/idpd does not answer"}
    assert _others(answer) == [
        "router r1: OSPF 3 of 3 Full",
        "proxy l1: 2 groups heard, 5 flows",
        "proxy d1: d1/mproxyd: gone",
        "gateway g1: for b, c in a; for a in b",
        "gateway g2: stands by",
        "gateway g3: g3/gatewayd: gone",
    ]
    assert mailbox.ask("cut", device="d1")["result"] == 7
    assert fleet.done == [("cut", "d1")]
    with pytest.raises(TestbedError, match="knows no transaction manager"):
        mailbox.ask("handover", device="d1")
    with pytest.raises(TestbedError, match="unknown request"):
        mailbox.ask("explode")
    mailbox.ask("down")
    thread.join()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TestbedError, match="not up any more"):
        mailbox.ask("status")


def test_rubbish_in_the_mailbox_is_answered_as_such(tmp_path: Path) -> None:
    for name, text in (("a", "{"), ("b", "[]"), ("c", "{}"), ("d", '{"cmd": "cut"}')):
        (tmp_path / f"{name}.request").write_text(text)
    (tmp_path / "e.request").write_text('{"cmd": "down"}')
    thread = serve(FakeFleet(), tmp_path)
    thread.join()
    answers = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.answer")}
    assert {stem for stem, answer in answers.items() if not answer["ok"]} == {"a", "b", "c", "d"}
    assert all(answers[stem]["error"].startswith("bad request") for stem in "abcd")


def test_a_holder_without_its_mailbox_ends(tmp_path: Path) -> None:
    folder = tmp_path / "mailbox"
    folder.mkdir()
    thread = serve(FakeFleet(), folder)
    folder.rmdir()
    thread.join(10)
    assert not thread.is_alive()


# --- progress -------------------------------------------------------------------------------------


def test_without_a_terminal_there_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.delenv("TESTBED_TTY", raising=False)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    with progress.Progress(4, "join", stream) as shown:
        for number in range(4):
            shown.stage(f"repetition {number + 1}/4")
            clock[0] += 10
            shown.step("d3")
        shown.note("d3 failed")
    assert stream.getvalue().splitlines() == [
        "join: 0/4, 0 s spent",
        "join: 2/4, repetition 2/4, 20 s spent, about 20 s left",
        "join: 4/4, repetition 4/4, 40 s spent",
        "d3 failed",
        "join: 4/4, repetition 4/4, 40 s spent",
    ]


def test_on_a_terminal_there_is_a_bar_as_wide_as_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTBED_TTY", "1")
    monkeypatch.setenv("COLUMNS", "60")
    stream = io.StringIO()
    with progress.Progress(2, "join", stream) as shown:
        shown.stage("repetition 1/1")
        shown.step("d3", count=2)
        shown.note("a note")
    text = stream.getvalue()
    assert "2/2" in text
    assert "repetition 1/1" in text
    assert "a note\n" in text
    assert max(len(line) for line in text.replace("\r", "\n").split("\n")) <= 60


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (185, "3 min 05 s")])
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text
