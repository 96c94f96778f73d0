"""The whole bench in one object: the network, the daemons on it, and the eyes that watch them.

An experiment sees nothing but this class::

    with Fleet(topology, FleetOptions(sa_backend="memory")) as fleet:
        fleet.start("d1")
        fleet.start("d2")
        fleet.await_members(["d1", "d2"], deadline_s=10)
        fleet.handover("d2")
        trigger = time.time_ns() + 500_000_000
        fleet.start("d3", at_wall_ns=trigger)
        fleet.await_written(["d1", "d2", "d3"], since_wall_ns=trigger, deadline_s=10)
        events = fleet.events()
        assert fleet.sad_check(["d1", "d2", "d3"]).ok

SKELETON: the signatures are final, the bodies follow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from testbed.clock import Offset
from testbed.observer import IdleReport, KernelEvent, PacketCheck, SadCheck
from testbed.spec import Topology


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """How the devices of a fleet are set up.

    Attributes:
        run_id: names the run; processes and namespaces are found by it. Empty: a new one.
        keep: directory that receives logs, traces and configurations at the end; None: thrown away.
        sa_backend: ``netlink``, ``command``, ``pfkey`` or ``memory``.
        sa_mode: ``per-sender`` or ``paper``.
        suite: algorithm suite of the SAs.
        idp: values that replace defaults in section ``[idp]`` of every device.
        mike: the same for ``[mike]``.
        ipsec: the same for ``[ipsec]``.
        injected_offset_us: per device, shifts its wall clock (tests of the clock measurement).
        capture: whether tcpdump records every black link into ``keep``.
        seed: makes what the testbed itself chooses repeatable.
    """

    run_id: str = ""
    keep: Path | None = None
    sa_backend: str = "netlink"
    sa_mode: str = "per-sender"
    suite: str = "aes-gcm-128"
    idp: Mapping[str, Any] = field(default_factory=dict)
    mike: Mapping[str, Any] = field(default_factory=dict)
    ipsec: Mapping[str, Any] = field(default_factory=dict)
    injected_offset_us: Mapping[str, int] = field(default_factory=dict)
    capture: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a daemon's trace.

    Attributes:
        wall_ns: UTC of the device's own clock.
        mono_ns: monotonic time of the machine.
        device: name of the device.
        daemon: ``idpd`` or ``miked``.
        point: ``t_hello``, ``t_written``, ... or a dotted event name.
        fields: everything else on the line.
    """

    wall_ns: int
    mono_ns: int
    device: str
    daemon: str
    point: str
    fields: Mapping[str, Any]


class Fleet:
    """A built network with parked daemons; leaving the context removes all of it.

    Attributes:
        devices: names of the IPsec devices in the order of the topology.
        addresses: black address of each device, as text.
        facts: what was measured or decided while building (timings, xfrm interface or why not,
            qdisc per link): goes into the manifest.
    """

    devices: tuple[str, ...]
    addresses: Mapping[str, str]
    facts: dict[str, Any]

    def __init__(self, topology: Topology, options: FleetOptions | None = None) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        """Build the network, make the PKI, start idpd and miked of every device, parked."""
        raise NotImplementedError

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop everything, keep the logs, remove the network."""
        raise NotImplementedError

    # --- actions -------------------------------------------------------------------------------

    def start(self, device: str, at_wall_ns: int | None = None) -> None:
        """Start the protocol on a parked device, now or at the pre-calculated trigger time.

        miked is started at once; idpd fires at the trigger. Returns when both acknowledged.
        """
        raise NotImplementedError

    def stop(self, device: str) -> None:
        """Shut IDP down on a device, then MIKE: both end parked, without SAs and keys.

        The others are told nothing: they notice after the dead interval, as in the paper.
        """
        raise NotImplementedError

    def cut(self, device: str) -> int:
        """Cut the device's black cable, both directions; return when (UTC ns)."""
        raise NotImplementedError

    def heal(self, device: str) -> int:
        """Plug the device's black cable in again; return when (UTC ns)."""
        raise NotImplementedError

    def handover(self, device: str, deadline_s: float = 10.0) -> None:
        """Make this device the transaction manager; returns when all members say it is."""
        raise NotImplementedError

    # --- observation ---------------------------------------------------------------------------

    def events(self) -> list[Event]:
        """Return the trace lines written since the last call, all daemons, sorted by time."""
        raise NotImplementedError

    def all_events(self) -> list[Event]:
        """Return every trace line read so far; does not read new ones."""
        raise NotImplementedError

    def flush(self) -> None:
        """Have every daemon write its trace out (costs a control request each)."""
        raise NotImplementedError

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
        raise NotImplementedError

    def await_members(
        self, devices: Sequence[str], *, deadline_s: float, tm: str | None = None
    ) -> str:
        """Wait until all of them report exactly these members, one epoch, SAs written and active.

        Returns:
            The epoch (``number-taghex``).
        """
        raise NotImplementedError

    def status(self, device: str, daemon: str = "idpd") -> dict[str, Any]:
        """Ask a daemon for its status (its control socket's answer)."""
        raise NotImplementedError

    def sad_check(self, devices: Sequence[str], deadline_s: float = 5.0) -> SadCheck:
        """Read the SADs back and compare: same epoch, same SPIs, same key digests.

        Waits until they agree or the deadline passes (old SAs go after the deactivation delay).
        """
        raise NotImplementedError

    def packet_check(
        self, devices: Sequence[str], senders: Sequence[str] | None = None, deadline_s: float = 2.0
    ) -> PacketCheck:
        """Send a marked red multicast packet from each sender; it must arrive at every other."""
        raise NotImplementedError

    def kernel_events(self) -> list[KernelEvent]:
        """Return the kernel's own SA notifications seen since the last call (all devices)."""
        raise NotImplementedError

    def clock_offsets(self, samples: int = 16) -> dict[str, Offset]:
        """Measure every device's clock against the first device's (NTP on-wire exchange)."""
        raise NotImplementedError

    def idle(self) -> IdleReport:
        """Return how idle the processors were since the last call."""
        raise NotImplementedError

    def check_alive(self) -> None:
        """Raise `DaemonDiedError` if a daemon has ended; cheap, call it in waiting loops."""
        raise NotImplementedError
