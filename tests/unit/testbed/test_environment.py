"""Where a command runs, and what it is told."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from testbed import environment, preflight
from testbed.environment import EnvironmentKind, TestbedEnvironmentError, choose
from testbed.preflight import Check, State
from testbed.vm import launcher

CHECKS = ("check_root", "check_namespaces", "check_nftables", "check_esp")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.delenv("TESTBED_GUEST", raising=False)

    def make(*missing: str) -> None:
        for name in CHECKS:
            state = State.MISSING if name in missing else State.OK
            check = Check(name, state, "absent", "cure it")
            monkeypatch.setattr(preflight, name, lambda check=check: check)

    make()
    return make


def test_auto_is_native_where_it_can_be(machine: Callable[..., None]) -> None:
    assert choose(EnvironmentKind.AUTO, needs_esp=True).kind is EnvironmentKind.NATIVE
    machine("check_esp")
    choice = choose(EnvironmentKind.AUTO, needs_esp=True)
    assert choice.kind is EnvironmentKind.VM
    assert choice.reason == "check_esp: absent"
    assert choose(EnvironmentKind.AUTO, needs_esp=False).kind is EnvironmentKind.NATIVE
    for missing in ("check_root", "check_nftables"):
        machine(missing)
        assert choose(EnvironmentKind.AUTO, needs_esp=False).kind is EnvironmentKind.VM


def test_native_that_cannot_be_is_an_error_with_a_cure(machine: Callable[..., None]) -> None:
    machine("check_esp")
    with pytest.raises(TestbedEnvironmentError, match="absent; cure it, or use --env vm"):
        choose(EnvironmentKind.NATIVE, needs_esp=True)


def test_inside_the_guest_everything_is_native(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(*CHECKS)
    monkeypatch.setenv("TESTBED_GUEST", "1")
    monkeypatch.setenv("TESTBED_ACCELERATOR", "tcg")
    for kind in EnvironmentKind:
        assert choose(kind, needs_esp=True).kind is EnvironmentKind.NATIVE
    described = environment.describe()
    assert (described["environment"], described["accelerator"]) == ("vm", "tcg")


def test_a_native_description_names_no_accelerator(machine: Callable[..., None]) -> None:
    machine()
    described = environment.describe()
    assert (described["environment"], described["accelerator"]) == ("native", "none")
    assert set(described) == {"environment", "accelerator", "kernel", "cpus", "clocksource"}


def test_the_guest_gets_our_switches_and_not_this_machines_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TESTBED_SEED", "1")
    monkeypatch.setenv("LD_PRELOAD", "x")
    passed = environment.guest_environment()
    assert passed["TESTBED_SEED"] == "1"
    assert passed["TESTBED_GUEST"] == "1"
    assert "LD_PRELOAD" not in passed


def test_native_runs_return_the_exact_status(machine: Callable[..., None]) -> None:
    machine()
    native = ["--env", "native", "--"]
    assert environment.main([*native, "sh", "-c", "exit 7"]) == 7
    assert environment.main([*native, "sh", "-c", "kill -TERM $$"]) == 143


def test_errors_are_one_line(
    machine: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    machine()
    assert environment.main(["--env", "native", "--", "no-such-command"]) == 1
    error = capsys.readouterr().err
    assert error == "testbed: error: cannot run no-such-command: No such file or directory\n"


def test_wrong_words_are_a_usage_error(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "testbed.environment", "--env", "moon", "--", "true"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "moon" in done.stderr


def test_a_cache_of_somebody_else_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied", "vm")

    monkeypatch.setattr(launcher, "run_guest", refuse)
    with pytest.raises(TestbedEnvironmentError, match=r"Permission denied.*; check .*\.cache"):
        environment.rerun_in_vm(["true"], writable=[tmp_path])
