"""SA plan, the cases that matter one by one (all interleavings: tests/property)."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

from protocol.core.engine import Effect, Report
from protocol.idp.config import IdpConfig
from protocol.idp.events import ApplySas
from protocol.idp.saplan import EpochSas, SaPlan
from protocol.ipsec.backend import AddSa, DeleteSa, Outcome, PutPolicy
from protocol.ipsec.grouppolicy import ALL_IPV4_MULTICAST, ALL_MULTICAST, GroupPath
from protocol.ipsec.model import KeyMaterial, PolicyDirection, SaId, SecurityAssociation, Suite
from tests.support.fakelink import MS, SA_GROUP, FaultyBackend, epoch
from tests.support.identities import address

OWN, PEER = address(0), address(1)
DELAY_NS = IdpConfig(sa_group=SA_GROUP).activation_delay_ms * MS


def wanted(number: int, own_spi: int, *peer_spis: int) -> EpochSas:
    def sa(source: object, spi: int) -> SecurityAssociation:
        key = KeyMaterial(bytes([number]) * 20)
        return SecurityAssociation(source, SA_GROUP, spi, Suite.AES_GCM_128, key)  # type: ignore[arg-type]

    return EpochSas(epoch(number), sa(OWN, own_spi), tuple(sa(PEER, spi) for spi in peer_spis))


class Bench:
    """A plan whose batches are performed at once, unless held back."""

    def __init__(self, *destinations: IPv4Network | IPv6Network) -> None:
        path = GroupPath(OWN, SA_GROUP, 66, 7, destinations or (ALL_MULTICAST,))
        self.plan = SaPlan(IdpConfig(sa_group=SA_GROUP), path)
        self.backend = FaultyBackend()
        self.batches: list[ApplySas] = []
        self.points: list[str] = []
        self.run(self.plan.start(), 0)

    def run(self, effects: list[Effect], now_ns: int) -> None:
        for effect in effects:
            if isinstance(effect, Report):
                self.points.append(effect.point)
            if isinstance(effect, ApplySas):
                self.batches.append(effect)
                outcomes = self.backend.apply(effect.operations)
                self.run(self.plan.applied(effect.label, outcomes, now_ns), now_ns)

    def steps(self) -> list[str]:
        """The last batch in words."""
        names = {AddSa: "add", DeleteSa: "delete", PutPolicy: "pin"}
        words = []
        for operation in self.batches[-1].operations:
            match operation:
                case AddSa(sa):
                    number = sa.spi
                case DeleteSa(sa_id):
                    number = sa_id.spi
                case PutPolicy(policy):
                    number = policy.template_spi
            words.append(f"{names[type(operation)]} {number}")
        return words


def test_first_epoch_pins_in_the_same_batch() -> None:
    bench = Bench()
    bench.run(bench.plan.want(wanted(1, 300, 301, 302), 0), 0)
    assert bench.steps() == ["add 300", "pin 300", "add 301", "add 302"]


def test_policies_of_both_families_follow_an_epoch() -> None:
    bench = Bench(ALL_MULTICAST, ALL_IPV4_MULTICAST)
    bench.run(bench.plan.want(wanted(1, 300, 301), 0), 0)
    assert bench.steps() == ["add 300", "pin 300", "pin 300", "add 301"]
    bench.run(bench.plan.want(wanted(2, 310, 311), 5), 5)
    bench.run(bench.plan.due(DELAY_NS + 5), DELAY_NS + 5)
    assert bench.steps() == ["pin 310", "pin 310"]
    pinned = {
        str(policy.selector.destination): policy.template_spi
        for policy in bench.backend.dump_policies()
        if policy.direction is PolicyDirection.OUT
    }
    assert pinned == {"ff00::/8": 310, "224.0.0.0/4": 310}
    bench.run([bench.plan.stop()], 10_000 * MS)
    assert bench.backend.dump_policies() == []


def test_epoch_that_everybody_has_waits_no_longer() -> None:
    bench = Bench()
    bench.run(bench.plan.want(wanted(1, 300, 301), 0), 0)
    bench.run(bench.plan.want(wanted(2, 310, 311), 5), 5)
    bench.run(bench.plan.confirm(epoch(1), 10 * MS), 10 * MS)
    assert bench.plan.active_epoch == epoch(1)
    bench.run(bench.plan.confirm(epoch(2), 20 * MS), 20 * MS)
    assert bench.steps() == ["pin 310"]
    assert bench.plan.active_epoch == epoch(2)
    assert bench.plan.wake_mono_ns == 20 * MS + 2 * DELAY_NS, "the deactivation delay"


def test_idp_46_all_that_is_older_than_what_we_send_with_goes_together() -> None:
    """IDP-46."""
    bench = Bench()
    for number in (1, 2, 3):
        spi = 290 + 10 * number
        bench.run(bench.plan.want(wanted(number, spi, spi + 1), number * MS), number * MS)
        bench.run(bench.plan.confirm(epoch(number), number * MS), number * MS)
    assert bench.steps()[-1] == "pin 320"
    bench.plan.drained(epoch(3), 50 * MS)
    assert bench.plan.wake_mono_ns == 50 * MS
    bench.run(bench.plan.due(50 * MS), 50 * MS)
    assert bench.steps() == ["delete 300", "delete 301", "delete 310", "delete 311"]
    assert bench.plan.wake_mono_ns is None


def test_idp_46_word_of_another_epoch_than_we_send_with_hurries_nothing() -> None:
    """IDP-46: least of all the activation of one that is only written."""
    bench = Bench()
    bench.run(bench.plan.want(wanted(1, 300, 301), 0), 0)
    bench.run(bench.plan.want(wanted(2, 310, 311), 5), 5)
    for number in (1, 2):
        bench.plan.drained(epoch(number), 10 * MS)
        assert bench.plan.wake_mono_ns == 5 + DELAY_NS


def test_spi_of_an_old_inbound_sa_is_taken_over() -> None:
    bench = Bench()
    bench.run(bench.plan.want(wanted(1, 300, 301), 0), 0)
    bench.run(bench.plan.want(wanted(2, 310, 301), 5), 5)
    assert bench.steps() == ["add 310", "delete 301", "add 301"]
    bench.run(bench.plan.due(2000 * MS), 200 * MS)
    bench.run(bench.plan.due(9000 * MS), 9000 * MS)
    assert bench.steps() == ["delete 300"]
    assert bench.backend.errors == []


def test_spi_we_send_with_is_not_left_to_a_peer() -> None:
    bench = Bench()
    bench.run(bench.plan.want(wanted(1, 300, 301), 0), 0)
    bench.run(bench.plan.want(wanted(2, 310, 300), 5), 5)
    assert bench.steps() == ["add 310", "pin 310", "delete 300", "add 300"]
    assert bench.plan.active_epoch == epoch(2)


def test_epoch_that_lost_its_own_spi_is_not_activated() -> None:
    bench = Bench()
    bench.run(bench.plan.want(wanted(1, 300, 301), 0), 0)
    bench.run(bench.plan.want(wanted(2, 310, 311), 100 * MS), 100 * MS)
    bench.run(bench.plan.want(wanted(3, 320, 310), 200 * MS), 200 * MS)
    bench.run(bench.plan.due(100 * MS + DELAY_NS), 100 * MS + DELAY_NS)
    assert bench.plan.active_epoch == epoch(1)
    bench.run(bench.plan.due(200 * MS + DELAY_NS), 200 * MS + DELAY_NS)
    assert bench.plan.active_epoch == epoch(3)
    assert bench.steps() == ["pin 320"]


def test_fifth_epoch_hurries_the_first() -> None:
    bench = Bench()
    for number in range(1, 6):
        bench.run(bench.plan.want(wanted(number, 300 + number), number), number)
    assert len(bench.plan.describe()) == 4
    assert bench.plan.active_epoch == epoch(4)
    assert bench.plan.recorded == {SaId(SA_GROUP, 300 + n) for n in (2, 3, 4, 5)}
    assert bench.backend.errors == []


def test_epoch_that_waits_is_overtaken() -> None:
    bench = Bench()
    (write,) = bench.plan.want(wanted(1, 301), 0)
    assert bench.plan.want(wanted(2, 302), 1) == []
    assert bench.plan.want(wanted(3, 303), 2) == []
    bench.run([write], 3)
    labels = [batch.label for batch in bench.batches]
    assert labels == ["policies", f"write:{epoch(1)}", f"write:{epoch(3)}"]


def test_backend_that_reports_too_few_outcomes_has_failed() -> None:
    bench = Bench()
    (write,) = bench.plan.want(wanted(1, 301, 302), 0)
    assert isinstance(write, ApplySas)
    effects = bench.plan.applied(write.label, [Outcome()], 0)
    (again,) = [effect for effect in effects if isinstance(effect, ApplySas)]
    assert again.label == f"repair:{epoch(1)}"
    assert bench.plan.failures == 2


def test_outcome_nobody_waits_for_is_ignored() -> None:
    bench = Bench()
    assert bench.plan.applied("write:9-00", [Outcome(5, "late")], 0) == []


def test_deletion_that_fails_for_good_is_remembered_and_tried_with_the_next() -> None:
    bench = Bench()
    bench.run(bench.plan.want(wanted(1, 301), 0), 0)
    bench.run(bench.plan.want(wanted(2, 302), 1), 1)
    bench.run(bench.plan.due(500 * MS), 500 * MS)
    bench.backend.refuse = lambda operation: isinstance(operation, DeleteSa)
    bench.run(bench.plan.due(5000 * MS), 5000 * MS)
    assert bench.plan.recorded == {SaId(SA_GROUP, 301), SaId(SA_GROUP, 302)}
    bench.backend.refuse = lambda operation: False
    for number, at_ms in ((3, 6000),):
        bench.run(bench.plan.want(wanted(number, 303), at_ms * MS), at_ms * MS)
        bench.run(bench.plan.due((at_ms + 500) * MS), (at_ms + 500) * MS)
        bench.run(bench.plan.due((at_ms + 5000) * MS), (at_ms + 5000) * MS)
    assert {sa.spi for sa in bench.backend.dump_sas()} == {303}
    assert bench.plan.recorded == {SaId(SA_GROUP, 303)}


def test_names_of_keys_are_never_in_what_is_logged() -> None:
    secret = wanted(7, 301).own.key.encryption
    bench = Bench()
    bench.backend.refuse = lambda operation: isinstance(operation, AddSa)
    effects = bench.plan.want(wanted(7, 301), 0)
    bench.run(effects, 0)
    text = repr(effects) + bench.plan.last_failure + repr(bench.plan.describe())
    assert secret.hex() not in text
    assert repr(secret)[2:-1] not in text
