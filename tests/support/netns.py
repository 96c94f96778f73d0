"""Network namespaces of a test's own: unique names, gone afterwards whatever happened."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from protocol.ipsec.backend import IpsecError
from protocol.xfrm.backends import check_kernel
from protocol.xfrm.namespace import in_namespace

_numbers = itertools.count()


def require_esp() -> None:
    """Skip where the kernel has no ESP; in the guest, which is there to have it, fail."""
    try:
        check_kernel()
    except IpsecError as error:
        if os.environ.get("TESTBED_GUEST") == "1":
            pytest.fail(f"the guest's kernel must have ESP: {error}")
        pytest.skip(str(error))


def run(*command: str) -> str:
    """Run a command; return its output, or fail with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout


@dataclass(frozen=True)
class Namespace:
    """One network namespace."""

    name: str

    @property
    def path(self) -> str:
        """Its nsfs path."""
        return f"/run/netns/{self.name}"

    def ip(self, line: str) -> str:
        """Run ``ip`` in it, with the words of the line."""
        return run("ip", "-n", self.name, *line.split())

    def statistic(self, name: str) -> int:
        """Return one counter of ``/proc/net/xfrm_stat``."""
        with in_namespace(self.path):
            lines = Path("/proc/thread-self/net/xfrm_stat").read_text().splitlines()
        return {word: int(count) for word, count in map(str.split, lines)}[name]


@contextmanager
def namespace(label: str = "n") -> Iterator[Namespace]:
    """A new namespace with its loopback up and without duplicate address detection."""
    name = f"xt{os.getpid()}-{next(_numbers)}{label}"
    run("ip", "netns", "add", name)
    try:
        made = Namespace(name)
        with in_namespace(made.path):
            conf = Path("/proc/sys/net/ipv6/conf")
            for key in ("accept_dad", "accept_ra"):
                (conf / "all" / key).write_text("0")
                (conf / "default" / key).write_text("0")
        made.ip("link set lo up")
        yield made
    finally:
        run("ip", "netns", "delete", name)


@contextmanager
def bridged(addresses: Sequence[IPv6Address]) -> Iterator[tuple[Namespace, list[Namespace]]]:
    """A namespace with a bridge ``br0``, and one namespace per address with ``black0`` on it."""
    with ExitStack() as stack:
        switch = stack.enter_context(namespace("s"))
        switch.ip("link add br0 type bridge mcast_snooping 0")
        switch.ip("link set br0 up")
        devices = []
        for number, address in enumerate(addresses):
            device = stack.enter_context(namespace(str(number)))
            peer = f"type veth peer name p{number} netns {switch.name}"
            device.ip(f"link add black0 {peer}")
            switch.ip(f"link set p{number} master br0 up")
            device.ip(f"addr add {address}/64 dev black0 nodad")
            device.ip("link set black0 up")
            devices.append(device)
        yield switch, devices
