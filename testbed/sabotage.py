"""What the fault campaign does to one device's kernel and disk, behind the back of its daemons.

Nothing here asks the daemons or tells them: SAs, policies and routes are changed by netlink sockets
of the testbed in the device's namespace, as an operator's ``ip xfrm`` and ``ip route`` would.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Final, TypeVar

from protocol.core.errors import LocalError
from protocol.daemon.routes import KernelRoutes
from protocol.idp.events import RemoveRoute
from protocol.ipsec.backend import AddSa, DeletePolicy, DeleteSa, Operation
from protocol.ipsec.model import SecurityAssociation
from protocol.xfrm.netlink import NetlinkBackend
from testbed import namespaces, network_batch
from testbed.errors import TestbedError, one_line
from testbed.network import XFRM, Network
from testbed.wait import wait_until

_DISK_BYTES: Final = 64 << 10
_PAGE_BYTES: Final = 4096
_FILLER: Final = "filler"
_WRITTEN_DEADLINE_S: Final = 20.0

_FLOOD_SAS: Final = 400
_FLOOD_LINKS: Final = 600
"""More announcements than the daemon's receive buffers hold."""

_STRANGER_REQID: Final = 4711
_STRAY_SPI: Final = 0xBAD00000

T = TypeVar("T")


class Sabotage:
    """Changes the kernels of a network's devices.

    Args:
        network: a built one with kernel SAs.
        chance: which SA, policy or route it is.
    """

    def __init__(self, network: Network, chance: Random) -> None:
        self._network = network
        self._chance = chance

    def remove_sa(self, device: str) -> None:
        """Delete one of the device's SAs, with or without a policy that names it."""
        self._change(device, lambda kernel: [DeleteSa(self._any(kernel.dump_sas()).id)])

    def remove_policy(self, device: str) -> None:
        """Delete one of the device's policies."""
        self._change(device, lambda kernel: [DeletePolicy(self._any(kernel.dump_policies()).id)])

    def add_sa(self, device: str) -> None:
        """Add an SA with the device's own marks that it knows nothing of."""
        self._change(device, lambda kernel: [AddSa(self._stray(kernel.dump_sas()))])

    def remove_route(self, device: str) -> None:
        """Delete one of the routes to red prefixes that idpd made."""
        try:
            with self._network.namespace(device).entered():
                routes = KernelRoutes(socket.if_nametoindex(XFRM))
            with closing(routes):
                (outcome,) = routes.apply([RemoveRoute(self._any(routes.dump()))])
        except (LocalError, OSError) as error:
            raise TestbedError(f"{device}: {one_line(error)}") from None
        if not outcome.ok:
            raise TestbedError(f"{device}: the kernel refused: {outcome.text}")

    def flood(self, device: str) -> None:
        """Change so much that is not the daemon's that its netlink sockets overflow.

        Among it is one SA of its own: what was announced of that is lost.
        """

        def operations(kernel: NetlinkBackend) -> list[Operation]:
            sas = kernel.dump_sas()
            stranger = replace(self._stray(sas), reqid=_STRANGER_REQID)
            steps: list[Operation] = []
            for number in range(_FLOOD_SAS):
                sa = replace(stranger, spi=_STRAY_SPI + number)
                steps += [AddSa(sa), DeleteSa(sa.id)]
            return [*steps, DeleteSa(self._any(sas).id), *steps]

        self._change(device, operations)
        with self._network.namespace(device).entered():
            lines = [f"link set dev lo alias {number}" for number in range(_FLOOD_LINKS)]
            network_batch.batch("ip", lines, device)

    def _stray(self, sas: list[SecurityAssociation]) -> SecurityAssociation:
        return replace(self._any(sas), spi=_STRAY_SPI)

    def _any(self, found: list[T]) -> T:
        if not found:
            raise TestbedError("nothing of that kind is in the kernel")
        return self._chance.choice(found)

    def _change(self, device: str, choose: Callable[[NetlinkBackend], list[Operation]]) -> None:
        try:
            with closing(NetlinkBackend(self._network.pid(device))) as kernel:
                failed = [one.text for one in kernel.apply(choose(kernel)) if not one.ok]
        except LocalError as error:
            raise TestbedError(f"{device}: {error}") from None
        if failed:
            raise TestbedError(f"{device}: the kernel refused: {failed[0]}")


def fill_disk(state: Path, undo: ExitStack, written: Callable[[], bool]) -> None:
    """Put a device's state directory on a small disk and fill it.

    ``undo`` makes room, waits until the daemons have written their state, and puts it back where it
    was. The mount is seen by daemons of a nursery, which live in our mount namespace.

    Args:
        state: the directory.
        undo: gets what ends it.
        written: whether the daemons have nothing left to write.
    """
    before = state.stat()
    aside = state.with_name("state-aside")
    shutil.copytree(state, aside)
    owners = {path.name: path.stat() for path in state.iterdir()}
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "idpmike-disk", str(state)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise TestbedError(f"mount: {done.stderr.strip()}")
    undo.callback(_put_back, state, aside)
    state.chmod(before.st_mode & 0o7777)
    os.chown(state, before.st_uid, before.st_gid)
    for name, of in owners.items():
        shutil.copy2(aside / name, state / name)
        os.chown(state / name, of.st_uid, of.st_gid)
    filler = state / _FILLER
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(_PAGE_BYTES))

    def make_room() -> None:
        filler.unlink()
        wait_until(written, _WRITTEN_DEADLINE_S, "the daemons do not write their state again")

    undo.callback(make_room)


def _put_back(state: Path, aside: Path) -> None:
    """Leave the small disk; what the daemons have written goes with them."""
    newest = {path.name: (path.read_bytes(), path.stat()) for path in state.iterdir()}
    namespaces.unmount(str(state))
    for name, (data, of) in newest.items():
        if name != _FILLER:
            (state / name).write_bytes(data)
            os.chown(state / name, of.st_uid, of.st_gid)
    shutil.rmtree(aside)
