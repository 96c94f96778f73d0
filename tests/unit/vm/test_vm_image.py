"""When the image is built anew, and how QEMU is called."""

import subprocess
from pathlib import Path

import pytest

from testbed.vm import accelerator, launcher, layout, tools
from testbed.vm.accelerator import Accelerator
from testbed.vm.image import Image, image_key
from testbed.vm.packages import Package
from testbed.vm.shipment import Job

PACKAGE = Package("a", "1", essential=False, depends=(), provides=())


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    record = tmp_path / "venv" / "lib" / "python3.11" / "site-packages" / "x.dist-info" / "RECORD"
    record.parent.mkdir(parents=True)
    record.write_text("x.py,sha256=1,1\n")
    return tmp_path / "venv"


def test_the_key_depends_on_packages_kernel_and_environment(venv: Path) -> None:
    key = image_key([PACKAGE], "6.12", venv)
    assert image_key([PACKAGE], "6.12", venv) == key
    newer = Package("a", "2", essential=False, depends=(), provides=())
    assert image_key([newer], "6.12", venv) != key
    assert image_key([PACKAGE], "6.13", venv) != key
    next(venv.rglob("RECORD")).write_text("x.py,sha256=2,1\n")
    assert image_key([PACKAGE], "6.12", venv) != key


def test_the_key_depends_on_the_routing_programs(venv: Path, tmp_path: Path) -> None:
    program = tmp_path / "zebra"
    program.write_bytes(b"1")
    key = image_key([PACKAGE], "6.12", venv, [program])
    assert key != image_key([PACKAGE], "6.12", venv)
    program.write_bytes(b"2")
    assert image_key([PACKAGE], "6.12", venv, [program]) != key


def test_qemu_gets_shares_ports_and_escaped_paths(tmp_path: Path) -> None:
    image = Image(tmp_path / "root", tmp_path / "initrd")
    job = Job(["true"], "/", {}, {"share0": "/odd,name"})
    argv = launcher.qemu_command(
        image, launcher.Run(tmp_path), Accelerator.TCG, memory_mib=512, job=job, ports=[7, 8, 9]
    )
    assert "local,id=share0,path=/odd,,name,security_model=none" in argv
    assert "socket,id=ctl,fd=9" in argv
    assert "512M" in argv
    assert "tcg,thread=multi" in argv


def test_a_fetched_qemu_goes_before_the_installed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "CACHE", tmp_path)
    fetched = tmp_path / "qemu" / "usr" / "bin" / layout.QEMU
    monkeypatch.setattr(layout.shutil, "which", lambda *_, **__: "/installed")
    assert layout.qemu_command() == ["/installed"]
    fetched.parent.mkdir(parents=True)
    fetched.touch()
    assert layout.qemu_command()[0] == str(fetched)
    fetched.unlink()
    monkeypatch.setattr(layout.shutil, "which", lambda *_, **__: None)
    with pytest.raises(layout.TestbedEnvironmentError, match="run 'make setup'"):
        layout.qemu_command()


def test_a_trial_that_hangs_or_crashes_rules_kvm_out(tmp_path: Path) -> None:
    answer = accelerator.TRIAL_ANSWER.decode()
    assert accelerator.trial(["echo", answer], "m").works
    crashed = accelerator.trial(["sh", "-c", "echo kvm: no >&2; exit 1"], "m")
    assert not crashed.works
    assert "kvm: no" in crashed.detail
    hung = accelerator.trial(["tail", "-f", "/dev/null"], "m", seconds=0.05)
    assert not hung.works
    assert "did not boot" in hung.detail
    assert not accelerator.trial([str(tmp_path / "no-qemu")], "m").works


def test_the_finding_is_kept_for_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "kvm"
    device.touch()
    tried = []

    def fake_trial(_initrd: Path, machine: str) -> accelerator.Finding:
        tried.append(machine)
        return accelerator.Finding(machine, works=False, detail="crashed")

    machine = "host one"
    monkeypatch.setattr(accelerator, "KVM_DEVICE", device)
    monkeypatch.setattr(accelerator, "_try_kvm", fake_trial)
    monkeypatch.setattr(accelerator, "machine_identity", lambda _release: machine)
    monkeypatch.setattr(layout, "VM_CACHE", tmp_path)
    monkeypatch.setattr(layout, "guest_kernel_release", lambda: "6.12")
    for _ in range(2):
        assert not accelerator.kvm_finding(tmp_path / "initrd").works
    assert tried == ["host one"]
    machine = "host two"
    accelerator.kvm_finding(tmp_path / "initrd")
    assert tried == ["host one", "host two"]
    device.unlink()
    assert "not there for this user" in accelerator.kvm_finding(tmp_path / "initrd").detail


def test_a_boot_that_dies_is_tried_again_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes: list[int | launcher.GuestDiedError] = []

    def boot(*_: object, **__: object) -> int:
        outcome = outcomes.pop(0)
        if isinstance(outcome, launcher.GuestDiedError):
            raise outcome
        return outcome

    image = Image(tmp_path / "root", tmp_path / "initrd")
    monkeypatch.setattr(layout, "VM_CACHE", tmp_path)
    monkeypatch.setattr(layout, "qemu_command", lambda: ["qemu"])
    monkeypatch.setattr(launcher, "ensure_image", lambda: image)
    monkeypatch.setattr(launcher, "choose_accelerator", lambda _initrd: Accelerator.TCG)
    monkeypatch.setattr(launcher, "write_shipment", lambda *_: None)
    monkeypatch.setattr(launcher, "_boot_once", boot)
    monkeypatch.setattr(launcher, "_explain", lambda death, _run: str(death))
    job = Job(["true"], "/", {}, {})
    early = launcher.GuestDiedError("early", booted=False)
    outcomes[:] = [early, 5]
    assert launcher.run_guest(job, 512) == 5
    outcomes[:] = [early] * 3
    with pytest.raises(layout.TestbedEnvironmentError, match="early"):
        launcher.run_guest(job, 512)
    outcomes[:] = [launcher.GuestDiedError("late", booted=True), 5]
    with pytest.raises(layout.TestbedEnvironmentError, match="late"):
        launcher.run_guest(job, 512)


def test_a_failed_build_step_is_told_in_the_tools_own_words() -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        tools.run_tool(["sh", "-c", "echo first >&2; echo no space >&2; exit 3"])
    assert tools.cause_of(caught.value) == "sh: no space"
    with pytest.raises(layout.TestbedEnvironmentError, match=r"no-such-tool .*run 'make setup'"):
        tools.require_tool("no-such-tool", "package")
