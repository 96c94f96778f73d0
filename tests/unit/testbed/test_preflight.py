"""The doctor's verdicts and how they are shown."""

import json
import subprocess
from pathlib import Path

import pytest

from testbed import preflight
from testbed.preflight import Check, Report, State
from testbed.vm import accelerator


def report(**states: State) -> Report:
    names = sorted(preflight.NATIVE_NEEDS | preflight.VM_NEEDS)
    return Report(
        tuple(
            Check(name, states.get(name.replace("-", "_"), State.OK), f"saw {name}", f"do {name}")
            for name in names
        )
    )


def test_native_or_vm_suffices() -> None:
    assert report().exit_code == 0
    only_vm = report(esp=State.MISSING)
    assert (only_vm.native, only_vm.vm, only_vm.exit_code) == (False, True, 0)
    only_native = report(qemu=State.MISSING)
    assert (only_native.native, only_native.vm, only_native.exit_code) == (True, False, 0)
    assert report(qemu=State.UNKNOWN, root=State.MISSING).exit_code == 1


def test_text_shows_the_cure_of_what_is_missing_only() -> None:
    text = preflight.render_text(report(esp=State.MISSING))
    assert "cure: do esp" in text
    assert text.count("cure:") == 1
    assert text.endswith(
        "experiments run in the virtual machine (--env vm, which --env auto picks)"
    )
    bad = preflight.render_text(report(qemu=State.MISSING, root=State.MISSING))
    assert bad.endswith("experiments cannot run here yet: see the cures")


def test_json_has_documented_keys() -> None:
    content = json.loads(preflight.render_json(report(esp=State.MISSING)))
    assert (content["native"], content["vm"]) == (False, True)
    esp = next(check for check in content["checks"] if check["name"] == "esp")
    assert esp == {"name": "esp", "state": "missing", "detail": "saw esp", "cure": "do esp"}


def test_every_check_answers_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    # Booting a guest is for the tests marked vm.
    finding = accelerator.Finding("here", works=False, detail="crashed")
    monkeypatch.setattr(accelerator, "kvm_finding", lambda _initrd: finding)
    monkeypatch.setattr(preflight, "ensure_initrd", lambda: Path("initrd"))
    answers = preflight.survey().checks
    assert {answer.name for answer in answers} >= preflight.NATIVE_NEEDS | preflight.VM_NEEDS
    for answer in answers:
        assert answer.state is State.OK or answer.cure, answer


def test_a_kernel_without_a_feature_names_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: list[str]) -> subprocess.CompletedProcess[str]:
        fails = "netem" in argv or argv[0] == "modinfo"
        return subprocess.CompletedProcess(argv, int(fails), "", "first\nno such qdisc")

    monkeypatch.setattr(preflight, "_run", run)
    check = preflight.check_netem()
    assert check.state is State.MISSING
    assert check.detail.startswith("no such qdisc (kernel ")
    assert check.cure == "add --env vm"


def test_without_nft_the_cure_is_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.layout, "search_path", lambda: "/nowhere")
    check = preflight.check_nftables()
    assert (check.state, check.cure) == (State.MISSING, "make setup")


def test_without_frr_routes_are_static_and_the_set_up_cures_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preflight, "find_frr", lambda: None)
    check = preflight.check_frr()
    assert (check.state, check.cure) == (State.MISSING, "make setup")
    assert "static multicast routes" in check.detail


def test_a_missing_program_is_no_traceback() -> None:
    done = preflight._run(["no-such-program"])
    assert done.returncode == 127
    assert "no-such-program" in done.stderr
