"""One IPsec device of the testbed: its files, its two daemons, its control sockets, its traces."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Interface
from pathlib import Path
from typing import Any, Final

from protocol.core.errors import LocalError
from protocol.daemon import launch
from protocol.daemon.control import ControlError, request
from protocol.daemon.nursery import Nursery, NurseryError
from protocol.identity.pki import Coalition, DeviceSpec, make_coalition
from protocol.identity.policypki import ANCHOR, SIGNED, distribute
from protocol.idp.policy import DomainPolicy
from testbed.errors import TestbedError
from testbed.network import Network
from testbed.network_nodes import xfrm_interface
from testbed.processes import ProcessTable
from testbed.spec import Node, Topology
from testbed.trace import Event, TraceReader
from testbed.users import DeviceUsers, give, hand_over
from testbed.wiring import Wiring, black_interface

DAEMONS: Final = ("miked", "idpd")
"""In order of start: miked listens before idpd signals."""

ANSWER_TIMEOUT_S: Final = 30.0
"""For one control request: milliseconds natively, seconds in a crowded emulated guest."""

_KILL_DEADLINE_S: Final = 10.0

RESPONDER_PORT: Final = 47503
"""UDP port of every device's NTP on-wire responder."""

PSK_LENGTH: Final = 32
"""Bytes of the pre-shared key, as idpd wants it."""

LOCAL_PORTS: Final = (47501, 47502)
"""UDP ports of idpd and miked on ::1; ten higher for each further leg of a gateway."""

REQID: Final = 7
"""Of the first leg's SAs and policies; ten higher for each further leg of a gateway."""

LEG_METRIC: Final = 1024
"""Of the first leg's routes."""

_NO_PEERS: Final = "no-peers"
_LEARNED: Final = "learned"
"""Directory of the certificates that a device without pre-deployed ones begins with: none."""

DEFAULT_SUITE: Final = {"per-sender": "aes-gcm-128", "paper": "3des-sha1"}
"""Mode ``paper`` shares one SA among all senders, which an AEAD forbids (RFC 6054)."""


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """What the devices of a fleet are told in their TOML files.

    Attributes:
        sa_backend: ``netlink``, ``command``, ``pfkey`` or ``memory``.
        sa_mode: ``per-sender`` or ``paper``.
        suite: algorithm suite of the SAs.
        sections: section -> values that replace or add to the defaults.
        injected_offset_us: shift of this device's wall clock.
        pre_deployed: whether it has all other devices' certificates from the start.
        users: whom its daemons become; None: they stay who we are.
        domain_policy: whether it keeps to the signed policy beside its certificate.
    """

    sa_backend: str
    sa_mode: str
    suite: str
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    injected_offset_us: int = 0
    pre_deployed: bool = True
    users: DeviceUsers | None = None
    domain_policy: bool = False


def make_pki(
    directory: Path, topology: Topology, policy: Mapping[str, Any] | None = None
) -> Coalition:
    """Make one certificate authority per nation, and keys and certificates for all devices.

    Args:
        directory: not there yet.
        topology: whose devices.
        policy: a domain policy (docs/idp.md section 13) to be signed and given to all; None: none.

    Raises:
        TestbedError: the directory is in use or cannot be written.
    """
    try:
        coalition = make_coalition(directory, device_specs(topology))
        if policy is not None:
            distribute(directory, DomainPolicy.from_table(policy).encode())
    except LocalError as error:
        raise TestbedError(f"certificates: {error}") from None
    return coalition


def make_psk(directory: Path) -> Path:
    """Write a pre-shared key for all devices of a fleet (``unicast = "psk"``); return its path."""
    path = directory / "psk"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(PSK_LENGTH), encoding="ascii")
    return path


def device_specs(topology: Topology) -> list[DeviceSpec]:
    """Return what the certificates of a topology's devices and gateways' legs say.

    A device may announce what lies behind it, a leg what lies beyond its gateway: the prefixes of
    all partitions but its own.
    """
    wiring = Wiring(topology)
    behind = {device.name: wiring.red_prefixes(device.name) for device in topology.devices}
    found = []
    for node in topology.members:
        prefixes = behind.get(node.name)
        if prefixes is None:
            own = wiring.partition(node.name)
            others = [name for name in behind if wiring.partition(name) != own]
            prefixes = tuple(net for name in others for net in behind[name])
        gateway = node.host is not None
        found.append(DeviceSpec(node.name, node.nation or "", _black(node).ip, gateway, prefixes))
    return found


def render(
    node: Node, topology: Topology, settings: DeviceSettings, pki: Path, run_directory: Path
) -> str:
    """Return the TOML file that both daemons of a device, or of a gateway's leg, read."""
    group = topology.group
    # A leg carries what the devices of the network have, and announces what gatewayd tells it.
    inside = (node,) if node.host is None else topology.devices
    ipv4 = any(device.red4 is not None for device in inside)
    sections: dict[str, dict[str, Any]] = {
        "device": {
            "name": node.name,
            "nation": node.nation or "",
            "address": str(_black(node).ip),
            "run_directory": str(run_directory),
        },
        "black": {"interface": black_interface(node.leg)},
        "identity": {
            "certificate": str(pki / "device.pem"),
            "key": str(pki / "device.key"),
            "anchors": str(pki / "anchors"),
            "peers": str(pki / "peers"),
            "revocations": str(pki / "crl"),
        },
        "local": {
            "secret": str(pki / "local.secret"),
            "idp_port": LOCAL_PORTS[0] + 10 * node.leg,
            "mike_port": LOCAL_PORTS[1] + 10 * node.leg,
        },
        "idp": {},
        "mike": {},
        "ipsec": {
            "backend": settings.sa_backend,
            "sa_mode": settings.sa_mode,
            "suite": settings.suite,
            "group": str(group.black_group),
            "interface": xfrm_interface(node.leg),
            "if_id": group.if_id + node.leg,
            "reqid": REQID + 10 * node.leg,
            "route_metric": 0 if node.host is None else LEG_METRIC + node.leg,
            "ipv4": ipv4,
            "unicast": "group" if topology.gateways else "off",
        },
        "clock": {
            "responder_port": RESPONDER_PORT,
            "injected_offset_us": settings.injected_offset_us,
            "emulated": True,
        },
        "start": {"park": True},
        "state": {"directory": str(run_directory / "state")},
    }
    if not settings.pre_deployed:
        sections["identity"]["peers"] = str(run_directory / _NO_PEERS)
        sections["identity"]["cache"] = str(run_directory / _LEARNED)
    if node.host is not None:
        sections["identity"]["cache"] = str(_shared_cache(node.host, run_directory))
    if settings.domain_policy:
        sections["policy"] = {"file": str(pki / SIGNED), "authority": str(pki / ANCHOR)}
    if settings.users is not None:
        sections["users"] = dict(settings.users.as_section())
    for name, values in settings.sections.items():
        sections.setdefault(name, {}).update(values)
    if sections["ipsec"]["unicast"] != "off" and node.host is None:
        prefixes = Wiring(topology).red_prefixes(node.name)
        sections["idp"].setdefault("prefixes", [str(prefix) for prefix in prefixes])
    lines = []
    for name, values in sections.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {_toml(value)}" for key, value in values.items()]
        lines.append("")
    return "\n".join(lines)


def _shared_cache(host: str, run_directory: Path) -> Path:
    """Return where a gateway's legs hand each other what they learn (docs/gateways.md, GATE-19)."""
    return run_directory.parent / f"{host}-{_LEARNED}"


class NurseryChild:
    """A daemon that the nursery forked for us."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery = nursery
        self.pid = pid

    def poll(self) -> int | None:
        """Return how it ended (negative: the signal), None while it runs."""
        try:
            return self._nursery.status(self.pid)
        except NurseryError:
            return -signal.SIGKILL  # its daemons end with it

    def terminate(self) -> None:
        """Ask it to end (SIGTERM)."""
        self._send(signal.SIGTERM)

    def wait(self, timeout: float) -> int:
        """Wait for its end; raises `subprocess.TimeoutExpired`."""
        try:
            return self._nursery.wait(self.pid, timeout)
        except NurseryError:
            if (code := self.poll()) is not None:
                return code
            raise subprocess.TimeoutExpired("daemon", timeout) from None

    def kill_all(self) -> None:
        """Kill it; return when it is gone.

        Raises:
            TestbedError: it does not end.
        """
        self._send(signal.SIGKILL)
        try:
            self.wait(_KILL_DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise TestbedError(
                f"process {self.pid} was killed and has not ended after {_KILL_DEADLINE_S:g} s"
            ) from None

    def _send(self, number: int) -> None:
        """Send a signal, unless it has ended.

        The nursery has reaped it a moment before it tells us so: until then `poll` takes it for
        alive, and the kernel knows no such process any more.
        """
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Device:
    """The two daemons of one device.

    Attributes:
        name: of the node.
        address: black address, as text.
        directory: the daemons' run directory: sockets, keys, traces, logs.
        config: the TOML file.
    """

    def __init__(self, node: Node, directory: Path) -> None:
        self.name = node.name
        self.address = str(_black(node).ip)
        self.directory = directory
        self.config = directory.with_suffix(".toml")
        self._traces = {
            daemon: TraceReader(directory / f"{daemon}.trace.jsonl") for daemon in DAEMONS
        }

    def prepare(self, node: Node, topology: Topology, settings: DeviceSettings, pki: Path) -> None:
        """Make the run directory and write the configuration."""
        self.directory.mkdir(mode=0o700)
        if not settings.pre_deployed:
            (self.directory / _NO_PEERS).mkdir()
        psk = settings.sections.get("ipsec", {}).get("psk")
        if settings.users is not None and psk is not None:
            own = self.directory / "psk"
            shutil.copyfile(psk, own)
            ipsec = {**settings.sections["ipsec"], "psk": str(own)}
            settings = replace(settings, sections={**settings.sections, "ipsec": ipsec})
        self.config.write_text(
            render(node, topology, settings, pki, self.directory), encoding="utf-8"
        )
        if settings.users is not None:
            hand_over(settings.users, self.config, self.directory, pki)
            if node.host is not None:
                give(_shared_cache(node.host, self.directory), settings.users)

    def launch(
        self, network: Network, processes: ProcessTable, nursery: Nursery | None = None
    ) -> None:
        """Start both daemons, parked, in the node's namespaces; quickly if a nursery forks them.

        One that runs already is left alone; so both can be had back after one was killed.
        """
        for daemon in DAEMONS:
            name, output = f"{self.name}/{daemon}", self.directory / f"{daemon}.out"
            if name in processes:
                continue
            # What is left of one that was killed; `is_up` looks for the new one's.
            (self.directory / f"{daemon}.sock").unlink(missing_ok=True)
            node = network.pid(self.name)
            if nursery is None:
                processes.start(
                    name,
                    launch.command(daemon, self.config, "--exit-with-parent"),
                    output=output,
                    node_pid=node,
                    environment=launch.environment(),
                )
                continue
            try:
                pid = nursery.spawn(daemon, self.config, namespace=node, output=output)
            except NurseryError as error:
                raise TestbedError(f"cannot start {name}: {error}") from None
            processes.adopt(name, NurseryChild(nursery, pid), output=output)

    def is_up(self) -> bool:
        """Return whether both daemons have opened their control sockets."""
        return all((self.directory / f"{daemon}.sock").exists() for daemon in DAEMONS)

    def ask(
        self, daemon: str, command: str, timeout_s: float = ANSWER_TIMEOUT_S, **arguments: Any
    ) -> dict[str, Any]:
        """Send a control request and return the answer.

        Raises:
            TestbedError: the daemon does not answer or refuses; names both.
        """
        try:
            message = {"cmd": command, **arguments}
            return request(self.directory / f"{daemon}.sock", message, timeout_s)
        except ControlError as error:
            raise TestbedError(f"{self.name}/{daemon}: '{command}' failed: {error}") from None

    def read_trace(self) -> list[Event]:
        """Return the new events of both daemons."""
        return [event for reader in self._traces.values() for event in reader.read()]

    def keep(self, target: Path) -> None:
        """Copy what is worth keeping: configuration, logs, output and traces; never keys."""
        target.mkdir(parents=True, exist_ok=True)
        for path in [self.config, *sorted(self.directory.glob("*"))]:
            if path.suffix in {".toml", ".log", ".out", ".jsonl"} and path.is_file():
                shutil.copyfile(path, target / path.name)

    def close(self) -> None:
        """Close the trace files."""
        for reader in self._traces.values():
            reader.close()


def _black(node: Node) -> IPv6Interface:
    assert node.black is not None, f"{node.name} is no device"
    return node.black


def _toml(value: Any) -> str:
    """Return a value as TOML; strings of TOML and JSON are the same for what we write."""
    if isinstance(value, bool | int | float | str | list):
        return json.dumps(value, ensure_ascii=False)
    raise TypeError(f"{value!r} cannot be written into a device's TOML file")
