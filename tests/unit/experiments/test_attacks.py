"""The attack campaign: what is an achievement, what costs too much, and what the summary says."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments import attacks, summary, summarytext
from experiments.attackbench import AttackBench, Join, RedCounts
from experiments.campaign import ATTACKS, DECRYPTION, FLOODS
from experiments.errors import PlanError
from experiments.outcome import Context, Outcome
from experiments.plan import Overrides, Plan, _validate, load
from experiments.plots import draw_all
from experiments.record import RunDirectory
from experiments.runner import Runner, failed_steps
from testbed.attacker.evidence import Usage
from testbed.errors import DeadlineError
from tests.unit.experiments.fake_fleet import NullDisplay, World
from tests.unit.experiments.support import SESSION, fake_sa_writes

MS = 1_000_000
STATE = {"d1": {"miked epoch": "7-00"}, "d2": {"miked epoch": "7-00"}}


@dataclass
class Case:
    """What the fake network does under attack."""

    kernel: bool = True
    changed: bool = False
    changed_by_joins: bool = False
    epochs: int = 0
    epochs_anyway: int = 0
    red: RedCounts = field(default_factory=RedCounts)
    slow: float = 1.0
    slow_beside: float = 1.0
    growth_kib: int = 0
    stuck: bool = False
    restless: bool = False
    opened: tuple[str, ...] = ()
    believed: int = 0
    esp: int = 12


class FakeAttacker:
    def __init__(self) -> None:
        self.now = ""
        self.done: list[str] = []

    def begin(
        self, attack: str, *, targets: Any = (), mute: bool = False, rate_pps: float | None = None
    ) -> None:
        self.now = "busy" if mute else "attack"
        self.done.append(f"{self.now} {attack} to {' '.join(targets) or 'all'}")

    def end(self) -> dict[str, float]:
        self.now = ""
        return {"sent": 500, "rate_pps": 1000.0, "mbit_per_s": 2.0, "seconds": 0.5}

    def status(self) -> dict[str, int]:
        return {"heard": 3}


class FakeBench:
    case: Case
    made: FakeBench

    def __init__(self, fleet: Any, repetition: Any, context: Context) -> None:
        type(self).made = self
        self.clock = context.clock
        self.attacker = FakeAttacker()
        self.stayers = ("d1", "d2", "d3", "d4")
        self.calls: list[str] = []
        self._attacked = False
        self._under = ""
        self._joined = 0

    def open(self) -> None: ...
    def close(self) -> None: ...

    def settle(self) -> None:
        if self.case.restless:
            raise DeadlineError("the members do not settle")

    def renew(self) -> None:
        self.calls.append("renew")

    def restart(self, device: str) -> None:
        self.calls.append(f"restart {device}")

    def look(self) -> dict[str, Any]:
        return STATE

    def changes(self, before: Any, after: Any, *, joined: bool = False) -> list[str]:
        self._attacked, self._under, self._joined = not joined, "", 0
        changed = self.case.changed_by_joins if joined else self.case.changed
        return ["d1 miked tm: a became b"] if changed else []

    def usage(self) -> dict[str, Usage]:
        grown = self.case.growth_kib if self.attacker.done else 0
        return {"d1": Usage({"idpd": 10, "miked": 10}, {"idpd": 9000 + grown, "miked": 8000})}

    def believed(self) -> dict[str, tuple[int, int]]:
        return {"d1/idpd": (20 + (self.case.believed if self.attacker.done else 0), 20)}

    def refusals(self) -> int:
        return 40

    guard_drops = refusals

    def epochs_since(self, wall_ns: int) -> int:
        joins, self._joined = self._joined, 0
        under = self._attacked or self._under == "attack"
        return 2 * joins + (self.case.epochs if under else self.case.epochs_anyway)

    def red(self) -> RedCounts:
        return self.case.red

    def ends(self, *, joining: bool) -> list[str]:
        return ["d1", "d5" if joining else "d2"]

    def join(self) -> Join:
        factor = {"": 1.0, "attack": self.case.slow, "busy": self.case.slow_beside}
        if self.case.stuck and self.attacker.now == "attack":
            raise DeadlineError("d5 did not get into the group")
        self._joined += 1
        self._attacked, self._under = False, self.attacker.now
        took = 100 * factor[self.attacker.now]
        return Join(took - 5, took - 3, took)

    def leave(self) -> None: ...

    def old_keys_open(self) -> tuple[int, int, list[str]]:
        return self.case.esp, 8, list(self.case.opened)


@pytest.fixture(autouse=True)
def fake_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacks, "AttackBench", FakeBench)


def fleet(case: Case) -> Any:
    return SimpleNamespace(
        options=SimpleNamespace(kernel=case.kernel),
        devices=tuple(f"d{n}" for n in range(1, 7)),
        stop=lambda device: None,
        facts={},
    )


def measured(case: Case, *names: str) -> tuple[Outcome, FakeBench]:
    FakeBench.case = case
    repetition = load("attacks").repetitions()[0]
    steps = tuple(
        replace(step, method=name, amount=2 if name in FLOODS else 1)
        for step, name in zip(repetition.steps, names or ATTACKS, strict=False)
    )
    outcome = attacks.run(fleet(case), replace(repetition, steps=steps), Context(World().clock()))
    return outcome, FakeBench.made


def test_an_attack_that_changes_nothing_passes() -> None:
    outcome, bench = measured(Case())
    assert [step.reason for step in outcome.steps if step.status != "ok"] == []
    rows = outcome.tables["attacks.csv"]
    assert {row["achieved"] for row in rows} == {"nothing"}
    assert bench.calls == ["restart d4"], "of whom a copy has spoken"
    assert bench.attacker.now == ""


def test_floods_go_to_two_members_and_to_both_ends_of_a_join() -> None:
    _, bench = measured(Case(), "notice-flood", "forged-hello")
    assert bench.attacker.done == [
        "attack notice-flood to d1 d2",
        "attack notice-flood to d1 d5",
        "busy notice-flood to d1 d5",
        "attack notice-flood to d1 d5",
        "attack forged-hello to all",
        "attack forged-hello to all",
    ]


@pytest.mark.parametrize(
    ("case", "text"),
    [
        (Case(changed=True), "tm-foreign achieved: d1 miked tm: a became b"),
        (Case(changed_by_joins=True), "tm-foreign achieved: d1 miked tm: a became b"),
        (Case(epochs=1), "1 new epochs; 1 epochs more than joins and leaves"),
        (Case(believed=9), "d1/idpd believed 9 messages that nobody sent"),
        (Case(red=RedCounts(twice=2)), "2 red packets delivered twice"),
        (Case(red=RedCounts(foreign=["stream 9 at d2"])), "stream 9 at d2"),
        (Case(growth_kib=9 * 1024), "a daemon grew by 9.0 MiB"),
        (Case(restless=True), "not judged: the group was not whole and quiet before it: the"),
        (Case(stuck=True), "under it the group was broken: d5 did not get into the group"),
    ],
)
def test_whatever_an_attack_achieves_fails_its_step(case: Case, text: str) -> None:
    outcome, bench = measured(case, "tm-foreign")
    assert outcome.steps[0].status == "failed"
    assert text in outcome.steps[0].reason
    assert bench.calls == (["renew"] if case.stuck or case.restless else [])


def test_what_a_starved_machine_does_without_an_attack_is_not_its_doing() -> None:
    outcome, _ = measured(Case(epochs_anyway=1), "tm-foreign")
    assert outcome.steps[0].status == "ok"


@pytest.mark.parametrize(
    ("case", "attack", "status"),
    [
        (Case(slow=2.5), "malformed-flood", "failed"),
        (Case(slow=1.9), "malformed-flood", "ok"),
        (Case(slow=2.5, slow_beside=1.5), "malformed-flood", "ok"),
        (Case(slow=2.5), "forged-hello", "ok"),
    ],
)
def test_a_join_may_take_twice_as_long_under_a_flood(case: Case, attack: str, status: str) -> None:
    outcome, _ = measured(case, attack)
    assert outcome.steps[0].status == status
    (row,) = outcome.tables["attacks.csv"]
    assert row["join_ratio"] == pytest.approx(case.slow)


def test_what_old_keys_open_is_a_success_of_the_ex_member() -> None:
    outcome, _ = measured(Case(opened=("opened 3 notices under its group keys",)), DECRYPTION)
    assert "achieved: opened 3 notices" in outcome.steps[0].reason
    outcome, _ = measured(Case(esp=0), DECRYPTION)
    assert "no ESP packet was captured" in outcome.steps[0].reason


def test_without_kernel_sas_attacks_on_esp_are_said_not_to_have_run() -> None:
    outcome, _ = measured(Case(kernel=False), "esp-inject", "replay-all")
    assert [row["achieved"] for row in outcome.tables["attacks.csv"]] == [
        attacks.NO_KERNEL,
        "nothing",
    ]
    assert [step.status for step in outcome.steps] == ["ok", "ok"]


def test_a_plan_names_attacks_that_exist_and_enough_devices() -> None:
    plan = load("attacks")
    campaign = replace(plan.campaigns[0], attacks=("bribery",))
    with pytest.raises(PlanError, match="unknown attacks bribery"):
        _validate(replace(plan, campaigns=(campaign,)))
    with pytest.raises(PlanError, match="devices must be at least 5"):
        _validate(replace(plan, devices=4))
    assert set(plan.campaigns[0].attacks) == set(ATTACKS)
    methods = [step.method for step in plan.repetitions()[0].steps]
    assert sorted(methods) == sorted(ATTACKS)


def recorded(path: Path, case: Case, plan: Plan) -> RunDirectory:
    FakeBench.case = case
    directory = RunDirectory.create(path, plan, {})

    class Loaded:
        def __enter__(self) -> Any:
            return fleet(case)

        def __exit__(self, *_: object) -> None: ...

    runner = Runner(directory, lambda *_: Loaded(), fake_sa_writes, NullDisplay(), World().clock())  # type: ignore[arg-type]
    runner.execute(SESSION)
    directory.close()
    return directory


def test_summary_and_figure_come_from_the_rows(tmp_path: Path) -> None:
    directory = recorded(tmp_path / "good", Case(), load("attacks"))
    found = summary.write(directory.path)["attacks"]
    assert found["ok"]
    assert (found["tried"], found["successes"], found["not_run"]) == (len(ATTACKS), 0, [])
    assert found["join_ratio_max"] == pytest.approx(1.0)
    assert set(found["attacks"]) == set(ATTACKS)
    assert failed_steps(directory) == 0
    text = summarytext.text(summary.summarise(summary.analysis.read_run(directory.path)))
    assert f"attacks: {len(ATTACKS)} tried, 0 achieved something" in text
    assert "attacks.png" in {path.name for path in draw_all(directory.path)}


def test_a_success_is_in_the_summary_and_makes_the_command_fail(tmp_path: Path) -> None:
    plan = load("attacks", Overrides(sa_backend="memory"))
    directory = recorded(tmp_path / "bad", Case(kernel=False, changed=True), plan)
    found = summary.write(directory.path)["attacks"]
    assert not found["ok"]
    assert found["successes"] == len(ATTACKS) - 3, "ESP twice, and decryption changes nothing"
    assert found["not_run"] == ["esp-inject", "esp-replay"]
    assert any("tm-outsider achieved" in text for text in found["violations"])
    assert failed_steps(directory) > 0
    assert "attacks_memory-no-kernel-sa.png" in {path.name for path in draw_all(directory.path)}


# The bench's own arithmetic.


def bench_of(*reports: dict[str, Any]) -> AttackBench:
    bench = AttackBench.__new__(AttackBench)
    bench._senders = {0: "d1", 1: "d2"}
    bench._last = {}
    given = list(reports)
    bench._receivers = {"d1": SimpleNamespace(ask=lambda: given.pop(0))}  # type: ignore[dict-item]
    return bench


def report(foreign: int = 0, **streams: tuple[int, int, int, int]) -> dict[str, Any]:
    names = ("first_sequence", "last_sequence", "received", "duplicated")
    return {
        "foreign": foreign,
        "streams": [
            {"stream": name[1:], **dict(zip(names, values, strict=True))}
            for name, values in streams.items()
        ],
    }


def test_a_packet_that_was_read_before_and_comes_again_is_delivered_twice() -> None:
    bench = bench_of(report(s1=(0, 9, 10, 0)), report(s1=(10, 19, 9, 0)), report(s1=(7, 29, 11, 1)))
    assert bench.red().twice == 0
    second = bench.red()
    assert (second.sent, second.lost, second.twice) == (10, 1, 0)
    assert bench.red().twice == 2


def test_a_packet_of_nobody_or_of_oneself_is_foreign() -> None:
    bench = bench_of(report(1, s0=(0, 1, 2, 0), s7=(0, 1, 2, 0)))
    assert bench.red().foreign == [
        "1 packets of no stream at d1",
        "stream 0 at d1",
        "stream 7 at d1",
    ]


def test_attacks_may_be_chosen() -> None:
    chosen = ("malformed-flood", "replay-all")
    plan = load("attacks", Overrides(attacks=chosen, quick=True))
    assert [(c.attacks, c.pairs) for c in plan.campaigns] == [(chosen, 1)]
    with pytest.raises(PlanError, match="unknown attacks storm"):
        load("attacks", Overrides(attacks=("storm",)))
