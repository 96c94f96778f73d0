"""The pairs' plan under all orders of events: what the kernel holds is what the record says.

Peers come and go, are rekeyed, change their prefixes; batches are answered late, or fail.
"""

from __future__ import annotations

import errno
from ipaddress import IPv6Address, ip_network
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from protocol.core.engine import Effect, Report
from protocol.idp.config import IdpConfig
from protocol.idp.events import AddRoute, ApplyRoutes, ApplySas
from protocol.idp.pairplan import PairPlan
from protocol.ipsec.backend import AddSa, Outcome
from protocol.ipsec.memory import MemoryBackend
from protocol.ipsec.model import (
    KeyMaterial,
    PolicyDirection,
    Prefix,
    SaId,
    SecurityAssociation,
    Suite,
)
from tests.support.fakelink import SA_GROUP
from tests.support.identities import address

MS = 1_000_000
OWN = address(0)
CONFIG = IdpConfig(sa_group=SA_GROUP, activation_delay_ms=200, deactivation_delay_ms=500)
PEERS = [address(index) for index in range(1, 4)]
PREFIXES: list[Prefix] = [ip_network(text) for text in ("fd00:1::/64", "fd00:2::/64", "10.0.0.0/8")]


def sas_of(peer: IPv6Address, number: int) -> tuple[SecurityAssociation, SecurityAssociation]:
    """SPIs of four successive epochs differ, the fifth's are the first's again."""
    place = int(peer) & 0xFF
    spi = 0x10000 + place * 16 + number % 4
    made = []
    for source, destination, shift in ((OWN, peer, 0), (peer, OWN, 0x100000)):
        key = KeyMaterial(number.to_bytes(8, "big") + bytes([place]) * 12)
        made.append(
            SecurityAssociation(source, destination, spi + shift, Suite.AES_GCM_128, key, if_id=66)
        )
    return made[0], made[1]


class PairMachine(RuleBasedStateMachine):
    """A plan, an SAD and a routing table, and answers that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.plan = PairPlan(CONFIG, OWN, lambda: None)
        self.backend = MemoryBackend()
        self.routes: dict[Prefix, None] = {}
        self.waiting: list[Effect] = []
        self.number = 0
        self.prefixes: dict[IPv6Address, tuple[Prefix, ...]] = {}
        self.failing = False
        self.ever_failed = False
        self.reports: list[Report] = []

    def take(self, effects: list[Effect]) -> None:
        self.reports += [e for e in effects if isinstance(e, Report)]
        self.waiting += [e for e in effects if isinstance(e, ApplySas | ApplyRoutes)]
        labels = {e.label for e in self.waiting if isinstance(e, ApplySas | ApplyRoutes)}
        assert len(labels) <= 1, "two batches are under way"

    @rule(peer=st.sampled_from(PEERS))
    def install(self, peer: IPv6Address) -> None:
        self.number += 1
        self.plan.install(peer, f"{self.number}-aa", sas_of(peer, self.number))
        self.plan.lead(peer, self.prefixes.setdefault(peer, ()))
        self.take(self.plan.advance(self.now))

    @rule(peer=st.sampled_from(PEERS), prefixes=st.sets(st.sampled_from(PREFIXES)))
    def lead(self, peer: IPv6Address, prefixes: set[Prefix]) -> None:
        if peer not in self.plan.peers:
            return
        for other, had in self.prefixes.items():
            if other != peer:
                prefixes -= set(had)
        self.prefixes[peer] = tuple(sorted(prefixes, key=str))
        self.plan.lead(peer, self.prefixes[peer])
        self.take(self.plan.advance(self.now))

    @rule(peer=st.sampled_from(PEERS))
    def remove(self, peer: IPv6Address) -> None:
        self.prefixes.pop(peer, None)
        self.plan.remove([peer])
        self.take(self.plan.advance(self.now))

    @rule(peer=st.sampled_from(PEERS))
    def run_out(self, peer: IPv6Address) -> None:
        self.plan.run_out([peer], self.now)
        self.take(self.plan.advance(self.now))

    @rule(ms=st.integers(1, 700))
    def pass_time(self, ms: int) -> None:
        self.now += ms * MS
        self.take(self.plan.advance(self.now))

    @rule(fails=st.booleans())
    def answer(self, fails: bool) -> None:
        self.perform(fails and self.failing)

    @precondition(lambda self: not self.ever_failed)
    @rule()
    def begin_to_fail(self) -> None:
        self.failing = self.ever_failed = True

    def perform(self, fails: bool) -> None:
        """The kernel performs one of the effects that wait, in their order, and answers."""
        if not self.waiting:
            return
        effect = self.waiting.pop(0)
        if isinstance(effect, ApplyRoutes):
            outcomes = [self._route(one, fails) for one in effect.operations]
        else:
            assert isinstance(effect, ApplySas)
            outcomes = []
            for operation in effect.operations:
                if fails and isinstance(operation, AddSa):
                    outcomes.append(Outcome(errno.ENOMEM, "no memory"))
                else:
                    outcomes += self.backend.apply([operation])
        if not self.ever_failed:
            assert all(outcome.ok for outcome in outcomes), (effect, outcomes)
        routes = isinstance(effect, ApplyRoutes)
        self.take(self.plan.applied(effect.label, outcomes, self.now, routes=routes))

    def _route(self, operation: Any, fails: bool) -> Outcome:
        if fails:
            return Outcome(errno.ENOMEM, "no memory")
        there = operation.prefix in self.routes
        if isinstance(operation, AddRoute):
            self.routes[operation.prefix] = None
            return Outcome(errno.EEXIST, "there") if there else Outcome()
        self.routes.pop(operation.prefix, None)
        return Outcome() if there else Outcome(errno.ESRCH, "not there")

    @invariant()
    def every_sa_is_in_the_record(self) -> None:
        for sa in self.backend.dump_sas():
            peer = sa.destination if sa.source == OWN else sa.source
            assert self.plan.holder(sa.id) == peer

    @invariant()
    def no_policy_names_another_peers_sa(self) -> None:
        for policy in self.backend.dump_policies():
            if policy.direction is PolicyDirection.OUT:
                owner = self.plan.holder(SaId(policy.template_destination, policy.template_spi))
                assert owner in (policy.template_destination, None)

    def settle(self) -> None:
        """Answer everything without faults until nothing is left to be done."""
        for _ in range(200):
            while self.waiting:
                self.perform(fails=False)
            wake = self.plan.wake_mono_ns
            if wake is None:
                return
            self.now = max(self.now, wake)
            self.take(self.plan.advance(self.now))
        raise AssertionError("it never settles")

    def teardown(self) -> None:
        self.settle()
        if not self.ever_failed:
            self.judge()
        for effect in self.plan.stop():
            self.waiting.append(effect)
        while self.waiting:
            self.perform(fails=False)
        assert self.backend.dump_sas() == []
        assert self.backend.dump_policies() == []
        assert self.routes == {}

    def judge(self) -> None:
        """What is there is one generation for each peer, its policies, its routes."""
        there = self.plan.peers
        assert len(self.backend.dump_sas()) == 2 * len(there)
        wanted = {prefix for peer in there for prefix in self.prefixes.get(peer, ())}
        assert set(self.routes) == wanted
        policies = self.backend.dump_policies()
        assert len(policies) == 2 * len(there) + 3 * len(wanted)
        spis = {sa.id for sa in self.backend.dump_sas() if sa.source == OWN}
        for policy in policies:
            if policy.direction is PolicyDirection.OUT:
                assert SaId(policy.template_destination, policy.template_spi) in spis


PairMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestPairPlan = PairMachine.TestCase
