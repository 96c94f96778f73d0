from __future__ import annotations

from typing import Any

import pytest

from experiments import sa_write
from experiments.errors import ExperimentError


class FakeSubject:
    """Takes a known time per operation and remembers what it holds."""

    suite = "3des-sha1"

    def __init__(self, name: str, sas: int, clock: list[int], cost_ns: int) -> None:
        self.name, self.sas, self.clock, self.cost_ns = name, sas, clock, cost_ns
        self.held: set[int] = set()
        self.fail = False

    def replace(self, old: Any, new: Any) -> None:
        if self.fail:
            raise ExperimentError("no buffer space")
        self.clock[0] += self.cost_ns * (len(old) + len(new))
        self.held -= {sa.spi for sa in old}
        self.held |= {sa.spi for sa in new}


def measured(*subjects: FakeSubject, clock: list[int], count: int = 3) -> list[dict[str, Any]]:
    supply = sa_write.Supply("3des-sha1", 1)
    return sa_write.rounds(subjects, supply, count, 1, lambda: clock[0])  # type: ignore[arg-type]


def test_times_are_per_sa_and_the_first_round_is_thrown_away() -> None:
    clock = [0]
    one = FakeSubject("netlink", 1, clock, 1_000_000)
    ten = FakeSubject("netlink batched", 10, clock, 500_000)
    rows = measured(one, ten, clock=clock)
    assert len(rows) == 2 * 2 * 3
    values = {(r["backend"], r["operation"]): r["ms_per_sa"] for r in rows}
    assert values == {
        ("netlink", "write"): 1.0,
        ("netlink", "delete+write"): 2.0,
        ("netlink batched", "write"): 0.5,
        ("netlink batched", "delete+write"): 1.0,
    }
    assert {r["repetition"] for r in rows} == {1, 2, 3}
    assert not one.held
    assert not ten.held


def test_backends_take_turns_in_changing_order() -> None:
    clock = [0]
    subjects = [FakeSubject(name, 1, clock, 1) for name in "abcd"]
    rows = measured(*subjects, clock=clock, count=6)
    orders = set()
    for number in range(1, 7):
        order = [r["backend"] for r in rows if r["repetition"] == number]
        assert sorted(set(order)) == list("abcd")
        orders.add(tuple(order))
    assert len(orders) > 1


def test_a_failed_write_is_a_row_with_its_reason() -> None:
    clock = [0]
    subject = FakeSubject("pfkey", 1, clock, 1)
    subject.fail = True
    rows = measured(subject, clock=clock, count=1)
    assert [(r["ok"], r["reason"]) for r in rows] == [(False, "no buffer space")]


def test_every_sa_has_its_own_spi_and_key() -> None:
    sas = sa_write.Supply("3des-sha1", 1).take(20)
    assert len({sa.spi for sa in sas}) == len({sa.key.digest for sa in sas}) == 20


@pytest.mark.kernel
def test_all_backends_write_on_this_kernel() -> None:
    from experiments.plan import Overrides, load

    campaign = load("sa-write", Overrides(repetitions=3)).sa_write()
    assert campaign is not None
    rows = sa_write.measure(campaign, 1)
    assert {r["backend"] for r in rows if r["ok"]} == set(campaign.backends)
