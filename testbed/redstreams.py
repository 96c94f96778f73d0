"""Streams of red multicast: `testbed.redtraffic` run as processes of the fleet.

A sender and any number of receivers are each one process in the namespace of a client, or of a
device, whose own red multicast goes through its xfrm interface; their reports come back as lines of
their output files.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Final

from protocol.daemon.launch import environment
from testbed import redtraffic
from testbed.errors import TestbedError, naming_the_gone
from testbed.network import Network
from testbed.network_nodes import XFRM
from testbed.processes import OwnedProcess, ProcessTable, last_line
from testbed.spec import Node, NodeKind
from testbed.wait import wait_until

CLIENT_INTERFACE: Final = "eth0"
_START_DEADLINE_S: Final = 60.0
_REPORT_DEADLINE_S: Final = 60.0
_END_GRACE_S: Final = 30.0
_BUFFER_BYTES: Final = 64 << 20
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """What a sender sends.

    Attributes:
        stream: its number, told apart at the receivers.
        rate_pps: packets per second.
        size_bytes: of the UDP payload.
        count: end after so many packets; None: until it is stopped.
    """

    stream: int
    rate_pps: float
    size_bytes: int = 200
    count: int | None = None


class Part:
    """One running sender or receiver.

    Attributes:
        client: in whose namespace it runs; a client or a device.
    """

    def __init__(self, client: str, process: OwnedProcess, processes: ProcessTable) -> None:
        self.client = client
        self._process = process
        self._processes = processes
        self._taken = 1  # the first line says that it is ready

    def wait_ready(self) -> None:
        """Wait until its sockets are open.

        Raises:
            TestbedError: what it said instead.
        """
        self._line(0, "has not opened its sockets", _START_DEADLINE_S)

    def ask(self) -> dict[str, Any]:
        """Return a receiver's report since the last one; it begins anew.

        Raises:
            TestbedError: it gives none.
        """
        self._process.signal(signal.SIGUSR1)
        return self._next("has given no report", _REPORT_DEADLINE_S)

    def finish(self, deadline_s: float) -> dict[str, Any]:
        """Wait until a sender has sent all; return its report.

        Raises:
            TestbedError: it has not in time, or failed.
        """
        report = self._next("has not sent all", deadline_s)
        self._processes.stop([self._process.name], _END_GRACE_S)
        return report

    def pin(self, cpu: int) -> None:
        """Let it run on this processor only.

        Raises:
            ProcessGoneError: it has ended.
        """
        with naming_the_gone(self._process.name, f"cannot put it on processor {cpu}"):
            os.sched_setaffinity(self._process.pid, {cpu})

    def stop(self) -> dict[str, Any]:
        """End it and return its last report.

        Raises:
            TestbedError: it gives none.
        """
        self._process.must_live = False
        self._process.handle.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):  # then it has not reported either
            self._process.handle.wait(_END_GRACE_S)
        report = self._next("has given no report", 1.0)
        self._processes.stop([self._process.name], _END_GRACE_S)
        return report

    def abandon(self) -> None:
        """End it, whatever it says; idempotent."""
        if self._process.name in self._processes:
            self._processes.stop([self._process.name])

    def _next(self, lacking: str, deadline_s: float) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._line(self._taken, lacking, deadline_s))
        self._taken += 1
        return found

    def _line(self, number: int, lacking: str, deadline_s: float) -> str:
        def line() -> str | None:
            ended = self._process.handle.poll()  # before looking: its last line is there then
            found = self._lines()
            if number < len(found):
                return found[number]
            if ended is not None:
                said = last_line(self._process.output)
                raise TestbedError(
                    f"{self._process.name} {lacking} and has ended ({ended}): {said}"
                )
            return None

        return wait_until(line, deadline_s, f"{self._process.name} {lacking}")

    def _lines(self) -> list[str]:
        whole = self._process.output.read_text(encoding="utf-8", errors="replace")
        return [line for line in whole.splitlines(keepends=True) if _is_report(line)]


def _is_report(line: str) -> bool:
    return line.startswith("{") and line.endswith("}\n")


class RedStreams:
    """Starts senders and receivers in the clients and devices of a network.

    Args:
        network: built.
        processes: of the run.
        directory: their output goes there.
    """

    def __init__(self, network: Network, processes: ProcessTable, directory: Path) -> None:
        self._network = network
        self._processes = processes
        self._directory = directory
        self._parts: list[Part] = []

    def receive(self, client: Node, *, version: int = 6, pause_ms: int = 0) -> Part:
        """Start a receiver; `Part.wait_ready` before anything is sent to it.

        Args:
            client: who listens.
            version: of IP.
            pause_ms: between readings; the kernel's buffer of 64 MiB keeps what comes meanwhile.
        """
        options = ["--own", str(_address(client, version)), "--buffer-bytes", str(_BUFFER_BYTES)]
        return self._start("receive", client, [*options, "--pause-ms", str(pause_ms)])

    def send(self, client: Node, spec: StreamSpec, *, version: int = 6) -> Part:
        """Start a sender, which sends as soon as its socket is open."""
        options = ["--source", str(_address(client, version)), "--stream", str(spec.stream)]
        options += ["--rate-pps", f"{spec.rate_pps:g}", "--size-bytes", str(spec.size_bytes)]
        if spec.count is not None:
            options += ["--count", str(spec.count)]
        return self._start("send", client, options, ends=spec.count is not None)

    def steer(self, client: Node, cpu: int) -> None:
        """Have what a client sends processed by this processor, from its switch on.

        The network of one machine is a chain of function calls: a packet is carried to its last
        receiver before the sender's system call returns, so that a sender never sends faster than
        the network forwards, and nothing is lost. Handed to another processor, packets wait in
        its backlog, and are lost when that is full, as between machines (Receive Packet Steering,
        the kernel's Documentation/networking/scaling.rst).

        Raises:
            TestbedError: the client is on no switch, or the kernel cannot.
        """
        end = self._network.port(client.name)
        if end.node is not None:
            raise TestbedError(f"{client.name} is on no switch: give its red LAN two clients")
        file = Path("/sys/class/net", end.interface, "queues/rx-0/rps_cpus")
        try:
            file.write_text(f"{1 << cpu:x}", encoding="ascii")
        except OSError as error:
            raise TestbedError(
                f"cannot steer what {client.name} sends: {error.strerror} (does the kernel have "
                "CONFIG_RPS?)"
            ) from None

    def _start(self, verb: str, client: Node, options: list[str], *, ends: bool = False) -> Part:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"{client.name}/{verb}{next(_numbers)}"
        output = self._directory / f"{name.replace('/', '-')}.out"
        # As a file and without site-packages: it starts in a third of the time.
        command = [sys.executable, "-S", "-P", str(redtraffic.__file__), verb, "--json"]
        process = self._processes.start(
            name,
            [*command, "--interface", _interface(client), *options],
            output=output,
            node_pid=self._network.pid(client.name),
            environment=environment(),
            must_live=not ends,
        )
        part = Part(client.name, process, self._processes)
        self._parts.append(part)
        return part

    def close(self) -> None:
        """End what is still running; idempotent."""
        for part in self._parts:
            part.abandon()
        self._parts.clear()


def _interface(client: Node) -> str:
    return XFRM if client.kind is NodeKind.DEVICE else CLIENT_INTERFACE


def _address(client: Node, version: int) -> IPv4Address | IPv6Address:
    own = client.red if version == 6 else client.red4
    if own is None:
        raise TestbedError(f"{client.name} has no IPv{version} address on its red side")
    return own.ip


def streams_by_source(report: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and counts of each stream of a receiver's report."""
    for stream in report["streams"]:
        yield int(stream["stream"]), stream
