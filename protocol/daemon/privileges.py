"""How little a daemon may do (docs/privileges.md).

On a device systemd starts each daemon as its own user (``packaging/``). Where root starts it, as
the testbed does in a network namespace, the daemon itself becomes that user before it reads a
secret or opens a socket, if the file says which (``[users]``). Either way no later program and no
later code of this process can get back what was given away.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from protocol.core.errors import LocalError
from protocol.daemon.tables import TableReader, read_tables

CAP_NET_ADMIN = 12
"""SAs, policies, routes and addresses of the device (linux/capability.h)."""

KEPT = {"idpd": frozenset({CAP_NET_ADMIN}), "miked": frozenset[int]()}
"""What each daemon keeps; no entry: it stays what it was started as."""

_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_CAPABILITY_VERSION_3 = 0x20080522
_CAPABILITIES_MAX = 64

_ID_MAX = (1 << 32) - 2
"""The one above means "no change" to the kernel."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Users:
    """``[users]``: whom the daemons of a device become if root starts them.

    Attributes:
        idpd: user id.
        miked: user id.
        group: group id of both, for what both must read.
    """

    idpd: int
    miked: int
    group: int


def read_users(path: Path) -> tuple[Users | None, bool]:
    """Return ``[users]`` of a device's file, and whether idpd starts programs (backend command).

    Raises:
        ConfigFileError: the file cannot be read, or the section is wrong.
    """
    tables = read_tables(path)
    if "users" not in tables:
        return None, False
    reader = TableReader(path, tables)
    idpd, miked, group = (
        reader.integer("users", name, 1, _ID_MAX, None) for name in ("idpd", "miked", "group")
    )
    users = Users(idpd, miked, group)
    reader.refuse_leftovers("users")
    if users.idpd == users.miked:
        reader.fail("users", "miked", "must be another user than idpd")
    backend = reader.text("ipsec", "backend", "netlink")
    return users, backend == "command"


def become_user(daemon: str, path: Path) -> None:
    """Give away root for good, if this is root and the device's file names users.

    What is imported lazily is imported before: the code may lie where only root may go.

    Raises:
        LocalError: the file is wrong, or the kernel refuses.
    """
    if daemon not in KEPT or os.geteuid() != 0:
        return
    users, starts_programs = read_users(path)
    if users is None:
        return
    preload()
    user = users.idpd if daemon == "idpd" else users.miked
    kept = KEPT[daemon]
    try:
        _raise_memory_limit()
        _call("prctl", _PR_SET_KEEPCAPS, 1, 0, 0, 0)
        for number in range(_CAPABILITIES_MAX):
            if number not in kept and _libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) == 1:
                _call("prctl", _PR_CAPBSET_DROP, number, 0, 0, 0)
        os.setgroups([])
        os.setresgid(users.group, users.group, users.group)
        os.setresuid(user, user, user)
        inherited = kept if daemon == "idpd" and starts_programs else frozenset()
        _set_capabilities(kept, inherited)
        _call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
        for number in inherited:
            _call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number, 0, 0)
        _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    except OSError as error:
        raise LocalError(f"cannot become user {user}: {error.strerror}") from error


def preload() -> None:
    """Import what idpd and miked import late."""
    import errno
    import select
    import subprocess

    import protocol.daemon.idpservice
    import protocol.daemon.mikeservice
    import protocol.identity.certificates
    import protocol.identity.signed
    import protocol.xfrm.backends
    import protocol.xfrm.command
    import protocol.xfrm.netlink
    import protocol.xfrm.pfkey  # noqa: F401

    assert errno, (select, subprocess)


def protect_memory() -> list[str]:
    """Keep keys out of core dumps, debuggers and swap; return what could not be had, in words.

    Pages are locked when they are touched (MCL_ONFAULT), so a daemon that was forked shares with
    its parent what it never writes.
    """
    missing = []
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)
        _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    except OSError as error:
        missing.append(f"core dumps and debuggers cannot be shut out: {error.strerror}")
    try:
        _call("mlockall", _MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT)
    except OSError as error:
        soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        text = f"memory is not locked, keys may reach a swap device: {error.strerror}"
        missing.append(f"{text} (RLIMIT_MEMLOCK is {soft} bytes, LimitMEMLOCK=infinity is wanted)")
    return missing


def _raise_memory_limit() -> None:
    """Let ourselves lock memory as another user; without the right to, `protect_memory` says so."""
    limit = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, limit)
    except (OSError, ValueError):
        return


def _set_capabilities(kept: Collection[int], inherited: Collection[int]) -> None:
    """Call ``capset(2)`` for this process, with 64 bits for each set."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    mask, inheritable = (sum(1 << number for number in found) for found in (kept, inherited))
    words = []
    for shift in (0, 32):
        low = [value >> shift & 0xFFFFFFFF for value in (mask, mask, inheritable)]
        words += low
    _call("capset", header, struct.pack("=6I", *words))


def _call(name: str, *arguments: int | bytes) -> None:
    function = getattr(_libc, name)
    converted = [
        ctypes.c_ulong(value) if isinstance(value, int) and position else value
        for position, value in enumerate(arguments)
    ]
    if function(*converted) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
