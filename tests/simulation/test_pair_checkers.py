"""The checkers of pairs object to what is broken, and an engine broken on purpose is caught."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network, ip_network

import pytest

from protocol.idp import rules
from protocol.idp.engine import IdpEngine
from protocol.idp.pairplan import PairPlan
from protocol.idp.prefixes import PrefixTable
from protocol.idp.unicast import UnicastPairs
from protocol.ipsec.model import ANY_NETWORK, Prefix
from protocol.ipsec.pairpolicy import link_local
from testbed.sim import paircheckers
from testbed.sim.faults import FOR_GOOD, RED, Fault, Kind
from testbed.sim.history import Announced, Evidence, Led, View
from testbed.sim.modelled import ModelledSecret
from testbed.sim.pairview import PairsView, SaName
from testbed.sim.people import People, address, common_prefixes, red_prefix, spare_prefixes
from testbed.sim.reddraws import COMMON
from testbed.sim.run import run
from testbed.sim.scenario import REKEY_INTERVAL_MS, Scenario, Theme, draw
from testbed.sim.schedules import SETTLED_MS
from testbed.sim.world import World
from tests.simulation.test_broken_engines import caught, scenario
from tests.simulation.test_checkers import view

FIRST, SECOND, THIRD = (address(index) for index in range(3))
WIDE, NARROW = common_prefixes()[1], common_prefixes()[0]


def sa(source: IPv6Address, destination: IPv6Address, spi: int = 7) -> SaName:
    return SaName(source, destination, spi, f"key of {source}, {destination} and {spi}")


def pairs(own: IPv6Address, behind: Mapping[IPv6Address, Iterable[Prefix]]) -> PairsView:
    """Return what a device has that is in order with these others."""
    policies = set()
    for peer, networks in behind.items():
        policies |= {(way, peer, IPv6Network(link_local(peer))) for way in ("out", "in")}
        policies |= {(way, peer, net) for net in networks for way in ("out", "in", "fwd")}
    return PairsView(
        frozenset(name for peer in behind for name in (sa(own, peer), sa(peer, own))),
        {peer: frozenset({sa(own, peer)}) for peer in behind},
        frozenset(policies),
    )


def views(
    announced: Mapping[int, Iterable[Prefix]],
    accepted: Mapping[int, Mapping[int, Iterable[Prefix]]],
) -> list[View]:
    """Return devices of which each has accepted what it says."""
    return [
        view(
            index,
            announced=frozenset(announced[index]),
            pairs=pairs(address(index), {address(n): nets for n, nets in accepted[index].items()}),
            routes=frozenset(net for nets in accepted[index].values() for net in nets),
        )
        for index in announced
    ]


OWN = {index: (red_prefix(index),) for index in range(3)}
SOUND = views(OWN, {n: {o: nets for o, nets in OWN.items() if o != n} for n in OWN})


def judged(*changed: View) -> str | None:
    return paircheckers.PairsAgree(unicast=True).judge([*changed, *SOUND[len(changed) :]])


def test_devices_that_agree() -> None:
    assert judged() is None


def test_without_unicast_nobody_has_anything() -> None:
    off = paircheckers.PairsAgree(unicast=False)
    nothing = [replace(v, pairs=PairsView(), routes=frozenset()) for v in SOUND]
    assert off.judge(nothing) is None
    assert off.judge(SOUND) is not None


def test_an_sa_of_a_device_that_is_not_there() -> None:
    ghost = replace(SOUND[0].pairs, sas=SOUND[0].pairs.sas | {sa(FIRST, address(9))})
    assert "not there" in str(judged(replace(SOUND[0], pairs=ghost)))


def test_a_policy_of_a_device_that_is_not_there() -> None:
    left = SOUND[0].pairs.policies | {("out", address(9), red_prefix(9))}
    assert "not there" in str(
        judged(replace(SOUND[0], pairs=replace(SOUND[0].pairs, policies=left)))
    )


@pytest.mark.parametrize("way", ["out", "in", "fwd"])
def test_a_policy_that_is_missing(way: str) -> None:
    less = SOUND[0].pairs.policies - {(way, SECOND, red_prefix(1))}
    changed = replace(SOUND[0], pairs=replace(SOUND[0].pairs, policies=less))
    assert judged(changed) is not None


def test_no_policy_at_all_to_a_device() -> None:
    less = frozenset(entry for entry in SOUND[0].pairs.policies if entry[1] != SECOND)
    assert "no policy to d2" in str(
        judged(replace(SOUND[0], pairs=replace(SOUND[0].pairs, policies=less)))
    )


@pytest.mark.parametrize(
    "sends",
    [frozenset({None}), frozenset({sa(FIRST, SECOND, 8)}), frozenset({sa(FIRST, SECOND), None})],
)
def test_an_sa_that_the_other_end_has_not(sends: frozenset[SaName | None]) -> None:
    other = replace(SOUND[0].pairs, sends={**SOUND[0].pairs.sends, SECOND: sends})
    assert "no SA that is there" in str(judged(replace(SOUND[0], pairs=other)))


def test_sas_of_an_epoch_that_is_over() -> None:
    """The views above are of epoch 7, the SAs have an SPI whose last two bits are 3."""
    sound = paircheckers.PairsAgree(unicast=True, of_epochs=True)
    assert sound.judge(SOUND) is None
    later = [replace(view, epoch="8-bb") for view in SOUND]
    assert "epoch" in str(sound.judge(later))
    assert paircheckers.PairsAgree(unicast=True).judge(later) is None


def test_a_route_without_policies_and_policies_without_a_route() -> None:
    assert "route" in str(judged(replace(SOUND[0], routes=SOUND[0].routes | {red_prefix(8)})))
    assert "route" in str(judged(replace(SOUND[0], routes=frozenset({red_prefix(1)}))))


def test_a_prefix_that_was_withdrawn_and_one_that_nobody_leads_to() -> None:
    assert "does not announce" in str(judged(replace(SOUND[0], announced=frozenset())))
    more = SOUND[0].announced | {spare_prefixes(0)[1]}
    assert "does not lead" in str(judged(replace(SOUND[0], announced=more)))


def test_of_overlapping_prefixes_one_counts_and_it_does_not_matter_which() -> None:
    announced = {0: (WIDE,), 1: (NARROW,), 2: ()}
    none: tuple[Prefix, ...] = ()
    first = {0: {1: none, 2: none}, 1: {0: none, 2: none}, 2: {0: (WIDE,), 1: none}}
    second = {**first, 2: {0: none, 1: (NARROW,)}}
    neither = {**first, 2: {0: none, 1: none}}
    both = {**first, 2: {0: (WIDE,), 1: (NARROW,)}}
    checker = paircheckers.PairsAgree(unicast=True)
    assert checker.judge(views(announced, first)) is None
    assert checker.judge(views(announced, second)) is None
    assert checker.judge(views(announced, neither)) is not None
    assert checker.judge(views(announced, both)) is not None


@pytest.mark.parametrize(
    ("prefix", "stolen"),
    [
        (red_prefix(1), False),
        (spare_prefixes(1)[1], False),
        (NARROW, False),
        (IPv6Network(link_local(SECOND)), False),
        (red_prefix(0), True),
        (spare_prefixes(0)[1], True),
        (ANY_NETWORK, True),
        (ip_network("2001:db8:b::/64"), True),
        (red_prefix(1).supernet(new_prefix=60), True),
    ],
)
def test_a_prefix_that_is_led_to_whom_it_does_not_belong(prefix: Prefix, stolen: bool) -> None:
    checker = paircheckers.NothingStolen(People(3))
    assert (checker.record(Led(1.0, 0, SECOND, prefix)) is not None) is stolen


def test_announcements_without_end() -> None:
    checker = paircheckers.AnnouncingStops()
    checker.record(Announced(5_000.0, 0))
    said = Evidence(ModelledSecret, (), (), (), {}, 20_000.0)
    assert checker.conclude(said) is None
    checker.record(Announced(19_000.0, 0))
    assert checker.conclude(said) is not None


# Engines.


def changing(*faults: Fault) -> Scenario:
    return replace(scenario(*faults), unicast="group")


GIVEN = changing(
    Fault(Kind.PREFIX_ADD, SETTLED_MS, 3_000, (0,)),
    Fault(Kind.PREFIX_ADD, SETTLED_MS, FOR_GOOD, (1,), 1.0),
    Fault(Kind.PREFIX_DROP, SETTLED_MS + 1_000, FOR_GOOD, (2,)),
)
TAKEN = changing(*[Fault(Kind.THEFT, SETTLED_MS + n, 3_000, (0, 1), float(n)) for n in range(6)])
SHARED = changing(
    Fault(Kind.PREFIX_ADD, SETTLED_MS, 5_000, (0,), 0.0, COMMON),
    Fault(Kind.PREFIX_ADD, SETTLED_MS, FOR_GOOD, (1,), 1.0, COMMON),
)


BOTH = changing(
    Fault(Kind.PREFIX_ADD, SETTLED_MS, FOR_GOOD, (0,), 0.0, COMMON),
    Fault(Kind.PREFIX_ADD, SETTLED_MS, FOR_GOOD, (1,), 1.0, COMMON),
)


@pytest.mark.parametrize("sound", [GIVEN, TAKEN, SHARED, BOTH])
def test_the_engines_as_they_are_pass_the_runs_below(sound: Scenario) -> None:
    assert run(sound).violation is None


def test_what_is_announced_at_run_time_is_led_to_and_what_is_withdrawn_is_not() -> None:
    world = World(GIVEN)
    world.run()
    (last,) = [v for v in world.views() if v.device == 3]
    assert last.routes == {red_prefix(0), red_prefix(1), spare_prefixes(1)[1]}


def test_every_kind_of_theft_is_tried_and_refused_by_its_rule() -> None:
    world = World(TAKEN)
    world.run()
    engine = world.devices[3].idpd.engine
    assert engine is not None
    counters = engine.status(world.devices[3].now())["counters"]
    assert counters["IDP-21"] >= 6


def test_a_certificate_authorises_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "check_authorised", lambda *_: None)
    assert caught(run(TAKEN)) == "nothing-stolen"


def test_overlapping_prefixes_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PrefixTable, "overlap", lambda *_: None)
    assert caught(run(BOTH)) == "pairs-agree"


def test_a_free_prefix_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UnicastPairs, "_reconsider", lambda *_args, **_words: [])
    assert caught(run(SHARED)) == "pairs-agree"


def test_a_withdrawn_prefix_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = PairPlan.lead
    led: dict[tuple[int, IPv6Address], set[Prefix]] = {}

    def greedy(self: PairPlan, peer: IPv6Address, prefixes: tuple[Prefix, ...]) -> None:
        all_ever = led.setdefault((id(self), peer), set())
        all_ever.update(prefixes)
        sound(self, peer, tuple(all_ever))

    monkeypatch.setattr(PairPlan, "lead", greedy)
    assert caught(run(GIVEN)) == "pairs-agree"


def test_announcing_never_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "is_quiet", lambda *_: False)
    assert caught(run(GIVEN)) == "announcing-stops"


def test_seeds_draw_every_change_and_thieves_always_give_back() -> None:
    drawn = [fault for seed in range(1, 201) for fault in draw(seed).faults if fault.kind in RED]
    assert {fault.kind for fault in drawn} == RED
    assert all(fault.duration_ms for fault in drawn if fault.kind is Kind.THEFT)
    assert {fault.amount for fault in drawn if fault.kind is Kind.THEFT} == set(range(6))
    assert {fault.flavour for fault in drawn} == {"", COMMON}


REVOKED = changing(Fault(Kind.REVOKE, SETTLED_MS, FOR_GOOD, (1,)))


def test_who_is_revoked_is_out_at_all_others_and_has_nothing_to_read() -> None:
    world = World(REVOKED)
    world.run()
    seen = world.views()
    assert [one.device for one in seen] == [0, 2, 3]
    for one in seen:
        assert SECOND not in one.peers_up | one.members | one.sources | one.pairs.peers


def test_who_is_revoked_stays_until_it_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IdpEngine, "_trust_changed", lambda *_: [])
    assert caught(run(REVOKED)) == "dead-is-forgotten"


GONE = replace(
    scenario(Fault(Kind.CRASH, SETTLED_MS, FOR_GOOD, (3,)), theme=Theme.DEATH), unicast="group"
)


def test_what_belongs_to_a_dead_device_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(GONE).violation is None
    for way in ("remove", "run_out"):  # at its LEAVE, and with the epoch that lacks it
        monkeypatch.setattr(PairPlan, way, lambda *_: None)
    assert caught(run(GONE)) == "dead-is-forgotten"


def test_pairs_are_never_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a device that was excluded could go on with those that it has."""
    renewed = replace(GIVEN, rekey_interval_ms=REKEY_INTERVAL_MS)
    assert run(renewed).violation is None

    def forget(self: UnicastPairs, _now: object) -> list[object]:
        self._renewals.clear()
        return []

    monkeypatch.setattr(UnicastPairs, "_renew", forget)
    assert caught(run(renewed)) == "pairs-agree"
