"""The command lines: help that teaches, one-line errors, exit statuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from protocol.daemon import cli, launch
from protocol.daemon.cli import command_line, status_lines

STATUS: dict[str, Any] = {
    "ok": True,
    "daemon": "idpd",
    "device": "d1",
    "nation": "beta",
    "address": "2001:db8:b::1",
    "state": "running",
    "pid": 42,
    "epoch": "3-0011223344556677",
    "active_epoch": None,
    "peers": [{"address": "2001:db8:b::2", "name": "d2", "state": "up", "last_hello_ms": 17}],
    "refused": [{"peer": "d3", "reason": "certificate expired", "last_wall_ns": 10**18}],
    "counters": {"AUTH-6": 2},
    "trace_error": "",
}


def run(*arguments: str, daemon: str = "idpd") -> tuple[int, str]:
    result = CliRunner().invoke(command_line(daemon), list(arguments), prog_name=daemon)
    return result.exit_code, result.output


@pytest.mark.parametrize("daemon", launch.DAEMONS)
def test_help_shows_commands_and_examples(daemon: str) -> None:
    status, text = run("--help", daemon=daemon)
    assert status == 0
    for word in ("Examples:", f"{daemon} run d3.toml", "status", "start", "stop", "shutdown"):
        assert word in text
    for word in ("handover", "rekey"):
        assert (word in text) == (daemon == "miked")
    for command in ("run", "status", "start", "stop", "flush"):
        status, text = run(command, "--help", daemon=daemon)
        assert status == 0
        assert "Usage:" in text


def test_help_of_rekey_says_what_it_heals() -> None:
    status, text = run("rekey", "--help", daemon="miked")
    assert status == 0
    for word in ("share", "rekey_interval_ms", "rekey_interval_min_ms", "Example:"):
        assert word in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["dance"],
        ["run"],
        ["run", "x.toml", "--fast"],
        ["status"],
        ["status", "--socket", "a", "--config", "b"],
        ["start", "--at-wall-ns", "soon", "--socket", "a"],
    ],
)
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    status, text = run(*arguments)
    assert status == 2
    assert "Usage:" in text


def test_a_daemon_that_is_not_there_is_one_line_and_1(tmp_path: Path) -> None:
    status, text = run("status", "--socket", str(tmp_path / "idpd.sock"))
    assert status == 1
    assert text.count("\n") == 1
    assert text.startswith("idpd: ")
    status, text = run("stop", "--config", str(tmp_path / "none.toml"))
    assert status == 1
    assert "No such file" in text


def test_status_for_people_and_for_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "request", lambda *_: dict(STATUS))
    status, text = run("status", "--socket", "s")
    assert status == 0
    assert "idpd of d1 (beta), 2001:db8:b::1: running, process 42" in text
    assert "2001:db8:b::2 d2: up, heard 17 ms ago" in text
    assert "refused d3: certificate expired (last 2001-09-09 01:46:40" in text
    assert "AUTH-6 2" in text
    status, text = run("status", "--socket", "s", "--json")
    expected = {key: value for key, value in STATUS.items() if key != "ok"}
    assert json.loads(text) == expected


def test_members_are_listed() -> None:
    lines = status_lines({**STATUS, "peers": [], "members": ["2001:db8:b::1"], "role": "tm"})
    assert "  role          tm" in lines
    assert "    2001:db8:b::1" in lines


def test_policy_and_trust_are_shown() -> None:
    trust = {"learned": 3, "revocation_lists": [{"issuer": "beta CA", "number": 7, "revoked": 1}]}
    policy = {"domain": "exercise", "version": 4}
    lines = status_lines({**STATUS, "policy": policy, "trust": trust})
    assert "  policy        4 of exercise" in lines
    assert "  learned       3 certificates" in lines
    assert "  revocations   beta CA 7" in lines
    assert not any("policy" in line for line in status_lines({**STATUS, "policy": None}))


@pytest.mark.parametrize("daemon", launch.DAEMONS)
def test_run_says_in_one_line_what_is_wrong(daemon: str, tmp_path: Path) -> None:
    done = subprocess.run(
        launch.command(daemon, tmp_path / "none.toml"),
        env=launch.environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert (
        done.stderr == f"{daemon}: {tmp_path}/none.toml: cannot read: No such file or directory\n"
    )


@pytest.mark.parametrize("daemon", launch.DAEMONS)
def test_the_way_to_run_stays_free_of_dear_imports(daemon: str) -> None:
    service = {"idpd": "idpservice", "miked": "mikeservice"}[daemon]
    code = (
        f"import sys, protocol.daemon.entry, protocol.daemon.{service},"
        " protocol.identity.certificates\n"
        "print(' '.join(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", code],
        env=launch.environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    loaded = set(done.stdout.split())
    # ctypes is there: giving up privileges and locking memory takes system calls that Python lacks.
    assert not loaded & {"asyncio", "click", "argparse", "logging", "subprocess"}


def test_only_our_daemons_are_launched() -> None:
    with pytest.raises(ValueError, match="no daemon 'sshd'"):
        launch.command("sshd", "x.toml")
