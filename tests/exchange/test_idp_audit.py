"""Somebody else changes SAs, policies and routes behind our back.

kernel: changed                     (by its announcement, or its announcements were lost)
   |-- 50 ms --> read back what carries our marks
   |<-- SAs, policies, routes
   what is too much is removed, a policy or route that lacks is written again
   an SA that lacks: RESTORE of ourselves --> MIKE: a new epoch
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

from protocol.idp.events import KernelChanged, KernelRead
from protocol.ipsec.backend import AddSa, DeletePolicy, DeleteSa, PutPolicy
from protocol.ipsec.model import PolicyDirection, SaDirection
from tests.support.fakelink import Device, Network
from tests.support.pairs import joined, pair_sas, routes


def changed(network: Network, device: Device, ms: int = 60) -> None:
    device.batches.clear()
    device.signals.clear()
    device.feed(KernelChanged())
    network.run(ms)


def settled() -> tuple[Network, Device, Device]:
    network, (a, b) = joined(2)
    network.run(3000)
    return network, a, b


def restores(device: Device) -> int:
    return sum(kind == "RESTORE" for kind, _ in device.signals)


def test_a_change_that_is_not_ours_alone_is_no_reason_to_write() -> None:
    network, a, _ = settled()
    changed(network, a)
    assert a.labels == []
    assert a.signals == []
    assert (a.counter("IDP-64"), a.counter("IDP-65")) == (0, 0)


def test_idp_64_what_is_not_in_the_record_is_removed() -> None:
    network, a, _ = settled()
    before = {sa.id for sa in a.backend.dump_sas()}
    stray = replace(a.backend.dump_sas()[0], spi=0xBAD0)
    policy = a.backend.dump_policies()[0]
    other = replace(policy, selector=replace(policy.selector, upper_protocol=17))
    a.backend.apply([AddSa(stray), PutPolicy(other)])
    a.routes[ip_network("fd00:77::/64")] = None
    changed(network, a)
    assert {sa.id for sa in a.backend.dump_sas()} == before
    assert other not in a.backend.dump_policies()
    assert routes(a) == ["fd00:2::/64"]
    assert a.counter("IDP-64") == 3
    assert a.signals == [], "no new epoch for what does no harm"


def test_idp_64_a_policy_or_route_that_lacks_or_was_changed_is_written_again() -> None:
    network, a, _ = settled()
    policies = {policy.id: policy for policy in a.backend.dump_policies()}
    group_out, *_ = [
        p
        for p in policies.values()
        if p.direction is PolicyDirection.OUT and p.template_destination.is_multicast
    ]
    for_pair = next(p for p in policies.values() if not p.template_destination.is_multicast)
    a.backend.apply([DeletePolicy(for_pair.id), PutPolicy(replace(group_out, template_spi=99))])
    a.routes.clear()
    changed(network, a)
    assert {policy.id: policy for policy in a.backend.dump_policies()} == policies
    assert routes(a) == ["fd00:2::/64"]
    assert a.counter("IDP-64") == 3
    assert a.signals == []


def test_idp_65_an_sa_that_lacks_is_not_written_again_but_a_new_epoch_asked_for() -> None:
    network, a, b = settled()
    for lacks in (
        next(sa for sa in a.backend.dump_sas() if sa.direction is SaDirection.OUT),
        next(sa for sa in a.backend.dump_sas() if sa.direction is SaDirection.IN),
        pair_sas(a)[0],
    ):
        network, a, b = settled()
        a.backend.apply([DeleteSa(lacks.id)])
        changed(network, a)
        assert restores(a) == 1
        assert a.counter("IDP-65") == 1
        assert lacks.id not in {sa.id for sa in a.backend.dump_sas()}
        # Seen once more before MIKE is done: it is asked once only.
        changed(network, a, 1100)
        assert restores(a) == 0
        a.status_from_mike(2, [a, b])
        b.status_from_mike(2, [a, b])
        network.run(8000)
        assert len(pair_sas(a)) == 2
        changed(network, a, 1100)
        assert restores(a) == 0
        assert a.labels == []


def test_idp_65_an_sa_that_was_running_out_is_not_missed() -> None:
    network, a, b = settled()
    old = next(sa for sa in a.backend.dump_sas() if sa.destination.is_multicast)
    a.status_from_mike(2, [a, b])
    b.status_from_mike(2, [a, b])
    network.run(300)  # the new epoch is in use, the old one trails
    a.backend.apply([DeleteSa(old.id)])
    changed(network, a)
    assert restores(a) == 0


def test_readings_are_a_second_apart_and_repeated_while_we_write_ourselves() -> None:
    network, a, _ = settled()
    for _ in range(200):
        a.feed(KernelChanged())
        network.run(20)
    assert len(a.reads) <= 5, "four seconds of changes"
    a.feed(KernelChanged())
    network.run(1100)
    a.reads.clear()
    a.feed(KernelRead())  # a reading that nobody has asked for says nothing
    assert restores(a) == 0
    a.feed(KernelRead(problem="no memory"))
    network.run(1100)
    assert len(a.reads) == 1, "asked again"
