"""Frozen classes are plain during a run, make the same objects, and are frozen again after it.

The garbage collector stands still as long, and runs again.
"""

from __future__ import annotations

import gc
import inspect
from contextlib import nullcontext
from dataclasses import FrozenInstanceError, fields

import pytest

from protocol.core.engine import SetTimer
from protocol.idp.messages import Hello
from protocol.mike.config import MikeConfig
from testbed.sim import run as running
from testbed.sim.run import run
from testbed.sim.scenario import draw
from testbed.sim.thawing import constructor, frozen_classes, thawed
from testbed.sim.world import World


def test_a_run_is_the_same_to_the_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = [run(draw(seed, members=4)) for seed in (11, 12, 13)]
    monkeypatch.setattr(running, "thawed", nullcontext)
    assert [run(draw(seed, members=4)).digest for seed in (11, 12, 13)] == [v.digest for v in fast]


def test_the_collector_stands_still_during_a_run_and_goes_on_after_one_that_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on: list[bool] = []

    def failing(_: World) -> None:
        on.append(gc.isenabled())
        raise ValueError("an engine fails")

    monkeypatch.setattr(World, "run", failing)
    assert gc.isenabled()
    assert run(draw(11, members=2)).violation is not None
    assert on == [False]
    assert gc.isenabled()


def test_they_are_frozen_again_afterwards() -> None:
    before = frozen_classes()
    assert {SetTimer, Hello, MikeConfig} <= set(before)
    timer = SetTimer("x", 1)
    with thawed():
        assert frozen_classes() == []
        timer.name = "y"  # type: ignore[misc]
    assert frozen_classes() == before
    with pytest.raises(FrozenInstanceError):
        timer.name = "z"  # type: ignore[misc]


@pytest.mark.parametrize("kind", frozen_classes(), ids=lambda kind: kind.__qualname__)
def test_the_constructor_takes_the_same_and_stores_the_same(kind: type) -> None:
    parameters = inspect.signature(kind).parameters.values()
    plain = list(inspect.signature(constructor(kind)).parameters.values())[1:]
    assert [(one.name, one.kind) for one in plain] == [(one.name, one.kind) for one in parameters]
    bare = {one.name: object() for one in parameters if one.default is inspect.Parameter.empty}
    if hasattr(kind, "__post_init__"):
        return  # checks what it is given
    before = kind(**bare)
    with thawed():
        after = kind(**bare)
    assert type(before) is type(after)
    for field in fields(kind):  # type: ignore[arg-type]
        assert getattr(before, field.name) == getattr(after, field.name)
