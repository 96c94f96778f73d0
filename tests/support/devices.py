"""Real daemons in network namespaces on one bridge: for the emulation tests.

Everything has a name made of this process's id and a counter, and is removed at the end whatever
happened.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from protocol.daemon import launch
from protocol.daemon.control import ControlError, request
from protocol.identity.pki import Coalition, DeviceSpec, make_coalition
from protocol.xfrm.namespace import in_namespace
from tests.support.netlink import has_carrier
from tests.support.waiting import wait_until

_NUMBERS = itertools.count()

NATIONS = ("alpha", "beta")

START_S = 90.0
JOIN_S = 60.0


def ip(*arguments: str) -> None:
    """Run ``ip``; its complaint becomes the test's."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr.strip()}"


class Device:
    """One device: a namespace, a TOML file and two daemon processes."""

    def __init__(self, number: int, namespace: str, directory: Path) -> None:
        self.name = f"d{number}"
        self.number = number
        self.nation = NATIONS[number % len(NATIONS)]
        self.address = IPv6Address(f"2001:db8:b::{number:x}")
        self.namespace = namespace
        self.directory = directory
        self.run_directory = directory / "run"
        self.config = directory / f"{self.name}.toml"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def spec(self) -> DeviceSpec:
        return DeviceSpec(self.name, self.nation, self.address)

    def write_config(
        self, coalition: Coalition, overrides: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        """Write the TOML file; ``overrides`` are settings by section."""
        files = coalition.files(self.name)
        self.run_directory.mkdir(parents=True, exist_ok=True)
        tables: dict[str, dict[str, Any]] = {
            "device": {
                "name": self.name,
                "nation": self.nation,
                "address": str(self.address),
                "run_directory": str(self.run_directory),
            },
            "black": {"interface": "black0"},
            "identity": {
                "certificate": str(files.certificate),
                "key": str(files.key),
                "anchors": str(files.anchors),
                "peers": str(files.peers),
                "revocations": str(files.revocations),
            },
            "local": {"secret": str(files.local_secret)},
            "idp": {},
            "mike": {},
            "ipsec": {"backend": "memory", "group": "ff0e::1"},
            "clock": {"responder_port": 47503},
            "start": {},
        }
        for section, settings in (overrides or {}).items():
            tables.setdefault(section, {}).update(settings)
        lines = []
        for section, settings in tables.items():
            lines.append(f"[{section}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        self.config.write_text("\n".join(lines) + "\n")

    def launch(self, daemon: str, *flags: str) -> subprocess.Popen[bytes]:
        """Start one daemon in the namespace; standard error goes to a file."""
        command = launch.command(daemon, self.config, "--exit-with-parent", *flags)
        with (self.directory / f"{daemon}.stderr").open("wb") as stderr:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *command],
                env=launch.environment(),
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
            )
        self.processes[daemon] = process
        return process

    def launch_both(self) -> None:
        """Start both daemons and wait until they answer."""
        for daemon in launch.DAEMONS:
            self.launch(daemon)
        for daemon in launch.DAEMONS:
            self.wait_ready(daemon)

    def wait_ready(self, daemon: str) -> None:
        """Wait until the daemon answers its control socket."""

        def ready() -> bool:
            process = self.processes[daemon]
            assert process.poll() is None, f"{self.name} {daemon} ended: {self.stderr(daemon)}"
            return bool(self.ask(daemon, "status")["ok"])

        wait_until(ready, START_S, f"{self.name} {daemon} answers", tolerate=(ControlError,))

    def stderr(self, daemon: str) -> str:
        return (self.directory / f"{daemon}.stderr").read_text()

    def ask(self, daemon: str, cmd: str, **fields: Any) -> dict[str, Any]:
        """Send one request to a daemon."""
        return request(self.run_directory / f"{daemon}.sock", {"cmd": cmd, **fields}, 10.0)

    def start(self) -> None:
        """Start the protocols now, MIKE first."""
        self.ask("miked", "start", at_wall_ns=None)
        self.ask("idpd", "start", at_wall_ns=None)

    def stop(self) -> None:
        """Park both daemons, IDP first."""
        self.ask("idpd", "stop")
        self.ask("miked", "stop")

    def trace(self, daemon: str) -> list[dict[str, Any]]:
        """Return the trace written so far."""
        self.ask(daemon, "flush")
        return self.trace_file(daemon)

    def trace_file(self, daemon: str) -> list[dict[str, Any]]:
        path = self.run_directory / f"{daemon}.trace.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def log(self, daemon: str) -> str:
        return (self.run_directory / f"{daemon}.log").read_text()

    def inside(self, function: Callable[[], Any]) -> Any:
        """Open something (a socket) in the namespace; it stays there when we come back."""
        from protocol.xfrm.namespace import in_namespace

        with in_namespace(f"/run/netns/{self.namespace}"):
            return function()

    def end(self) -> dict[str, int]:
        """End both daemons with SIGTERM; return their exit statuses."""
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        statuses = {}
        for daemon, process in self.processes.items():
            try:
                statuses[daemon] = process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                statuses[daemon] = process.wait(10)
        self.processes.clear()
        return statuses


class Lan:
    """Devices on one bridge, in namespaces of their own; use as a context manager."""

    def __init__(self, directory: Path, count: int) -> None:
        self._prefix = f"im{os.getpid():x}x{next(_NUMBERS):x}"
        self._switch = f"{self._prefix}sw"
        self._namespaces: list[str] = []
        self.devices = [
            Device(number, f"{self._prefix}d{number}", directory / f"d{number}")
            for number in range(1, count + 1)
        ]
        self.coalition = make_coalition(directory / "pki", [device.spec for device in self.devices])
        for device in self.devices:
            device.write_config(self.coalition)

    def __enter__(self) -> Lan:
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _namespace(self, name: str) -> None:
        ip("netns", "add", name)
        self._namespaces.append(name)
        ip("-n", name, "link", "set", "lo", "up")

    def _build(self) -> None:
        switch = self._switch
        self._namespace(switch)
        ip("-n", switch, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        ip("-n", switch, "link", "set", "br0", "up")
        for device in self.devices:
            name, port = device.namespace, f"p{device.number}"
            self._namespace(name)
            peer = ("peer", "name", "black0", "netns", name)
            ip("-n", switch, "link", "add", port, "type", "veth", *peer)
            ip("-n", switch, "link", "set", port, "master", "br0", "up")
            ip("-n", name, "addr", "add", f"{device.address}/64", "dev", "black0", "nodad")
            ip("-n", name, "link", "set", "black0", "up")
        for device in self.devices:
            wait_until(
                lambda device=device: _has_carrier(device.namespace), 10.0, f"{device.name} is up"
            )

    def cut(self, device: Device, *, up: bool = False) -> None:
        """Take the device's cable out of the switch, or put it back."""
        state = "up" if up else "down"
        ip("-n", self._switch, "link", "set", f"p{device.number}", state)

    def _remove(self) -> None:
        for device in self.devices:
            device.end()
        for name in reversed(self._namespaces):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        self._namespaces.clear()


def _has_carrier(namespace: str) -> bool:
    with in_namespace(f"/run/netns/{namespace}"):
        return has_carrier("black0")
