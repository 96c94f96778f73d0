"""Every backend against a real SAD and SPD: ``ip xfrm`` and a dump read what was written."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv6Address

import pytest

from protocol.ipsec.backend import (
    AddSa,
    DeletePolicy,
    DeleteSa,
    IpsecBackend,
    IpsecError,
    PutPolicy,
)
from protocol.ipsec.grouppolicy import GroupPath
from protocol.ipsec.model import (
    ANY_ADDRESS,
    SUITES,
    KeyMaterial,
    Mode,
    Policy,
    PolicyDirection,
    SaDirection,
    SecurityAssociation,
    Selector,
    Suite,
)
from protocol.ipsec.schedule import sender_sas
from protocol.ipsec.snapshot import SadSnapshot
from protocol.xfrm.backends import check_kernel, make_backend
from protocol.xfrm.messages import GetSa, NewSa
from protocol.xfrm.socket import XfrmSocket
from tests.support.netns import Namespace, namespace, require_esp
from tests.support.xfrm import GROUP, OWN, PEER, make_sa

pytestmark = pytest.mark.kernel
PATH = GroupPath(OWN, GROUP, if_id=66, reqid=7)
MEMBERS = [IPv6Address("2001:db8:b::") + index for index in range(1, 11)]


@pytest.fixture(scope="module")
def space() -> Iterator[Namespace]:
    require_esp()
    with namespace() as made:
        yield made


@pytest.fixture(params=["netlink", "command", "pfkey"])
def backend(request: pytest.FixtureRequest, space: Namespace) -> Iterator[IpsecBackend]:
    made = make_backend(request.param, space.path, Suite.TDES_SHA1)
    yield made
    made.close()
    space.ip("xfrm state flush")
    space.ip("xfrm policy flush")


def sas_for(backend: IpsecBackend) -> list[SecurityAssociation]:
    """SAs of every kind that the backend can express."""
    found = [
        make_sa(0x1001, Suite.TDES_SHA1),
        make_sa(0x1002, Suite.TDES_SHA1, replay_window=32, mode=Mode.TRANSPORT, reqid=0),
    ]
    if backend.name == "pfkey":
        return found
    for number, suite in enumerate(Suite):
        found.append(make_sa(0x2001 + number, suite, replay_window=64, if_id=66))
    found.append(make_sa(0x3001, replay_window=128, esn=True))
    if backend.name == "netlink":
        found.append(make_sa(0x4001, direction=SaDirection.OUT, source=OWN))
        found.append(make_sa(0x4002, direction=SaDirection.IN, replay_window=64))
    return found


def by_spi(sas: list[SecurityAssociation]) -> list[SecurityAssociation]:
    return sorted(sas, key=lambda sa: sa.spi)


def read_states(text: str) -> list[SecurityAssociation]:
    """Read what ``ip xfrm state`` prints; this iproute2 does not know directions."""
    found = []
    for block in re.split(r"^(?=src )", text, flags=re.M)[1:]:
        own = re.sub(r"\bsel .*", "", block)
        words = dict(re.findall(r"\b(src|dst|spi|reqid|mode|if_id) (\S+)", own))
        wide = re.search(r"replay_window (\d+)", block)
        narrow = re.search(r"replay-window (\d+)", block)
        window = wide or narrow
        assert window is not None
        aead = re.search(r"aead (\S+) 0x(\w+) (\d+)", block)
        mac = re.search(r"auth-trunc (\S+) 0x(\w+) (\d+)", block)
        cipher = re.search(r"enc (\S+) 0x(\w+)", block)
        if aead:
            key = KeyMaterial(bytes.fromhex(aead[2]))
            shape = (aead[1], None, None, len(key.encryption), 0, int(aead[3]))
        else:
            assert mac is not None
            assert cipher is not None
            key = KeyMaterial(bytes.fromhex(cipher[2]), bytes.fromhex(mac[2]))
            lengths = len(key.encryption), len(key.authentication)
            shape = (None, cipher[1], mac[1], *lengths, int(mac[3]))
        suite = {
            (s.aead, s.encryption, s.authentication, s.encryption_key_length,
             s.authentication_key_length, s.icv_bits): name for name, s in SUITES.items()
        }[shape]  # fmt: skip
        found.append(
            SecurityAssociation(
                IPv6Address(words["src"]),
                IPv6Address(words["dst"]),
                int(words["spi"], 16),
                suite,
                key,
                Mode(words["mode"]),
                int(words["reqid"]),
                int(words["if_id"], 16) if "if_id" in words else None,
                None,
                int(window[1]),
                "esn" in block.split("anti-replay")[0],
            )
        )
    return found


def test_sas_read_back_equal(backend: IpsecBackend, space: Namespace) -> None:
    sas = sas_for(backend)
    assert all(outcome.ok for outcome in backend.apply([AddSa(sa) for sa in sas]))
    assert by_spi(backend.dump_sas()) == by_spi(sas)
    shown = read_states(space.ip("-d xfrm state"))
    assert by_spi(shown) == [replace(sa, direction=None) for sa in by_spi(sas)]
    independent = make_backend("netlink", space.path)
    assert SadSnapshot.of(independent.dump_sas()) == SadSnapshot.of(sas)
    independent.close()
    assert all(outcome.ok for outcome in backend.apply([DeleteSa(sa.id) for sa in sas]))
    assert space.ip("xfrm state") == ""
    assert backend.dump_sas() == []


def test_refusals_have_the_kernels_number(backend: IpsecBackend) -> None:
    sa = make_sa(0x1001, Suite.TDES_SHA1)
    moved = replace(sa, source=OWN)
    outcomes = backend.apply([AddSa(sa), AddSa(sa), AddSa(moved), DeleteSa(sa.id), DeleteSa(sa.id)])
    assert [o.errno for o in outcomes] == [0, errno.EEXIST, errno.EEXIST, 0, errno.ESRCH]
    assert [bool(o.text) for o in outcomes] == [False, True, True, False, True]


def test_one_failure_in_the_middle_is_exactly_that_one(backend: IpsecBackend) -> None:
    sas = [make_sa(0x1000 + n, Suite.TDES_SHA1) for n in range(20)]
    assert backend.apply([AddSa(sas[9])])[0].ok
    outcomes = backend.apply([AddSa(sa) for sa in sas])
    assert [n for n, outcome in enumerate(outcomes) if not outcome.ok] == [9]
    assert len(backend.dump_sas()) == 20


POLICIES = [
    *[put.policy for put in PATH.start_up()],
    Policy(
        Selector(upper_protocol=17), PolicyDirection.OUT, OWN, PEER,
        template_mode=Mode.TRANSPORT, reqid=3, priority=5,
    ),
    Policy(
        Selector(), PolicyDirection.IN, ANY_ADDRESS, ANY_ADDRESS, template_mode=None, priority=9
    ),
]  # fmt: skip


def test_policies_read_back_equal(backend: IpsecBackend, space: Namespace) -> None:
    outcomes = backend.apply([PutPolicy(policy) for policy in POLICIES])
    assert all(outcome.ok for outcome in outcomes), outcomes
    assert sorted(map(repr, backend.dump_policies())) == sorted(map(repr, POLICIES))
    shown = space.ip("xfrm policy")
    assert shown.count("if_id 0x42") == 3
    assert "spi 0x" not in shown
    assert backend.apply(PATH.switch(0x1001))[0].ok
    assert space.ip("xfrm policy").count("proto esp spi 0x00001001 reqid 7 mode tunnel") == 1
    assert len(backend.dump_policies()) == len(POLICIES)
    gone = backend.apply([DeletePolicy(policy.id) for policy in [*POLICIES, POLICIES[0]]])
    assert [o.errno for o in gone] == [0] * len(POLICIES) + [errno.ENOENT]
    assert space.ip("xfrm policy") == ""


def test_a_whole_epoch_of_the_schedule(space: Namespace) -> None:
    backend = make_backend("netlink", space.path)
    both = [
        sender_sas(
            bytes(range(32)), epoch_number=number, epoch_tag=b"tag", members=MEMBERS, group=GROUP,
            suite=Suite.AES_GCM_128, own=MEMBERS[3], reqid=7, if_id=66,
        )
        for number in (1, 2)
    ]  # fmt: skip
    for sas in both:
        assert all(o.ok for o in backend.apply([AddSa(sa) for sa in sas]))
    assert by_spi(backend.dump_sas()) == by_spi(both[0] + both[1])
    assert all(o.ok for o in backend.apply([DeleteSa(sa.id) for sa in both[0]]))
    assert SadSnapshot.of(backend.dump_sas()) == SadSnapshot.of(both[1])
    space.ip("xfrm state flush")
    backend.close()


def test_hundreds_in_one_call(space: Namespace) -> None:
    backend = make_backend("netlink", space.path)
    sas = [make_sa(0x1000 + n) for n in range(300)]
    assert all(o.ok for o in backend.apply([AddSa(sa) for sa in sas]))
    assert by_spi(backend.dump_sas()) == sas
    assert all(o.ok for o in backend.apply([DeleteSa(sa.id) for sa in sas]))
    backend.close()


def test_the_kernels_words_reach_the_outcome(space: Namespace) -> None:
    backend = make_backend("netlink", space.path)
    sa = make_sa(0x1001, Suite.TDES_SHA1, direction=SaDirection.IN)
    outcomes = backend.apply([AddSa(sa), AddSa(replace(sa, direction=SaDirection.OUT))])
    assert [o.errno for o in outcomes] == [0, errno.EEXIST]
    assert backend.apply([AddSa(replace(sa, spi=1))])[0].errno == errno.EINVAL
    space.ip("xfrm state flush")
    backend.close()


def test_get_answers_one_sa(space: Namespace) -> None:
    backend = make_backend("netlink", space.path)
    sa = make_sa(0x1001)
    backend.apply([AddSa(sa), AddSa(make_sa(0x1002))])
    socket = XfrmSocket(space.path)
    answer = socket.get(GetSa(sa.id))
    assert isinstance(answer, NewSa)
    assert answer.sa == sa
    assert socket.get(GetSa(make_sa(0x1003).id)) != answer
    socket.close()
    space.ip("xfrm state flush")
    backend.close()


def test_foreign_sas_are_left_alone(space: Namespace) -> None:
    key = f"aead rfc4106(gcm(aes)) 0x{bytes(20).hex()} 128"
    space.ip(f"xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1001 mode tunnel {key}")
    backend = make_backend("netlink", space.path)
    assert backend.dump_sas() == []
    space.ip("xfrm state flush")
    backend.close()


def test_namespaces_are_apart(space: Namespace) -> None:
    with namespace() as other:
        here, there = (make_backend("netlink", place.path) for place in (space, other))
        assert here.apply([AddSa(make_sa(0x1001))])[0].ok
        assert there.dump_sas() == []
        assert here.apply([DeleteSa(make_sa(0x1001).id)])[0].ok
        here.close()
        there.close()


def test_the_probe_leaves_nothing(space: Namespace) -> None:
    for suite in Suite:
        check_kernel(space.path, suite)
    assert space.ip("xfrm state") == ""


def test_pf_key_refuses_what_it_would_change(space: Namespace) -> None:
    backend = make_backend("pfkey", space.path, Suite.TDES_SHA1)
    sas = [make_sa(0x1001, Suite.TDES_SHA1), make_sa(0x1002, Suite.AES_CBC_SHA256)]
    with pytest.raises(IpsecError, match="96 bits"):
        backend.apply([AddSa(sa) for sa in sas])
    assert space.ip("xfrm state") == ""
    backend.close()
