"""packaging/: the units give each daemon what `protocol.daemon.privileges` would, and no more."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from protocol.daemon import launch
from protocol.daemon.config import load
from protocol.daemon.privileges import CAP_NET_ADMIN, KEPT
from protocol.identity.pki import DeviceSpec, make_coalition

PACKAGING = Path(__file__).resolve().parents[3] / "packaging"
UNITS = (*launch.DAEMONS, launch.PROXY, launch.GATEWAY)
NAMES = {CAP_NET_ADMIN: "CAP_NET_ADMIN"}


def settings(unit: str) -> dict[str, list[str]]:
    """Return every setting of a unit, repeated ones in order."""
    found: dict[str, list[str]] = {}
    for line in (PACKAGING / "systemd" / f"{unit}.service").read_text().splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize("unit", UNITS)
def test_every_unit_shuts_out_root_core_dumps_and_new_privileges(unit: str) -> None:
    found = settings(unit)
    assert found["ExecStart"][0].split()[0].endswith(f"/bin/{unit}")
    assert found["User"][0] not in ("root", "0", "")
    assert found["NoNewPrivileges"] == ["yes"]
    assert found["LimitCORE"] == ["0"]
    assert found["LimitMEMLOCK"] == ["infinity"]
    assert found["UMask"] == ["0077"]
    assert found["ProtectSystem"] == ["strict"]
    assert len(found["SystemCallFilter"]) == 2


@pytest.mark.parametrize("unit", launch.DAEMONS)
def test_idpd_and_miked_have_what_they_keep_in_the_testbed(unit: str) -> None:
    found = settings(unit)
    wanted = " ".join(NAMES[number] for number in sorted(KEPT[unit]))
    assert found["CapabilityBoundingSet"] == [wanted]
    assert found.get("AmbientCapabilities", [""]) == [wanted]


def test_each_daemon_is_a_user_that_is_made() -> None:
    made = set(
        re.findall(r"^u (\S+)", (PACKAGING / "sysusers.d" / "idpmike.conf").read_text(), re.M)
    )
    users = {unit: settings(unit)["User"][0] for unit in UNITS}
    assert set(users.values()) == made
    assert len({users[unit] for unit in ("idpd", "miked", "mproxyd")}) == 3
    assert settings("idpd")["Group"] == settings("miked")["Group"] != settings("mproxyd")["Group"]


def test_the_example_file_is_one_that_the_daemons_read(tmp_path: Path) -> None:
    from ipaddress import IPv6Address

    coalition = make_coalition(
        tmp_path / "pki", [DeviceSpec("d1", "alpha", IPv6Address("2001:db8:b::1"))]
    )
    (tmp_path / "run").mkdir()
    text = (PACKAGING / "device.toml").read_text()
    text = text.replace("/etc/idpmike", str(coalition.files("d1").directory))
    text = text.replace("/run/idpmike", str(tmp_path / "run"))
    (tmp_path / "device.toml").write_text(text)
    config = load(tmp_path / "device.toml")
    assert config.park is False
    assert config.state_directory == Path("/var/lib/idpmike/state")
    made = (PACKAGING / "tmpfiles.d" / "idpmike.conf").read_text()
    for path in ("/run/idpmike", "/run/idpmike/keys", "/var/lib/idpmike/state"):
        assert re.search(rf"^d {path}\s", made, re.M), f"nobody makes {path}"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_understands_the_units_and_finds_them_closed(tmp_path: Path) -> None:
    for unit in UNITS:
        text = (PACKAGING / "systemd" / f"{unit}.service").read_text()
        text = re.sub(r"/opt/idpmike/bin/\w+", "/bin/true", text)
        (tmp_path / f"{unit}.service").write_text(text)
    units = [f"./{unit}.service" for unit in UNITS]
    done = subprocess.run(
        ["systemd-analyze", "verify", *units],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for unit in units:
        judged = subprocess.run(
            ["systemd-analyze", "security", "--offline=yes", "--threshold=25", unit],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert judged.returncode == 0, judged.stdout[-300:]
