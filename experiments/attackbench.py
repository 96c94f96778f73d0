"""The attacked network: members, a device that joins and leaves, an ex-member, and the attacker.

The group is formed with the device that will be an ex-member in it. The attacker records that
session and copies the device's files, SAs and group keys; then the device's certificate is revoked,
so that the group excludes it. From then on everything is read from outside: control sockets,
kernels, counters, streams of red packets, and the wire.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.campaign import Repetition
from experiments.outcome import Context
from protocol.identity.identity import FRESHNESS_MS_DEFAULT
from protocol.identity.pki import Coalition
from protocol.identity.policypki import PolicyAuthority
from protocol.idpmike import EpochId
from testbed.attacker.espkeys import OldKeys, esp_of
from testbed.attacker.evidence import (
    Usage,
    differences,
    kernel_state,
    protocol_state,
    refused,
    usage,
)
from testbed.attacker.port import AttackerPort, Equipment
from testbed.attacker.scene import Channels
from testbed.device import DAEMONS, LOCAL_PORTS, RESPONDER_PORT
from testbed.errors import DeadlineError, TestbedError
from testbed.guard import BlackChannels
from testbed.redstreams import Part, StreamSpec, streams_by_source
from testbed.wait import wait_until
from testbed.witness import KeyCollector

if TYPE_CHECKING:
    from testbed.fleet import Fleet

GROUP_DEADLINE_S = 90.0
STREAM_PPS = 10.0
STREAM_BYTES = 100
POLL_S = 0.03

_KEPT = (
    *("peer", "idpd state", "idpd startup", "idpd policy", "idpd own", "idpd sa_mode", "trust"),
    *("miked state", "miked startup", "miked role", "miked members", "miked tm", "miked mode"),
)
_KEPT_OF_PEERS = ("state", "startup_wall_ns", "prefixes")


@dataclass(slots=True)
class Join:
    """When a device that joins had its SAs, in ms from the trigger."""

    joiner_ms: float
    monitor_ms: float
    last_ms: float


@dataclass(slots=True)
class RedCounts:
    """What the members' red streams have come to since the last look."""

    sent: int = 0
    lost: int = 0
    twice: int = 0
    foreign: list[str] = field(default_factory=list)


class AttackBench:
    """One network under attack.

    Attributes:
        stayers: members all the time.
        joiner: joins and leaves.
        attacker: on the black switch.
        old: what the ex-member knew.
        control: what those keys opened of the old session; if nothing, the check itself is worth
            nothing.
    """

    attacker: AttackerPort
    old: OldKeys

    def __init__(self, fleet: Fleet, repetition: Repetition, context: Context) -> None:
        self._fleet = fleet
        self._campaign = repetition.campaign
        self._seed = repetition.index
        self._clock = context.clock
        self._unicast_off = repetition.variant.unicast == "off"
        self._stack = ExitStack()
        *stay, self.joiner, self._former = fleet.devices
        self.stayers = tuple(stay)
        self.control = 0
        self._receivers: dict[str, Part] = {}
        self._senders: dict[int, str] = {}
        self._last: dict[tuple[str, int], int] = {}

    # Life.

    def open(self) -> None:
        """Form the group, rob the device that will be an ex-member, exclude it.

        Raises:
            TestbedError: what does not come about.
        """
        fleet = self._fleet
        spoils = fleet.directory / "spoils"
        spoils.mkdir(mode=0o700)
        self.attacker = self._stack.enter_context(
            AttackerPort(fleet.network, fleet.processes, spoils, self._equipment(spoils))
        )
        members = [*self.stayers, self._former]
        for device in members:
            fleet.start(device)
        fleet.await_members(members, deadline_s=GROUP_DEADLINE_S)
        if fleet.options.kernel:
            self._start_streams()
        self._rob(spoils)
        self._exclude()

    def close(self) -> None:
        """End the attacker and the streams; idempotent."""
        self._stack.close()

    def renew(self) -> None:
        """Start the members anew after something has broken the group.

        What the last instances said is fresh for a while yet, and of what a flood kept from a
        device the attacker can still be the first to bring it: as slow a network might.
        """
        for device in [*self.stayers, self.joiner]:
            self._fleet.revive(device)
            self._fleet.stop(device)
        for device in self.stayers:
            self._fleet.start(device)
        self._await(self.stayers)
        self._clock.sleep(FRESHNESS_MS_DEFAULT / 1000)

    def restart(self, device: str) -> None:
        """Have a member be a new instance: a copy of its certificate has spoken for the old one."""
        self._fleet.stop(device)
        self._await([name for name in self.stayers if name != device])
        self._fleet.start(device)
        self._await(self.stayers)

    def _equipment(self, spoils: Path) -> Equipment:
        fleet = self._fleet
        given = BlackChannels.of(fleet.options.idp, fleet.options.mike)
        channels = Channels(
            given.idp_group,
            given.idp_port,
            given.mike_group,
            given.mike_port,
            fleet.topology.group.black_group,
            (RESPONDER_PORT, *LOCAL_PORTS),
            tuple(IPv6Address(address) for address in fleet.addresses.values()),
        )
        psk = fleet.directory / "psk"
        policy = spoils / "policy"
        authority = PolicyAuthority.create("elsewhere")
        policy.write_bytes(authority.sign(_weaker_policy(fleet.options.policy)))
        copies = {}
        pki = Coalition(fleet.directory / "pki")
        for device in (self._former, self.stayers[-1]):
            copies[device] = shutil.copytree(pki.files(device).directory, spoils / device)
        return Equipment(
            channels=channels,
            seed=self._seed,
            ex_member=copies[self._former],
            ex_member_address=fleet.addresses[self._former],
            member=copies[self.stayers[-1]],
            member_address=fleet.addresses[self.stayers[-1]],
            psk=psk if psk.exists() else None,
            policy=policy,
        )

    def _start_streams(self) -> None:
        fleet = self._fleet
        streams = fleet.surroundings.streams(fleet.processes)
        self._stack.callback(streams.close)
        nodes = {node.name: node for node in fleet.topology.devices}
        for device in self.stayers:
            self._receivers[device] = streams.receive(nodes[device])
        for part in self._receivers.values():
            part.wait_ready()
        for number, device in enumerate(self.stayers):
            self._senders[number] = device
            streams.send(nodes[device], StreamSpec(number, STREAM_PPS, STREAM_BYTES)).wait_ready()

    def _rob(self, spoils: Path) -> None:
        """Copy what the device knows, once the attacker has heard something of its session."""
        fleet = self._fleet
        sas = []
        collector = None
        if fleet.options.kernel:
            collector = KeyCollector({self._former: fleet.network.pid(self._former)})
            self._stack.callback(collector.close)
        wanted = "esp" if collector is not None else "notices"
        wait_until(
            lambda: self.attacker.status()[wanted] >= len(self.stayers),
            GROUP_DEADLINE_S,
            f"the attacker hears no {wanted}",
        )
        if collector is not None:
            collector.poll()
            sas = collector.sas()
        keys = fleet.directory / self._former / "keys"
        self.old = OldKeys({path.name: path.read_bytes() for path in keys.iterdir()}, sas)
        esp, notices = self.attacker.captured()
        self.control = self.old.verifies(notices)
        if collector is not None:
            self.control = min(self.control, self.old.opens(map(esp_of, esp)))
        if not self.control:
            raise TestbedError(
                "the ex-member's keys open nothing of its own session: the check is broken"
            )

    def _exclude(self) -> None:
        """Revoke the certificate while the device is a member; then switch it off."""
        fleet = self._fleet
        first = self.stayers[0]
        Coalition(fleet.directory / "pki").revoke([self._former], receivers=[first])
        for daemon in DAEMONS:
            fleet.device(first).ask(daemon, "trust_reload")

        def known() -> bool:
            trust = [fleet.status(device)["trust"] for device in self.stayers]
            return all(sum(one["revoked"] for one in t["revocation_lists"]) for t in trust)

        wait_until(known, GROUP_DEADLINE_S, "the revocation list does not get around")
        fleet.stop(self._former)
        self._await(self.stayers)
        self.attacker.keep()

    def _await(self, devices: Sequence[str]) -> None:
        self._fleet.await_members(devices, deadline_s=self._campaign.deadline_ms / 1000)

    # Evidence.

    def look(self) -> dict[str, dict[str, Any]]:
        """Return the state of every member, from its daemons and its kernel."""
        found = {}
        for device in self.stayers:
            state = protocol_state(
                self._fleet.status(device, "idpd"), self._fleet.status(device, "miked")
            )
            if self._fleet.options.kernel:
                state |= kernel_state(self._fleet.network.pid(device))
            found[device] = state
        return found

    def settle(self) -> None:
        """Wait until the stayers alone are a group, everywhere, and nothing is under way.

        Hellos have told of everybody's epoch, and older SAs are deleted.
        """
        others = len(self.stayers) - 1
        sas = 1 + others + (0 if self._unicast_off else 2 * others)
        members = {self._fleet.addresses[device] for device in self.stayers}

        def settled() -> bool:
            for device in self.stayers:
                miked = self._fleet.status(device, "miked")
                if set(miked["members"]) != members or miked["pending"] or miked["joining"]:
                    return False
                if self._fleet.options.kernel:
                    state = kernel_state(self._fleet.network.pid(device))
                    if len(state["SAs"]) != sas:
                        return False
                status = self._fleet.status(device)
                up = [peer for peer in status["peers"] if peer["state"] == "up"]
                if len(up) != others or any(p["epoch"] != status["active_epoch"] for p in up):
                    return False
            return True

        wait_until(settled, GROUP_DEADLINE_S, "the members do not settle", pause_s=0.2)

    def changes(
        self,
        before: Mapping[str, dict[str, Any]],
        after: Mapping[str, dict[str, Any]],
        *,
        joined: bool = False,
    ) -> list[str]:
        """Return what differs; after joins, only what these do not change."""
        found = []
        for device, old in before.items():
            states = (old, after[device])
            if joined:
                states = self._lasting(old), self._lasting(after[device])
            found += [f"{device} {text}" for text in differences(*states)]
        return found

    def _lasting(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return what joins and leaves of another device leave as it is."""
        found = {}
        for name, value in state.items():
            if name == f"peer {self._fleet.addresses[self.joiner]}":
                continue
            if name == "miked members":
                found[name] = sorted(value)
            elif name.startswith("peer "):
                found[name] = {key: value.get(key) for key in _KEPT_OF_PEERS}
            elif name.startswith(_KEPT):
                found[name] = value
        return found

    def usage(self) -> dict[str, Usage]:
        """Return what each member's daemons have used so far; they are not asked."""
        processes = self._fleet.processes
        return {
            device: usage({name: processes[f"{device}/{name}"].pid for name in DAEMONS})
            for device in self.stayers
        }

    def believed(self) -> dict[str, tuple[int, int]]:
        """Return how many messages each daemon has believed, and how many the others have sent.

        Light hellos count as messages; what is no message for a daemon's state it does not open.
        """
        said = self.attacker.status()["said"]
        found = {}
        for device in self.stayers:
            own = self._fleet.addresses[device]
            for daemon in DAEMONS:
                counters = self._fleet.status(device, daemon)["counters"]
                opened = counters["auth.opened"] + counters.get("idp.hello_light", 0)
                sent = sum(count for who, source, count in said if who == daemon and source != own)
                found[f"{device}/{daemon}"] = opened, sent
        return found

    def refusals(self) -> int:
        """Return how many datagrams the members' daemons have refused so far."""
        return sum(
            refused(self._fleet.status(device, name)["counters"])
            for device in self.stayers
            for name in DAEMONS
        )

    def guard_drops(self) -> int:
        """Return how many packets the members' guards have kept out so far."""
        return sum(
            count
            for device in self.stayers
            for name, count in self._fleet.drops(device).items()
            if name.startswith("input")
        )

    def red(self) -> RedCounts:
        """Return what has become of the red streams since the last look."""
        counts = RedCounts()
        for device, part in self._receivers.items():
            report = part.ask()
            if report["foreign"]:
                counts.foreign.append(f"{report['foreign']} packets of no stream at {device}")
            for stream, seen in streams_by_source(report):
                if self._senders.get(stream) in (None, device):
                    counts.foreign.append(f"stream {stream} at {device}")
                    continue
                before = self._last.get((device, stream))
                last = seen["last_sequence"]
                counts.twice += seen["duplicated"]
                if before is not None:
                    counts.twice += seen["first_sequence"] <= before
                    counts.sent += last - before
                    counts.lost += max(0, last - before - seen["received"])
                self._last[device, stream] = max(last, before or 0)
        return counts

    def epochs_since(self, wall_ns: int) -> int:
        """Return how many different epochs members have had keys of since then."""
        self._fleet.flush()
        self._fleet.events()
        return len(
            {
                event.fields["epoch"]
                for event in self._fleet.all_events()
                if event.point == "t_key"
                and event.wall_ns >= wall_ns
                and event.device in self.stayers
            }
        )

    def old_keys_open(self) -> tuple[int, int, list[str]]:
        """Try the ex-member's keys on what was sent after its exclusion.

        Returns:
            How many ESP packets and notices were tried, and what they opened.
        """
        esp, notices = self.attacker.captured()
        packets = [esp_of(frame) for frame in esp]
        status = self._fleet.status(self.stayers[0], "miked")
        members = [IPv6Address(address) for address in status["members"]]
        epochs: Iterable[EpochId] = [EpochId.parse(status["epoch"])]
        opened = {
            "ESP packets under its SAs": self.old.opens(packets),
            "ESP packets under keys derived from its group keys": self.old.derives(
                packets, epochs, members, self._fleet.topology.group.black_group
            ),
            "notices under its group keys": self.old.verifies(notices),
        }
        found = [f"opened {count} {what}" for what, count in opened.items() if count]
        return len(packets), len(notices), found

    # Joins.

    def ends(self, *, joining: bool) -> list[str]:
        """Return the addresses of two victims: the TM and the joiner, or else another member."""
        addresses = self._fleet.addresses
        tm = str(self._fleet.status(self.stayers[0], "miked")["tm"])
        if joining:
            return [tm, addresses[self.joiner]]
        return [tm, next(addresses[name] for name in self.stayers if addresses[name] != tm)]

    def join(self, deadline_s: float | None = None) -> Join:
        """Let the device join; return when all devices have had the SAs.

        Args:
            deadline_s: how long it may take; None: the plan's.

        Raises:
            DeadlineError: it does not get there.
        """
        fleet, group = self._fleet, [*self.stayers, self.joiner]
        trigger_ns = self._clock.now_ns() + self._campaign.lead_ms * 1_000_000
        fleet.start(self.joiner, at_wall_ns=trigger_ns)
        deadline_s = deadline_s or self._campaign.deadline_ms / 1000
        limit_ns = trigger_ns + int(deadline_s * 1e9)
        self._clock.sleep_until(trigger_ns)
        # One daemon is asked, seldom: what answers cannot compute.
        while fleet.status(self.joiner)["epoch"] is None:
            fleet.check_alive()
            if self._clock.now_ns() > limit_ns:
                raise DeadlineError(f"{self.joiner} did not get into the group")
            self._clock.sleep(POLL_S)
        fleet.await_members(group, deadline_s=deadline_s)
        fleet.flush()
        fleet.events()
        first: dict[str, int] = {}
        for event in fleet.all_events():
            if event.point == "t_written" and event.wall_ns >= trigger_ns and event.device in group:
                first.setdefault(event.device, event.wall_ns)
        if missing := [name for name in group if name not in first]:
            raise DeadlineError(f"no new SAs at {', '.join(missing)}")
        times = {name: (wall_ns - trigger_ns) / 1e6 for name, wall_ns in first.items()}
        return Join(times[self.joiner], times[self.stayers[0]], max(times.values()))

    def leave(self) -> None:
        """Let it leave; wait until all is as before."""
        self._fleet.stop(self.joiner)
        self._await(self.stayers)
        if self._fleet.options.kernel:
            check = self._fleet.sad_check(self.stayers, self._campaign.deadline_ms / 1000)
            if not check.ok:
                raise DeadlineError(f"SADs: {check.reason}")


def _weaker_policy(policy: dict[str, Any] | None) -> bytes:
    """Return a policy that allows the weakest there is, newer than the real one."""
    from protocol.idp.policy import DomainPolicy

    table = {
        **(policy or {}),
        "version": 99,
        "suites": ["3des-sha1"],
        "sa_modes": ["paper"],
        "unicast": ["off"],
        "key_bits_min": 0,
    }
    return DomainPolicy.from_table(table).encode()
