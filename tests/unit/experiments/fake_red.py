"""The red side of a coalition without a network: endpoints, LAN wires, proxies, captures, keys.

All of `experiments.redside` and `experiments.streams` is real; what touches a kernel is replaced by
a medium on virtual time, which counts on its own what tshark would have seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.capture import CapturedLink
from testbed.fleetoptions import FleetOptions
from testbed.leaks import LEAK, LeakReport
from testbed.routing.base import RoutingReport
from testbed.spec import Topology
from testbed.surroundings import lans
from testbed.witness import EspCount, EspFlow
from tests.unit.experiments.fake_fleet import MS, FakeFleet, World


@dataclass
class Medium:
    """Carries packets between endpoints.

    Attributes:
        lose: (sender, receiver, family) whose packets vanish.
        copies: the same, delivered twice.
        unstoppable: LANs to which streams go on after their listeners left.
        leaks: frames that the leak check will find.
        unread: packets per device that tshark cannot decrypt.
    """

    world: World
    lose: set[tuple[str, str, int]] = field(default_factory=set)
    copies: set[tuple[str, str, int]] = field(default_factory=set)
    unstoppable: set[str] = field(default_factory=set)
    leaks: int = 0
    unread: Counter[str] = field(default_factory=Counter)
    refuse: set[str] = field(default_factory=set)
    fleet: FakeCoalition = field(init=False)
    ends: list[FakeEnd] = field(default_factory=list)
    wires: list[FakeWire] = field(default_factory=list)
    esp: Counter[tuple[str, int, str, str]] = field(default_factory=Counter)

    def lan_of(self, place: str) -> str:
        return self.fleet.lan_of.get(place, place)

    def carry(self, end: FakeEnd, payload: bytes) -> str:
        if end.place in self.refuse:
            return "Operation not permitted"
        lan = self.lan_of(end.place)
        joined = lan in self.fleet.members
        if joined:
            spi = self.fleet.spi(lan)
            self.esp[lan, spi, str(end.own), str(end.group)] += 1
        reached = {lan} if end.place != lan else set()
        reached |= set(self.fleet.members) - {lan} if joined else set()
        for other in self.ends:
            if other is end or other.group != end.group or self.lan_of(other.place) not in reached:
                continue
            key = (end.place, other.place, end.own.version)
            if other.listening and key not in self.lose:
                at = self.world.now + 3 * MS
                other.queue += [(at, payload)] * (1 + (key in self.copies))
        for wire in self.wires:
            listeners = [
                e
                for e in self.ends
                if self.lan_of(e.place) == wire.lan
                and e.place != wire.lan
                and e.group == end.group
                and e.listening
            ]
            if wire.lan in reached and (listeners or wire.lan in self.unstoppable):
                wire.passed.append(b"frame " + payload)
        return ""


class FakeEnd:
    def __init__(self, medium: Medium, place: str, own: Any, group: Any) -> None:
        self.medium, self.place, self.own, self.group = medium, place, own, group
        self.listening = True
        self.queue: list[tuple[int, bytes]] = []
        medium.ends.append(self)

    def send(self, payload: bytes) -> str:
        return self.medium.carry(self, payload)

    def receive_stamped(self) -> list[tuple[int, bytes]]:
        now = self.medium.world.now
        ready = [one for one in self.queue if one[0] <= now]
        self.queue = [one for one in self.queue if one[0] > now]
        return ready

    def join(self) -> None:
        self.listening = True

    def leave(self) -> None:
        self.listening = False

    def close(self) -> None: ...


class FakeWire:
    def __init__(self, medium: Medium, place: str) -> None:
        self.lan = medium.lan_of(place)
        self.passed: list[bytes] = []
        medium.wires.append(self)

    def frames(self) -> list[bytes]:
        passed, self.passed = self.passed, []
        return passed

    def close(self) -> None: ...


class FakeProxy:
    def __init__(self, medium: Medium, lan: str) -> None:
        self.medium, self.lan = medium, lan

    def status(self) -> dict[str, Any]:
        groups = {
            str(e.group)
            for e in self.medium.ends
            if e.listening and self.medium.lan_of(e.place) == self.lan and e.place != self.lan
        }
        port = {"interface": "red0", "groups": [{"group": group} for group in groups]}
        return {"downstream": [port], "counters": {"mproxy.queries_sent": 4}}


class FakeCoalition(FakeFleet):
    """A fake fleet with a topology, and clients behind its devices."""

    def __init__(self, medium: Medium, topology: Topology) -> None:
        super().__init__(medium.world, len(topology.devices))
        medium.fleet = self
        self.medium = medium
        self.topology = topology
        self.options = FleetOptions()
        self.lan_of = {c.name: lan for lan, clients in lans(topology).items() for c in clients}
        self.captured: tuple[CapturedLink, ...] = ()
        self.network = SimpleNamespace(
            pid=lambda name: 1,
            namespace=lambda name: SimpleNamespace(name=name),
            port=lambda name: SimpleNamespace(link=f"r-{name}"),
        )
        red = {name: topology.red_part([name]) for name in self.devices}
        self.surroundings = SimpleNamespace(
            wait_group=lambda group: None,
            report=RoutingReport("frr", 3.0, 9.5, 9.6, 9.9, {"ff0e::1": 12.0}),
            proxy=lambda node: FakeProxy(
                medium, next(d for d in self.devices if node == d or node in red[d])
            ),
        )

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.captured = tuple(
            CapturedLink(f"r-{name}", Path("absent.pcap"), 100, 0) for name in self.devices
        )

    def spi(self, device: str) -> int:
        return 1000 * self.epoch + self.devices.index(device)

    def start(self, device: str, at_wall_ns: int | None = None) -> None:
        if not self.members:
            self.tm = device
        super().start(device, at_wall_ns)

    def _leave(self, device: str, true_ns: float) -> None:
        self.members.remove(device)
        self.epoch += 1

    def status(self, device: str, daemon: str = "idpd") -> dict[str, Any]:
        return {**super().status(device, daemon), "active_epoch": self._label()}

    def sa_count(self, device: str) -> int:
        return len(self.members)

    def sad_check(self, devices: Any, deadline_s: float = 5.0) -> Any:
        spis = dict.fromkeys(devices, tuple(self.spi(name) for name in self.members))
        return SimpleNamespace(ok=True, reason="", spis=spis)

    def drops(self, device: str) -> dict[str, int]:
        return {"output_red_destination": 2, "arp_in": 0}


class FakeKeys:
    def __init__(self, nodes: Any) -> None: ...

    def poll(self) -> None: ...

    def sas(self) -> list[Any]:
        return []

    def close(self) -> None: ...


def replace_kernel(monkeypatch: pytest.MonkeyPatch, medium: Medium) -> None:
    """Put the medium where delivery and its verdicts would meet a kernel or tshark."""

    def endpoint(namespace: Any, own: Any, interface: str, *, group: Any) -> FakeEnd:
        return FakeEnd(medium, namespace.name, own, group)

    def leaks(captured: Iterable[CapturedLink], rules: Any) -> LeakReport:
        kinds = {"ESP": 50, "PIM": 49} | ({LEAK: medium.leaks} if medium.leaks else {})
        return LeakReport({one.link: dict(kinds) for one in captured}, (), 0)

    def decrypt(pcap: Path, sas: Any) -> dict[EspFlow, EspCount]:
        counts: dict[EspFlow, EspCount] = {}
        for (device, spi, source, group), number in medium.esp.items():
            flow = EspFlow(medium.fleet.addresses[device], spi)
            count = counts.setdefault(flow, EspCount())
            count.packets += number + medium.unread[device]
            count.decrypted += number
            count.inner[str(ip_address(source)), group] += number
        return counts

    monkeypatch.setattr("experiments.redside.RedEndpoint", endpoint)
    monkeypatch.setattr(
        "experiments.redside.LanWire", lambda ns, interface: FakeWire(medium, ns.name)
    )
    monkeypatch.setattr("experiments.delivery.KeyCollector", FakeKeys)
    monkeypatch.setattr("experiments.verdicts.check_leaks", leaks)
    monkeypatch.setattr("experiments.verdicts.decrypt_count", decrypt)
