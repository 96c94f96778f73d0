from __future__ import annotations

import os
import time

import pytest

from protocol.core.errors import LocalError
from protocol.daemon import loop as loop_module
from protocol.daemon.loop import Loop


def test_timers_fire_in_order_of_time_then_of_setting() -> None:
    loop = Loop()
    fired: list[str] = []
    for name, at_mono_ns in [("late", 30), ("b", 20), ("a", 20), ("soon", 10), ("gone", 15)]:
        loop.set_timer(name, at_mono_ns, fired.append)
    loop.set_timer("late", 5, fired.append)
    loop.cancel_timer("gone")
    loop.cancel_timer("never set")
    assert loop.fire_due(4) == 0
    assert loop.fire_due(100) == 4
    assert fired == ["late", "soon", "b", "a"]
    assert loop.fire_due(100) == 0


def test_a_timer_that_cancels_or_moves_the_next_one() -> None:
    loop = Loop()
    fired: list[str] = []

    def first(name: str) -> None:
        fired.append(name)
        loop.cancel_timer("second")
        loop.set_timer("third", 1000, fired.append)

    loop.set_timer("first", 1, first)
    loop.set_timer("second", 2, fired.append)
    loop.set_timer("third", 3, fired.append)
    loop.fire_due(100)
    assert fired == ["first"]
    assert loop.timers.next_deadline() == 1000


def test_a_timer_set_into_the_past_again_and_again_starves_nobody() -> None:
    loop = Loop()
    fired: list[str] = []

    def again(name: str) -> None:
        fired.append(name)
        loop.set_timer(name, 0, again)

    loop.set_timer("again", 0, again)
    assert loop.fire_due(10) == 1
    assert loop.fire_due(10) == 1


def test_readers_timers_and_idle_work_in_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "QUIET_NS", 1_000_000)
    loop = Loop()
    seen: list[str] = []
    read_fd, write_fd = os.pipe()

    def readable() -> None:
        seen.append(os.read(read_fd, 10).decode())

    def idle() -> None:
        seen.append("idle")
        loop.stop()

    loop.add_reader(read_fd, readable)
    loop.idle_wanted = lambda: bool(seen)
    loop.on_idle = idle
    loop.set_timer("t", time.monotonic_ns() + 2_000_000, lambda _: os.write(write_fd, b"data"))
    loop.run()
    os.close(read_fd)
    os.close(write_fd)
    assert seen == ["data", "idle"]


def test_idle_work_comes_even_if_it_is_never_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "IDLE_DELAY_NS_MAX", 20_000_000)
    loop = Loop()

    def tick(name: str) -> None:
        loop.set_timer(name, time.monotonic_ns() + 1_000_000, tick)

    loop.set_timer("tick", 0, tick)
    loop.idle_wanted = lambda: True
    loop.on_idle = loop.stop
    started_ns = time.monotonic_ns()
    loop.run()
    assert 20_000_000 <= time.monotonic_ns() - started_ns < loop_module.QUIET_NS


def test_a_descriptor_that_select_cannot_watch_is_refused() -> None:
    with pytest.raises(LocalError, match="too many files"):
        Loop().add_reader(2000, lambda: None)


def test_idle_work_that_cannot_be_done_does_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that stays full: the idle work stays wanted, and the processor stays free."""
    monkeypatch.setattr(loop_module, "QUIET_NS", 10_000_000)
    loop = Loop()
    tries: list[int] = []
    loop.idle_wanted = lambda: True
    loop.on_idle = lambda: tries.append(time.monotonic_ns())
    loop.set_timer("end", time.monotonic_ns() + 200_000_000, lambda _: loop.stop())
    loop.run()
    assert 1 <= len(tries) <= 21
