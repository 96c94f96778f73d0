"""Bad input to real daemons: junk, forgeries, bad certificates, bad configuration, signals."""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from protocol.daemon import launch
from protocol.daemon.control import ControlError
from protocol.identity.pki import Authority
from testbed.attacker.floods import fake_hellos
from testbed.attacker.forger import Forger
from testbed.attacker.program import open_sender
from testbed.attacker.scene import Channels, Scene
from testbed.attacker.weapons import Armoury
from tests.support.devices import Device, Lan
from tests.support.identities import missigned
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
]

OFFSET_US = 250_000
ASKED = 60
"""Questions for a certificate: more than are under way to nobody at any time without a flood."""


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[Lan]:
    with Lan(tmp_path, 2) as made:
        yield made


def start_idpd(*devices: Device) -> None:
    for device in devices:
        device.launch("idpd")
    for device in devices:
        device.wait_ready("idpd")
        device.ask("idpd", "start", at_wall_ns=None)


def udp(device: Device) -> socket.socket:
    sock = device.inside(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    assert isinstance(sock, socket.socket)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 8)
    sock.settimeout(0.2)
    return sock


def up_peers(device: Device) -> list[str]:
    status = device.ask("idpd", "status")
    return sorted(peer["name"] for peer in status["peers"] if peer["state"] == "up")


def test_junk_on_every_port_changes_nothing(lan: Lan) -> None:
    victim, attacker = lan.devices
    victim.launch_both()
    victim.start()
    epoch = wait_until(lambda: victim.ask("idpd", "status")["active_epoch"], 20.0, "an epoch")
    random_bytes = random.Random(1).randbytes
    junk = [b"", b"\0", random_bytes(61), random_bytes(126), random_bytes(1200), random_bytes(8193)]
    junk += [
        bytes([1, protocol, kind, 0]) + random_bytes(200) for protocol in (1, 2) for kind in (1, 2)
    ]
    # What has not the length that it says is the kernel's to drop; of each protocol one has it, and
    # one that is too large.
    junk += [
        bytes([1, protocol, 1, 0]) + random_bytes(56) + body.to_bytes(2, "big") + bytes(body + 64)
        for protocol in (1, 2)
        for body in (200, 8074)
    ]
    with udp(attacker) as outside, udp(victim) as inside:
        index = attacker.inside(lambda: socket.if_nametoindex("black0"))
        for datagram in junk:
            for port in (47500, 47510, 47503):
                outside.sendto(datagram, (str(victim.address), port))
            outside.sendto(datagram, ("ff0e::1d0", 47500, 0, index))
            outside.sendto(datagram, ("ff0e::319e", 47510, 0, index))
            for port in (47501, 47502):
                inside.sendto(datagram, ("::1", port))
        for port in (47501, 47502):
            inside.sendto(bytes(32 * 1024 + 1), ("::1", port))
        for sock in (outside, inside):
            with pytest.raises(TimeoutError):
                sock.recv(100)

    def counted() -> bool:
        idp = victim.ask("idpd", "status")["counters"]
        mike = victim.ask("miked", "status")["counters"]
        refused = [
            sum(n for name, n in counters.items() if name.startswith("AUTH-") or name == "IDP-18")
            for counters in (idp, mike)
        ]
        thrown_away = [counters["group.thrown_away"] for counters in (idp, mike)]
        oversized = [counters.get("group.oversized", 0) for counters in (idp, mike)]
        return (
            min(refused) >= 2
            and min(thrown_away) >= 2 * (len(junk) - 3)
            and oversized == [2, 2]
            and idp.get("local.oversized") == mike.get("local.oversized") == 1
            and idp.get("ntp.truncated", 0) + idp.get("ntp.oversized", 0) == len(junk)
        )

    wait_until(counted, 10.0, "every datagram counted")
    assert victim.ask("idpd", "status")["active_epoch"] == epoch
    assert victim.ask("miked", "status")["epoch"] == epoch
    for daemon in ("idpd", "miked"):
        status = victim.ask(daemon, "status")
        assert "daemon.internal_error" not in status["counters"]
        assert status["refused"]
    assert len(victim.log("idpd").splitlines()) < 40


def test_a_replayed_and_a_forged_hello_are_refused(lan: Lan) -> None:
    victim, attacker = lan.devices
    with udp(attacker) as sock:
        index = attacker.inside(lambda: socket.if_nametoindex("black0"))
        membership = socket.inet_pton(socket.AF_INET6, "ff0e::1d0") + struct.pack("@I", index)
        sock.bind(("::", 47500))
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
        sock.settimeout(10)
        start_idpd(victim)
        hello = sock.recv(10_000)
        sock.sendto(hello, ("ff0e::1d0", 47500, 0, index))
    attacker.launch("idpd")
    attacker.wait_ready("idpd")
    with udp(victim) as sock:
        victim_index = victim.inside(lambda: socket.if_nametoindex("black0"))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((str(victim.address), 47999))
        attacker.ask("idpd", "start", at_wall_ns=None)
        wait_until(lambda: up_peers(attacker), 10.0, "they meet", accept=lambda p: p == ["d1"])
        for _ in range(5):
            sock.sendto(missigned(hello), ("ff0e::1d0", 47500, 0, victim_index))
        # From now on what comes in this name is read apart, and read all the same.
        wait_until(
            lambda: attacker.ask("idpd", "status")["suspects"],
            10.0,
            "suspected",
            accept=lambda seen: seen == [str(victim.address)],
        )
        sock.sendto(hello, ("ff0e::1d0", 47500, 0, victim_index))
        sock.sendto(hello, ("ff0e::1d0", 47500, 0, victim_index))
    counters = wait_until(
        lambda: attacker.ask("idpd", "status")["counters"],
        10.0,
        "signature and replay refused",
        accept=lambda seen: seen.get("AUTH-9", 0) >= 1 and seen.get("AUTH-10", 0) >= 1,
    )
    assert "daemon.internal_error" not in counters
    heard = counters["auth.opened"]
    wait_until(
        lambda: attacker.ask("idpd", "status")["counters"]["auth.opened"],
        30.0,
        "its signed hellos are heard",
        accept=lambda seen: seen > heard,
    )
    assert up_peers(attacker) == ["d1"]


def test_strangers_that_are_not_there_do_not_keep_our_hellos_in(lan: Lan) -> None:
    """AUTH-18: questions wait for neighbours that never answer, in a send buffer of their own.

    In the common one there was no room left for hellos: the others took us for down.
    """
    victim, attacker = lan.devices
    for device in (victim, attacker):
        device.launch_both()
        device.start()
    wait_until(lambda: up_peers(victim), 20.0, "they meet", accept=lambda p: p == [attacker.name])
    channels = Channels.from_json(
        {
            "idp_group": "ff0e::1d0",
            "idp_port": 47500,
            "mike_group": "ff0e::319e",
            "mike_port": 47510,
            "black_group": "ff0e::1",
            "other_ports": [],
            "devices": [str(victim.address)],
        }
    )
    draws = random.Random(4)
    own = IPv6Address("2001:db8:b::bad")
    sender = attacker.inside(lambda: open_sender("black0"))
    assert isinstance(sender, socket.socket)

    def counters() -> dict[str, int]:
        made: dict[str, int] = victim.ask("idpd", "status")["counters"]
        return made

    def heard() -> int:
        """Return how many hellos of the victim the other device has counted."""
        found = attacker.ask("idpd", "status")["counters"]
        return sum(found.get(f"idp.hello_{kind}", 0) for kind in ("signed", "light"))

    def flood() -> bool:
        """Send the thousand once more; say whether many of them have been asked by now."""
        at = Armoury(Scene(channels), Forger(draws), own, draws, time.time_ns())
        for frame in fake_hellos(at):
            sender.send(frame)
        return counters().get("idp.certificate_asked", 0) > ASKED

    with sender:
        wait_until(flood, 30.0, "many questions to nobody")
        before = heard()
        wait_until(lambda: flood() and heard() > before + 4, 30.0, "the victim's hellos come")
    assert not any(name.startswith("group.send_failed") for name in counters())
    assert up_peers(victim) == [attacker.name]
    assert up_peers(attacker) == [victim.name]


def refusal_of(device: Device, name: str, expected: str) -> None:
    """Wait until ``device`` says in status and log why it refuses ``name``."""

    def reasons() -> list[str]:
        refused = device.ask("idpd", "status")["refused"]
        return [entry["reason"] for entry in refused if entry["peer"] == name]

    wait_until(reasons, 15.0, expected, accept=lambda seen: any(expected in r for r in seen))
    assert up_peers(device) == []
    device.ask("idpd", "flush")
    assert expected in device.log("idpd")


def test_an_expired_certificate_is_refused_with_the_reason(lan: Lan) -> None:
    good, bad = lan.devices
    yesterday = datetime.now(UTC) - timedelta(days=1)
    lan.coalition.reissue(bad.spec, not_before=yesterday - timedelta(days=9), not_after=yesterday)
    start_idpd(good, bad)
    refusal_of(good, bad.name, "expired")
    bad.ask("idpd", "flush")
    assert "other devices will refuse us" in bad.log("idpd")


def test_a_foreign_certificate_is_refused_with_the_reason(lan: Lan) -> None:
    good, bad = lan.devices
    stranger = Authority.create(bad.nation, not_after=datetime.now(UTC) + timedelta(days=9))
    lan.coalition.reissue(bad.spec, authority=stranger)
    good.launch("idpd")
    good.wait_ready("idpd")
    good.ask("idpd", "start", at_wall_ns=None)
    # The bad device trusts its own authority and so starts.
    files = lan.coalition.files(bad.name)
    (files.anchors / f"{bad.nation}.pem").write_bytes(_pem(stranger))
    (files.revocations / f"{bad.nation}.pem").unlink()
    bad.launch("idpd")
    bad.wait_ready("idpd")
    bad.ask("idpd", "start", at_wall_ns=None)
    refusal_of(good, bad.name, "not signed by")
    assert good.ask("idpd", "status")["counters"]["AUTH-5"] >= 1


def _pem(authority: Authority) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return authority.certificate.public_bytes(Encoding.PEM)


def test_a_revoked_certificate_is_refused_with_the_reason(lan: Lan) -> None:
    good, bad = lan.devices
    lan.coalition.revoke([bad.name])
    start_idpd(good, bad)
    refusal_of(good, bad.name, "revoked")


def test_an_injected_offset_is_seen_by_an_ntp_exchange(lan: Lan) -> None:
    shifted, other = lan.devices
    shifted.write_config(lan.coalition, {"clock": {"injected_offset_us": OFFSET_US}})
    shifted.launch("idpd")
    shifted.wait_ready("idpd")
    from protocol.daemon.timeserver import ntp_from_unix_ns, unix_ns_from_ntp

    offsets_ns = []
    with udp(other) as sock:
        sock.settimeout(5)
        sock.connect((str(shifted.address), 47503))
        for _ in range(20):
            t1_ns = time.time_ns()
            head = struct.pack("!BBbb", 4 << 3 | 3, 0, 0, 0)
            sock.send(head + bytes(36) + ntp_from_unix_ns(t1_ns).to_bytes(8, "big"))
            answer = sock.recv(100)
            t4_ns = time.time_ns()
            t2_ns, t3_ns = (unix_ns_from_ntp(n) for n in struct.unpack("!QQ", answer[32:48]))
            delay_ns = (t4_ns - t1_ns) - (t3_ns - t2_ns)
            offsets_ns.append((delay_ns, ((t2_ns - t1_ns) + (t3_ns - t4_ns)) // 2))
    delay_ns, offset_ns = min(offsets_ns)
    assert abs(offset_ns - OFFSET_US * 1000) <= delay_ns // 2 + 1000
    assert shifted.ask("idpd", "status")["counters"]["ntp.answered"] == 20


def test_a_timed_start_arms_then_runs_at_the_trigger(lan: Lan) -> None:
    device = lan.devices[0]
    device.launch("idpd")
    device.wait_ready("idpd")
    at_wall_ns = time.time_ns() + 1_500_000_000
    answer = device.ask("idpd", "start", at_wall_ns=at_wall_ns)
    assert answer["state"] == "armed"
    assert device.ask("idpd", "status")["state"] == "armed"
    with pytest.raises(ControlError, match="the daemon is armed"):
        device.ask("idpd", "start", at_wall_ns=None)
    wait_until(
        lambda: device.ask("idpd", "status")["state"],
        10.0,
        "running",
        accept=lambda state: state == "running",
    )
    trace = {line["point"]: line for line in device.trace("idpd")}
    assert trace["t_start"]["trigger_wall_ns"] == at_wall_ns
    # Microseconds on a quiet machine; a busy one may not let us run for a while.
    assert 0 <= trace["daemon.woke"]["late_ns"] < 500_000_000
    assert trace["t_start"]["wall_ns"] >= at_wall_ns
    assert device.ask("idpd", "status")["startup_wall_ns"] == at_wall_ns


def test_an_armed_daemon_can_be_stopped(lan: Lan) -> None:
    device = lan.devices[0]
    device.launch("idpd")
    device.wait_ready("idpd")
    device.ask("idpd", "start", at_wall_ns=time.time_ns() + 60_000_000_000)
    assert device.ask("idpd", "stop")["state"] == "parked"
    for at_wall_ns in (1, 2**62, "soon", 1.5, True):
        with pytest.raises(ControlError, match="at_wall_ns"):
            device.ask("idpd", "start", at_wall_ns=at_wall_ns)


def fill(path: Path) -> None:
    """Write a file until the disk is full."""
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_full_disk_is_said_and_survived(lan: Lan) -> None:
    device = lan.devices[0]
    tmpfs = str(device.run_directory)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmpfs], check=True)
    try:
        start_idpd(device)
        ballast = device.run_directory / "ballast"
        with pytest.raises(OSError, match="No space"):
            fill(ballast)
        device.ask("idpd", "stop")
        device.ask("idpd", "start", at_wall_ns=None)
        with pytest.raises(ControlError, match="the trace cannot be written: No space left"):
            device.ask("idpd", "flush")
        assert device.ask("idpd", "status")["trace_error"] == "No space left on device"
        ballast.unlink()
        starts = [line for line in device.trace("idpd") if line["point"] == "t_start"]
        assert len(starts) == 2
        assert device.ask("idpd", "status")["trace_error"] == ""
        assert device.end() == {"idpd": 0}
    finally:
        device.end()
        subprocess.run(["umount", "--lazy", tmpfs], check=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_daemon_in_order(lan: Lan, number: signal.Signals) -> None:
    device = lan.devices[0]
    start_idpd(device)
    device.processes["idpd"].send_signal(number)
    assert device.processes["idpd"].wait(10) == 0
    assert not (device.run_directory / "idpd.sock").exists()
    points = [line["point"] for line in device.trace_file("idpd")]
    assert "t_start" in points


def test_the_daemon_ends_with_the_program_that_started_it(lan: Lan, tmp_path: Path) -> None:
    device = lan.devices[0]
    command = launch.command("idpd", device.config, "--exit-with-parent")
    script = (
        "import subprocess, sys\n"
        "child = subprocess.Popen(sys.argv[1:])\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        ["ip", "netns", "exec", device.namespace, sys.executable, "-c", script, *command],
        env=launch.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        socket_file = device.run_directory / "idpd.sock"
        wait_until(socket_file.exists, 10.0, "it runs")
        device.ask("idpd", "start", at_wall_ns=None)
        parent.kill()
        parent.wait(10)
    wait_until(lambda: not _runs(pid), 10.0, "it has ended")
    assert not socket_file.exists()


def _runs(pid: int) -> bool:
    """Return whether a process is there and no zombie."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def test_a_second_daemon_on_the_same_device_is_refused(lan: Lan) -> None:
    device = lan.devices[0]
    device.launch("idpd")
    device.wait_ready("idpd")
    done = subprocess.run(
        ["ip", "netns", "exec", device.namespace, *launch.command("idpd", device.config)],
        env=launch.environment(),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    assert "another daemon is running here" in done.stderr
    assert done.stderr.count("\n") == 1
    assert device.ask("idpd", "status")["ok"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"black": {"interface": "black9"}}, "no interface black9"),
        ({"device": {"address": "2001:db8:b::99"}}, "certificate is for 2001:db8:b::1"),
        ({"device": {"name": "d7"}}, "certificate is for d1 of"),
        ({"idp": {"hello_interval_ms": "x"}}, "[idp] hello_interval_ms"),
        (
            {"ipsec": {"backend": "netlink", "interface": "xfrm9"}},
            "kernel has no ESP|no interface xfrm9",
        ),
    ],
)
def test_a_device_that_cannot_work_is_refused_in_one_line(
    lan: Lan, overrides: dict[str, dict[str, object]], expected: str
) -> None:
    device = lan.devices[0]
    device.write_config(lan.coalition, overrides)
    done = subprocess.run(
        ["ip", "netns", "exec", device.namespace, *launch.command("idpd", device.config)],
        env=launch.environment(),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    assert any(text in done.stderr for text in expected.split("|"))
    assert done.stderr.startswith("idpd: ")
    assert done.stderr.count("\n") == 1
    assert not (device.run_directory / "idpd.sock").exists()
