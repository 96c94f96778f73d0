"""Where the virtual machine keeps its things, and the error that its parts raise."""

import os
import shutil
from pathlib import Path
from typing import Final

from testbed.errors import TestbedError

PROJECT: Final = Path(__file__).resolve().parents[2]
CACHE: Final = PROJECT / ".cache"
VM_CACHE: Final = CACHE / "vm"
KERNEL: Final = CACHE / "kernel" / "current"
VENV: Final = PROJECT / ".venv"
GUEST_PACKAGES: Final = PROJECT / "testbed" / "setup" / "packages-guest.txt"
GUEST_FILES: Final = PROJECT / "testbed" / "vm" / "guest"

QEMU: Final = "qemu-system-x86_64"
SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class TestbedEnvironmentError(TestbedError):
    """One sentence for the user: what is wrong with this machine, and what cures it."""


def search_path() -> str:
    """Return PATH with the system directories that an ordinary user's PATH lacks."""
    return os.pathsep.join((os.environ.get("PATH", ""), SYSTEM_PATH))


def qemu_command() -> list[str]:
    """Return how to call QEMU: the one that the set-up fetched, else the installed one.

    Raises:
        TestbedEnvironmentError: When there is none.
    """
    fetched = CACHE / "qemu" / "usr" / "bin" / QEMU
    if fetched.exists():
        # Its firmware it shares with the installed one.
        return [str(fetched), "-L", str(CACHE / "qemu/usr/share/qemu"), "-L", "/usr/share/seabios"]
    installed = shutil.which(QEMU, path=search_path())
    if installed is None:
        raise TestbedEnvironmentError(
            f"{QEMU} (Debian package qemu-system-x86) is missing; run 'make setup'"
        )
    return [installed]


def guest_kernel_release() -> str:
    """Return the release of the kernel that the guest boots.

    Raises:
        TestbedEnvironmentError: When the set-up has not fetched a kernel yet.
    """
    try:
        return (KERNEL / "release").read_text().strip()
    except OSError:
        raise TestbedEnvironmentError(
            "no kernel for the virtual machine in .cache/kernel; run 'make setup'"
        ) from None
