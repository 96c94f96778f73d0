"""Plugs an attacker into a black switch of a built network, and gives it orders.

It is no node of the topology: no daemon, no routing and no check counts it. Its process makes a
network namespace of its own, a cable is laid from there to the switch, and both go with the run.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from protocol.daemon.control import ControlError, request
from protocol.daemon.launch import environment
from testbed import network_batch
from testbed.attacker import program
from testbed.attacker.scene import Channels
from testbed.errors import TestbedError
from testbed.namespaces import NetNamespace, write_sysctl
from testbed.network import Network
from testbed.processes import ProcessTable, last_line
from testbed.wait import wait_until

NAME: Final = "attacker"
MAC: Final = "02:00:00:aa:00:01"
HOST: Final = 0xBAD
"""Of the attacker's own address on the black wire."""

_START_DEADLINE_S: Final = 60.0
_ANSWER_DEADLINE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Equipment:
    """What the attacker knows beforehand, and has copied.

    Attributes:
        channels: where the victims listen.
        seed: decides what it makes up.
        ex_member: folder of a device that is a member no more.
        ex_member_address: its black address.
        member: folder of a device that is a member.
        member_address: its black address.
        psk: file of the pre-shared key.
        policy: a signed policy of an authority that nobody trusts.
    """

    channels: Channels
    seed: int
    ex_member: Path
    ex_member_address: str
    member: Path
    member_address: str
    psk: Path | None = None
    policy: Path | None = None


class AttackerPort:
    """The attacker of one network; leaving the context removes it.

    Args:
        network: built, with a black switch.
        processes: of the run.
        directory: existing; for its settings, socket and output.
        equipment: what it has.
    """

    def __init__(
        self,
        network: Network,
        processes: ProcessTable,
        directory: Path,
        equipment: Equipment,
    ) -> None:
        self._network = network
        self._processes = processes
        self._directory = directory
        self._equipment = equipment
        self._control = directory / "attacker.sock"
        self._output = directory / "attacker.out"
        self.own = IPv6Address(int(equipment.channels.devices[0]) & ~0xFFFF | HOST)

    def __enter__(self) -> Self:
        """Start it and plug it in.

        Raises:
            TestbedError: the network has no black switch, or the program does not start.
        """
        switch, taps = self._switch()
        self._start(taps)
        try:
            self._plug(switch)
            self._ask("open")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Unplug it."""
        self.close()

    def close(self) -> None:
        """End it; its namespace and cables go with it. Idempotent."""
        if NAME in self._processes:
            self._processes[NAME].must_live = False
            self._processes.stop([NAME])

    # Orders.

    def begin(
        self,
        attack: str,
        *,
        targets: Sequence[str] = (),
        mute: bool = False,
        rate_pps: float | None = None,
    ) -> dict[str, Any]:
        """Begin an attack.

        Args:
            attack: its name.
            targets: black addresses that get what would go to a group, one by one.
            mute: send frames as long and as many, but to a group that nobody is in.
            rate_pps: frames per second; None: as the attack has it.

        Raises:
            TestbedError: it does not know it, or cannot.
        """
        options = {} if rate_pps is None else {"rate_pps": rate_pps}
        return self._ask("begin", attack=attack, targets=list(targets), mute=mute, **options)

    def end(self) -> dict[str, Any]:
        """End it; return ``sent`` frames, ``bytes``, ``seconds``, ``rate_pps``, ``mbit_per_s``."""
        return self._ask("end")

    def keep(self) -> int:
        """Have it keep what it recorded as an old session; return how many frames that is."""
        return int(self._ask("keep")["frames"])

    def status(self) -> dict[str, Any]:
        """Return what it has seen."""
        return self._ask("status")

    def captured(self) -> tuple[list[bytes], list[tuple[IPv6Address, bytes]]]:
        """Return the newest ESP frames, and the newest notices with their senders."""
        found = self._ask("captured")
        esp = [bytes.fromhex(text) for text in found["esp"]]
        notices = [(IPv6Address(who), bytes.fromhex(text)) for who, text in found["notices"]]
        return esp, notices

    def _ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        try:
            return request(self._control, {"cmd": command, **arguments}, _ANSWER_DEADLINE_S)
        except ControlError as error:
            said = last_line(self._output)
            raise TestbedError(f"the attacker: '{command}' failed: {error} {said}") from None

    # Plugging in.

    def _switch(self) -> tuple[str, list[str]]:
        """Return the black switch and its ports."""
        topology = self._network.topology
        ends = [
            self._network.port(link.name)
            for link in topology.links
            if self._network.port(link.name) in self._network.black_links
        ]
        taps = [end.interface for end in ends if end.node is None]
        switches = [node.name for node in topology.switches]
        black = {link.ends[1] for link in topology.links if link.ends[1] in switches}
        name = next((switch for switch in switches if switch in black), None)
        if name is None or not taps:
            raise TestbedError(f"{topology.name} has no black switch to plug an attacker into")
        return name, taps

    def _start(self, taps: list[str]) -> None:
        has = self._equipment
        settings = {
            "channels": has.channels.as_json(),
            "own": str(self.own),
            "taps": taps,
            "control": str(self._control),
            "seed": has.seed,
            "ex_member": str(has.ex_member),
            "ex_member_address": has.ex_member_address,
            "member": str(has.member),
            "member_address": has.member_address,
            "psk": None if has.psk is None else str(has.psk),
            "policy": None if has.policy is None else str(has.policy),
        }
        file = self._directory / "attacker.json"
        file.write_text(json.dumps(settings, indent=2), encoding="utf-8")
        self._control.unlink(missing_ok=True)
        command = [sys.executable, "-S", "-P", str(program.__file__), str(file)]
        process = self._processes.start(
            NAME, command, output=self._output, environment=environment()
        )

        def up() -> bool:
            if process.handle.poll() is not None:
                raise TestbedError(f"the attacker has ended: {last_line(self._output)}")
            return self._control.exists()

        wait_until(up, _START_DEADLINE_S, "the attacker does not answer")

    def _plug(self, switch: str) -> None:
        pid = self._processes[NAME].pid
        ways, port = f"netns {pid}", f"{switch}-atk"
        network_batch.batch(
            "ip",
            [
                f"link add {port} type veth peer name {program.INTERFACE} address {MAC} {ways}",
                f"link set {port} master {switch} up",
            ],
            "the attacker's cable",
        )
        namespace = NetNamespace.of(NAME, pid)
        with contextlib.closing(namespace), namespace.entered():
            for name in ("all", "default"):
                write_sysctl(f"net/ipv6/conf/{name}/disable_ipv6", 0)
            network_batch.batch(
                "ip",
                [
                    "link set lo up",
                    f"link set {program.INTERFACE} up",
                    f"addr add {self.own}/64 dev {program.INTERFACE} nodad",
                ],
                "the attacker's namespace",
            )
