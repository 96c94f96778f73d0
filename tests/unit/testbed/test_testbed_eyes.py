"""What the testbed sees: traces, SADs compared, check packets, idle time, device files."""

from __future__ import annotations

import json
import socket
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from protocol.daemon.config import load
from protocol.ipsec.model import KeyMaterial, SecurityAssociation, Suite
from protocol.ipsec.snapshot import SadSnapshot
from testbed.cpu import IdleSampler, idle_percent, read_counters
from testbed.device import DeviceSettings, make_pki, render
from testbed.errors import DeadlineError, TestbedError
from testbed.observer import compare
from testbed.packets import check, not_applicable
from testbed.trace import Event, TraceReader, parse
from testbed.wait import wait_until
from testbed.watch import GroupWatch, TraceLog, check_sads
from topologies.families import coalition, star

GROUP = IPv6Address("ff0e::1")


def line(point: str, wall_ns: int = 5, **fields: object) -> bytes:
    values = {"wall_ns": wall_ns, "mono_ns": 1, "device": "d1", "daemon": "idpd", "point": point}
    return json.dumps({**values, **fields}).encode() + b"\n"


# --- traces ---------------------------------------------------------------------------------------


def test_only_new_and_complete_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    reader = TraceReader(path)
    assert reader.read() == []
    with path.open("wb", buffering=0) as file:
        file.write(line("t_hello", epoch="1-ab") + line("t_key")[:20])
        (event,) = reader.read()
        assert event == Event(5, 1, "d1", "idpd", "t_hello", {"epoch": "1-ab"})
        assert reader.read() == []
        file.write(line("t_key")[20:] + b"rubbish\n")
        assert [event.point for event in reader.read()] == ["t_key"]
    assert reader.damaged_total == 1
    reader.close()
    reader.close()


@pytest.mark.parametrize("data", [b"", b"3", b"[]", b"{}", b'{"wall_ns": "x"}', b"\xff"])
def test_what_is_no_event_is_none(data: bytes) -> None:
    assert parse(data) is None


def test_awaiting_names_who_lacks_the_event() -> None:
    d1 = [[Event(7, 0, "d1", "idpd", "t_written", {})]]
    d2 = [[Event(1, 0, "d2", "miked", "t_key", {})]]
    log = TraceLog({"d1": lambda: d1.pop() if d1 else [], "d2": lambda: d2.pop() if d2 else []})
    with pytest.raises(DeadlineError, match=r"no t_written from d2; d2 last did: miked t_key"):
        log.await_each(
            ["d1", "d2"],
            lambda event: event.point == "t_written",
            "t_written",
            deadline_s=0.01,
            check=lambda: None,
        )
    assert [event.device for event in log.new()] == ["d2", "d1"]
    assert log.new() == []


# --- groups and SADs ------------------------------------------------------------------------------


def status_of(epochs: dict[str, str]) -> GroupWatch:
    addresses = {"d1": "::1", "d2": "::2"}

    def status(device: str, daemon: str) -> dict[str, object]:
        epoch = epochs[device]
        if daemon == "miked":
            return {"members": ["::2", "::1"], "tm": "::2", "epoch": epoch}
        return {"epoch": epoch, "active_epoch": epoch}

    return GroupWatch(addresses, status, lambda: None)


def test_a_group_is_awaited() -> None:
    watch = status_of({"d1": "3-aa", "d2": "3-aa"})
    assert watch.await_members(["d1", "d2"], deadline_s=0, tm="::2") == "3-aa"
    with pytest.raises(DeadlineError, match="holds ::2 for the transaction manager"):
        watch.await_members(["d1", "d2"], deadline_s=0.01, tm="::1")
    with pytest.raises(DeadlineError, match="d1/miked has 2 members, not 1"):
        watch.await_members(["d1"], deadline_s=0.01)
    with pytest.raises(DeadlineError, match="d2 is at epoch 4-bb"):
        status_of({"d1": "3-aa", "d2": "4-bb"}).await_members(["d1", "d2"], deadline_s=0.01)


def test_a_group_that_does_not_come_about_is_described_device_by_device() -> None:
    """Who is not heard is another matter than who is heard and has no key."""

    def status(device: str, daemon: str) -> dict[str, object]:
        if device == "d3":
            raise TestbedError("d3/idpd: no answer")
        if daemon == "miked":
            return {"members": ["::2", "::1"], "tm": "::1", "epoch": "3-aa"}
        lost = {"address": "::3", "state": "lost"}
        return {"peers": [{"address": "::2", "state": "up"}, lost] if device == "d1" else []}

    watch = GroupWatch({"d1": "::1", "d2": "::2", "d3": "::3"}, status, lambda: None)
    watch._disagreement = lambda *_: ("", "so it is")  # type: ignore[method-assign]
    with pytest.raises(DeadlineError) as caught:
        watch.await_members(["d1", "d2", "d3"], deadline_s=0.01)
    assert str(caught.value).startswith(
        "the group d1, d2, d3 does not come about: so it is;"
        " d1 hears d2, is in epoch 3-aa of d1 d2;"
        " d2 hears nobody, is in epoch 3-aa of d1 d2;"
        " d3 does not answer: d3/idpd: no answer"
    )


def sa(sender: int, spi: int, key: int = 1) -> SecurityAssociation:
    source = IPv6Address("2001:db8:b::") + sender
    return SecurityAssociation(
        source, GROUP, spi, Suite.AES_GCM_128, KeyMaterial(bytes([key]) * 20)
    )


def test_equal_sads_agree_and_differences_are_told() -> None:
    both = SadSnapshot.of([sa(1, 300), sa(2, 301)])
    assert compare({"d1": both, "d2": both}, "per-sender") == ""
    foreign_key = SadSnapshot.of([sa(1, 300), sa(2, 301, key=9)])
    assert "same SPIs with different keys" in compare({"d1": both, "d2": foreign_key}, "per-sender")
    other_spi = SadSnapshot.of([sa(1, 300), sa(2, 302)])
    assert "0x12d, 0x12e" in compare({"d1": both, "d2": other_spi}, "per-sender")
    too_few = SadSnapshot.of([sa(1, 300)])
    assert "d2 has 1 SAs, at least 2" in compare({"d1": both, "d2": too_few}, "per-sender")


def test_in_mode_paper_only_the_source_may_differ() -> None:
    first, second = SadSnapshot.of([sa(1, 300)]), SadSnapshot.of([sa(2, 300)])
    assert compare({"d1": first, "d2": second}, "paper") == ""
    third = SadSnapshot.of([replace(sa(3, 300), suite=Suite.AES_GCM_256)])
    assert compare({"d1": first, "d3": third}, "paper") != ""


def test_without_a_kernel_the_check_is_never_passed() -> None:
    found = check_sads(["d1"], None, "per-sender", status_of({"d1": "1-aa", "d2": "1-aa"}), 0)
    assert (found.ok, found.applicable, found.epoch) == (False, False, "1-aa")
    assert "memory backend" in found.reason
    packets = not_applicable("memory backend")
    assert (packets.ok, packets.applicable) == (False, False)
    assert packets.reason == "not applicable: memory backend"


# --- packets --------------------------------------------------------------------------------------


class Wire:
    """An endpoint over local datagram sockets that may lose the first packets or all."""

    def __init__(self, loses: int = 0) -> None:
        self.loses = loses
        self.peers: list[socket.socket] = []
        self.inlet, self._outlet = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._outlet.setblocking(False)

    def send(self, payload: bytes) -> str:
        if self.loses:
            self.loses -= 1
            return "no SA"
        for peer in self.peers:
            peer.send(payload)
        return ""

    def receive(self) -> list[bytes]:
        packets = [b"noise"]
        while True:
            try:
                packets.append(self._outlet.recv(2048))
            except BlockingIOError:
                return packets

    def fileno(self) -> int:
        return self._outlet.fileno()

    def close(self) -> None:
        self.inlet.close()
        self._outlet.close()


@pytest.fixture
def wires() -> Iterator[dict[str, Wire]]:
    found = {name: Wire() for name in ("d1", "d2", "d3")}
    for name, wire in found.items():
        wire.peers = [other.inlet for key, other in found.items() if key != name]
    yield found
    for wire in found.values():
        wire.close()


def test_every_packet_arrives_everywhere(wires: dict[str, Wire]) -> None:
    found = check(wires, list(wires), 5)
    assert (found.ok, found.applicable, found.reason) == (True, True, "")
    assert {sender: sorted(times) for sender, times in found.delivered.items()} == {
        "d1": ["d2", "d3"],
        "d2": ["d1", "d3"],
        "d3": ["d1", "d2"],
    }
    assert set(found.sendings.values()) == {1}


def test_a_lost_first_packet_is_sent_again_and_counted(wires: dict[str, Wire]) -> None:
    wires["d2"].loses = 1
    found = check(wires, ["d2"], 5)
    assert found.ok
    assert found.sendings == {"d2": 2}


def test_a_packet_that_comes_more_often_than_it_was_sent_is_a_fault(wires: dict[str, Wire]) -> None:
    wires["d1"].peers.append(wires["d3"].inlet)
    found = check(wires, ["d1", "d2"], 5)
    assert not found.ok
    assert found.reason == "from d1 one packet came several times to d3"
    wires["d2"].loses = 1
    assert check(wires, ["d2"], 5).ok, "sent twice, arrived once"


def test_a_deaf_device_is_named(wires: dict[str, Wire]) -> None:
    wires["d1"].peers = [wires["d2"].inlet]
    found = check(wires, ["d1"], 0.05)
    assert not found.ok
    assert found.reason == "from d1 nothing reached d3"
    assert found.delivered["d1"]["d3"] is None
    wires["d1"].loses = 10**6
    assert "(no SA)" in check(wires, ["d1"], 0.05).reason


# --- idle time ------------------------------------------------------------------------------------


def test_idle_share() -> None:
    assert idle_percent((0, 0), (25, 100)) == 25.0
    assert idle_percent((5, 5), (5, 5)) == 100.0
    idle, total = read_counters()
    assert 0 < idle <= total


def test_the_worst_interval_is_seen(tmp_path: Path) -> None:
    stat = tmp_path / "stat"

    def put(idle: int, busy: int) -> None:
        temporary = tmp_path / "new"
        temporary.write_text(f"cpu {busy} 0 0 {idle} 0 0 0 0 9 9\n")
        temporary.replace(stat)

    put(100, 0)
    sampler = IdleSampler(0.01, stat)
    try:
        put(110, 90)
        series: list[tuple[int, float]] = []

        def busy_interval_seen() -> bool:
            report = sampler.report()
            series.extend(report.series)
            return any(percent == 10.0 for _, percent in series) or report.mean_percent == 10.0

        wait_until(busy_interval_seen, 10, "the busy interval")
    finally:
        sampler.close()


# --- device files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "suite"), [("per-sender", "aes-gcm-128"), ("paper", "3des-sha1")])
def test_the_daemons_accept_what_we_render(tmp_path: Path, mode: str, suite: str) -> None:
    topology = star(2)
    pki = make_pki(tmp_path / "pki", topology)
    node = topology.devices[1]
    run_directory = tmp_path / "d2"
    run_directory.mkdir()
    sections = {"idp": {"hello_interval_ms": 300}, "ipsec": {"deactivation_delay_ms": 77}}
    settings = DeviceSettings("memory", mode, suite, sections, injected_offset_us=-5)
    text = render(node, topology, settings, pki.files("d2").directory, run_directory)
    assert tomllib.loads(text)["device"]["name"] == "d2"
    path = tmp_path / "d2.toml"
    path.write_text(text)
    config = load(path)
    assert str(config.device.address) == "2001:db8:b::2"
    assert config.device.nation == "bravo"
    assert (config.backend, config.idp.sa_mode.value, config.idp.suite.value) == (
        "memory",
        mode,
        suite,
    )
    assert (config.idp.hello_interval_ms, config.idp.deactivation_delay_ms) == (300, 77)
    assert (config.park, config.injected_offset_us) == (True, -5)
    assert config.idp.if_id == topology.group.if_id
    assert not config.idp.ipv4


def test_a_device_with_an_ipv4_lan_protects_ipv4_too(tmp_path: Path) -> None:
    """Red IPv4 multicast crossed nothing as long as the daemons were not told of it."""
    topology = coalition(2)
    pki = make_pki(tmp_path / "pki", topology)
    run_directory = tmp_path / "d2"
    run_directory.mkdir()
    settings = DeviceSettings("memory", "per-sender", "aes-gcm-128", {}, 0)
    files = pki.files("d2").directory
    text = render(topology.devices[1], topology, settings, files, run_directory)
    (tmp_path / "d2.toml").write_text(text)
    assert load(tmp_path / "d2.toml").idp.ipv4
