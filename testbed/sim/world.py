"""One simulation: devices, a wire and a schedule of faults on virtual time, with its checkers.

First the safety phase, with faults; then the liveness phase: faults off, clocks right, everybody
who has not gone for good is there. It ends as soon as the checkers have had nothing to object to
for a while in which nothing changed; if that does not come in time, their objection is the verdict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv6Address
from typing import Any

from protocol.core.addresses import address_said
from protocol.core.agenda import NS_PER_MS, Agenda
from protocol.core.engine import DatagramReceived, Effect, Log, Report, SendDatagram
from protocol.idp.config import PSK_LENGTH, IdpConfig, SaMode, Unicast
from protocol.idp.events import ApplySas
from protocol.ipsec.backend import PutPolicy
from protocol.ipsec.model import SecurityAssociation, Suite
from protocol.mike.config import MikeConfig, Mode
from protocol.mike.events import HandoverRequested, PublishKey
from testbed.sim.adversary import Adversary
from testbed.sim.chance import Chance
from testbed.sim.checkers import Checker, DeadIsForgotten
from testbed.sim.daemon import Daemon
from testbed.sim.describe import describe
from testbed.sim.device import Device
from testbed.sim.digest import Digest
from testbed.sim.faults import ADVERSARY, FOR_GOOD, PACKETS, RED, Fault, Kind, is_final
from testbed.sim.history import (
    Agreed,
    Announced,
    Detected,
    Evidence,
    KeyPublished,
    Led,
    MikeStarted,
    Record,
    Signalled,
    View,
)
from testbed.sim.look import sample_of, view_of
from testbed.sim.lulls import LULL_MS, lulls, must_agree
from testbed.sim.pairview import led_by
from testbed.sim.people import People, secret_type
from testbed.sim.redwork import begin_red, end_red
from testbed.sim.rest import (
    LIVENESS_AFTER_CLOCKS_MS,
    LIVENESS_MS,
    Violation,
    ViolationError,
    await_rest,
)
from testbed.sim.scenario import Scenario, Theme
from testbed.sim.standard import particular, standard
from testbed.sim.wire import Wire

SA_GROUP = IPv6Address("ff0e::1")

PSK = bytes(range(PSK_LENGTH))
"""Of the paper's unicast SAs, where they are drawn."""

UNSEEN_MS = 5_000
"""A device that died on a perfect network is in no table so long after: five hello intervals."""

WIPED_MS = 6_800
"""... and in no SAD: a rekey, the activation and the deactivation delay later."""


class World:
    """Runs one scenario.

    Args:
        scenario: what is run.
        checkers: who judges, None: all.
        noting: whether lines for a trace are kept.
        agenda: shared with other partitions, if this is one of several.
        people: who the devices are, if they are not those of a single network.

    Attributes:
        scenario: what is run.
        agenda: virtual time and what is due.
        devices: by index.
        wire: the network.
        revoked: devices whose certificates are.
        notes: (ms, device or -1, text) of what a reader of a trace wants to see, if asked for.
        epochs: group keys established, of all devices.
        left_out_effects: effects without a model here, by class.
        mike_datagrams: all that MIKE sent on the black network.
        unheard: what MIKE said without a carrier.
        group_keys: every group key, by its epoch.
        agreed_ms: how long after the last fault all agreed, once they do.
    """

    def __init__(
        self,
        scenario: Scenario,
        checkers: Sequence[Checker] | None = None,
        *,
        noting: bool = False,
        agenda: Agenda | None = None,
        people: People | None = None,
    ) -> None:
        self.scenario = scenario
        self.agenda = agenda or Agenda()
        self.chance = Chance(scenario.seed)
        size = scenario.members
        self.people = people or People(size)
        paper = scenario.sa_mode == SaMode.PAPER.value
        self._checkers = (
            standard(self.people, shared_sa=paper, unicast=Unicast(scenario.unicast))
            if checkers is None
            else list(checkers)
        )
        self._checkers += particular(scenario)
        self._shared_sa = paper
        self.wire = Wire(self.chance, self.agenda, size, scenario.link_us)
        suite = Suite.TDES_SHA1 if paper else Suite.AES_GCM_128
        unicast = Unicast(scenario.unicast)
        idp = IdpConfig(
            SA_GROUP,
            sa_mode=SaMode(scenario.sa_mode),
            suite=suite,
            unicast=unicast,
            psk=PSK if unicast is Unicast.PSK else None,
        )
        mike = MikeConfig(
            datagram_size_max=scenario.datagram_size_max,
            change_parts_min=scenario.change_parts_min,
            rekey_interval_ms=scenario.rekey_interval_ms,
            mode=Mode(scenario.mode),
            kd_members_min=scenario.kd_members_min,
            ka_members_max=scenario.ka_members_max,
        )
        self.devices = [
            Device(
                index,
                self.people,
                self.chance,
                self.agenda,
                self,
                crypto=scenario.crypto,
                idp=idp,
                mike=mike,
            )
            for index in range(size)
        ]
        self._by_address = {device.address: device for device in self.devices}
        self._others = [
            [device for device in self.devices if device is not own] for own in self.devices
        ]
        clocks = self.chance.stream("clocks")
        bound_ns = scenario.clock_ms * NS_PER_MS
        self._true_clock_ns = [clocks.randint(-bound_ns, bound_ns) for _ in self.devices]
        for device in self.devices:
            device.clock_ns = self._true_clock_ns[device.index]
        self.adversary = Adversary(self)
        self.notes: list[tuple[float, int, str]] | None = [] if noting else None
        self.revoked: set[int] = set()
        self.epochs = 0
        self.agreed_ms: float | None = None
        self.left_out_effects: Counter[str] = Counter()
        self.changes = 0
        self.mike_datagrams: list[bytes] = []
        self.unheard: list[bytes] = []
        self.group_keys: dict[str, bytes] = {}
        self._digest = Digest()
        self._watching: dict[type[Record], list[Checker]] = {}
        self._watchers: dict[type[Effect], Callable[[Daemon, Any], None]] = {
            PublishKey: self._on_published,
            Report: self._on_reported,
            ApplySas: self._on_applied,
        }
        if noting:
            self._watchers |= {Log: self._on_logged, SendDatagram: self._on_sent}

    @property
    def now_ms(self) -> float:
        """Virtual time."""
        return self.agenda.now_ns / NS_PER_MS

    @property
    def digest(self) -> str:
        """Names the whole run: every effect of every engine, in order and with its time."""
        return self._digest.hexdigest()

    @property
    def datagrams(self) -> int:
        """Copies that arrived."""
        return self.wire.sent

    def lines(self) -> list[str]:
        """Return the trace, and what everybody has in the end."""
        lines = [
            f"{at_ms:12.3f} {'--' if device < 0 else f'd{device + 1}'} {text}"
            for at_ms, device, text in self.notes or ()
        ]
        return lines + [view.describe() for view in self.views()]

    # The run.

    def run(self) -> None:
        """Run both phases.

        Raises:
            ViolationError: a checker objected.
        """
        self.schedule()
        self.agenda.run(self.scenario.safety_ms * NS_PER_MS)
        self.note(-1, "faults are over")
        self.agreed_ms = await_rest(
            self.agenda, self.limit_ms, lambda: self.changes, self.objection
        )
        self.conclude()

    def schedule(self) -> None:
        """Put starts, faults and samples on the agenda."""
        for index, start_ms in enumerate(self.scenario.starts_ms):
            switch_on = self.devices[index].power_on
            self.agenda.at(start_ms * NS_PER_MS, switch_on, self.scenario.gap_ms)
        for number, fault in enumerate(self.scenario.faults):
            self.agenda.at(fault.start_ms * NS_PER_MS, self._begin, number, fault)
            if fault.duration_ms != FOR_GOOD:
                self.agenda.at(fault.end_ms * NS_PER_MS, self._end, number, fault)
            if self.scenario.theme is Theme.DEATH and is_final(fault):
                dead = fault.devices[0]
                for bound_ms, sas in ((UNSEEN_MS, False), (WIPED_MS, True)):
                    at_ns = (fault.start_ms + bound_ms) * NS_PER_MS
                    self.agenda.at(at_ns, self._probe, dead, sas)
        self.agenda.at(self.scenario.sample_ms * NS_PER_MS, self._sample)
        if self.scenario.theme is Theme.SOAK:
            for at_ms in lulls(self.scenario):
                self.agenda.at(at_ms * NS_PER_MS, self._look, at_ms + LULL_MS)

    def _look(self, until_ms: int) -> None:
        """In the middle of a run all must agree until a given time, as they must in the end."""
        if must_agree(self.agenda, until_ms, self.objection, self._look):
            self.tell(Agreed(self.now_ms, -1))

    def _probe(self, dead: int, sas: bool) -> None:
        """Look now whether a device is forgotten by all that have been able to do so."""
        device = self.devices[dead]
        checker = DeadIsForgotten(device.address, self.people.own(dead), sas=sas)
        text = checker.judge([v for v in self.views() if not self.devices[v.device].paused])
        if text is not None:
            raise ViolationError(Violation(checker.name, self.now_ms, text))

    @property
    def limit_ms(self) -> int:
        """Within which time after the last fault all must rest."""
        clocks = any(fault.kind is Kind.CLOCK for fault in self.scenario.faults)
        # A renewal may end one rest; then there must be time for the next.
        renewal_ms = self.scenario.rekey_interval_ms
        return (LIVENESS_AFTER_CLOCKS_MS if clocks else LIVENESS_MS) + renewal_ms

    def objection(self) -> Violation | None:
        """Ask every checker about the live devices."""
        place = self.people.name
        views = self.views()
        missing = len(self.scenario.survivors) - len(views)
        if missing:
            text = f"{missing} devices do not run"
            return Violation("everybody-is-there", self.now_ms, text, partition=place)
        for checker in self._checkers:
            objection = checker.judge(views)
            if objection is not None:
                return Violation(checker.name, self.now_ms, objection, partition=place)
        return None

    def conclude(self) -> None:
        """Ask every checker about the run as a whole."""
        # Counting entries is slow, and what grows at one device grows at others.
        for device in self.devices[:2]:
            self.tell(sample_of(device, self.now_ms, self.scenario.sample_ms, deep=True))
        draws = [(device.address, device.entropy.drawn) for device in self.devices]
        kind = secret_type(self.scenario.crypto)
        said = self.mike_datagrams, self.unheard
        evidence = Evidence(kind, draws, *said, self.group_keys, self.now_ms)
        for checker in self._checkers:
            text = checker.conclude(evidence)
            if text is not None:
                raise ViolationError(Violation(checker.name, self.now_ms, text))

    # Faults.

    def _begin(self, number: int, fault: Fault) -> None:
        """Begin a fault."""
        self.note(-1, f"begins: {fault}")
        kind = fault.kind
        if kind in PACKETS:
            self.wire.begin(number, fault)
            return
        if kind in ADVERSARY:
            self.adversary.begin(number, fault)
            return
        device = self.devices[fault.devices[0]]
        if kind in RED:
            begin_red(device, fault)
        match kind:
            case Kind.CRASH:
                device.power_off()
            case Kind.KILL_IDPD:
                device.idpd.kill()
            case Kind.KILL_MIKED:
                device.miked.kill()
            case Kind.STOP:
                device.stop()
            case Kind.PAUSE:
                device.pause()
            case Kind.CLOCK:
                device.clock_ns += int(fault.amount * NS_PER_MS)
            case Kind.CARRIER:
                device.set_carrier(False)
            case Kind.HANDOVER:
                if device.alive and not device.paused:
                    device.miked.deliver(HandoverRequested(self.people.address(fault.devices[1])))
            case Kind.REVOKE:
                self.revoked.add(device.index)
                for other in self._others[device.index]:
                    other.distrust(device.index)
                self.agenda.after(NS_PER_MS, self._probe, device.index, False)
        self.changes += 1

    def _end(self, number: int, fault: Fault) -> None:
        """End a fault."""
        self.note(-1, f"ends: {fault}")
        kind = fault.kind
        if kind in PACKETS:
            self.wire.end(number)
            return
        if kind in ADVERSARY:
            self.adversary.end(number)
            return
        device = self.devices[fault.devices[0]]
        if kind in RED:
            end_red(device, fault)
        match kind:
            case Kind.CRASH:
                device.power_on(self.scenario.gap_ms)
            case Kind.KILL_IDPD:
                device.revive(device.idpd)
            case Kind.KILL_MIKED:
                device.revive(device.miked)
            case Kind.STOP if fault.flavour == "kept":
                device.start(self.scenario.gap_ms)
            case Kind.STOP:
                device.power_on(self.scenario.gap_ms)
            case Kind.PAUSE:
                device.resume()
            case Kind.CLOCK:
                device.clock_ns -= int(fault.amount * NS_PER_MS)
            case Kind.CARRIER:
                device.set_carrier(True)
        self.changes += 1

    # What devices do.

    def transmit(
        self, daemon: Daemon, effect: SendDatagram, sa: SecurityAssociation | None
    ) -> None:
        """Carry a datagram to its receivers; in an SA only to who has that too."""
        sender = daemon.device
        if sa is not None and sender.index not in self.revoked:
            self.tell(Announced(self.now_ms, sender.index))
        if daemon is sender.miked:
            (self.mike_datagrams if sender.connected else self.unheard).append(effect.payload)
        if not sender.connected:
            return
        event = DatagramReceived(effect.channel, sender.address, effect.payload)
        if sa is None:
            self.adversary.overhear(daemon, event)
        if effect.destination is None:
            receivers = self._others[sender.index]
        else:
            found = self._by_address.get(effect.destination)
            receivers = [] if found is None or found is sender else [found]
        place = sender.daemons.index(daemon)
        agenda = self.agenda
        now_ns = agenda.now_ns
        index = sender.index
        delays_ns = self.wire.delays_ns
        for receiver in receivers:
            for delay_ns in delays_ns(index, receiver.index):
                agenda.at(now_ns + delay_ns, receiver.daemons[place].arrive, event, sa)

    def performed(self, daemon: Daemon, effect: Effect) -> None:
        """Write an effect into the digest; tell checkers and notes what concerns them."""
        self._digest.add(self.agenda.now_ns, daemon.stamp, effect)
        watch = self._watchers.get(effect.__class__)
        if watch is not None:
            watch(daemon, effect)

    def _on_published(self, daemon: Daemon, effect: PublishKey) -> None:
        self.epochs += 1
        self.group_keys[effect.pointer] = effect.group_key
        index = daemon.device.index
        self.tell(KeyPublished(self.now_ms, index, effect.pointer, effect.group_key))
        self._note_change(daemon)

    def _on_reported(self, daemon: Daemon, effect: Report) -> None:
        point, fields, index = effect.point, effect.fields, daemon.device.index
        if point == "t_detect":
            peer = address_said(fields["peer"])
            self.tell(Detected(self.now_ms, index, fields["kind"], peer))
        elif point == "t_mike_in":
            self.tell(self._signalled(daemon, fields))
        self._note_change(daemon)
        if self.notes is not None:
            words = " ".join(f"{name}={value}" for name, value in fields.items())
            self.note(index, f"{point} {words}")

    def _on_applied(self, daemon: Daemon, effect: ApplySas) -> None:
        for operation in effect.operations:
            if isinstance(operation, PutPolicy) and (led := led_by(operation.policy)):
                self.tell(Led(self.now_ms, daemon.device.index, *led))
        self._note_change(daemon)

    def _on_logged(self, daemon: Daemon, effect: Log) -> None:
        self.note(daemon.device.index, f"{daemon.name} {effect.level}: {effect.text}")

    def _on_sent(self, daemon: Daemon, effect: SendDatagram) -> None:
        if effect.channel == "group" and (said := describe(effect.payload)):
            self.note(daemon.device.index, f"sends {effect.destination or 'all'} {said}")

    def _note_change(self, daemon: Daemon) -> None:
        # Who is revoked goes on by itself, and never rests.
        self.changes += daemon.device.index not in self.revoked

    def started(self, daemon: Daemon) -> None:
        """Note a new instance."""
        self.changes += 1
        if daemon is daemon.device.miked:
            self.tell(MikeStarted(self.now_ms, daemon.device.index))

    def left_out(self, _daemon: Daemon, effect: Effect) -> None:
        """Count an effect that nothing here performs; the verdict names it."""
        self.left_out_effects[type(effect).__name__] += 1

    def _signalled(self, daemon: Daemon, fields: Mapping[str, Any]) -> Signalled:
        """Say whether MIKE has to answer a signal by a new key."""
        device = daemon.device
        kind, peer = fields["kind"].lower(), address_said(fields["peer"])
        own = peer == device.address
        matters = own and kind != "leave"
        if kind == "leave" and not own:
            assert daemon.engine is not None
            status = daemon.engine.status(device.now())
            matters = status["role"] == "tm" and fields["peer"] in status["members"]
        return Signalled(self.now_ms, device.index, kind, peer, own, matters)

    def tell(self, record: Record) -> None:
        """Show a record to every checker.

        Raises:
            ViolationError: one objects.
        """
        for checker in self._concerned(type(record)):
            text = checker.record(record)
            if text is not None:
                raise ViolationError(
                    Violation(checker.name, record.at_ms, text, record.device, self.people.name)
                )

    def _concerned(self, kind: type[Record]) -> list[Checker]:
        """Return the checkers that look at such records."""
        found = self._watching.get(kind)
        if found is None:
            found = [
                checker
                for checker in self._checkers
                if issubclass(kind, checker.watches) and type(checker).record is not Checker.record
            ]
            self._watching[kind] = found
        return found

    def note(self, device: int, text: str) -> None:
        """Keep a line for the reader of a trace."""
        if self.notes is not None:
            self.notes.append((self.now_ms, device, text))

    # Looking at devices.

    def _sample(self) -> None:
        """Measure what every device holds, and go on."""
        for device in self.devices:
            self.tell(sample_of(device, self.now_ms, self.scenario.sample_ms))
        self.agenda.after(self.scenario.sample_ms * NS_PER_MS, self._sample)

    def views(self) -> list[View]:
        """Return what every live device says of itself whose certificate counts."""
        return [
            view_of(device, SA_GROUP, shared_sa=self._shared_sa)
            for device in self.devices
            if device.alive and device.index not in self.revoked
        ]
