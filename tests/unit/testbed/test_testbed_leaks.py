"""The leak detector: what belongs on the black wire passes, each planted red packet is found."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path

import pytest

from testbed.capture import CapturedLink
from testbed.errors import TestbedError
from testbed.leaks import LeakReport, LeakRules, check_leaks
from testbed.pcap import CapturedFrame, read_frames, write_frames
from tests.support import frames as f

RULES = LeakRules(
    idp_port=47500,
    mike_port=47510,
    clock_port=47503,
    groups=frozenset(map(IPv6Address, (f.ESP_GROUP, f.IDP_GROUP, f.MIKE_GROUP))),
    red=(IPv6Network("2001:db8:7ed::/64"),),
    markers=(b"this is red",),
)
RED_UDP = f.ipv6(f.UDP, f.udp(5000, 5000, b"x"), f.RED1, f.RED_GROUP)
RED_UNICAST = f.ipv6(f.UDP, f.udp(5000, 5000, b"x"), f.RED1, f.RED2)
ESP = f.ipv6(f.ESP, f.esp())
IDP = f.ipv6(f.UDP, f.udp(47500, 47500, b"hello" * 20), f.B1, f.IDP_GROUP)
MIKE = f.udp(47510, 47510, bytes(range(256)) * 12)

Judge = Callable[..., LeakReport]


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    """Writes frames into the file of one link and has them judged."""

    def judged(*captured: bytes, dropped: int = 0, split: int = 0) -> LeakReport:
        files = []
        parts = (captured[:split], captured[split:]) if split else (captured,)
        for number, part in enumerate(parts, 1):
            path = tmp_path / f"l{number}.pcap"
            write_frames(
                path, [CapturedFrame(10**18 + i * 10**6, data) for i, data in enumerate(part)]
            )
            files.append(CapturedLink(f"l{number}", path, len(part), dropped))
        return check_leaks(files, RULES)

    return judged


def test_what_belongs_on_the_wire_is_counted_by_kind(judge: Judge) -> None:
    belong = [
        ESP,
        f.ipv6(f.ESP, f.esp(), f.B1, f.B2),
        IDP,
        f.ipv6(f.UDP, MIKE[:8] + b"x" * 40, f.B1, f.MIKE_GROUP),
        f.ipv6(f.UDP, f.udp(50000, 47503, b"\x23" + bytes(47)), f.B1, f.B2),
        f.ipv6(f.UDP, f.udp(47503, 50000, b"\x24" + bytes(47)), f.B2, f.B1),
        f.ospf_hello(),
        f.ipv6(f.PIM, b"\x20\0\0\0" + b"\0\1\0\2\0\3", f.LINK_LOCAL, "ff02::d", 1),
        f.register(ESP),
        f.register(IDP),
        f.register(f.ipv6(f.PIM, b"", f.B1, f.ESP_GROUP), null=True),
        f.mld_report(f.ESP_GROUP),
        f.mld_report("ff05::2"),
        f.solicitation(f.B2),
        f.icmpv6_error(2, ESP),
        f.icmpv6_error(1, IDP[:100]),
        *f.fragments(f.UDP, MIKE, 7),
        *f.fragments(f.ESP, f.esp(length=2000), 8),
        *f.fragments(f.PIM, f.register(f.ipv6(f.ESP, f.esp(length=1400)))[40:], 9),
    ]
    report = judge(*map(f.ethernet, belong))
    assert report.leak_count == 0, report.text()
    assert report.ok
    assert report.counts == {
        "ESP": 4,
        "IDP": 1,
        "MIKE": 4,
        "clock": 2,
        "OSPFv3": 1,
        "PIM": 1,
        "PIM Register (ESP)": 3,
        "PIM Register (IDP)": 1,
        "PIM Register (null)": 1,
        "MLD": 2,
        "ND": 1,
        "ICMPv6 error": 2,
    }
    assert report.frames == sum(report.counts.values()) == len(belong)


@pytest.mark.parametrize(
    ("planted", "reason"),
    [
        (f.ethernet(RED_UDP), "fd00:1::c"),
        (f.ethernet(f.register(RED_UDP)), "fd00:1::c"),
        (f.ethernet(f.icmpv6_error(1, RED_UNICAST)), "fd00:1::c"),
        (f.ethernet(f.icmpv6_error(2, f.icmpv6_error(1, RED_UNICAST))), "fd00:1::c"),
        (f.vlan(RED_UDP), "fd00:1::c"),
        (f.vlan(ESP), "not IPv6 over Ethernet"),
        (
            f.ethernet(f.ipv4(f.UDP, f.udp(1, 2), "10.1.1.1", "239.1.1.1"), 0x0800),
            "not IPv6 over Ethernet",
        ),
        (f.vlan(f.ipv4(f.UDP, f.udp(1, 2), "10.1.1.1", "239.1.1.1"), 0x0800), "not IPv6"),
        (f.ethernet(f.arp("10.1.1.1", "10.1.1.2"), 0x0806), "not IPv6 over Ethernet"),
        (
            f.ethernet(f.ipv6(4, f.ipv4(f.UDP, f.udp(1, 2), "10.1.1.1", "239.1.1.1"))),
            "nothing that belongs",
        ),
        (f.ethernet(f.ipv6(41, RED_UDP)), "fd00:1::c"),
        (f.ethernet(f.ipv6(f.UDP, f.udp(5000, 5000), f.B1, f.B2)), "UDP ports are 5000 and 5000"),
        (f.ethernet(f.ipv6(f.UDP, f.udp(50000, 47500), f.B1, f.B2)), "UDP ports are 50000"),
        (f.ethernet(f.ipv6(6, bytes(20), f.B1, f.B2)), "nothing that belongs"),
        (f.ethernet(f.ipv6(f.ESP, f.esp(), f.RED1)), "fd00:1::c"),
        (f.ethernet(f.ipv6(f.ESP, f.esp(), f.B1, f.RED_GROUP)), "no group of the black network"),
        (f.ethernet(f.mld_report(f.RED_GROUP)), "ff0e::7e57, which is no group"),
        (f.ethernet(f.mld_report("ff05::3")), "ff05::3, which is no group"),
        (f.ethernet(f.solicitation(f.RED2)), "fd00:2::c"),
        (f.ethernet(f.icmpv6_error(1, f.ipv6(6, bytes(20), f.B1, f.B2))), "nothing that belongs"),
        (f.ethernet(f.register(f.ospf_hello())), "Register carries OSPFv3"),
        (f.ethernet(f.ipv6(f.ICMPV6, bytes((139, 0, 0, 0)) + bytes(8), f.B1, f.B2)), "type is 139"),
        (f.ethernet(f.fragments(f.UDP, MIKE, 7)[1]), "a later fragment of something"),
        (f.ethernet(f.ipv6(f.ESP, f.esp() + b"...this is red...")), "a red payload"),
        (
            f.ethernet(f.ipv6(f.ESP, f.esp() + IPv6Address("2001:db8:7ed::5").packed)),
            "the red prefix 2001:db8:7ed::/64",
        ),
        (f.ethernet(b"\x42\x42\x03" + bytes(35), 38), "not IPv6 over Ethernet"),
        (b"\x33\x33", "not IPv6 over Ethernet"),
    ],
)
def test_a_planted_packet_is_found_and_shown(judge: Judge, planted: bytes, reason: str) -> None:
    report = judge(f.ethernet(ESP), planted, f.ethernet(IDP))
    assert report.leak_count == 1, report.text()
    assert not report.ok
    (leak,) = report.leaks
    assert (leak.link, leak.number, leak.wall_ns) == ("l1", 2, 10**18 + 10**6)
    assert reason in leak.reason
    assert leak.data.startswith(planted[:14].hex())
    assert leak.data in report.text()
    assert report.as_json()["leaks"][0]["reason"] == leak.reason
    assert report.counts == {"ESP": 1, "IDP": 1}


def test_fragments_follow_their_first_one_across_links_and_orders(judge: Judge) -> None:
    first, *later = (f.ethernet(frame) for frame in f.fragments(f.UDP, MIKE, 7))
    assert judge(*later, first, split=len(later)).counts == {"MIKE": 3}
    red = [f.ethernet(x) for x in f.fragments(f.UDP, f.udp(5000, 5000, bytes(3000)), 7)]
    assert judge(*red).leak_count == 3


def test_no_frames_or_dropped_frames_are_no_proof(judge: Judge) -> None:
    assert not judge().ok
    report = judge(f.ethernet(ESP), dropped=2)
    assert (report.leak_count, report.dropped, report.ok) == (0, 2, False)


def test_only_the_first_of_many_leaks_are_kept(judge: Judge) -> None:
    report = judge(*[f.ethernet(RED_UDP)] * 50)
    assert (report.leak_count, len(report.leaks)) == (50, 20)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "ends inside a frame"),
        (lambda data: data[: 24 + 7], "ends inside a record's header"),
        (lambda data: data[:10], "it has 10 octets"),
        (lambda data: b"\0" * 24 + data[24:], "no capture of Ethernet"),
        (lambda data: data[:20] + b"\x71" + data[21:], "link type 113"),
        (lambda data: data[:32] + b"\x10" + data[33:], "of a frame's"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(
    tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    path = tmp_path / "x.pcap"
    write_frames(path, [CapturedFrame(0, f.ethernet(ESP))])
    assert [frame.data for frame in read_frames(path)] == [f.ethernet(ESP)]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(TestbedError, match=message):
        list(read_frames(path))
    with pytest.raises(TestbedError):
        check_leaks([CapturedLink("l1", path, 1, 0)], RULES)
