"""What this machine can do for the testbed, what is missing, and the command that cures it.

Every check tries the thing itself where that is possible: a kernel that lists ESP and refuses an
SA would not do.
"""

import argparse
import functools
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Final

from testbed.routing.programs import find_frr
from testbed.vm import accelerator, layout
from testbed.vm.initrd import ensure_initrd
from testbed.vm.layout import TestbedEnvironmentError

_PROBE_SECONDS: Final = 20
_SET_UP: Final = "make setup"
_IN_VM: Final = "add --env vm"
_AS_ROOT: Final = "sudo .venv/bin/testbed doctor"


class State(StrEnum):
    """The outcome of one check."""

    OK = "ok"
    MISSING = "missing"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Check:
    """One capability: whether it is there, what was seen, and the command that cures its lack."""

    name: str
    state: State
    detail: str
    cure: str = ""


# What each way to run needs.
NATIVE_NEEDS: Final = frozenset(
    {"root", "namespaces", "esp", "xfrm-interface", "nftables", "mnexec", "mininet"},
)
VM_NEEDS: Final = frozenset({"qemu", "guest-kernel", "image-tools"})


@dataclass(frozen=True)
class Report:
    """All checks, and what follows from them."""

    checks: tuple[Check, ...]

    @property
    def native(self) -> bool:
        """Whether experiments with kernel SAs run on this machine's own kernel."""
        return self._all_ok(NATIVE_NEEDS)

    @property
    def vm(self) -> bool:
        """Whether they run in the virtual machine."""
        return self._all_ok(VM_NEEDS)

    @property
    def exit_code(self) -> int:
        """Return 0 if experiments run one way or the other, else 1."""
        return 0 if self.native or self.vm else 1

    def _all_ok(self, names: frozenset[str]) -> bool:
        return names <= {check.name for check in self.checks if check.state is State.OK}


def _run(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a probe; a program that is missing or hangs counts as one that failed."""
    try:
        return subprocess.run(
            argv,
            capture_output=True,
            text=True,
            check=False,
            timeout=_PROBE_SECONDS,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PATH": layout.search_path()},
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(argv, 124, "", f"no answer in {_PROBE_SECONDS} s")
    except OSError as error:
        return subprocess.CompletedProcess(argv, 127, "", f"{argv[0]}: {error.strerror}")


def _in_namespace(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a probe in a network namespace of its own, as root of it where we are not root."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    return _run(["unshare", *user, "--net", "--", *argv])


def _complaint(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"


def check_root() -> Check:
    """Check whether this process is root."""
    if os.geteuid() == 0:
        return Check("root", State.OK, "running as root")
    return Check("root", State.MISSING, "not running as root", _AS_ROOT)


def check_namespaces() -> Check:
    """Check whether a network namespace can be made."""
    done = _in_namespace(["true"])
    if done.returncode == 0:
        return Check("namespaces", State.OK, "made a network namespace")
    return Check("namespaces", State.MISSING, _complaint(done), _AS_ROOT)


def _check_kernel(name: str, argv: Sequence[str], seen: str, modules: str) -> Check:
    """Check a feature of the kernel by using it in a network namespace."""
    done = _in_namespace(argv)
    if done.returncode == 0:
        return Check(name, State.OK, seen)
    if _in_namespace(["true"]).returncode != 0:
        return Check(name, State.UNKNOWN, "cannot be tried without namespaces", _AS_ROOT)
    if _run(["modinfo", *modules.split()]).returncode == 0:
        return Check(name, State.MISSING, _complaint(done), f"sudo modprobe -a {modules}")
    detail = f"{_complaint(done)} (kernel {platform.release()} has no module for it)"
    return Check(name, State.MISSING, detail, _IN_VM)


def check_esp() -> Check:
    """Check whether the kernel takes an ESP security association."""
    argv = ["ip", "xfrm", "state", "add", "src", "::1", "dst", "::1", "proto", "esp"]
    argv += ["spi", "0x100", "mode", "transport", "aead", "rfc4106(gcm(aes))"]
    argv += ["0x" + "11" * 20, "128"]
    return _check_kernel("esp", argv, "the kernel took an AES-GCM SA", "xfrm_user esp6 gcm")


def check_xfrm_interface() -> Check:
    """Check whether the kernel makes xfrm interfaces."""
    argv = ["ip", "link", "add", "probe0", "type", "xfrm", "dev", "lo", "if_id", "1"]
    return _check_kernel("xfrm-interface", argv, "made one", "xfrm_interface")


def check_netem() -> Check:
    """Check whether the kernel can delay and lose packets."""
    argv = ["tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
    return _check_kernel("netem", argv, "delayed the loopback interface", "sch_netem")


def check_pim() -> Check:
    """Check whether the kernel forwards IPv6 multicast, which PIM needs."""
    # Level IPPROTO_IPV6, option MRT6_INIT of linux/mroute6.h.
    code = (
        "import socket; s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, "
        "socket.IPPROTO_ICMPV6); s.setsockopt(socket.IPPROTO_IPV6, 200, 1)"
    )
    argv = [sys.executable, "-I", "-c", code]
    check = _check_kernel("pim", argv, "the kernel routes IPv6 multicast", "ip6mr")
    if check.state is State.MISSING:
        return Check(check.name, check.state, check.detail, _IN_VM)
    return check


def check_nftables() -> Check:
    """Check whether the kernel takes nftables rules, of which every device's guard is made."""
    program = _check_program("nftables", "nft", "nftables")
    if program.state is not State.OK:
        return program
    argv = ["nft", "add", "table", "inet", "probe"]
    return _check_kernel("nftables", argv, "the kernel took a table", "nf_tables")


def _check_program(name: str, program: str, package: str) -> Check:
    found = shutil.which(program, path=layout.search_path())
    if found is not None:
        return Check(name, State.OK, found)
    return Check(name, State.MISSING, f"no {program} (Debian package {package})", _SET_UP)


def check_frr() -> Check:
    """Check whether the black routers have OSPF and PIM."""
    frr = find_frr()
    if frr is None:
        detail = "FRR is not built: black routers use static multicast routes"
        return Check("frr", State.MISSING, detail, _SET_UP)
    return Check("frr", State.OK, f"{frr.version} with pim6d")


def check_mininet() -> Check:
    """Check whether Mininet's Python side can be imported."""
    done = _run([sys.executable, "-W", "ignore", "-c", "import mininet.net"])
    if done.returncode == 0:
        return Check("mininet", State.OK, "imported")
    return Check("mininet", State.MISSING, _complaint(done), _SET_UP)


def check_kvm_device() -> Check:
    """Check whether the processor's virtualisation is offered to us."""
    device = accelerator.KVM_DEVICE
    if not device.exists():
        return Check(
            "kvm-device",
            State.MISSING,
            f"no {device}: guests run by software emulation, about ten times slower",
            "sudo modprobe -a kvm_intel kvm_amd",
        )
    if not os.access(device, os.R_OK | os.W_OK):
        return Check("kvm-device", State.MISSING, f"{device} is not for this user", _AS_ROOT)
    return Check("kvm-device", State.OK, f"{device} opens")


def check_kvm_boots() -> Check:
    """Check whether a guest boots with KVM; the finding is kept until the next boot of the host."""
    name = "kvm-boots"
    try:
        finding = accelerator.kvm_finding(ensure_initrd())
    except (TestbedEnvironmentError, OSError) as error:
        return Check(name, State.UNKNOWN, f"cannot be tried: {error}", _SET_UP)
    if finding.works:
        return Check(name, State.OK, finding.detail)
    detail = f"{finding.detail}; software emulation does instead"
    return Check(name, State.MISSING, detail, "none needed")


def check_qemu() -> Check:
    """Check whether QEMU starts, and which one it is."""
    try:
        done = _run([layout.qemu_command()[0], "--version"])
    except TestbedEnvironmentError as error:
        return Check("qemu", State.MISSING, str(error).partition(";")[0], _SET_UP)
    if done.returncode != 0:
        return Check("qemu", State.MISSING, _complaint(done), _SET_UP)
    return Check("qemu", State.OK, done.stdout.splitlines()[0])


def check_guest_kernel() -> Check:
    """Check whether the set-up has fetched the guest's kernel."""
    try:
        release = layout.guest_kernel_release()
    except TestbedEnvironmentError as error:
        return Check("guest-kernel", State.MISSING, str(error).partition(";")[0], _SET_UP)
    return Check("guest-kernel", State.OK, release)


def check_image_tools() -> Check:
    """Check whether the guest's image can be built."""
    tools = {
        "busybox": "busybox-static",
        "cpio": "cpio",
        "depmod": "kmod",
        "mke2fs": "e2fsprogs",
    }
    for program, package in tools.items():
        check = _check_program("image-tools", program, package)
        if check.state is not State.OK:
            return check
    return Check("image-tools", State.OK, " ".join(tools))


CHECKS: Final[tuple[Callable[[], Check], ...]] = (
    check_root,
    check_namespaces,
    check_esp,
    check_xfrm_interface,
    check_netem,
    check_pim,
    check_nftables,
    functools.partial(_check_program, "mnexec", "mnexec", "mininet"),
    check_mininet,
    check_frr,
    functools.partial(_check_program, "tshark", "tshark", "tshark"),
    check_qemu,
    check_guest_kernel,
    check_image_tools,
    check_kvm_device,
    check_kvm_boots,
)


def survey() -> Report:
    """Try everything and report it."""
    return Report(tuple(check() for check in CHECKS))


def render_json(report: Report) -> str:
    """Return the report for programs."""
    content = {
        "native": report.native,
        "vm": report.vm,
        "checks": [asdict(check) for check in report.checks],
    }
    return json.dumps(content, indent=2)


def render_text(report: Report) -> str:
    """Return the report for people: one line a check, its cure beneath, the verdict last."""
    width = max(len(check.name) for check in report.checks)
    lines = []
    for check in report.checks:
        lines.append(f"{check.state:<8} {check.name:<{width}}  {check.detail}")
        if check.state is not State.OK and check.cure:
            lines.append(f"{'':<9}{'':<{width}}  cure: {check.cure}")
    ways = {
        (True, True): "natively (--env native) and in the virtual machine (--env vm)",
        (True, False): "natively (--env native)",
        (False, True): "in the virtual machine (--env vm, which --env auto picks)",
    }
    way = ways.get((report.native, report.vm))
    verdict = f"experiments run {way}" if way else "experiments cannot run here yet: see the cures"
    return "\n".join([*lines, "", verdict])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; return 0 if experiments run here one way or the other."""
    parser = argparse.ArgumentParser(prog="testbed doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    report = survey()
    print(render_json(report) if options.json else render_text(report))
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
