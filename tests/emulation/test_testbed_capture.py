"""Captures of real links: all of them, whole, also where a cable is cut; the verdict on them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from protocol.daemon.config import IDP_PORT
from protocol.xfrm.namespace import in_namespace
from testbed import session
from testbed.capture import Capture, CapturePoint, black_points
from testbed.device import RESPONDER_PORT
from testbed.errors import DaemonDiedError, TestbedError
from testbed.fleet import Fleet, FleetOptions
from testbed.guard import BlackChannels
from testbed.leaks import LeakRules, check_leaks
from testbed.network import Network
from testbed.pcap import read_frames
from testbed.wait import wait_until
from tests.support.netns import Namespace, namespace, run
from topologies.families import star

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces"),
]

FAST = {"hello_interval_ms": 300, "triggered_hello_spread_ms": 50}
WAIT_S = 60.0


@pytest.fixture(autouse=True)
def private_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = tmp_path / "runs"
    monkeypatch.setenv("TESTBED_RUN_BASE", str(base))
    return base


def test_every_black_link_is_recorded_and_clean(tmp_path: Path) -> None:
    topology = star(3)

    def inside() -> dict[str, Any]:
        options = FleetOptions(sa_backend="memory", idp=FAST, keep=tmp_path, capture=True)
        with Fleet(topology, options) as fleet:
            for count, device in enumerate(fleet.devices, 1):
                fleet.start(device)
                fleet.await_members(fleet.devices[:count], deadline_s=WAIT_S)
            fleet.cut("d3")
            fleet.await_members(["d1", "d2"], deadline_s=WAIT_S)
            fleet.heal("d3")
            fleet.await_members(fleet.devices, deadline_s=WAIT_S)
            fleet.clock_offsets(samples=2)
            fleet.stop("d2")
        return {"captured": fleet.captured, "facts": fleet.facts["capture"]}

    seen = session.call(inside)
    captured = seen["captured"]
    assert len(captured) == len(topology.links)
    assert [fact["link"] for fact in seen["facts"]] == [one.link for one in captured]
    for one in captured:
        assert one.path.parent == tmp_path / "capture"
        assert sum(1 for _ in read_frames(one.path)) == one.packets > 0
        assert one.dropped == 0
    channels = BlackChannels.of({}, {})
    report = check_leaks(captured, LeakRules.of(topology, channels, RESPONDER_PORT))
    assert report.ok, report.text()
    assert {"IDP", "MIKE", "clock", "MLD"} <= set(report.counts)
    wrong = LeakRules.of(topology, BlackChannels.of({"port": 1}, {}), RESPONDER_PORT)
    assert check_leaks(captured, wrong).leak_count == report.counts["IDP"]


def command(*words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "testbed.cli", *words]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)


def interrupt_one(registry: Path, output: Path) -> None:
    """Begin a long recording, press Ctrl-C, and see that the network has ended it."""
    words = ("capture", "--seconds", "600", "--output", str(output))
    process = subprocess.Popen(
        [sys.executable, "-m", "testbed.cli", *words], stderr=subprocess.DEVNULL
    )

    def left() -> list[Path]:
        return list(registry.glob("*/mailbox/*.files"))

    wait_until(left, WAIT_S, "the recording does not begin")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert left() == []
    assert list(registry.glob("*/mailbox/*.cancel")) == []
    assert list(output.iterdir()) == []


def test_the_command_records_a_network_that_is_up(tmp_path: Path, private_registry: Path) -> None:
    wire = tmp_path / "wire"
    taken = ("capture", "--seconds", "1.5", "--output")
    try:
        up = command("up", "star(2)", "--sa-backend", "memory", "--env", "native")
        assert up.returncode == 0, up.stderr
        done = command(*taken, str(wire))
        assert done.returncode == 0, done.stderr
        assert "packets of 2 black links" in done.stdout
        again = command(*taken, str(wire))
        assert (again.returncode, again.stderr.count("\n")) == (1, 1)
        assert "is not empty; choose another folder" in again.stderr
        one = command(*taken, str(tmp_path / "one"), "--link", "d9-s1")
        assert "no black link 'd9-s1'; there are d1-" in one.stderr
        keys = command(*taken, str(tmp_path / "keys"), "--decrypt")
        assert "nothing can be decrypted: this network has no kernel SAs" in keys.stderr
        interrupt_one(private_registry, tmp_path / "interrupted")
        assert command("status").returncode == 0
    finally:
        assert command("down").returncode == 0
    names = {path.name for path in wire.iterdir()}
    assert names == {"black.pcap", "README"}
    frames = list(read_frames(wire / "black.pcap"))
    assert [frame.wall_ns for frame in frames] == sorted(frame.wall_ns for frame in frames)
    assert f"{len(frames)} packets" in done.stdout
    idp = IDP_PORT.to_bytes(2) * 2
    assert any(frame.data[54:58] == idp for frame in frames)


def burst(made: Namespace, count: int) -> None:
    """Send datagrams as fast as one process can, and return when they are sent."""
    code = (
        "import socket; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\n"
        f"for n in range({count}): s.sendto(bytes(1000), ('2001:db8::2', 5000))"
    )
    run("ip", "netns", "exec", made.name, "python3", "-c", code)


def test_what_came_last_is_in_the_file_too(tmp_path: Path) -> None:
    with namespace("c") as made:
        made.ip("link add v0 type veth peer name v1")
        made.ip("link set v0 up")
        made.ip("link set v1 up")
        made.ip("addr add 2001:db8::1/64 dev v0 nodad")
        made.ip("neigh add 2001:db8::2 lladdr 02:00:00:00:00:02 dev v0")
        pid = os.getpid()
        with in_namespace(made.path):
            capture = Capture([CapturePoint("v", "v1")], f"test-{pid}", tmp_path)
            capture.start()
        burst(made, 500)
        (one,) = capture.stop()
    frames = [frame.data for frame in read_frames(one.path)]
    assert len(frames) == one.packets
    assert sum(frame[12:14] == b"\x86\xdd" and len(frame) == 1062 for frame in frames) == 500
    assert one.dropped == 0


def test_a_capture_that_ended_early_is_an_error(tmp_path: Path) -> None:
    def inside() -> str:
        network = Network(star(1), with_xfrm=False)
        network.build()
        try:
            capture = Capture(black_points(network), "x", tmp_path)
            capture.start()
            (link,) = capture._processes.names()
            os.kill(capture._processes[link].pid, signal.SIGKILL)
            try:
                capture._processes[link].handle.wait(5)
                capture.stop()
            except DaemonDiedError as error:
                return str(error)
        finally:
            network.stop()
        return "no error"

    assert "was killed by signal 9 unasked" in session.call(inside)


def test_an_interface_that_is_not_there_is_named(tmp_path: Path) -> None:
    capture = Capture([CapturePoint("nowhere", "no-such-if")], "x", tmp_path)
    with pytest.raises(TestbedError, match="nowhere ended with exit code 1 unasked"):
        capture.start()
