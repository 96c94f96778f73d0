"""Networks built natively: what was asked for is there, and nothing of it stays."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from testbed import session
from testbed.errors import TestbedError
from testbed.isolation import call_isolated
from testbed.namespaces import NetNamespace, interface_names
from testbed.network import BLACK, RED, Network, NetworkError
from testbed.processes import ProcessTable
from testbed.runs import RUN_ID_VARIABLE, Run, processes_of
from testbed.wait import wait_until
from tests.support import netlink
from topologies.families import star

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces"),
]

GROUP, PORT = "ff0e::77", 5000


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def own_processes() -> list[int]:
    """Return the processes of our PID namespace: inside a run, what the run has started."""
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def open_receiver(network: Network, device: str) -> socket.socket:
    with network.namespace(device).entered():
        receiver = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        receiver.bind(("::", PORT))
        index = struct.pack("@I", socket.if_nametoindex(BLACK))
        membership = socket.inet_pton(socket.AF_INET6, GROUP) + index
        receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
    receiver.setblocking(False)
    return receiver


def send(network: Network, device: str, payload: bytes) -> None:
    with (
        network.namespace(device).entered(),
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender,
    ):
        index = socket.if_nametoindex(BLACK)
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        sender.sendto(payload, (GROUP, PORT))


def received(receiver: socket.socket) -> list[bytes]:
    packets = []
    while True:
        try:
            packets.append(receiver.recv(100))
        except BlockingIOError:
            return packets


def test_a_star_is_built_as_asked() -> None:
    def inside() -> dict[str, Any]:
        network = Network(star(3), with_xfrm=False)
        network.build()
        try:
            seen: dict[str, Any] = {"switch side": sorted(interface_names())}
            for device in ("d1", "d3"):
                with network.namespace(device).entered():
                    seen[device] = {
                        name: sorted(map(str, netlink.addresses(name, link_local=False)))
                        for name in (BLACK, RED)
                    }
                    seen[f"{device} queue"] = output("tc", "class", "show", "dev", BLACK)
                    multicast = output("ip", "-6", "route", "show", "table", "local", "ff0e::1")
                    seen[f"{device} route"] = multicast.split()[:4]
            seen["switch"] = set[str]().union(*map(netlink.addresses, interface_names() - {"lo"}))
            seen["snooping"] = Path("/sys/class/net/s1/bridge/multicast_snooping").read_text()
            seen["timings"] = network.timings_ms
        finally:
            network.stop()
        return seen

    seen = call_isolated(inside)
    assert seen["switch side"] == ["lo", "s1", "s1-d1", "s1-d2", "s1-d3"]
    assert seen["d1"] == {BLACK: ["2001:db8:b::1/64"], RED: ["fd00:1::1/64"]}
    assert seen["d3"] == {BLACK: ["2001:db8:b::3/64"], RED: ["fd00:3::1/64"]}
    assert "rate 100Mbit" in seen["d1 queue"]
    assert seen["d1 route"] == ["multicast", "ff0e::1", "dev", BLACK]
    assert seen["switch"] == set()
    assert seen["snooping"].strip() == "0"
    assert seen["timings"]["per_node_and_link"] > 0


def test_three_times_up_and_down_leaves_nothing() -> None:
    before = interface_names()

    def inside() -> list[Any]:
        left = []
        for _ in range(3):
            network = Network(star(3), with_xfrm=False)
            network.build()
            network.stop()
            network.stop()
            left.append((sorted(interface_names()), own_processes()))
        return left

    assert call_isolated(inside) == [(["lo"], [1])] * 3
    assert interface_names() == before


def test_cutting_a_cable_stops_multicast_both_ways_and_healing_restores_it() -> None:
    def inside() -> list[bool]:
        network = Network(star(2), with_xfrm=False)
        network.build()
        with open_receiver(network, "d1") as one, open_receiver(network, "d2") as two:
            passed = []
            for action in (None, network.link_down, network.link_up):
                if action is not None:
                    action("d2")
                for sender, receiver in (("d1", two), ("d2", one)):
                    passed.append(
                        _passes(network, sender, receiver, expect=action != network.link_down)
                    )
        network.stop()
        return passed

    assert call_isolated(inside) == [True, True, False, False, True, True]


def test_cables_are_moved_parted_and_narrowed_and_nothing_of_it_stays() -> None:
    def inside() -> tuple[list[bool], list[str], list[str]]:
        network = Network(star(3), with_xfrm=False)
        network.build()
        passed, mtus = [], []
        with open_receiver(network, "d1") as one:

            def hears(expect: bool) -> None:
                for sender in ("d2", "d3"):
                    passed.append(_passes(network, sender, one, expect=expect))

            assert network.cables.move("d1") == "s1y"
            hears(expect=False)  # the cable is out until it is plugged in
            network.link_up("d1")
            hears(expect=True)
            network.cables.part(["d1"])
            hears(expect=False)
            network.cables.join_again()
            hears(expect=True)
            assert network.cables.move("d1") == "s1"
            network.link_up("d1")
            network.cables.move("d2")
            network.link_up("d2")
            hears(expect=True)
            for mtu in (1280, None):
                network.cables.set_mtu("d1", mtu)
                with network.namespace("d1").entered():
                    mtus.append(
                        output("ip", "-o", "link", "show", BLACK).split("mtu ")[1].split()[0]
                    )
            hears(expect=True)
        network.stop()
        return passed, mtus, sorted(interface_names())

    passed, mtus, left = call_isolated(inside)
    assert passed == [False] * 2 + [True] * 2 + [False] * 2 + [True] * 6
    assert mtus == ["1280", "1500"]
    assert left == ["lo"]


def _passes(network: Network, sender: str, receiver: socket.socket, *, expect: bool) -> bool:
    received(receiver)

    def arrived() -> bool:
        send(network, sender, b"hello")
        return b"hello" in received(receiver)

    try:
        return wait_until(arrived, 5.0 if expect else 0.3, "the packet")
    except TestbedError:
        return False


def test_a_foreign_interface_of_the_same_name_is_left_alone() -> None:
    def inside() -> tuple[str, set[str]]:
        output("ip", "link", "add", "s1-d2", "type", "veth", "peer", "name", "other")
        try:
            Network(star(3), with_xfrm=False).build()
        except NetworkError as error:
            return str(error), interface_names()
        return "", set()

    text, left = call_isolated(inside)
    assert text.startswith("interface s1-d2 exists already")
    assert "\n" not in text
    assert left == {"lo", "s1-d2", "other"}


def test_a_network_needs_a_run_of_its_own() -> None:
    with pytest.raises(NetworkError, match="own namespaces"):
        Network(star(1)).build()


def test_a_limit_the_kernel_did_not_take_is_an_error() -> None:
    def inside() -> str:
        from testbed import network_batch

        real = network_batch.batch

        def forgetful(program: str, lines: list[str], where: str) -> str:
            kept = [line for line in lines if "class add" not in line]
            return real(program, kept, where)

        network_batch.batch = forgetful
        try:
            Network(star(2), with_xfrm=False).build()
        except NetworkError as error:
            return f"{error} / {sorted(interface_names())} / {own_processes()}"
        return "built"

    assert call_isolated(inside) == (
        "the switches: limits of [100.0, 100.0] Mbit/s were asked for, the kernel has []; "
        "does it have sch_htb? "
        "/ ['lo'] / [1]"
    )


def test_the_missing_xfrm_interface_is_recorded() -> None:
    def inside() -> dict[str, Any]:
        network = Network(star(1))
        network.build()
        with network.namespace("d1").entered():
            there = "xfrm0" in interface_names()
        network.stop()
        return {**network.facts(), "there": there}

    facts = call_isolated(inside)
    assert facts["xfrm_interface"] == facts["there"]
    assert bool(facts["xfrm_interface_missing_because"]) != facts["there"]


ORCHESTRATOR = """
import sys, time
from pathlib import Path
from testbed import session
from testbed.network import Network
from testbed.processes import ProcessTable
from topologies.families import star
run = session.begin(["test"])
network = Network(star(2), with_xfrm=False)
network.build()
table = ProcessTable(run.run_id)
table.start("daemon", ["sleep", "600"], output=run.directory / "out", node_pid=network.pid("d1"))
print(run.run_id, flush=True)
sys.stdin.read()
if sys.argv[1] == "crash":
    raise SystemExit(9)
try:
    import signal; signal.pause()
finally:
    network.stop()
"""


def start_orchestrator(tmp_path: Path, how: str) -> tuple[subprocess.Popen[str], Run]:
    base = tmp_path / "runs"
    process = subprocess.Popen(
        [sys.executable, "-c", ORCHESTRATOR, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TESTBED_RUN_BASE": str(base)},
    )
    assert process.stdout is not None
    run = Run(process.stdout.readline().strip(), base)
    assert run.run_id
    # The run itself was forked, not executed: only what it has started carries the id, and that
    # not while it executes.
    wait_until(
        lambda: len(processes_of(run.run_id)) >= 3,
        10,
        lambda: f"processes with the run's id: {processes_of(run.run_id)}",
    )
    assert run.alive()
    return process, run


@pytest.mark.parametrize("how", ["SIGKILL to the warden", "crash", "interrupt", "interrupt twice"])
def test_whatever_ends_the_orchestrator_nothing_is_left(tmp_path: Path, how: str) -> None:
    before = interface_names()
    process, run = start_orchestrator(tmp_path, how)
    assert process.stdin is not None
    match how:
        case "SIGKILL to the warden":
            process.kill()
        case "crash":
            process.stdin.close()
        case "interrupt":
            process.send_signal(signal.SIGINT)
        case _:
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGINT)
    code = process.wait(20)
    wait_until(
        lambda: not processes_of(run.run_id),
        10,
        lambda: f"processes are left: {processes_of(run.run_id)}",
    )
    assert interface_names() == before
    assert not run.alive()
    if how == "SIGKILL to the warden":
        assert code == -signal.SIGKILL
        assert run.reap().directories == 1  # the one thing that 'testbed clean' has to remove
    else:
        assert code in {9, 1, 130}
    assert not run.directory.exists()
    process.stdin.close()
    if process.stdout is not None:
        process.stdout.close()


def test_processes_start_in_their_node(tmp_path: Path) -> None:
    def inside() -> tuple[str, str]:
        network = Network(star(1), with_xfrm=False)
        network.build()
        table = ProcessTable("20200101T000000Z-beef")
        process = table.start(
            "d1/show",
            ["sh", "-c", f"ip -o link show {BLACK}; echo ${RUN_ID_VARIABLE}"],
            output=tmp_path / "out",
            node_pid=network.pid("d1"),
            must_live=False,
        )
        process.handle.wait()
        network.stop()
        first, *_, last = (tmp_path / "out").read_text().splitlines()
        return first.split(":")[1].strip(), last

    assert call_isolated(inside) == (f"{BLACK}@if2", "20200101T000000Z-beef")


def test_namespaces_are_entered_and_left() -> None:
    def inside() -> tuple[set[str], set[str]]:
        network = Network(star(1), with_xfrm=False)
        network.build()
        own = NetNamespace.current()
        with network.namespace("d1").entered():
            there = interface_names()
            with own.entered():
                back = interface_names()
        own.close()
        network.stop()
        return there, back

    there, back = call_isolated(inside)
    assert {BLACK, RED} <= there
    assert back == {"lo", "s1", "s1-d1"}


def test_a_call_in_a_run_returns_its_value_and_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESTBED_RUN_BASE", str(tmp_path))
    assert session.call(lambda: (os.getpid(), len(os.environ[RUN_ID_VARIABLE]))) == (1, 21)
    with pytest.raises(TestbedError, match="ZeroDivisionError"):
        session.call(lambda: 1 // 0)
    assert list(tmp_path.iterdir()) == []
