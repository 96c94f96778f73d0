"""Prefix announcements between real daemons natively: memory backend, no IPsec in the kernel."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from protocol.daemon import launch
from testbed import session
from testbed.fleet import Fleet, FleetOptions
from testbed.wait import wait_until
from topologies.families import star

pytestmark = [pytest.mark.emulation, pytest.mark.slow]

WAIT_S = 60.0


@pytest.fixture(autouse=True)
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    monkeypatch.setenv("TESTBED_RUN_BASE", str(tmp_path / "runs"))


def learnt(fleet: Fleet, device: str) -> dict[str, str]:
    return {item["prefix"]: item["peer"] for item in fleet.status(device)["prefixes"]}


def pair_of(fleet: Fleet, device: str, other: str) -> dict[str, Any]:
    (found,) = [p for p in fleet.status(device)["peers"] if p["name"] == other] or [{}]
    unicast: dict[str, Any] = found.get("unicast", {})
    return unicast


def await_learnt(fleet: Fleet, device: str, wanted: set[str]) -> None:
    wait_until(
        lambda: set(learnt(fleet, device)) == wanted,
        WAIT_S,
        lambda: f"{device} knows {learnt(fleet, device)}",
    )


def idpd(fleet: Fleet, *words: str) -> tuple[int, str]:
    config = str(fleet._devices["d1"].config)
    program = launch.command("idpd", config)
    command = [*program[: program.index("run")], *words, "--config", config]
    done = subprocess.run(
        command, env=launch.environment(), capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("mode", ["group", "psk"])
def test_prefixes_come_change_and_go(tmp_path: Path, mode: str) -> None:
    def inside() -> dict[str, Any]:
        options = FleetOptions(
            sa_backend="memory",
            keep=tmp_path,
            ipsec={"unicast": mode},
            idp={"hello_interval_ms": 300},
        )
        with Fleet(star(3), options) as fleet:
            for count, device in enumerate(fleet.devices, 1):
                fleet.start(device)
                fleet.await_members(fleet.devices[:count], deadline_s=WAIT_S)
            await_learnt(fleet, "d1", {"fd00:2::/64", "fd00:3::/64"})
            await_learnt(fleet, "d3", {"fd00:1::/64", "fd00:2::/64"})
            seen: dict[str, Any] = {"owners": learnt(fleet, "d1"), "addresses": fleet.addresses}
            seen["remove"] = idpd(fleet, "prefix", "remove", "fd00:1::/64")
            assert seen["remove"][0] == 0, seen["remove"]
            await_learnt(fleet, "d3", {"fd00:2::/64"})
            seen["add"] = idpd(fleet, "prefix", "add", "fd00:1:0:0:8000::/65")
            await_learnt(fleet, "d3", {"fd00:1:0:0:8000::/65", "fd00:2::/64"})
            seen["bad"] = [
                idpd(fleet, "prefix", "add", bad)
                for bad in ("fd00:2::/64", "::/0", "nonsense", "fd00:1::1/64")
            ]
            seen["list"] = idpd(fleet, "prefix", "list")
            fleet.processes.kill("d2/idpd")
            fleet.processes.kill("d2/miked")
            await_learnt(fleet, "d1", {"fd00:3::/64"})
            fleet.await_members(["d1", "d3"], deadline_s=WAIT_S)
            fleet.revive("d2")
            fleet.start("d2")
            fleet.await_members(fleet.devices, deadline_s=WAIT_S)
            await_learnt(fleet, "d1", {"fd00:2::/64", "fd00:3::/64"})
            await_learnt(fleet, "d2", {"fd00:1:0:0:8000::/65", "fd00:3::/64"})
            seen["refused"] = fleet.status("d3")["refused"]
        return seen

    seen = session.call(inside)
    assert seen["owners"] == {
        "fd00:2::/64": seen["addresses"]["d2"],
        "fd00:3::/64": seen["addresses"]["d3"],
    }
    assert seen["remove"] == (0, "nothing is announced\n")
    assert seen["add"] == (0, "fd00:1:0:0:8000::/65\n")
    assert [code for code, _ in seen["bad"]] == [1, 1, 1, 1]
    for (_, text), words in zip(
        seen["bad"],
        ("does not authorise fd00:2::/64", "does not authorise ::/0", "nonsense", "host bits"),
        strict=True,
    ):
        assert words in text
        assert text.count("\n") == 1
    assert seen["list"][1].splitlines()[0] == "fd00:1:0:0:8000::/65 own"
    assert f"fd00:3::/64 {seen['addresses']['d3']}" in seen["list"][1].splitlines()
    assert [entry for entry in seen["refused"] if entry["rule"].startswith("IDP-2")] == []


@pytest.mark.parametrize("daemon", ["idpd", "miked"])
def test_one_daemon_alone_is_killed_and_comes_back(tmp_path: Path, daemon: str) -> None:
    def inside() -> dict[str, Any]:
        options = FleetOptions(
            sa_backend="memory",
            keep=tmp_path,
            ipsec={"unicast": "group", "deactivation_delay_ms": 300},
            idp={"hello_interval_ms": 300},
        )
        with Fleet(star(3), options) as fleet:
            for count, device in enumerate(fleet.devices, 1):
                fleet.start(device)
                fleet.await_members(fleet.devices[:count], deadline_s=WAIT_S)
            await_learnt(fleet, "d2", {"fd00:1::/64", "fd00:3::/64"})
            before = pair_of(fleet, "d2", "d1")
            fleet.processes.kill(f"d1/{daemon}")
            fleet.revive("d1")
            fleet.start_daemon("d1", daemon)

            def renewed() -> bool:
                spis = [pair_of(fleet, *pair) for pair in (("d1", "d2"), ("d2", "d1"))]
                one, other = ((pair.get("spi_out"), pair.get("spi_in")) for pair in spis)
                was = before["spi_out"], before["spi_in"]
                return one == other[::-1] and None not in one and other != was

            wait_until(renewed, WAIT_S, lambda: f"{pair_of(fleet, 'd2', 'd1')} after {before}")
            fleet.await_members(fleet.devices, deadline_s=WAIT_S)
            for device in fleet.devices:
                others = {f"fd00:{n}::/64" for n in range(1, 4)} - {f"fd00:{device[1:]}::/64"}
                await_learnt(fleet, device, others)
        return {}

    session.call(inside)


def test_a_daemon_whose_certificate_does_not_authorise_its_prefix_says_so(tmp_path: Path) -> None:
    def inside() -> str:
        options = FleetOptions(
            sa_backend="memory",
            keep=tmp_path,
            nursery=False,
            ipsec={"unicast": "group"},
            idp={"prefixes": ["fd00:77::/64"]},
        )
        with pytest.raises(Exception, match="d1/idpd") as caught, Fleet(star(1), options):
            pass
        return str(caught.value)

    said = session.call(inside)
    assert "cannot announce fd00:77::/64: its certificate does not authorise fd00:77::/64" in said
