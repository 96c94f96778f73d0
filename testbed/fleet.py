"""The whole bench in one object: the network, the daemons on it, and the eyes that watch them.

An experiment sees nothing but this class::

    with Fleet(topology, FleetOptions(sa_backend="memory")) as fleet:
        fleet.start("d1")
        fleet.start("d2")
        fleet.await_members(["d1", "d2"], deadline_s=10)
        trigger = time.time_ns() + 500_000_000
        fleet.start("d3", at_wall_ns=trigger)
        fleet.await_event("t_written", ["d1", "d2", "d3"], since_wall_ns=trigger, deadline_s=10)
        assert fleet.sad_check(["d1", "d2", "d3"]).ok

Entering it makes the process a run of its own (`testbed.session`), unless it is one already.
"""

from __future__ import annotations

import itertools
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from protocol.daemon.nursery import Nursery
from testbed import session
from testbed.capture import Capture, CapturedLink, black_points
from testbed.cleartext import open_tunnels
from testbed.clock import Offset, measure
from testbed.cpu import IdleReport, IdleSampler
from testbed.device import (
    DAEMONS,
    DEFAULT_SUITE,
    RESPONDER_PORT,
    Device,
    DeviceSettings,
    make_pki,
    make_psk,
)
from testbed.errors import TestbedError
from testbed.fleetoptions import FleetOptions
from testbed.guard import BlackChannels, Fence, read_drops
from testbed.memory import refuse_without_memory
from testbed.network import XFRM, Network
from testbed.observer import KernelEvent, KernelObserver, SadCheck, SadReader
from testbed.packets import PacketCheck, RedEndpoint, check, not_applicable
from testbed.processes import ProcessTable
from testbed.spec import Topology
from testbed.surroundings import Surroundings
from testbed.trace import Event
from testbed.turns import give_turns
from testbed.users import FleetUsers
from testbed.wait import wait_until
from testbed.watch import GroupWatch, TraceLog, check_sads
from testbed.wiring import Wiring

__all__ = ["Event", "Fleet", "FleetOptions"]

_DAEMON_START_DEADLINE_S: Final = 180.0
_STOP_GRACE_S: Final = 5.0

_numbers = itertools.count(1)


class Fleet:
    """A built network with parked daemons; leaving the context removes all of it.

    Attributes:
        devices: names of the IPsec devices in the order of the topology, then of the legs of
            gateways.
        partitions: the devices and legs of each partition; in most networks there is one.
        addresses: black address of each device, as text.
        facts: what was measured or decided while building (timings, xfrm interface or why not):
            goes into the manifest.
        network: the built network, for tests and captures.
        surroundings: routers, multicast proxies and clients.
        processes: the run's own processes, for fault injection.
        captured: what was recorded of the black links, once the context is left.
        directory: certificates, and each device's files; removed at the end.
    """

    network: Network
    surroundings: Surroundings
    processes: ProcessTable

    def __init__(self, topology: Topology, options: FleetOptions | None = None) -> None:
        self.topology = topology
        self.options = options or FleetOptions()
        self.devices = tuple(node.name for node in topology.members)
        self.addresses: Mapping[str, str] = {
            node.name: str(node.black.ip) for node in topology.members if node.black
        }
        self.partitions = Wiring(topology).partitions
        self.facts: dict[str, Any] = {}
        self.captured: tuple[CapturedLink, ...] = ()
        self.directory = Path()
        self._devices: dict[str, Device] = {}
        self._endpoints: dict[str, RedEndpoint] = {}
        self._started: list[str] = []
        self._cut: set[str] = set()
        self._stack = ExitStack()
        self._observer: KernelObserver | None = None
        self._trace: TraceLog
        self._nursery: Nursery | None = None
        self._idle: IdleSampler
        self._sads: SadReader

    # --- life ----------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Build the network, make the PKI, start idpd and miked of every device, parked.

        Raises:
            TestbedError: one line with what failed; nothing is left behind.
        """
        run = session.begin(sys.argv, self.options.run_id or None)
        self.directory = run.directory / f"fleet{next(_numbers)}"
        try:
            self.directory.mkdir(mode=0o700)
            self._stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            self._build(run.run_id)
        except BaseException:
            self._stack.close()
            raise
        self.facts["run_id"] = run.run_id
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop everything, keep the logs, remove the network."""
        self._stack.close()

    def _build(self, run_id: str) -> None:
        start = time.monotonic()
        refuse_without_memory(self.topology, daemons=True)
        fence = Fence(self.topology, self.options.idp, self.options.mike, (RESPONDER_PORT,))
        self.network = Network(
            self.topology,
            with_xfrm=self.options.kernel,
            fence=fence if self.options.guard else None,
        )
        self._stack.callback(self.network.stop)
        self.network.build()
        if self.options.clear_text:
            open_tunnels(self.network)
        if self.options.kernel and not self.network.has_xfrm:
            raise TestbedError(
                f"SA backend {self.options.sa_backend} is impossible here: "
                f"{self.network.xfrm_reason}; use --env vm, or --sa-backend memory"
            )
        built = time.monotonic()
        if self.options.capture and self.options.keep is not None:
            self._start_capture(self.options.keep / "capture", run_id)
        self._prepare_devices()
        prepared = time.monotonic()
        self.processes = ProcessTable(run_id)
        self._stack.callback(self._keep_logs)
        self._stack.callback(self._stop_processes)
        self.surroundings = Surroundings(
            self.topology, self.network, self.directory, self.options.routing
        )
        self._stack.callback(self.surroundings.stop)
        self.surroundings.start_routers(self.processes)
        self._launch_daemons()
        ready = time.monotonic()
        self._open_eyes()
        self.facts |= {
            "network": self.network.facts(),
            **self.surroundings.facts(),
            "daemons": 2 * len(self.devices),
            "timings_ms": {
                "network": round((built - start) * 1e3, 1),
                "pki_and_config": round((prepared - built) * 1e3, 1),
                "daemons": round((ready - prepared) * 1e3, 1),
                "daemon_cold_start_each": round((ready - prepared) * 5e2 / len(self.devices), 1),
                "eyes": round((time.monotonic() - ready) * 1e3, 1),
            },
            "sa_backend": self.options.sa_backend,
            "sa_mode": self.options.sa_mode,
            "suite": self._suite(),
            "guard": self.options.guard,
            "clear_text": self.options.clear_text,
            "nursery": self.options.nursery,
            "pre_deployed": self.options.pre_deployed,
            "kernel_observed": self._observer is not None,
        }

    def _suite(self) -> str:
        return self.options.suite or DEFAULT_SUITE[self.options.sa_mode]

    def _prepare_devices(self) -> None:
        coalition = make_pki(self.directory / "pki", self.topology, self.options.policy)
        users = FleetUsers(self.directory)
        self.facts["daemons_as_root"] = users.why_not
        given = self.options
        sections = {"idp": given.idp, "mike": given.mike, "ipsec": given.ipsec}
        if given.ipsec.get("unicast") == "psk":
            sections["ipsec"] = {**given.ipsec, "psk": str(make_psk(self.directory))}
        for node in self.topology.members:
            device = Device(node, self.directory / node.name)
            settings = DeviceSettings(
                self.options.sa_backend,
                self.options.sa_mode,
                self._suite(),
                sections,
                self.options.injected_offset_us.get(node.name, 0),
                self.options.pre_deployed,
                users.of(node.host or node.name),
                self.options.domain_policy,
            )
            files = coalition.files(node.name)
            device.prepare(node, self.topology, settings, files.directory)
            self._stack.callback(device.close)
            self._devices[node.name] = device

    def _launch_daemons(self) -> None:
        if self.options.nursery:
            self._nursery = Nursery(self.directory / "nursery.err")
            self._stack.callback(self._nursery.close)
            self._stack.callback(self._stop_processes)
        for device in self._devices.values():
            device.launch(self.network, self.processes, self._nursery)
        self.surroundings.start_proxies(
            self.processes,
            self._nursery,
            tunnel=self.options.tunnel,
            channels=BlackChannels.of(self.options.idp, self.options.mike),
        )
        self._await_daemons()
        self.surroundings.wait_ready()

    def _await_daemons(self) -> None:
        def all_up() -> bool:
            self.processes.check()
            return all(device.is_up() for device in self._devices.values())

        def describe() -> str:
            missing = [device.name for device in self._devices.values() if not device.is_up()]
            return f"the daemons of {', '.join(missing)} have not opened their control sockets"

        wait_until(all_up, _DAEMON_START_DEADLINE_S, describe, pause_s=0.05)
        for device in self._devices.values():  # the sockets are there a little before the answers
            for daemon in DAEMONS:
                device.ask(daemon, "status", timeout_s=_DAEMON_START_DEADLINE_S)

    def _open_eyes(self) -> None:
        self._trace = TraceLog({name: device.read_trace for name, device in self._devices.items()})
        self._watch = GroupWatch(self.addresses, self.status, self.check_alive)
        self._idle = IdleSampler()
        self._stack.callback(self._idle.close)
        self._sads = SadReader(nodes := {name: self.network.pid(name) for name in self.devices})
        self._stack.callback(self._sads.close)
        if not self.options.kernel:
            return
        if self.options.observe_kernel:
            # Without gateways: of one, all legs' SAs are in one kernel.
            self._observer = KernelObserver(
                {node.name: nodes[node.name] for node in self.topology.devices}
            )
            self._stack.callback(self._observer.close)
        for node in self.topology.devices:
            assert node.red is not None
            endpoint = RedEndpoint(self.network.namespace(node.name), node.red.ip, XFRM)
            self._stack.callback(endpoint.close)
            self._endpoints[node.name] = endpoint

    def _start_capture(self, folder: Path, run_id: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        capture = Capture(black_points(self.network), run_id, folder)
        capture.start()

        def end() -> None:
            self.captured = capture.stop()
            self.facts["capture"] = [link.as_json() for link in self.captured]

        # On the stack before the daemons, so it ends after them.
        self._stack.callback(end)

    def _stop_processes(self) -> None:
        killed = self.processes.stop(grace_s=_STOP_GRACE_S)
        if killed:
            self.facts["killed_at_end"] = killed

    def _keep_logs(self) -> None:
        if self.options.keep is not None:
            for name, device in self._devices.items():
                device.keep(self.options.keep / name)
            self.surroundings.keep(self.options.keep)

    # --- actions -------------------------------------------------------------------------------

    def start(self, device: str, at_wall_ns: int | None = None) -> None:
        """Start the protocol on a parked device, now or at the pre-calculated trigger time.

        miked is started at once; idpd fires at the trigger, by its own clock. Returns when both
        have acknowledged.
        """
        self.device(device).ask("miked", "start", at_wall_ns=None)
        self.device(device).ask("idpd", "start", at_wall_ns=at_wall_ns)
        if device not in self._started:
            self._started.append(device)

    def start_daemon(self, device: str, daemon: str, at_wall_ns: int | None = None) -> None:
        """Start one parked daemon alone: the other runs already, or is not wanted."""
        self.device(device).ask(daemon, "start", at_wall_ns=at_wall_ns)

    def stop(self, device: str) -> None:
        """Shut IDP down on a device, then MIKE: both end parked, without SAs and keys.

        The others are told nothing: they notice after the dead interval, as in the paper.
        """
        for daemon in reversed(DAEMONS):
            self.device(device).ask(daemon, "stop")
        if device in self._started:
            self._started.remove(device)

    def cut(self, device: str) -> int:
        """Cut the device's black cable, both directions; return when (UTC ns)."""
        when = self.network.link_down(device)
        self._cut.add(device)
        return when

    def heal(self, device: str) -> int:
        """Plug the device's black cable in again; return when (UTC ns)."""
        when = self.network.link_up(device)
        self._cut.discard(device)
        return when

    def revive(self, node: str) -> None:
        """Start those daemons of a device, LAN router or gateway again that were killed.

        Returns when they answer: idpd and miked parked, mproxyd and gatewayd at work.
        """
        legs = [leg.name for leg in self.topology.legs if leg.host == node]
        for name in (node, *legs):
            if name in self._devices:
                self._devices[name].launch(self.network, self.processes, self._nursery)
        self.surroundings.revive(node, self.processes, self._nursery)
        self._await_daemons()
        self.surroundings.wait_proxies()

    def give_turns(self, ranked: Sequence[str] | None) -> None:
        """Rank these devices' daemons before all others' (`testbed.turns`); None: all equal."""
        pids = {
            name: [self.processes[f"{name}/{daemon}"].pid for daemon in DAEMONS]
            for name in self.devices
        }
        give_turns(pids, ranked)

    def handover(self, device: str, deadline_s: float = 10.0) -> None:
        """Make this device the transaction manager; returns when all running devices say it is."""
        target = self.addresses[self.device(device).name]
        group = [name for name in self._started if name not in self._cut]
        current = str(self.status(device, "miked").get("tm"))
        if current != target:
            owner = next((n for n, address in self.addresses.items() if address == current), None)
            if owner is None:
                raise TestbedError(f"{device} knows no transaction manager (it says {current!r})")
            self.device(owner).ask("miked", "handover", to=target)
        self._watch.await_members(group, deadline_s=deadline_s, tm=target)

    # --- observation ---------------------------------------------------------------------------

    def events(self) -> list[Event]:
        """Return the trace lines written since the last call, all daemons, sorted by time."""
        return self._trace.new()

    def all_events(self) -> list[Event]:
        """Return every trace line read so far; does not read new ones."""
        return self._trace.all()

    def flush(self) -> None:
        """Have every daemon write its trace out (costs a control request each)."""
        for device in self._devices.values():
            for daemon in DAEMONS:
                device.ask(daemon, "flush")

    def await_event(
        self,
        point: str,
        devices: Sequence[str],
        *,
        since_wall_ns: int,
        deadline_s: float,
        **fields: Any,
    ) -> dict[str, Event]:
        """Wait until each device's trace has such a line at or after ``since_wall_ns``.

        The last such line of each device is returned. ``fields`` must be equal if given.

        Raises:
            DeadlineError: names the devices that lack it and what they did instead.
            DaemonDiedError: a daemon ended while we waited.
        """

        def wanted(event: Event) -> bool:
            return (
                event.point == point
                and event.wall_ns >= since_wall_ns
                and all(event.fields.get(key) == value for key, value in fields.items())
            )

        return self._trace.await_each(
            devices, wanted, point, deadline_s=deadline_s, check=self.check_alive
        )

    def await_members(
        self, devices: Sequence[str], *, deadline_s: float, tm: str | None = None
    ) -> str:
        """Wait until all of them report exactly these members, one epoch, SAs written and active.

        Args:
            devices: the whole group.
            deadline_s: how long it may take.
            tm: device that must be the transaction manager, if given.

        Returns:
            The epoch (``number-taghex``).
        """
        address = None if tm is None else self.addresses[tm]
        return self._watch.await_members(devices, deadline_s=deadline_s, tm=address)

    def status(self, device: str, daemon: str = "idpd") -> dict[str, Any]:
        """Ask a daemon for its status (its control socket's answer)."""
        return self.device(device).ask(daemon, "status")

    def sa_count(self, device: str) -> int | None:
        """Return how many of the group's SAs a device's kernel holds, None with memory backend."""
        return len(self._sads.read(device).entries) if self.options.kernel else None

    def drops(self, device: str) -> dict[str, int]:
        """Return what a device's guard has dropped so far, by reason (docs/guard.md)."""
        return read_drops(self.network.namespace(device))

    def sad_check(self, devices: Sequence[str], deadline_s: float = 5.0) -> SadCheck:
        """Read the SADs back and compare: same epoch, same SPIs, same key digests.

        Waits until they agree or the deadline passes (old SAs go after the deactivation delay).
        """
        return check_sads(
            devices,
            self._sads if self.options.kernel else None,
            self.options.sa_mode,
            self._watch,
            deadline_s,
        )

    def packet_check(
        self, devices: Sequence[str], senders: Sequence[str] | None = None, deadline_s: float = 2.0
    ) -> PacketCheck:
        """Send a marked red multicast packet from each sender; it must arrive at every other."""
        if not self.options.kernel:
            return not_applicable("memory backend")
        self.check_alive()
        endpoints = {name: self._endpoints[name] for name in devices}
        return check(endpoints, list(senders) if senders else list(devices), deadline_s)

    def kernel_events(self) -> list[KernelEvent]:
        """Return the kernel's own SA notifications seen since the last call (all devices)."""
        return self._observer.events() if self._observer is not None else []

    def clock_offsets(self, samples: int = 16) -> dict[str, Offset]:
        """Measure every device's clock against the first device's (NTP on-wire exchange)."""
        self.check_alive()
        monitor = self.topology.devices[0]
        assert monitor.black is not None
        targets = {
            node.name: (node.black.ip, RESPONDER_PORT)
            for node in self.topology.devices
            if node.black is not None
        }
        return measure(
            self.network.namespace(monitor.name),
            monitor.black.ip,
            targets,
            samples,
            shift_ns=self.options.injected_offset_us.get(monitor.name, 0) * 1000,
        )

    def idle(self) -> IdleReport:
        """Return how idle the processors were since the last call."""
        return self._idle.report()

    def check_alive(self) -> None:
        """Raise `DaemonDiedError` if a daemon has ended; cheap, call it in waiting loops."""
        self.processes.check()

    def device(self, name: str) -> Device:
        """Return a device by its name: its files, and its daemons' control sockets."""
        if name not in self._devices:
            raise TestbedError(f"no device {name!r}; there are {', '.join(self.devices)}")
        return self._devices[name]
