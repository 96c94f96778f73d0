"""Faults do what they say, schedules are written and read, and the model stays in the simulator."""

from __future__ import annotations

import ast
from itertools import pairwise
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature

from protocol.core.agenda import NS_PER_MS, Agenda
from testbed.errors import TestbedError
from testbed.sim.chance import Chance
from testbed.sim.faults import PROCESSES, RED, Fault, Kind, is_final
from testbed.sim.modelled import ModelledSecret, ModelledSigner
from testbed.sim.scenario import Scenario, Theme, draw
from testbed.sim.schedules import REST_MS, SETTLED_MS
from testbed.sim.wire import CLOG_MAX, DELAY_MS_MAX, Wire

ROOT = Path(__file__).resolve().parents[2]
MEMBERS = 4


def wire(*faults: Fault) -> tuple[Wire, Agenda]:
    agenda = Agenda()
    made = Wire(Chance(1), agenda, MEMBERS, (1_000, 1_000))
    for number, fault in enumerate(faults):
        made.begin(number, fault)
    return made, agenda


def sent(made: Wire, times: int = 2_000, sender: int = 0, receiver: int = 1) -> list[list[float]]:
    """Return the delays in ms of the copies of each of so many datagrams."""
    return [[d / NS_PER_MS for d in made.delays_ns(sender, receiver)] for _ in range(times)]


def test_without_a_fault_a_direction_has_one_fixed_delay() -> None:
    made, _ = wire()
    assert sent(made, 10) == [[1.0]] * 10


def test_loss_and_duplication_have_their_probability() -> None:
    lost = sum(not copies for copies in sent(wire(Fault(Kind.LOSS, 0, 1, (), 0.3))[0]))
    assert 500 < lost < 700
    doubled = sent(wire(Fault(Kind.DUPLICATION, 0, 1, (), 0.5))[0])
    assert 900 < sum(len(copies) == 2 for copies in doubled) < 1_100


def test_bursts_lose_many_in_a_row_and_a_quarter_in_all() -> None:
    made, agenda = wire(Fault(Kind.BURST, 0, 60_000, (), 200.0))
    fates = []
    for _ in range(20_000):
        agenda.skip(agenda.now_ns + 5 * NS_PER_MS)
        fates.append(bool(made.delays_ns(0, 1)))
    changes = sum(one is not two for one, two in pairwise(fates))
    assert 0.15 < fates.count(False) / len(fates) < 0.35
    assert changes < len(fates) / 20


def test_reordering_lets_later_datagrams_come_first() -> None:
    delays = [copies[0] for copies in sent(wire(Fault(Kind.REORDERING, 0, 1, (), 0.4))[0])]
    assert 700 < sum(delay > 1.0 for delay in delays) < 900
    assert max(delays) < 61.0


@pytest.mark.parametrize("flavour", ["uniform", "exponential", "pareto"])
def test_delays_have_their_mean_and_their_bound(flavour: str) -> None:
    made, _ = wire(Fault(Kind.DELAY, 0, 1, (), 50.0, flavour))
    delays = [copies[0] - 1.0 for copies in sent(made, 20_000)]
    assert 40 < sum(delays) / len(delays) < 60
    assert max(delays) <= DELAY_MS_MAX
    spread = {"uniform": 100.0, "exponential": 300.0, "pareto": 500.0}[flavour]
    assert (max(delays) > spread) is (flavour != "uniform")


@pytest.mark.parametrize(
    ("fault", "dead"),
    [
        (Fault(Kind.PARTITION, 0, 1, (0, 1)), {(s, r) for s in (0, 1) for r in (2, 3)}
         | {(s, r) for s in (2, 3) for r in (0, 1)}),
        (Fault(Kind.ONE_WAY, 0, 1, (0, 1, 2)), {(0, 1), (0, 2)}),
    ],
    ids=["partition", "one-way"],
)  # fmt: skip
def test_cuts_are_where_they_are_said_to_be(fault: Fault, dead: set[tuple[int, int]]) -> None:
    made, _ = wire(fault)
    pairs = {(s, r) for s in range(MEMBERS) for r in range(MEMBERS) if s != r}
    assert {pair for pair in pairs if not made.delays_ns(*pair)} == dead
    made.end(0)
    assert all(made.delays_ns(*pair) for pair in pairs)


def test_a_clog_lets_all_go_at_its_end_in_order_and_holds_so_many() -> None:
    made, agenda = wire(Fault(Kind.CLOG, 0, 500, (0, 1)))
    agenda.skip(200 * NS_PER_MS)
    held = sent(made, CLOG_MAX + 5)
    arrivals = [200.0 + copies[0] for copies in held if copies]
    assert len(arrivals) == CLOG_MAX
    assert arrivals == sorted(arrivals)
    assert 501.0 <= arrivals[0] <= arrivals[-1] < 502.0
    assert sent(made, 1, 1, 0) == [[1.0]]


def test_schedules_are_written_and_read() -> None:
    for seed in range(60):
        scenario = draw(seed)
        for fault in scenario.faults:
            assert Fault.parse(str(fault)) == fault
        assert Scenario.from_json(scenario.to_json()) == scenario


@pytest.mark.parametrize(
    "text", ["", "loss", "loss 1", "quake 1+1", "loss 1+1 colour=red", "loss 1+1 amount=x"]
)
def test_what_is_no_fault(text: str) -> None:
    with pytest.raises(TestbedError, match="is no fault"):
        Fault.parse(text)


def test_drawn_schedules_keep_their_promises() -> None:
    for seed in range(300):
        scenario = draw(seed)
        assert scenario.survivors
        busy: dict[int, int] = {}
        for fault in scenario.faults:
            assert fault.end_ms <= scenario.safety_ms
            assert len(set(fault.devices)) == len(fault.devices) <= scenario.members
            if scenario.theme is not Theme.ANY and fault.kind not in RED:
                assert fault.start_ms >= SETTLED_MS
            elif fault.kind in PROCESSES:
                (device,) = fault.devices
                assert fault.start_ms >= busy.get(device, scenario.starts_ms[device])
                busy[device] = scenario.safety_ms if is_final(fault) else fault.end_ms + REST_MS


def test_modelled_signatures_and_exchanges_behave_as_the_real_ones() -> None:
    signer, other = ModelledSigner(b"a" * 32), ModelledSigner(b"b" * 32)
    signature = signer.sign(b"said")
    assert len(signature) == 64
    signer.verify(signature, b"said")
    for key, data in ((signer, b"unsaid"), (other, b"said")):
        with pytest.raises(InvalidSignature):
            key.verify(signature, data)
    one, two, three = (ModelledSecret(bytes([n]) * 32) for n in (1, 2, 3))
    assert one.shared_with(two.blinded) == two.shared_with(one.blinded)
    assert one.shared_with(two.blinded) != one.shared_with(three.blinded)
    for key in (bytes(32), b"short"):
        with pytest.raises(ValueError, match="key"):
            one.shared_with(key)


def test_nobody_but_the_simulator_can_meet_the_model() -> None:
    """Stand-ins without any security must not get near a daemon."""
    users = []
    for package in ("protocol", "testbed", "topologies", "experiments"):
        for path in (ROOT / package).rglob("*.py"):
            names = {
                name
                for node in ast.walk(ast.parse(path.read_text()))
                for name in (
                    [node.module or ""] if isinstance(node, ast.ImportFrom)
                    else [alias.name for alias in node.names] if isinstance(node, ast.Import)
                    else []
                )
            }  # fmt: skip
            if any(name.startswith("testbed.sim") for name in names):
                users.append(str(path.relative_to(ROOT)))
    outside = [user for user in users if not user.startswith("testbed/sim/")]
    counters = ["experiments/bench.py", "testbed/commands/cost.py", "testbed/commands/delay.py"]
    assert sorted(outside) == [*counters, "testbed/commands/sim.py"]
