"""SA plan: whatever comes in whatever order, what the SAD holds is known, and nothing leaks."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protocol.core.engine import Effect, Report
from protocol.idp.config import IdpConfig, SaMode
from protocol.idp.events import ApplySas
from protocol.idp.saplan import EpochSas, SaPlan
from protocol.ipsec.backend import AddSa, DeleteSa, Outcome
from protocol.ipsec.grouppolicy import GroupPath
from protocol.ipsec.model import KeyMaterial, PolicyDirection, SecurityAssociation, Suite
from tests.support.fakelink import MS, SA_GROUP, FaultyBackend, epoch
from tests.support.identities import address

OWN = address(0)
OTHER_SPIS = st.sets(st.integers(256, 260), min_size=1, max_size=4)
"""A tiny space of SPIs, so that epochs collide all the time."""


class SaPlanMachine(RuleBasedStateMachine):
    """The plan against an SAD in memory; batches are under way for as long as Hypothesis likes."""

    mode = SaMode.PER_SENDER
    suite = Suite.AES_GCM_128
    faults = False

    @initialize(delays=st.sampled_from([(0, 0), (200, 1000), (1000, 200)]))
    def start(self, delays: tuple[int, int]) -> None:
        self.config = IdpConfig(
            sa_group=SA_GROUP,
            sa_mode=self.mode,
            suite=self.suite,
            activation_delay_ms=delays[0],
            deactivation_delay_ms=delays[1],
        )
        self.path = GroupPath(OWN, SA_GROUP, self.config.if_id, self.config.reqid)
        self.plan = SaPlan(self.config, self.path)
        self.backend = FaultyBackend()
        self.now_ns = 0
        self.number = 0
        self.under_way: ApplySas | None = None
        self.newest: EpochSas | None = None
        self.reports: list[Report] = []
        self.failing = False
        self.failed_ever = False
        self._take(self.plan.start())

    def _take(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, ApplySas):
                assert self.under_way is None, "two batches under way"
                assert effect.operations
                self.under_way = effect
            elif isinstance(effect, Report):
                self.reports.append(effect)

    def _sa(self, number: int, spi: int, own: bool) -> SecurityAssociation:
        source = OWN if own else address(spi)
        return SecurityAssociation(
            source,
            SA_GROUP,
            spi,
            self.suite,
            KeyMaterial(
                bytes([number % 251]) * (20 if self.suite is Suite.AES_GCM_128 else 24),
                b"" if self.suite is Suite.AES_GCM_128 else bytes(20),
            ),
        )

    @rule(own=st.integers(256, 260), others=OTHER_SPIS, at_once=st.booleans())
    def new_epoch(self, own: int, others: set[int], at_once: bool) -> None:
        """MIKE has a new epoch; ``at_once``: the backend is quick."""
        self.number += 1
        per_sender = self.mode is SaMode.PER_SENDER
        rest = sorted(others - {own}) if per_sender else []
        self.newest = EpochSas(
            epoch(self.number),
            self._sa(self.number, own, True),
            tuple(self._sa(self.number, spi, False) for spi in rest),
        )
        self._take(self.plan.want(self.newest, self.now_ns))
        while at_once and self.under_way is not None:
            self.batch_done(0)
            self.policy_never_points_at_a_peer()

    @precondition(lambda self: self.number % 4 == 3)
    @rule()
    def excluded(self) -> None:
        self.newest = None
        self._take(self.plan.want_none(self.now_ns))

    @rule(ms=st.sampled_from([1, 100, 200, 999, 1000, 5000]))
    def time_passes(self, ms: int) -> None:
        self.now_ns += ms * MS
        wake = self.plan.wake_mono_ns
        if wake is not None and wake <= self.now_ns:
            self._take(self.plan.due(self.now_ns))

    @precondition(lambda self: self.under_way is not None)
    @rule(fault=st.integers(0, 7))
    def batch_done(self, fault: int) -> None:
        batch = self.under_way
        assert batch is not None
        self.under_way = None
        refused = batch.operations[fault % len(batch.operations)] if self.failing else None
        self.backend.refuse = lambda operation: operation is refused
        outcomes = self.backend.apply(batch.operations)
        self._take(self.plan.applied(batch.label, outcomes, self.now_ns))

    @precondition(lambda self: self.faults)
    @rule(failing=st.booleans())
    def faults_begin_or_end(self, failing: bool) -> None:
        self.failing = failing
        self.failed_ever = self.failed_ever or failing

    @rule()
    def settle(self) -> None:
        """Faults end, time passes, batches are done: then the SAD is exactly as wanted."""
        self.failing = False
        for _ in range(40):
            if self.under_way is not None:
                self.batch_done(0)
            elif self.plan.wake_mono_ns is not None:
                self.now_ns = max(self.now_ns, self.plan.wake_mono_ns)
                self._take(self.plan.due(self.now_ns))
            else:
                break
        else:
            raise AssertionError("the plan never comes to rest")
        if self.failed_ever:
            return
        held = {sa.id: sa for sa in self.backend.dump_sas()}
        wanted = () if self.newest is None else (self.newest.own, *self.newest.others)
        assert held == {sa.id: sa for sa in wanted}
        if self.newest is not None:
            assert self.plan.active_epoch == self.newest.epoch
            spi = self.newest.own.spi if self.mode is SaMode.PER_SENDER else 0
            assert self._pinned_spi() == spi

    @precondition(lambda self: self.number % 4 == 3)
    @rule()
    def stop_and_start(self) -> None:
        """Whatever is on the way, stop removes all, and its late outcome changes nothing."""
        late = self.under_way
        if late is not None:
            self.backend.refuse = lambda operation: False
            outcomes: list[Outcome] = self.backend.apply(late.operations)
        removal = self.plan.stop()
        self.backend.errors.clear()
        self.backend.refuse = lambda operation: False
        self.backend.apply(removal.operations)
        assert self.backend.dump_sas() == []
        assert self.backend.dump_policies() == []
        self.backend.errors.clear()
        if late is not None:
            assert self.plan.applied(late.label, outcomes, self.now_ns) == []
        assert self.plan.recorded == frozenset()
        self.under_way, self.newest = None, None
        self._take(self.plan.start())

    def _pinned_spi(self) -> int:
        policies = self.backend.dump_policies()
        return next((p.template_spi for p in policies if p.direction is PolicyDirection.OUT), 0)

    @invariant()
    def sad_is_a_known_set(self) -> None:
        held = {sa.id for sa in self.backend.dump_sas()}
        assert held <= self.plan.recorded, "an SA that the plan does not know of"

    @invariant()
    def nothing_twice(self) -> None:
        """Without faults no addition meets an SA in the way, no deletion an SA that is gone."""
        if not self.failed_ever:
            assert self.backend.errors == []

    @invariant()
    def policy_never_points_at_a_peer(self) -> None:
        if self.failed_ever:
            return
        spi = self._pinned_spi()
        for sa in self.backend.dump_sas():
            if sa.spi == spi:
                assert sa.source == OWN

    @invariant()
    def epochs_are_bounded(self) -> None:
        assert len(self.plan.describe()) <= self.config.max_epochs + 1

    @invariant()
    def paper_mode_holds_one_sa(self) -> None:
        if self.mode is SaMode.PAPER and not self.failed_ever:
            assert len(self.backend.dump_sas()) <= 1


class PaperMachine(SaPlanMachine):
    mode = SaMode.PAPER
    suite = Suite.TDES_SHA1


class FaultyMachine(SaPlanMachine):
    faults = True


class FaultyPaperMachine(PaperMachine):
    faults = True


SETTINGS = settings(max_examples=80, stateful_step_count=40, deadline=None)

TestPerSender = SaPlanMachine.TestCase
TestPerSender.settings = SETTINGS
TestPaper = PaperMachine.TestCase
TestPaper.settings = SETTINGS
TestPerSenderWithFaults = FaultyMachine.TestCase
TestPerSenderWithFaults.settings = SETTINGS
TestPaperWithFaults = FaultyPaperMachine.TestCase
TestPaperWithFaults.settings = SETTINGS


def test_unused_operations_are_not_made() -> None:
    """The plan speaks only of SAs and policies it was given."""
    plan = SaPlan(IdpConfig(sa_group=SA_GROUP), GroupPath(OWN, SA_GROUP, 66, 7))
    operations = plan.start()[0].operations  # type: ignore[attr-defined]
    assert not [o for o in operations if isinstance(o, (AddSa, DeleteSa))]
