"""Whether every device holds what it should and nothing else: SAs, policies, routes, rules.

What is right is taken once, when the group has settled: the policies' selectors, the routes to red
prefixes, the rules of the routing policy, the processes of the run. SAs and the SPIs that policies
name are new with each epoch, so they are compared with one another instead.
"""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from protocol.core.errors import LocalError
from protocol.daemon.routes import KernelRoutes
from protocol.ipsec.model import PolicyDirection, PolicyId, Prefix, SecurityAssociation
from protocol.xfrm.netlink import NetlinkBackend
from testbed.errors import TestbedError
from testbed.network import XFRM, Network
from testbed.runs import processes_of

_SHOWN: Final = 3

# include/uapi/linux/netlink.h, rtnetlink.h, fib_rules.h
_NLMSG: Final = struct.Struct("=IHHII")
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_GETRULE: Final = 34
_NLM_F_DUMP: Final = 0x301
_RULE_HEADER_BYTES: Final = 12


@dataclass(frozen=True, slots=True)
class Holding:
    """What one device holds.

    Attributes:
        sas: all of its SAD that the model can express.
        policies: id -> SPI that the template names.
        routes: of idpd, to red prefixes.
        rules: of the routing policy, both families.
    """

    sas: tuple[SecurityAssociation, ...]
    policies: Mapping[PolicyId, int]
    routes: frozenset[Prefix]
    rules: frozenset[bytes]


class Wellness:
    """Looks at the kernels of all devices.

    Args:
        network: a built one with kernel SAs.
        devices: whose.
        run_id: of the processes that are counted.

    Raises:
        TestbedError: a kernel does not tell.
    """

    def __init__(self, network: Network, devices: Sequence[str], run_id: str) -> None:
        self._network = network
        self._run_id = run_id
        self._stack = ExitStack()
        self._kernels: dict[str, NetlinkBackend] = {}
        self._routes: dict[str, KernelRoutes] = {}
        self._rules: dict[str, socket.socket] = {}
        try:
            for device in devices:
                self._kernels[device] = NetlinkBackend(network.pid(device))
                self._stack.callback(self._kernels[device].close)
                with network.namespace(device).entered():
                    self._routes[device] = KernelRoutes(socket.if_nametoindex(XFRM))
                    self._rules[device] = socket.socket(
                        socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE
                    )
                self._stack.callback(self._routes[device].close)
                self._stack.callback(self._rules[device].close)
        except (LocalError, OSError) as error:
            self._stack.close()
            raise TestbedError(f"cannot look at the devices' kernels: {error}") from None
        self._right: dict[str, Holding] = {}
        self._processes = 0

    def close(self) -> None:
        """Close the sockets; idempotent."""
        self._stack.close()

    @property
    def settled(self) -> bool:
        """Whether it is known what is right."""
        return bool(self._right)

    def settle(self) -> None:
        """Take what is there now for right, but for SAs that must agree among the devices.

        Raises:
            TestbedError: they do not.
        """
        found = {device: self._read(device) for device in self._kernels}
        problems = [*_pairs(found), *_incomplete(found)]
        if problems:
            raise TestbedError("; ".join(problems[:_SHOWN]))
        self._right = found
        self._processes = len(processes_of(self._run_id))

    def problems(self) -> list[str]:
        """Return what is not as it was when the group had settled, naming devices."""
        found = {device: self._read(device) for device in self._kernels}
        problems = _pairs(found)
        for device, holding in found.items():
            right = self._right[device]
            for what, is_now, was in (
                ("policies", set(holding.policies), set(right.policies)),
                ("routes", holding.routes, right.routes),
                ("rules", holding.rules, right.rules),
            ):
                for label, differing in (("too many", is_now - was), ("missing", was - is_now)):
                    if differing:
                        problems.append(f"{device}: {len(differing)} {what} {label}")
        count = len(processes_of(self._run_id))
        if count != self._processes:
            problems.append(f"{count} processes of the run, not {self._processes}")
        return problems

    def _read(self, device: str) -> Holding:
        kernel = self._kernels[device]
        try:
            sas, policies = kernel.dump_sas(), kernel.dump_policies()
            routes = self._routes[device].dump()
        except LocalError as error:
            raise TestbedError(f"{device}: {error}") from None
        return Holding(
            tuple(sas),
            {policy.id: policy.template_spi for policy in policies},
            frozenset(routes),
            frozenset(_rules(self._rules[device])),
        )


def _rules(sock: socket.socket) -> Iterator[bytes]:
    """Yield every rule of the routing policy, of all families, as the kernel writes it."""
    body = bytes(_RULE_HEADER_BYTES)  # struct fib_rule_hdr; AF_UNSPEC
    sock.send(_NLMSG.pack(_NLMSG.size + len(body), _RTM_GETRULE, _NLM_F_DUMP, 1, 0) + body)
    while True:
        data, offset = sock.recv(1 << 16), 0
        while offset + _NLMSG.size <= len(data):
            length, kind, _, _, _ = _NLMSG.unpack_from(data, offset)
            if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                return
            yield data[offset + _NLMSG.size : offset + length]
            offset += (length + 3) & ~3


def _pairs(found: Mapping[str, Holding]) -> list[str]:
    """Return what is wrong with the unicast SAs: each is at both of its ends, and nowhere else.

    And each policy that names an SPI names one that is there.
    """
    problems = []
    ends: Counter[tuple[object, ...]] = Counter()
    for device, holding in found.items():
        spis = {sa.spi for sa in holding.sas}
        ends.update(
            (sa.id, sa.source, sa.key.digest)
            for sa in holding.sas
            if not sa.destination.is_multicast
        )
        dangling = [
            name
            for name, spi in holding.policies.items()
            if spi not in spis and (spi or name.direction is PolicyDirection.OUT)
        ]
        if dangling:
            problems.append(f"{device}: {len(dangling)} policies name no SA of its SAD")
    lonely = sum(count != 2 for count in ends.values())
    if lonely:
        problems.append(f"{lonely} unicast SAs are not at both ends")
    expected = len(found) * (len(found) - 1)
    if ends and len(ends) != expected:
        problems.append(f"{len(ends)} different unicast SAs, not {expected}")
    return problems


def _incomplete(found: Mapping[str, Holding]) -> list[str]:
    """Return who lacks SAs or routes to the others."""
    others = len(found) - 1
    return [
        f"{device}: {len(holding.routes)} routes to red prefixes of {others} devices"
        for device, holding in found.items()
        if 0 < len(holding.routes) < others
    ]
