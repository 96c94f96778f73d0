"""Who the daemons of emulated devices are: users of their own, as on real devices.

Root builds the network and starts the daemons; each becomes another user before it reads a secret
(`protocol.daemon.privileges`). The numbers need no account and lie in a range that Debian keeps for
packages (60000 to 60999). A device's two daemons share one group, for what both must read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FIRST_ID: Final = 60_100
IDS_PER_DEVICE: Final = 2
DEVICES_MAX: Final = 440

_SHARED: Final = 0o1770
"""Both make files; only its owner can remove or rename one."""


@dataclass(frozen=True, slots=True)
class DeviceUsers:
    """User and group ids of one device.

    Attributes:
        idpd: user id.
        miked: user id.
        group: of both.
    """

    idpd: int
    miked: int
    group: int

    def as_section(self) -> dict[str, int]:
        """Return the section ``[users]`` of the device's file."""
        return {"idpd": self.idpd, "miked": self.miked, "group": self.group}


class FleetUsers:
    """The users of a fleet's devices.

    Attributes:
        why_not: why the daemons stay who we are; empty: they do not.
    """

    def __init__(self, directory: Path) -> None:
        """Let the users get to their files, but see nobody else's names.

        Args:
            directory: of the fleet, in that of the run; the certificates are in it.
        """
        self._machines: dict[str, int] = {}
        self.why_not = "" if os.geteuid() == 0 else "not started by root"
        if self.why_not:
            return
        for path in (directory.parent, directory, directory / "pki"):
            path.chmod(0o711)
        closed = [str(path) for path in directory.parents if not path.stat().st_mode & 0o001]
        if closed:
            self.why_not = f"{closed[0]} is closed to other users"

    def of(self, machine: str) -> DeviceUsers | None:
        """Return the users of a device or of all legs of a gateway; None: they stay who we are.

        The numbers of one machine are used by nobody else in the run; a fleet of more than
        `DEVICES_MAX` begins anew with them.
        """
        if self.why_not:
            return None
        position = self._machines.setdefault(machine, len(self._machines))
        first = FIRST_ID + position % DEVICES_MAX * IDS_PER_DEVICE
        return DeviceUsers(first, first + 1, first)


def hand_over(users: DeviceUsers, config: Path, run_directory: Path, pki: Path) -> None:
    """Let a device's daemons, and nobody else, at the device's files.

    Both read configuration, certificates, the device's key and the secret between them. In the run
    directory each makes files of its own, which the other cannot replace (sticky bit). The key
    directory is miked's, for idpd to read; the pre-shared key is idpd's alone.
    """
    for path in (config, pki, *pki.rglob("*")):
        os.chown(path, 0, users.group)
        path.chmod(0o750 if path.is_dir() else 0o640)
    os.chown(run_directory, 0, users.group)
    run_directory.chmod(_SHARED)
    for path in run_directory.iterdir():
        os.chown(path, users.idpd, users.group)
        path.chmod(0o750 if path.is_dir() else 0o400)
    give(run_directory / "learned", users)
    for name, owner, mode in (("keys", users.miked, 0o750), ("state", 0, _SHARED)):
        path = run_directory / name
        path.mkdir()
        os.chown(path, owner, users.group)
        path.chmod(mode)


def give(cache: Path, users: DeviceUsers) -> None:
    """Make a directory for what idpd learns and miked reads; a gateway's legs share one."""
    cache.mkdir(exist_ok=True)
    os.chown(cache, users.idpd, users.group)
    cache.chmod(0o750)
