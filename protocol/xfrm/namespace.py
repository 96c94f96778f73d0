"""Open something in another network namespace and come back.

``setns(2)`` moves only the calling thread, and a socket stays in the namespace in which it was
opened, so one process can hold a socket in every device's namespace.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol.ipsec.backend import IpsecError

_CLONE_NEWNET = 0x40000000
_OWN = "/proc/thread-self/ns/net"


def namespace_path(namespace: str | int) -> Path:
    """Return the nsfs path of a namespace named by path or by a process id that lives in it."""
    return Path(f"/proc/{namespace}/ns/net") if isinstance(namespace, int) else Path(namespace)


@contextmanager
def in_namespace(namespace: str | int | None) -> Iterator[None]:
    """Run the body in the network namespace; None stays here.

    Raises:
        IpsecError: no such namespace, or we may not enter it.
    """
    if namespace is None:
        yield
        return
    path = namespace_path(namespace)
    own = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            other = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise IpsecError(f"network namespace {path}: {error.strerror}: is it gone?") from None
        try:
            _setns(other)
        except OSError as error:
            message = f"cannot enter network namespace {path}: {error.strerror}: run as root"
            raise IpsecError(message) from None
        finally:
            os.close(other)
        try:
            yield
        finally:
            _setns(own)
    finally:
        os.close(own)


def _setns(descriptor: int) -> None:
    """Call ``setns(2)``; Python has it from 3.12 on."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
