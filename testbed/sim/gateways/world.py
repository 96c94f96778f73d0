"""Three partitions on one agenda, each a `World` with all of its checkers, and gateways between."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv6Address

from protocol.core.agenda import NS_PER_MS, Agenda
from protocol.core.engine import DatagramReceived
from protocol.mproxy.messages import Address
from testbed.sim.chance import Chance
from testbed.sim.device import Device
from testbed.sim.faults import FOR_GOOD, Fault, Kind
from testbed.sim.gateways.checkers import Whole
from testbed.sim.gateways.gatewayd import Gatewayd
from testbed.sim.gateways.layout import PARTITIONS, Layout
from testbed.sim.history import View
from testbed.sim.people import red_prefix
from testbed.sim.rest import Violation, ViolationError, await_rest
from testbed.sim.scenario import Scenario, Theme
from testbed.sim.world import World

RED_GROUP = IPv6Address("ff0e::7")
"""What the probes are sent to."""

PROBE_NS = 500 * NS_PER_MS
"""How often, while things go wrong, a red packet looks for a loop."""

TAKEN_OVER_MS = 6_500
"""So long after the death of a gateway, on a good network, packets go by the other one, or what lay
behind it is withdrawn: four hello intervals and their jitter, a poll, the withdrawal and its
announcement, another poll."""

SETTLE_MS = 10_000
"""What gateways may take longer than the groups they are members of (GATE-13, polls, refreshes)."""


class GatewayWorld:
    """Runs one scenario with gateways; attributes as of `World`, of all partitions together."""

    def __init__(self, scenario: Scenario, *, noting: bool = False) -> None:
        self.scenario = scenario
        self.agenda = Agenda()
        self.layout = Layout.of(scenario)
        self.worlds = {
            name: World(
                self.layout.scenario(scenario, number),
                noting=noting,
                agenda=self.agenda,
                people=self.layout.people(number),
            )
            for number, name in enumerate(PARTITIONS)
        }
        self.gateways = [
            self._gateway(scenario.members + number) for number in range(len(self.layout.gateways))
        ]
        self._ports = {
            (name, leg.index): gatewayd
            for gatewayd in self.gateways
            for name, leg in gatewayd.legs.items()
        }
        self.agreed_ms: float | None = None
        self._draws = Chance(scenario.seed).stream("probes")
        self._begun = 0

    def _gateway(self, number: int) -> Gatewayd:
        legs: dict[str, Device] = {}
        for partition in self.layout.joins(number):
            place = self.layout.place(number, partition)
            assert place is not None
            name = PARTITIONS[partition]
            legs[name] = self.worlds[name].devices[place]
        first, *others = legs.values()
        for leg in others:
            leg.clock_ns = first.clock_ns  # one machine has one clock
        name = f"g{number - self.scenario.members + 1}"
        return Gatewayd(name, legs, self.scenario.crypto, self._say)

    # What a run comes to.

    @property
    def now_ms(self) -> float:
        """Virtual time."""
        return self.agenda.now_ms

    @property
    def digest(self) -> str:
        """Names the whole run."""
        digests = "".join(world.digest for world in self.worlds.values())
        return hashlib.sha256(digests.encode()).hexdigest()

    @property
    def epochs(self) -> int:
        """Group keys established, of all devices."""
        return sum(world.epochs for world in self.worlds.values())

    @property
    def datagrams(self) -> int:
        """Copies that arrived."""
        return sum(world.datagrams for world in self.worlds.values())

    @property
    def left_out_effects(self) -> Counter[str]:
        """Effects without a model here, by class."""
        return sum((world.left_out_effects for world in self.worlds.values()), Counter())

    def lines(self) -> list[str]:
        """Return the trace, and what everybody has in the end."""
        notes = sorted(
            (at_ms, place, name, device, text)
            for name, world in self.worlds.items()
            for place, (at_ms, device, text) in enumerate(world.notes or ())
        )
        lines = [
            f"{at_ms:12.3f} {f'{name}.--' if device < 0 else f'{name}.d{device + 1}'} {text}"
            for at_ms, _, name, device, text in notes
        ]
        views = ((name, view) for name, world in self.worlds.items() for view in world.views())
        lines += [f"{name}.{view.describe()}" for name, view in views]
        return lines + [
            f"{one.name}: knows {[(k['partition'], k['path']) for k in one.known]}, routes"
            f" {sorted(f'{net} by {leg}' for net, leg in one.routes.items())}"
            for one in self.whole().gateways
        ]

    # The run.

    def run(self) -> None:
        """Run both phases.

        Raises:
            ViolationError: a checker objected.
        """
        starts = self.scenario.starts_ms[self.scenario.members :]
        self._at_faults(lambda fault: fault.start_ms, self._before)
        for world in self.worlds.values():
            world.schedule()
        for gatewayd, start_ms in zip(self.gateways, starts, strict=True):
            self.agenda.at(start_ms * NS_PER_MS, gatewayd.power_on)
        self._at_faults(lambda fault: fault.end_ms, self._after)
        self.agenda.after(PROBE_NS, self._probe)
        self.agenda.run(self.scenario.safety_ms * NS_PER_MS)
        limit_ms = max(world.limit_ms for world in self.worlds.values()) + SETTLE_MS
        self.agreed_ms = await_rest(self.agenda, limit_ms, self._changes, self._objection)
        for world in self.worlds.values():
            world.conclude()
        self._count_packets()

    def _at_faults(self, when: Callable[[Fault], int], act: Callable[[Fault], None]) -> None:
        for fault in self.scenario.faults:
            self.agenda.at(when(fault) * NS_PER_MS, act, fault)

    def _before(self, fault: Fault) -> None:
        """Begin what a fault does to gatewayds, before it happens to the legs."""
        self._begun += 1
        if fault.kind is Kind.REVOKE:
            self._revoke(fault.devices[0])
        if not self.layout.is_gateway(fault):
            return
        gatewayd = self.gateways[fault.devices[0] - self.scenario.members]
        match fault.kind:
            case Kind.CRASH | Kind.STOP:
                gatewayd.end(orderly=fault.kind is Kind.STOP)
            case Kind.KILL_GATEWAYD:
                gatewayd.kill()
        if self.scenario.theme is Theme.DEATH and fault.duration_ms == FOR_GOOD:
            self.agenda.after(TAKEN_OVER_MS * NS_PER_MS, self._judge_ways)

    def _after(self, fault: Fault) -> None:
        """End what a fault did to a gatewayd, after it has ended for the legs."""
        if fault.duration_ms == FOR_GOOD or not self.layout.is_gateway(fault):
            return
        gatewayd = self.gateways[fault.devices[0] - self.scenario.members]
        match fault.kind:
            case Kind.CRASH | Kind.STOP:
                gatewayd.power_on()
            case Kind.PAUSE:
                gatewayd.resume()
            case Kind.KILL_GATEWAYD if gatewayd.wanted and gatewayd.engine is None:
                gatewayd.power_on()

    def _revoke(self, number: int) -> None:
        for partition, name in enumerate(PARTITIONS):
            place = self.layout.place(number, partition)
            for gatewayd in self.gateways:
                if place is not None and name in gatewayd.legs:
                    gatewayd.distrust(name, place)

    def _say(self, gatewayd: Gatewayd, partition: str, payload: bytes) -> None:
        """Carry what a gateway says to all in a partition; idpds get it, too."""
        world, leg = self.worlds[partition], gatewayd.legs[partition]
        if not leg.connected:
            return
        event = DatagramReceived("group", leg.address, payload)
        world.adversary.overhear(leg.idpd, event)
        for receiver in world.devices:
            if receiver is not leg:
                for delay_ns in world.wire.delays_ns(leg.index, receiver.index):
                    self.agenda.after(delay_ns, self._arrive, partition, receiver, event)

    def _arrive(self, partition: str, receiver: Device, event: DatagramReceived) -> None:
        if receiver.connected:
            receiver.idpd.receive(event)
            gatewayd = self._ports.get((partition, receiver.index))
            if gatewayd is not None:
                gatewayd.hear(partition, event)

    # What must hold.

    def _changes(self) -> object:
        known = [gatewayd.look() for gatewayd in self.gateways if gatewayd.running]
        return self._begun, [world.changes for world in self.worlds.values()], known

    def whole(self) -> Whole:
        """Look at everybody."""
        devices: dict[str, list[View]] = {}
        legs: dict[str, list[View]] = {}
        for name, world in self.worlds.items():
            views = world.views()
            plain = world.people.devices
            devices[name] = [view for view in views if view.device in plain]
            legs[name] = [view for view in views if view.device not in plain]
        return Whole(devices, legs, [g.look() for g in self.gateways if g.lives])

    def _objection(self) -> Violation | None:
        for world in self.worlds.values():
            objection = world.objection()
            if objection is not None:
                return objection
        idle = [g.name for g in self.gateways if g.wanted and not g.running and not g.killed]
        if idle:
            return Violation("everybody-is-there", self.now_ms, f"{idle} do not run")
        for checker, text in self.whole().objections():
            return Violation(checker, self.now_ms, text)
        return None

    def _judge_ways(self) -> None:
        """A gateway has died, the network is good: by now all is as it should be."""
        for checker, text in self.whole().objections():
            raise ViolationError(Violation(checker, self.now_ms, f"after the death: {text}"))

    # Multicast.

    def _probe(self) -> None:
        """Send one red packet while things go wrong: it may be lost or doubled, not go round."""
        name = self._draws.choice(PARTITIONS)
        world = self.worlds[name]
        index = self._draws.choice(world.people.devices)
        self.carried(name, red_prefix(index, world.people.partition)[1])
        if self.now_ms < self.scenario.safety_ms:
            self.agenda.after(PROBE_NS, self._probe)

    def _count_packets(self) -> None:
        """In rest: once in every partition that can be reached; of one that is revoked, nowhere."""
        whole = self.whole()
        for name, world in self.worlds.items():
            for index in world.people.devices:
                alive = any(view.device == index for view in whole.devices[name])
                wanted = whole.reachable(name) if alive else {name}
                carried = self.carried(name, red_prefix(index, world.people.partition)[1])
                announced = any(
                    red_prefix(index, world.people.partition) in view.announced
                    for view in whole.devices[name]
                )
                if not announced:
                    wanted = {name}
                if carried != dict.fromkeys(wanted, 1):
                    text = f"a packet of {name}.d{index + 1} was carried {carried}"
                    raise ViolationError(Violation("multicast-once", self.now_ms, text))

    def carried(self, partition: str, source: Address) -> dict[str, int]:
        """Send a red multicast packet; return how often each partition carries it.

        Raises:
            ViolationError: it comes back to where it was.
        """
        counts: Counter[str] = Counter()
        todo: list[tuple[tuple[str, ...], Gatewayd | None]] = [((partition,), None)]
        while todo:
            way, sender = todo.pop()
            counts[way[-1]] += 1
            for gatewayd in self.gateways:
                leg = gatewayd.legs.get(way[-1])
                if leg is None or gatewayd is sender or not leg.connected:
                    continue
                for out in gatewayd.forward(way[-1], source, RED_GROUP):
                    if out in way:
                        text = f"a packet goes round: {' '.join((*way, out))}"
                        raise ViolationError(Violation("no-loop", self.now_ms, text))
                    if gatewayd.legs[out].connected:
                        todo.append(((*way, out), gatewayd))
        return dict(counts)
