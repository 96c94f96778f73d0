"""The in-memory SAD and SPD answer as a kernel does."""

from __future__ import annotations

import errno
from dataclasses import replace

from protocol.ipsec.backend import AddSa, DeletePolicy, DeleteSa, PutPolicy
from protocol.ipsec.grouppolicy import ALL_IPV4_MULTICAST, ALL_MULTICAST, GroupPath
from protocol.ipsec.memory import MemoryBackend
from protocol.ipsec.model import ANY_IPV4_NETWORK, Mode, SaDirection
from protocol.ipsec.snapshot import SadSnapshot
from protocol.ipsec.validation import policy_defect
from tests.support.xfrm import GROUP, OWN, PEER, make_sa

PATH = GroupPath(OWN, GROUP, if_id=66, reqid=7)


def test_add_delete_and_their_refusals() -> None:
    backend = MemoryBackend()
    sa = make_sa(0x1001)
    outcomes = backend.apply([AddSa(sa), AddSa(sa), DeleteSa(sa.id), DeleteSa(sa.id)])
    assert [o.errno for o in outcomes] == [0, errno.EEXIST, 0, errno.ESRCH]
    assert not backend.kernel


def test_the_source_is_no_part_of_an_sas_identity() -> None:
    backend = MemoryBackend()
    outcomes = backend.apply([AddSa(make_sa(0x1001)), AddSa(make_sa(0x1001, source=OWN))])
    assert [o.errno for o in outcomes] == [0, errno.EEXIST]


def test_a_failure_in_the_middle_stops_nothing() -> None:
    backend = MemoryBackend()
    sas = [make_sa(0x1001), make_sa(0x1001), make_sa(0x1002)]
    assert [o.ok for o in backend.apply([AddSa(sa) for sa in sas])] == [True, False, True]
    assert backend.dump_sas() == [sas[0], sas[2]]


def test_invalid_sas_are_refused() -> None:
    good = make_sa(0x1001)
    bad = [
        replace(good, spi=255),
        replace(good, spi=1 << 32),
        replace(good, key=replace(good.key, encryption=bytes(19))),
        replace(good, if_id=0),
        replace(good, direction=SaDirection.OUT, replay_window=32),
        replace(good, reqid=-1),
        replace(good, esn=True),
        replace(good, replay_window=4097),
    ]
    outcomes = MemoryBackend().apply([AddSa(sa) for sa in bad])
    assert [o.errno for o in outcomes] == [errno.EINVAL] * len(bad)


def test_policies_are_replaced_in_one_step() -> None:
    backend = MemoryBackend()
    assert all(o.ok for o in backend.apply(PATH.start_up()))
    assert all(o.ok for o in backend.apply(PATH.switch(0x1001)))
    assert backend.dump_policies() == [*PATH.outbound(0x1001), *PATH.inbound(), *PATH.forward()]
    assert [o.errno for o in backend.apply(PATH.removal())] == [0, 0, 0]
    assert backend.apply([DeletePolicy(PATH.inbound()[0].id)])[0].errno == errno.ENOENT
    assert backend.apply([PutPolicy(replace(PATH.inbound()[0], reqid=-1))])[0].errno == errno.EINVAL


def test_group_path() -> None:
    out, inbound, forward = (put.policy for put in PATH.start_up())
    assert (out.template_source, out.template_destination, out.template_spi) == (OWN, GROUP, 0)
    assert str(inbound.template_source) == str(forward.template_source) == "::"
    assert {p.if_id for p in (out, inbound, forward)} == {66}
    assert str(out.selector.destination) == "ff00::/8"
    assert PATH.switch(0x1001)[0].policy.id == out.id
    assert PATH.switch(0x1001)[0].policy.template_spi == 0x1001


def test_group_path_for_both_families() -> None:
    """The kernel looks up by the inner family: each has policies of its own, the same otherwise."""
    path = replace(PATH, destinations=(ALL_MULTICAST, ALL_IPV4_MULTICAST))
    policies = [put.policy for put in path.start_up()]
    assert len(policies) == 6
    for six, four in zip(policies[::2], policies[1::2], strict=True):
        assert str(four.selector.destination) == "224.0.0.0/4"
        assert str(four.selector.source) == "0.0.0.0/0"
        assert replace(four, selector=six.selector) == six
        assert policy_defect(four) == ""
    assert [put.policy.template_spi for put in path.switch(0x1001)] == [0x1001, 0x1001]
    mixed = replace(policies[0], selector=replace(policies[0].selector, source=ANY_IPV4_NETWORK))
    assert "mixes" in policy_defect(mixed)
    assert "transport" in policy_defect(replace(policies[1], template_mode=Mode.TRANSPORT))


def test_snapshots_agree_between_devices() -> None:
    one = [make_sa(0x1001, direction=SaDirection.OUT), make_sa(0x1002, replay_window=64)]
    other = [make_sa(0x1002), make_sa(0x1001, replay_window=64)]
    assert SadSnapshot.of(one) == SadSnapshot.of(other)
    assert SadSnapshot.of(one).digest == SadSnapshot.of(other).digest
    assert SadSnapshot.of(one).digest != SadSnapshot.of(one[:1]).digest
    moved = [replace(sa, source=OWN) for sa in one]
    assert SadSnapshot.of(moved).digest != SadSnapshot.of(one).digest
    assert SadSnapshot.of(moved).digest_without_source == SadSnapshot.of(one).digest_without_source
    changed = [one[0], replace(one[1], key=make_sa(0x1003).key)]
    assert (
        SadSnapshot.of(changed).digest_without_source != SadSnapshot.of(one).digest_without_source
    )
    shown = str(SadSnapshot.of(one).as_json())
    assert one[0].key.encryption.hex() not in shown
    assert str(PEER) in shown
