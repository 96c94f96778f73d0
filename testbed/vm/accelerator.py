"""Which accelerator QEMU gets: KVM only where a guest has really been booted with it."""

import json
import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from testbed.vm import layout

TRIAL_SECONDS: Final = 8
TRIAL_ANSWER: Final = b"TESTBED-GUEST-ALIVE"
KVM_DEVICE: Final = Path("/dev/kvm")


EMULATED_PROCESSOR: Final = "max,-la57,-smap,-smep,-umip,-pku"
"""Everything QEMU can emulate, less what makes memory slower and protects nobody here: a fifth
level of page tables to walk on each miss of the TLB, and checks at every copy from user space. A
join of ten devices took 88 ms instead of 130 (medians of 16 joins, one run after the other)."""


class Accelerator(StrEnum):
    """QEMU's ways to run the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True)
class Finding:
    """What a trial boot with KVM showed, and on what machine."""

    machine: str
    works: bool
    detail: str


def processor_options(accelerator: Accelerator) -> list[str]:
    """Return QEMU's options for the processor."""
    if accelerator is Accelerator.KVM:
        return ["-accel", "kvm", "-cpu", "host"]
    return ["-accel", "tcg,thread=multi", "-cpu", EMULATED_PROCESSOR]


def machine_identity(release: str) -> str:
    """Return what the finding depends on: this boot of this host, QEMU, the guest's kernel."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.uname().release} {layout.qemu_command()[0]} {release}"


def kvm_finding(initrd: Path) -> Finding:
    """Return whether KVM boots a guest here, from the cache or by a trial boot."""
    kept = layout.VM_CACHE / "kvm.json"
    machine = machine_identity(layout.guest_kernel_release())
    # Not kept: another user may be let in.
    if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        return Finding(machine, works=False, detail=f"{KVM_DEVICE} is not there for this user")
    finding: Finding | None
    try:
        finding = Finding(**json.loads(kept.read_text()))
    except (OSError, ValueError, TypeError):
        finding = None
    if finding is None or finding.machine != machine:
        finding = _try_kvm(initrd, machine)
        with suppress(PermissionError):  # another user's cache: the trial is made again
            partial = kept.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps(asdict(finding)))
            partial.rename(kept)
    return finding


def choose_accelerator(initrd: Path) -> Accelerator:
    """Return the best accelerator that works; TESTBED_ACCELERATOR overrules the trial."""
    wish = os.environ.get("TESTBED_ACCELERATOR", "")
    if wish in set(Accelerator):
        return Accelerator(wish)
    return Accelerator.KVM if kvm_finding(initrd).works else Accelerator.TCG


def _try_kvm(initrd: Path, machine: str) -> Finding:
    argv = [
        *layout.qemu_command(),
        "-nodefaults",
        "-no-user-config",
        "-machine",
        "q35",
        "-m",
        "512",
    ]
    argv += processor_options(Accelerator.KVM)
    argv += ["-display", "none", "-no-reboot", "-serial", "stdio"]
    argv += ["-kernel", str(layout.KERNEL / "vmlinuz"), "-initrd", str(initrd)]
    argv += ["-append", "console=ttyS0 quiet panic=-1 edd=off testbed.trial"]
    return trial(argv, machine)


def trial(argv: Sequence[str], machine: str, seconds: float = TRIAL_SECONDS) -> Finding:
    """Run a trial boot and judge what its console said.

    Args:
        argv: The command that boots; its output is the guest's console.
        machine: What the finding holds for.
        seconds: How long the boot may take.
    """
    begin = time.monotonic()
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding(machine, works=False, detail=f"a trial guest did not boot in {seconds:g} s")
    except OSError as error:
        return Finding(machine, works=False, detail=f"a trial guest did not start: {error}")
    if TRIAL_ANSWER in done.stdout:
        took = time.monotonic() - begin
        return Finding(machine, works=True, detail=f"a trial guest booted in {took:.1f} s")
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    said = lines[-1] if lines else f"exit status {done.returncode}"
    return Finding(machine, works=False, detail=f"a trial guest crashed: {said}")
