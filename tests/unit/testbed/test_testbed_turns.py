"""Who runs first: the kernel's own word for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from testbed.errors import TestbedError
from testbed.turns import give_turns


@pytest.fixture
def sleepers() -> Iterator[dict[str, list[int]]]:
    command = [sys.executable, "-c", "input()"]
    started = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(3)]
    try:
        yield {f"d{number}": [process.pid] for number, process in enumerate(started, 1)}
    finally:
        for process in started:
            process.kill()
            process.communicate()


def policies(pids: dict[str, list[int]]) -> list[int]:
    return [os.sched_getscheduler(pid) for (pid,) in pids.values()]


def priority(pids: dict[str, list[int]], device: str) -> int:
    return os.sched_getparam(pids[device][0]).sched_priority


def test_the_ranked_run_first_and_then_all_are_equal_again(
    sleepers: dict[str, list[int]],
) -> None:
    give_turns(sleepers, ["d3", "d1"])
    assert policies(sleepers) == [os.SCHED_RR, os.SCHED_IDLE, os.SCHED_RR]
    assert priority(sleepers, "d3") > priority(sleepers, "d1") > 0
    give_turns(sleepers, ["d2"])
    assert policies(sleepers) == [os.SCHED_IDLE, os.SCHED_RR, os.SCHED_IDLE]
    give_turns(sleepers, None)
    assert policies(sleepers) == [os.SCHED_BATCH] * 3


def test_those_who_are_not_ranked_are_dealt_out_to_the_processors(
    sleepers: dict[str, list[int]],
) -> None:
    every = os.sched_getaffinity(0)
    give_turns(sleepers, ["d1"])
    seats = seats_of(sleepers)
    assert {len(seat) for seat in seats.values()} == {1}
    assert len(seats["d2"] | seats["d3"]) == min(2, len(every))
    give_turns(sleepers, ["d3", "d1"])
    assert [len(seat) for seat in seats_of(sleepers).values()] == [len(every), 1, len(every)]
    give_turns(sleepers, None)
    assert all(seat == every for seat in seats_of(sleepers).values())


def test_who_alone_is_ranked_sits_with_the_fewest(sleepers: dict[str, list[int]]) -> None:
    give_turns({"alone": sleepers["d3"], "other": sleepers["d1"]}, ["alone"])
    seats = seats_of(sleepers)
    assert len(seats["d3"] | seats["d1"]) == min(2, len(os.sched_getaffinity(0)))


def seats_of(pids: dict[str, list[int]]) -> dict[str, set[int]]:
    return {device: os.sched_getaffinity(pid) for device, (pid,) in pids.items()}


def test_a_kernel_that_refuses_is_named(
    sleepers: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with pytest.raises(TestbedError, match="cpu"):
        give_turns(sleepers, ["d1"])


def test_a_process_that_has_ended_is_passed_over(sleepers: dict[str, list[int]]) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
        give_turns({"gone": [ended.pid], **sleepers}, None)
    assert policies(sleepers) == [os.SCHED_BATCH] * 3
