"""A fleet without a network: the interface of `testbed.fleet.Fleet` on virtual time.

Every latency is an input, so that a test knows the answer; faults are planted by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from experiments.outcome import Time
from testbed.clock import Offset
from testbed.errors import DaemonDiedError, DeadlineError
from testbed.fleet import Event
from testbed.observer import IdleReport, KernelEvent, PacketCheck, SadCheck
from topologies.families import star

MS = 1_000_000
EPOCH_START = 1_700_000_000_000_000_000


@dataclass
class World:
    """Virtual time and the latencies, in ms; shared by all fleets of a test."""

    now: int = EPOCH_START
    startup: float = 20.0
    signal: float = 2.0
    mike: float = 5.0
    mike_per_member: float = 0.5
    back: float = 3.0
    delete: float = 10.0
    write: float = 8.0
    device_lag: float = 0.1
    dead: float = 2000.0
    offsets_ns: Mapping[str, int] = field(default_factory=dict)
    bound_ns: int = 5_000
    idle_percent: float = 60.0
    kernel: bool = True
    calls: list[str] = field(default_factory=list)
    loads: int = 0
    faults: dict[str, Any] = field(default_factory=dict)
    """`interrupt_at_poll`: KeyboardInterrupt in the n-th look at the traces; `dies`: a daemon dies
    (`once` or `always`); `lose_at`: in the n-th join a device never writes; `sad_fail_at` and
    `packet_fail_at`: the n-th check fails; `no_group`: preparation fails; `tm_drifts`: the role
    leaves d2 after each join."""

    turns: list[tuple[str, ...] | None] = field(default_factory=list)
    triggers: list[int] = field(default_factory=list)
    """When joins were triggered, true time."""
    polls: int = 0
    starts: int = 0
    sads: int = 0
    packets: int = 0

    def clock(self) -> Time:
        def sleep(seconds: float) -> None:
            self.now += max(0, int(seconds * 1e9))

        return Time(now_ns=lambda: self.now, sleep=sleep)


class FakeFleet:
    def __init__(self, world: World, devices: int, paper_mode: bool = False) -> None:
        self.world = world
        self.devices = tuple(f"d{n}" for n in range(1, devices + 1))
        self.addresses = {name: f"2001:db8:b::{name[1:]}" for name in self.devices}
        self.surroundings: Any = None
        self.processes: Any = None
        self.facts: dict[str, Any] = {"timings_ms": {"daemons": 1500.0}}
        self.topology = star(devices)
        self.paper_mode = paper_mode
        self.members: list[str] = []
        self.running: set[str] = set()
        self.cut_devices: set[str] = set()
        self.tm = ""
        self.epoch = 0
        self.new: list[Event] = []
        self.written: dict[str, list[tuple[int, str]]] = {name: [] for name in self.devices}
        self.kernel: list[KernelEvent] = []
        self.pending_leave: tuple[str, int] | None = None

    def __enter__(self) -> Self:
        self.world.loads += 1
        self.world.calls.append("load")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.world.calls.append("unload")

    # --- events

    def _emit(self, true_ns: float, device: str, daemon: str, point: str, **fields: Any) -> None:
        wall = int(true_ns) + self.world.offsets_ns.get(device, 0)
        self.new.append(Event(wall, int(true_ns), device, daemon, point, fields))

    def _label(self) -> str:
        return f"{self.epoch}-{self.epoch:04x}"

    def _finish(self, signalled: float, lost: str | None) -> None:
        """Every member computes the key and writes the SAs of the new epoch."""
        world = self.world
        self.epoch += 1
        for number, device in enumerate(self.members):
            lag = number * world.device_lag * MS
            key = signalled + (world.mike + world.mike_per_member * len(self.members)) * MS + lag
            status = key + world.back * MS
            deleted = status + (world.delete * MS if self.paper_mode else 0)
            written = deleted + world.write * MS
            label = self._label()
            self._emit(key, device, "miked", "t_key", epoch=label, members=len(self.members))
            self._emit(status, device, "idpd", "t_status", epoch=label)
            if self.paper_mode:
                self._emit(deleted, device, "idpd", "t_deleted", epoch=label)
            if device != lost:
                self.written[device].append((int(written), label))
                self._emit(written, device, "idpd", "t_written", epoch=label)
                spi = 256 + self.epoch
                self.kernel.append(
                    KernelEvent(
                        int(written - 0.05 * MS),
                        device,
                        "new",
                        spi,
                        {},
                    )
                )

    def _join(self, device: str, true_ns: float, at: int | None, lost: str | None) -> None:
        world = self.world
        hello = true_ns + world.startup * MS
        signalled = hello + world.signal * MS
        peer = self.addresses[device]
        self._emit(true_ns, device, "idpd", "t_start", trigger_wall_ns=at)
        self._emit(hello, device, "idpd", "t_hello")
        self._emit(hello, device, "idpd", "t_signal", kind="join", peer=peer, serial=1)
        self._emit(signalled, device, "miked", "t_mike_in", kind="JOIN", peer=peer, serial=1)
        self._emit(signalled + 1 * MS, device, "miked", "t_join_sent")
        for other in self.members:
            self._emit(hello + 1 * MS, other, "idpd", "t_detect", peer=peer, kind="join")
        self.members.append(device)
        self._finish(signalled, lost)

    # --- actions

    def start(self, device: str, at_wall_ns: int | None = None) -> None:
        self.world.calls.append(f"start {device}")
        self.world.now += 5 * MS
        assert device not in self.running
        self.running.add(device)
        true = self.world.now if at_wall_ns is None else at_wall_ns
        true -= self.world.offsets_ns.get(device, 0) if at_wall_ns is not None else 0
        self.world.triggers.append(true)
        lost = None
        if at_wall_ns is not None:
            self.world.starts += 1
            if self.world.faults.get("lose_at") == self.world.starts:
                lost = self.members[0]
        self._join(device, true, at_wall_ns, lost)
        self.tm = self.tm or device
        if self.world.faults.get("tm_drifts") and len(self.members) > 2:
            self.tm = device

    def stop(self, device: str) -> None:
        self.world.calls.append(f"stop {device}")
        began = self.world.now
        self.world.now += 10 * MS
        self.running.discard(device)
        self.written[device].clear()
        if device in self.members:
            self._leave(device, began)

    def _leave(self, device: str, true_ns: float) -> None:
        self.members.remove(device)
        if len(self.members) < 2 or "d2" not in self.members:
            self.tm = "" if not self.members else self.tm
            return
        detected = true_ns + self.world.dead * MS
        peer = self.addresses[device]
        self._emit(detected, "d2", "idpd", "t_detect", kind="leave", peer=peer)
        self._emit(detected, "d2", "idpd", "t_signal", kind="leave", peer=peer, serial=9)
        signalled = detected + self.world.signal * MS
        self._emit(signalled, "d2", "miked", "t_mike_in", kind="leave", peer=peer, serial=9)
        self._finish(signalled, None)

    def cut(self, device: str) -> int:
        self.world.calls.append(f"cut {device}")
        self.cut_devices.add(device)
        self._leave(device, self.world.now)
        return self.world.now

    def heal(self, device: str) -> int:
        self.world.calls.append(f"heal {device}")
        assert device not in self.running, "healed before it was stopped"
        self.cut_devices.discard(device)
        return self.world.now

    def handover(self, device: str, deadline_s: float = 10.0) -> None:
        self.world.calls.append(f"handover {device}")
        self.tm = device

    # --- observation

    def events(self) -> list[Event]:
        """Return what has happened by now; the rest comes later, as in a trace."""
        past = [event for event in self.new if event.mono_ns <= self.world.now]
        self.new = [event for event in self.new if event.mono_ns > self.world.now]
        return sorted(past, key=lambda event: event.wall_ns)

    def flush(self) -> None: ...

    def check_alive(self) -> None:
        if self.world.faults.get("dies"):
            if self.world.faults["dies"] == "once":
                self.world.faults["dies"] = ""
            raise DaemonDiedError("d3/miked", -9)

    def kernel_events(self) -> list[KernelEvent]:
        self.world.polls += 1
        if self.world.faults.get("interrupt_at_poll") == self.world.polls:
            raise KeyboardInterrupt
        now = self.world.now
        found = [e for e in self.kernel if e.wall_ns <= now]
        self.kernel = [e for e in self.kernel if e not in found]
        return found if self.world.kernel else []

    def await_members(
        self, devices: Sequence[str], *, deadline_s: float, tm: str | None = None
    ) -> str:
        self.world.now = max([self.world.now + 50 * MS, *(event.mono_ns for event in self.new)])
        if self.world.faults.get("no_group"):
            raise DeadlineError("members never agreed")
        assert sorted(devices) == sorted(self.members)
        return self._label()

    def give_turns(self, first: Sequence[str] | None) -> None:
        self.world.turns.append(None if first is None else tuple(first))

    def status(self, device: str, daemon: str = "idpd") -> dict[str, Any]:
        return {
            "role": "tm" if self.tm == device else "member",
            "members": [self.addresses[name] for name in self.members],
            "epoch": next(
                (e for at, e in reversed(self.written[device]) if at <= self.world.now), None
            ),
        }

    def sad_check(self, devices: Sequence[str], deadline_s: float = 5.0) -> SadCheck:
        self.world.sads += 1
        self.world.now += 700 * MS
        ok = self.world.faults.get("sad_fail_at") != self.world.sads
        reason = "" if ok else "d3 has another key digest than d1"
        spis = dict.fromkeys(devices, (256 + self.epoch,))
        digests = dict.fromkeys(devices, "00" * 8)
        source = "kernel" if self.world.kernel else "memory"
        return SadCheck(ok, True, source, self._label(), reason, digests, spis, 700.0)

    def packet_check(
        self, devices: Sequence[str], senders: Sequence[str] | None = None, deadline_s: float = 2.0
    ) -> PacketCheck:
        self.world.packets += 1
        self.world.calls.append(f"packet {','.join(senders or ())}")
        if not self.world.kernel:
            return PacketCheck(False, False, "not applicable: memory backend", {}, {})
        ok = self.world.faults.get("packet_fail_at") != self.world.packets
        return PacketCheck(
            ok, True, "" if ok else "d4 did not get it from d1", {}, dict.fromkeys(senders or (), 1)
        )

    def clock_offsets(self, samples: int = 16) -> dict[str, Offset]:
        return {
            name: Offset(
                self.world.offsets_ns.get(name, 0), 2 * self.world.bound_ns, self.world.bound_ns, 16
            )
            for name in self.devices
        }

    def idle(self) -> IdleReport:
        return IdleReport((), self.world.idle_percent, self.world.idle_percent, 0.1)


class NullDisplay:
    """Progress that remembers what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps = 0

    def stage(self, text: str) -> None: ...

    def step(self, text: str = "", count: int = 1) -> None:
        self.steps += count

    def note(self, text: str) -> None:
        self.notes.append(text)
