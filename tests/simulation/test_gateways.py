"""Partitions and gateways: seeds, the checkers between partitions, engines broken on purpose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv6Network

import pytest

from protocol.gateway import legs, rules
from protocol.gateway.engine import GatewayEngine
from protocol.mproxy.events import FlowKey
from testbed.sim.faults import FOR_GOOD, Fault, Kind
from testbed.sim.gateways import world as between
from testbed.sim.gateways.checkers import HOPS_MAX, Whole
from testbed.sim.gateways.draws import DEATH_MS, draw_gateways
from testbed.sim.gateways.gatewayd import Mfc
from testbed.sim.gateways.layout import PARTITIONS, TOPOLOGIES, Layout
from testbed.sim.gateways.world import GatewayWorld
from testbed.sim.people import Crypto, spare_prefixes
from testbed.sim.rest import ViolationError
from testbed.sim.run import run, trace
from testbed.sim.scenario import Scenario, Theme
from testbed.sim.schedules import SETTLED_MS
from tests.simulation.test_broken_engines import caught

SEEDS = range(1, 31)


def quiet(topology: str, *faults: Fault, members: int = 4, theme: Theme = Theme.ANY) -> Scenario:
    """A few devices and the gateways of a topology, started together, and exactly these faults."""
    drawn = draw_gateways(1, members=members, theme=theme)
    return replace(
        drawn,
        topology=topology,
        faults=faults,
        starts_ms=(0,) * (members + len(TOPOLOGIES[topology])),
        link_us=(100, 400),
        clock_ms=0,
        safety_ms=DEATH_MS + 8_000,
        sa_mode="per-sender",
        unicast="group",
        rekey_interval_ms=0,
    )


@pytest.mark.parametrize("first", SEEDS[::10])
def test_no_checker_objects_to_ten_seeds(first: int) -> None:
    for seed in range(first, first + 10):
        scenario = draw_gateways(seed)
        verdict = run(scenario)
        assert verdict.violation is None, f"{verdict.violation}; replay: {scenario.to_json()}"
        assert verdict.left_out == ()


@pytest.mark.parametrize(
    ("mode", "crypto", "seed"),
    [
        ("kd", Crypto.MODELLED, 201),
        ("kd", Crypto.MODELLED, 202),
        ("auto", Crypto.MODELLED, 101),
        ("auto", Crypto.MODELLED, 102),
        ("ka", Crypto.REAL, 301),
    ],
)
def test_no_checker_objects_in_other_modes_nor_with_the_real_cryptography(
    mode: str, crypto: Crypto, seed: int
) -> None:
    assert run(draw_gateways(seed, mode=mode, crypto=crypto)).violation is None


def test_the_seeds_above_draw_every_topology_theme_and_fault_of_a_gateway() -> None:
    drawn = [draw_gateways(seed) for seed in SEEDS]
    assert {scenario.topology for scenario in drawn} == TOPOLOGIES.keys()
    assert {scenario.theme for scenario in drawn} == {Theme.ANY, Theme.DEATH}
    of_gateways = Counter(
        fault.kind
        for scenario in drawn
        for fault in scenario.faults
        if Layout.of(scenario).is_gateway(fault)
    )
    process = {Kind.CRASH, Kind.STOP, Kind.PAUSE, Kind.CLOCK, Kind.CARRIER, Kind.KILL_IDPD}
    assert process | {Kind.KILL_MIKED, Kind.KILL_GATEWAYD} <= of_gateways.keys()


def test_a_scenario_is_one_line_and_a_run_of_it_is_always_the_same() -> None:
    scenario = draw_gateways(8)
    again = Scenario.from_json(scenario.to_json())
    assert again == scenario
    assert run(again).digest == run(scenario).digest


def test_the_trace_names_partitions_and_gateways() -> None:
    lines = trace(quiet("star"))
    assert any("a.d" in line and "gateway.active" in line for line in lines)
    assert any(line.startswith("g2: knows") for line in lines)
    assert lines[-1] == "nothing is wrong"


# Where everybody is.


def test_a_partition_has_its_devices_first_and_then_a_leg_of_each_of_its_gateways() -> None:
    layout = Layout(4, TOPOLOGIES["chain"])
    assert [layout.everybody(partition) for partition in range(3)] == [
        [0, 3, 4, 5],
        [1, 4, 5, 6],
        [2, 6],
    ]
    assert [layout.place(6, partition) for partition in range(3)] == [None, 3, 1]
    people = layout.people(1)
    assert list(people.devices) == [0]
    assert people.identity(3).me.gateway
    assert people.authorised(3)[0] == IPv6Network("fd00::/48")


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        ("loss 1+1 amount=0.5", ["loss 1+1 amount=0.5"] * 3),
        (
            "partition 1+1 devices=0,1,4",
            ["partition 1+1 devices=0,2", "partition 1+1 devices=0,1", ""],
        ),
        ("partition 1+1 devices=0,3,4,5", ["", "partition 1+1 devices=1,2", ""]),
        ("one-way 1+1 devices=0,1,3", ["one-way 1+1 devices=0,1", "", ""]),
        ("one-way 1+1 devices=1,0", ["", "", ""]),
        ("crash 1+1 devices=2", ["", "", "crash 1+1 devices=0"]),
        ("crash 1+1 devices=4", ["crash 1+1 devices=2", "crash 1+1 devices=1", ""]),
        ("kill-idpd 2+1 devices=6", ["", "kill-idpd 2+1 devices=3", ""]),
        ("kill-idpd 3+1 devices=6", ["", "", "kill-idpd 3+1 devices=1"]),
        ("kill-gatewayd 1+1 devices=6", ["", "", ""]),
        ("handover 1+1 devices=0,3", ["handover 1+1 devices=0,1", "", ""]),
        ("handover 1+1 devices=0,1", ["", "", ""]),
    ],
)
def test_what_a_fault_is_in_each_partition(fault: str, seen: list[str]) -> None:
    layout = Layout(4, TOPOLOGIES["chain"])
    parts = [layout.faults(Fault.parse(fault), partition) for partition in range(3)]
    assert ["".join(map(str, part)) for part in parts] == seen


# What is objected to.


@pytest.fixture(scope="module")
def rest() -> GatewayWorld:
    """Four devices and three gateways when all is well."""
    world = GatewayWorld(quiet("chain"))
    world.run()
    return world


def objection(whole: Whole) -> str:
    return next((checker for checker, _ in whole.objections()), "")


def without_member(whole: Whole) -> Whole:
    gateway = whole.gateways[0]
    known = [{**entry, "members": entry["members"][:-1]} for entry in gateway.known]
    return replace(whole, gateways=[replace(gateway, known=known), *whole.gateways[1:]])


def without_prefix(whole: Whole) -> Whole:
    gateway = whole.gateways[2]
    known = [{**entry, "prefixes": entry["prefixes"][1:]} for entry in gateway.known]
    return replace(whole, gateways=[*whole.gateways[:2], replace(gateway, known=known)])


def of_a_partition_that_is_gone(whole: Whole) -> Whole:
    return replace(whole, gateways=whole.gateways[:2])


def without_route(whole: Whole) -> Whole:
    gateway = replace(whole.gateways[2], routes={})
    return replace(whole, gateways=[*whole.gateways[:2], gateway])


def with_routes_that_go_round(whole: Whole) -> Whole:
    gateway = replace(whole.gateways[2], routes=dict.fromkeys(whole.gateways[2].routes, "b"))
    return replace(whole, gateways=[*whole.gateways[:2], gateway])


def with_two_speakers(whole: Whole) -> Whole:
    first, second, third = whole.legs["b"]
    both = first.announced | second.announced
    told = [replace(leg, announced=both) for leg in (first, second)]
    return replace(whole, legs={**whole.legs, "b": [*told, third]})


def with_nobody_who_speaks(whole: Whole) -> Whole:
    silent = [replace(leg, announced=frozenset()) for leg in whole.legs["b"]]
    return replace(whole, legs={**whole.legs, "b": silent})


def with_more_than_is_there(whole: Whole) -> Whole:
    more = [
        replace(leg, announced=leg.announced | {spare_prefixes(0, 2)[0]})
        for leg in whole.legs["a"][:1]
    ]
    return replace(whole, legs={**whole.legs, "a": [*more, *whole.legs["a"][1:]]})


def without_policies(whole: Whole) -> Whole:
    (view, *others) = whole.devices["a"]
    bare = replace(view, pairs=replace(view.pairs, policies=frozenset()))
    return replace(whole, devices={**whole.devices, "a": [bare, *others]})


@pytest.mark.parametrize(
    ("change", "checker"),
    [
        (lambda whole: whole, ""),
        (without_member, "gateways-know"),
        (without_prefix, "gateways-know"),
        (of_a_partition_that_is_gone, "gateways-know"),
        (with_two_speakers, "one-speaks"),
        (with_nobody_who_speaks, "one-speaks"),
        (with_more_than_is_there, "one-speaks"),
        (without_route, "packets-arrive"),
        (with_routes_that_go_round, "packets-arrive"),
        (without_policies, "packets-arrive"),
    ],
)
def test_partitions_that_do_not_agree(
    rest: GatewayWorld, change: Callable[[Whole], Whole], checker: str
) -> None:
    assert objection(change(rest.whole())) == checker


def test_a_packet_is_carried_once_in_every_partition(rest: GatewayWorld) -> None:
    world = rest.worlds["a"]
    source = world.people.prefixes(0)[0][1]
    assert rest.carried("a", source) == {"a": 1, "b": 1, "c": 1}
    assert len(PARTITIONS) < HOPS_MAX


def test_a_packet_that_goes_round_is_objected_to() -> None:
    """Routes against every rule: each gateway of a ring hands on to the next partition."""
    world = GatewayWorld(quiet("ring"))
    source = world.worlds["a"].people.prefixes(0)[0][1]
    for gatewayd, accepts, out in zip(world.gateways, "abc", "bca", strict=True):
        gatewayd.mfc[FlowKey(source, between.RED_GROUP)] = Mfc(accepts, (out,))
    with pytest.raises(ViolationError, match="no-loop"):
        world.carried("a", source)


# What is survived.


def death(topology: str, number: int, kind: Kind = Kind.CRASH) -> Scenario:
    fault = Fault(kind, DEATH_MS, FOR_GOOD, (4 + number,))
    return quiet(topology, fault, theme=Theme.DEATH)


@pytest.mark.parametrize("kind", [Kind.CRASH, Kind.STOP, Kind.KILL_GATEWAYD])
@pytest.mark.parametrize(
    ("topology", "number"),
    [(name, number) for name, joined in TOPOLOGIES.items() for number in range(len(joined))],
)
def test_the_loss_of_a_gateway_is_survived_within_the_bound(
    topology: str, number: int, kind: Kind
) -> None:
    world = GatewayWorld(death(topology, number, kind))
    world.run()
    lost = topology == "chain" and number == 2
    assert world.whole().reachable("a") == ({"a", "b"} if lost else {"a", "b", "c"})


def test_of_a_revoked_device_nothing_crosses() -> None:
    world = GatewayWorld(quiet("chain", Fault(Kind.REVOKE, SETTLED_MS + 5_000, FOR_GOOD, (0,))))
    world.run()
    people = world.worlds["a"].people
    behind = people.prefixes(0)[0]
    assert world.carried("a", behind[1]) == {"a": 1}
    for name in ("b", "c"):
        views = (*world.whole().devices[name], *world.whole().legs[name])
        assert views
        assert not any(
            behind.overlaps(net) for view in views for net in view.routes if net.version == 6
        )
    for gateway in world.whole().gateways:
        members = {m["address"] for entry in gateway.known for m in entry["members"]}
        assert str(people.address(0)) not in members


# Engines that are broken.


def test_both_of_two_gateways_speak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "speaks", lambda *_: True)
    assert run(quiet("line")).violation is not None


def test_what_a_dead_gateway_said_holds_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "is_alive", lambda *_: True)
    sound = legs.LegState.look

    def look(self: legs.LegState, view: object, now_mono_ns: int) -> bool:
        kept = dict(self.speakers)
        changed = sound(self, view, now_mono_ns)  # type: ignore[arg-type]
        self.speakers = {**kept, **self.speakers}
        return changed

    monkeypatch.setattr(legs.LegState, "look", look)
    assert caught(run(death("chain", 0))) in ("gateways-know", "one-speaks", "packets-arrive")


def test_a_hung_gatewayd_is_believed_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legs.LegState, "forget_silent", lambda *_: False)
    assert caught(run(death("line", 0, Kind.KILL_GATEWAYD))) in ("one-speaks", "gateways-know")


def test_multicast_is_accepted_from_every_leg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        rules, "outs_of", lambda leg, _arrived, spoken: tuple(n for n in spoken if n != leg)
    )
    monkeypatch.setattr(rules, "speaks", lambda *_: True)
    assert run(quiet("star")).violation is not None


def test_routes_do_not_follow_the_best_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GatewayEngine, "_route", lambda *_: None)
    assert caught(run(quiet("chain"))) == "packets-arrive"


def test_the_bound_of_a_take_over_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(between, "TAKEN_OVER_MS", 2_000)
    assert caught(run(death("line", 0))) in ("gateways-know", "one-speaks", "packets-arrive")
