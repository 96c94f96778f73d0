"""Linux namespaces: enter one for a moment, leave the machine's for good.

Python 3.11 lacks ``os.setns`` and ``os.unshare``; both are one C call. A network namespace belongs
to a thread, so `NetNamespace.entered` moves only the calling thread and moves it back. Sockets stay
in the namespace they were opened in, and processes started inside inherit it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from testbed.errors import naming_the_gone

CLONE_NEWNS: Final = 0x0002_0000
CLONE_NEWPID: Final = 0x2000_0000
CLONE_NEWNET: Final = 0x4000_0000
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2
PR_SET_PDEATHSIG: Final = 1

_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
_IFREQ: Final = struct.Struct("16sh14x")

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave the namespaces named by ``flags`` (unshare(2)); new children land in a new PID one."""
    _check(_libc.unshare(flags), "unshare")


def setns(descriptor: int, kind: int) -> None:
    """Move the calling thread into a namespace (setns(2))."""
    _check(_libc.setns(descriptor, kind), "setns")


def mount(source: str, target: str, kind: str | None, flags: int) -> None:
    """Mount a file system (mount(2))."""
    kind_bytes = kind.encode() if kind else None
    _check(
        _libc.mount(source.encode(), target.encode(), kind_bytes, flags, None), f"mount {target}"
    )


def unmount(target: str) -> None:
    """Detach a mount (umount2(2) with MNT_DETACH)."""
    _check(_libc.umount2(target.encode(), MNT_DETACH), f"umount {target}")


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send us this signal when the parent thread ends (PR_SET_PDEATHSIG)."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0), "prctl")


class NetNamespace:
    """A network namespace, held by a descriptor: it lives as long as this object is open.

    Attributes:
        name: for messages.
    """

    def __init__(self, name: str, descriptor: int) -> None:
        self.name = name
        self._descriptor = descriptor

    @classmethod
    def of(cls, name: str, pid: int) -> NetNamespace:
        """Return the namespace of a process.

        Raises:
            ProcessGoneError: it has ended.
        """
        with naming_the_gone(f"{name} (process {pid})", "its network namespace cannot be entered"):
            return cls(name, os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    @classmethod
    def current(cls) -> NetNamespace:
        """Return the calling thread's own namespace."""
        return cls("own", os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Run the block with the calling thread inside the namespace."""
        back = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(self._descriptor, CLONE_NEWNET)
            try:
                yield
            finally:
                setns(back, CLONE_NEWNET)
        finally:
            os.close(back)

    def close(self) -> None:
        """Let the namespace go; idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def write_sysctl(name: str, value: int) -> None:
    """Set a network sysctl in the calling thread's namespace; ``name`` with slashes."""
    Path("/proc/sys", name).write_text(f"{value}\n", encoding="ascii")


def interface_names() -> set[str]:
    """Return the interfaces of the calling thread's namespace."""
    return {name for _, name in socket.if_nameindex()}


def set_interface_up(name: str, *, up: bool) -> None:
    """Bring an interface up or down with one ioctl, no process: the time of it is exact."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = _IFREQ.pack(name.encode(), 0)
        flags = _IFREQ.unpack(fcntl.ioctl(control, _SIOCGIFFLAGS, request))[1]
        flags = flags | _IFF_UP if up else flags & ~_IFF_UP
        fcntl.ioctl(control, _SIOCSIFFLAGS, _IFREQ.pack(name.encode(), flags))
