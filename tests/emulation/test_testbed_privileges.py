"""What idpd and miked may do, read from the kernel while they run; and what one may not read."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from protocol.daemon.privileges import become_user
from protocol.xfrm.namespace import in_namespace
from testbed import session
from testbed.fleet import Fleet, FleetOptions
from topologies.families import star

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces"),
]

FAST = {"hello_interval_ms": 300, "triggered_hello_spread_ms": 50}
WAIT_S = 60.0
NET_ADMIN = 1 << 12
SYS_RESOURCE = 1 << 24
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


@pytest.fixture(autouse=True)
def open_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A registry that other users can get to, as the usual one; pytest's folders are closed."""
    base = Path(tempfile.mkdtemp(prefix="privileges", dir="/run"))
    base.chmod(0o755)
    monkeypatch.setenv("TESTBED_RUN_BASE", str(base))
    yield
    shutil.rmtree(base)


def kernel_says(pid: int) -> dict[str, str]:
    """Return the fields of /proc/PID/status, and the core limit."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    (core,) = [line.split()[4:6] for line in limits if line.startswith("Max core file size")]
    return {
        **found,
        "core": " ".join(core),
        "proc_owner": str(Path(f"/proc/{pid}/mem").stat().st_uid),
    }


def readable(user: int, group: int, paths: list[Path]) -> list[str]:
    """Return which of these files that user can open: in a child, which may lie under /root."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(group, group, group)
            os.setresuid(user, user, user)
            for path in paths:
                with suppress(OSError):
                    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
                    os.write(write, f"{path.name}\n".encode())
            os.write(write, b"end\n")
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as answers:
        *names, end = answers.read().splitlines()
    os.waitpid(child, 0)
    assert end == "end"
    return names


def test_each_daemon_is_a_user_of_its_own_with_what_it_needs_and_no_more() -> None:
    def inside() -> dict[str, Any]:
        seen: dict[str, Any] = {}
        options = FleetOptions(sa_backend="memory", idp=FAST)
        with Fleet(star(3), options) as fleet:
            assert fleet.facts["daemons_as_root"] == ""
            for device in fleet.devices:
                fleet.start(device)
            fleet.await_members(fleet.devices, deadline_s=WAIT_S)
            for daemon in ("idpd", "miked"):
                pid = fleet.status("d1", daemon)["pid"]
                seen[daemon] = kernel_says(pid)
            seen["others"] = kernel_says(fleet.status("d2", "idpd")["pid"])
            run = fleet._devices["d1"].directory
            files = [path for path in run.rglob("*") if path.is_file()]
            memory = [
                Path(f"/proc/{fleet.status('d1', one)['pid']}/mem") for one in ("idpd", "miked")
            ]
            pki = run.parent / "pki" / "devices" / "d1"
            for daemon in ("idpd", "miked"):
                ids = [int(seen[daemon][name].split()[0]) for name in ("Uid", "Gid")]
                seen[daemon, "reads"] = readable(ids[0], ids[1], [*files, *memory])
                seen[daemon, "shared"] = readable(ids[0], ids[1], [pki / "device.key"])
            stranger = int(seen["others"]["Uid"].split()[0])
            everything = [run.with_suffix(".toml"), *run.rglob("*"), *pki.rglob("*")]
            seen["stranger"] = readable(stranger, stranger, [*everything, *memory])
            seen["logs"] = (run / "idpd.log").read_text() + (run / "miked.log").read_text()
        return seen

    seen = session.call(inside)
    # Root lifts the limit for another user only with CAP_SYS_RESOURCE, which containers lack.
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    own = int(kernel_says(os.getpid())["CapEff"], 16)
    can_lock = hard == resource.RLIM_INFINITY or bool(own & SYS_RESOURCE)
    idpd, miked = seen["idpd"], seen["miked"]
    for status, capabilities in ((idpd, NET_ADMIN), (miked, 0)):
        uids = set(status["Uid"].split())
        assert len(uids) == 1
        assert uids != {"0"}
        assert "0" not in status["Gid"].split()
        assert status["Groups"] == ""
        assert int(status["CapPrm"], 16) == int(status["CapEff"], 16) == capabilities
        assert int(status["CapBnd"], 16) == capabilities
        assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
        assert status["NoNewPrivs"] == "1"
        assert status["core"] == "0 0"
        assert status["proc_owner"] == "0", "it is dumpable"
        assert (status["VmLck"] != "0 kB") == can_lock
    assert len({status["Uid"] for status in (idpd, miked, seen["others"])}) == 3
    assert idpd["Gid"] == miked["Gid"] != seen["others"]["Gid"]

    # Own files, and of the other's only what is handed over: the group key, for idpd.
    assert {name for name in seen["miked", "reads"] if name.startswith("idpd")} == set()
    assert {name for name in seen["idpd", "reads"] if name.startswith("miked")} == set()
    assert "mem" not in seen["idpd", "reads"]
    assert "mem" not in seen["miked", "reads"]
    keys = [name for name in seen["idpd", "reads"] if name[0].isdigit()]
    assert keys, "idpd reads the keys that miked left"
    assert {"miked.log", "miked.trace.jsonl", "miked.state"} <= set(seen["miked", "reads"])
    assert {"idpd.log", "idpd.trace.jsonl", "idpd.state"} <= set(seen["idpd", "reads"])
    assert seen["idpd", "shared"] == seen["miked", "shared"] == ["device.key"]
    assert seen["stranger"] == [], "another device's daemon reads nothing of this device"
    assert "runs as root" not in seen["logs"]
    assert ("memory is not locked" in seen["logs"]) == (not can_lock)


def test_a_daemon_killed_comes_back_as_the_same_user_and_a_psk_is_idpds_alone() -> None:
    def inside() -> dict[str, Any]:
        seen: dict[str, Any] = {}
        options = FleetOptions(sa_backend="memory", idp=FAST, ipsec={"unicast": "psk"})
        with Fleet(star(2), options) as fleet:
            device = fleet._devices["d1"]
            for name in fleet.devices:
                fleet.start(name)
            fleet.await_members(fleet.devices, deadline_s=WAIT_S)
            before = {one: kernel_says(fleet.status("d1", one)["pid"]) for one in ("idpd", "miked")}
            psk = [device.directory / "psk"]
            for one in ("idpd", "miked"):
                ids = [int(before[one][name].split()[0]) for name in ("Uid", "Gid")]
                seen[one] = readable(ids[0], ids[1], psk)
            for one in ("idpd", "miked"):
                fleet.processes.kill(f"d1/{one}")
            fleet.revive("d1")
            after = {one: kernel_says(fleet.status("d1", one)["pid"]) for one in ("idpd", "miked")}
            seen["same"] = all(before[one]["Uid"] == after[one]["Uid"] for one in before)
            fleet.start("d1")
            fleet.await_members(fleet.devices, deadline_s=WAIT_S)
        return seen

    seen = session.call(inside)
    assert seen == {"idpd": ["psk"], "miked": [], "same": True}


@pytest.mark.parametrize(("backend", "status"), [("command", 0), ("netlink", 2)])
def test_a_program_that_idpd_starts_has_its_capability_only_with_the_backend_that_needs_it(
    tmp_path: Path, backend: str, status: int
) -> None:
    config = tmp_path / "device.toml"
    users = "[users]\nidpd = 60100\nmiked = 60101\ngroup = 60100\n"
    config.write_text(f'{users}[ipsec]\nbackend = "{backend}"\n')
    name = f"privileges{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        child = os.fork()
        if child == 0:
            ended = 99
            try:
                with in_namespace(f"/run/netns/{name}"):
                    become_user("idpd", config)
                    command = ["ip", "-6", "route", "add", "fd00:a::/64", "dev", "lo"]
                    ended = subprocess.run(command, check=False, capture_output=True).returncode
                    os._exit(ended)
            finally:
                os._exit(ended)
        _, ended = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(ended) == status
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
