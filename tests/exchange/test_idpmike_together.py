"""IDP and MIKE whole: both engines of every device on virtual time, SADs in memory compared.

As the paper measured it: two devices first, then more, one at a time; then they leave.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from protocol.core.engine import (
    CancelTimer,
    DatagramReceived,
    Effect,
    Event,
    SendDatagram,
    SetTimer,
    Started,
    Stopped,
    TimerExpired,
)
from protocol.idp.config import IdpConfig, SaMode, Unicast
from protocol.idp.events import SaExpired
from protocol.ipsec.model import PolicyDirection, SecurityAssociation, Suite
from protocol.ipsec.snapshot import SadSnapshot
from protocol.mike.config import MikeConfig
from protocol.mike.engine import MikeEngine
from protocol.mike.events import PublishKey, RetireKey
from tests.support.fakelink import (
    LATENCY_NS,
    LOCAL_LATENCY_NS,
    LOOPBACK,
    SA_GROUP,
    Device,
    Network,
    SeededKeys,
)
from tests.support.identities import make_identities

PAPER = IdpConfig(
    sa_group=SA_GROUP, unicast=Unicast.OFF, sa_mode=SaMode.PAPER, suite=Suite.TDES_SHA1
)


class WholeDevice(Device):
    """A device with the real MIKE."""

    def __init__(
        self, net: Network, index: int, config: IdpConfig, mike: MikeConfig | None = None
    ) -> None:
        super().__init__(net, index, config)
        self.mike_timers: dict[str, int] = {}
        identity = make_identities(net.size)[index]
        self.mike_engine = MikeEngine(
            mike or MikeConfig(), identity, self.secret, SeededKeys(f"mike {index}")
        )

    def start(self) -> None:
        self.feed_mike(Started(self.net.now.wall_ns))
        super().start()

    def kill(self) -> None:
        """Both daemons vanish; the kernel keeps what it has."""
        self.connected = False

    def stop_all(self) -> None:
        """Orderly: IDP first, as the paper's leave, MIKE a moment later."""
        self.stop()
        self.net.after(50_000_000, lambda: self.feed_mike(Stopped()))

    def feed_mike(self, event: Event) -> None:
        for effect in self.mike_engine.handle(event, self.net.now):
            self._perform_one_of_mike(effect)

    def _perform_one_of_mike(self, effect: Effect) -> None:
        match effect:
            case SendDatagram("local", payload, _):
                event = DatagramReceived("local", LOOPBACK, payload)
                self.net.after(LOCAL_LATENCY_NS, lambda: self.feed(event))
            case SendDatagram("group", payload, destination):
                if self.connected:
                    event = DatagramReceived("group", self.address, payload)
                    for device in self.net.devices:
                        if destination in (None, device.address):
                            self.net.after(
                                LATENCY_NS, lambda device=device: self._to_mike(device, event)
                            )
            case SetTimer(name, at_mono_ns):
                self.mike_timers[name] = at_mono_ns
                self.net.at(at_mono_ns, lambda: self._mike_expire(name, at_mono_ns))
            case CancelTimer(name):
                self.mike_timers.pop(name, None)
            case PublishKey(pointer, key):
                self.key_directory[pointer] = key
            case RetireKey(pointer):
                self.key_directory.pop(pointer, None)
            case _:
                pass

    @staticmethod
    def _to_mike(device: Device, event: DatagramReceived) -> None:
        assert isinstance(device, WholeDevice)
        if device.connected:
            device.feed_mike(event)

    def _mike_expire(self, name: str, at_mono_ns: int) -> None:
        if self.mike_timers.get(name) == at_mono_ns:
            del self.mike_timers[name]
            self.feed_mike(TimerExpired(name))

    def _mike_receives(self, payload: bytes) -> None:
        self.feed_mike(DatagramReceived("local", LOOPBACK, payload))


def network(
    size: int, config: IdpConfig | None = None, mike: MikeConfig | None = None
) -> tuple[Network, list[WholeDevice]]:
    net = Network(size, config)
    config = config or IdpConfig(sa_group=SA_GROUP, unicast=Unicast.OFF)
    devices = [WholeDevice(net, index, config, mike) for index in range(size)]
    net.devices = list(devices)
    return net, devices


def agree(devices: Iterable[WholeDevice], *, paper: bool = False) -> None:
    """Same epoch, same SPIs, same keys on all; each sends with what it has."""
    devices = list(devices)
    states = [device.status() for device in devices]
    assert len({state["epoch"] for state in states}) == 1, [s["epoch"] for s in states]
    assert states[0]["epoch"] is not None
    assert {state["active_epoch"] for state in states} == {states[0]["epoch"]}
    snapshots = [SadSnapshot.of(device.backend.dump_sas()) for device in devices]
    digests = {s.digest_without_source if paper else s.digest for s in snapshots}
    assert len(digests) == 1
    assert all(len(s.entries) == (1 if paper else len(devices)) for s in snapshots)
    assert all(device.backend.errors == [] for device in devices)


@pytest.mark.parametrize("config", [None, PAPER], ids=["per-sender", "paper"])
def test_successive_joins_then_leaves(config: IdpConfig | None) -> None:
    net, devices = network(6, config)
    paper = config is not None
    for count, device in enumerate(devices, 1):
        device.start()
        net.run(4000)
        agree(devices[:count], paper=paper)
    # one leaves by shutting IDP down, one by cutting the cable
    devices[5].stop_all()
    net.run(9000)
    agree(devices[:5], paper=paper)
    assert devices[5].backend.dump_sas() == []
    devices[4].connected = False
    net.run(9000)
    agree(devices[:4], paper=paper)


@pytest.mark.parametrize("mode", ["ka", "kd"])
@pytest.mark.parametrize("index", [0, 2])
def test_who_has_sent_much_gets_one_new_epoch_for_all(index: int, mode: str) -> None:
    """IDP-63: the kernel of one device says that its SA has carried 80 % of its bytes."""
    config = IdpConfig(sa_group=SA_GROUP, unicast=Unicast.OFF, sa_lifetime_bytes=10**6)
    net, devices = network(4, config, MikeConfig(mode=mode))
    for device in devices:
        device.start()
        net.run(2000)
    before = devices[0].mike_engine.current
    assert before is not None
    number = before.epoch.number
    (worn,) = own_group_sas(devices[index])
    devices[index].feed(SaExpired(worn.id, hard=False))
    for _ in range(400):
        net.run(10)
        for sender in devices:
            # Whatever a device sends at this moment, all others can read.
            assert sender.status()["active_epoch"] is not None
            active = [sa for sa in own_group_sas(sender) if sa.spi == pinned_spi(sender)]
            assert len(active) == 1
            assert all(d.backend.receives(active[0]) for d in devices if d is not sender)
    epochs = {device.mike_engine.current.epoch for device in devices}
    assert len(epochs) == 1
    assert epochs.pop().number == number + 1
    assert own_group_sas(devices[index])[0].id != worn.id


def own_group_sas(device: WholeDevice) -> list[SecurityAssociation]:
    """Return the SAs with which a device may send to the group."""
    return [sa for sa in device.backend.dump_sas() if sa.source == device.address]


def pinned_spi(device: WholeDevice) -> int:
    """Return the SPI that the device's policy names."""
    policies = device.backend.dump_policies()
    (spi,) = {p.template_spi for p in policies if p.direction is PolicyDirection.OUT}
    return spi


def test_flap_causes_no_rekey() -> None:
    net, devices = network(3)
    for device in devices:
        device.start()
        net.run(4000)
    before = devices[0].status()["epoch"]
    for _ in range(5):
        devices[2].connected = False
        net.run(2500)
        devices[2].connected = True
        net.run(1500)
    net.run(3000)
    agree(devices)
    assert devices[0].status()["epoch"] == before


@pytest.mark.parametrize("intervals", [1, 2, 3, 4, 5])
def test_link_that_flips_faster_than_the_dead_interval_causes_no_rekey(intervals: float) -> None:
    """Neither from IDP nor from MIKE, whose beacons have the same mean period as the hellos."""
    net, devices = network(3)
    for device in devices:
        device.start()
        net.run(4000)
    before = devices[0].status()["epoch"]
    for _ in range(max(6, int(20 / intervals))):
        for up in (False, True):
            devices[2].link(up)
            net.run(intervals * 500)
    net.run(12_000)
    agree(devices)
    assert devices[0].status()["epoch"] == before


def test_device_that_was_cut_off_is_back_with_a_new_key() -> None:
    net, devices = network(4)
    for device in devices:
        device.start()
        net.run(4000)
    devices[3].link(False)
    net.run(9000)
    agree(devices[:3])
    devices[3].link(True)
    net.run(9000)
    agree(devices)


def test_restarted_device_is_back() -> None:
    net, devices = network(3)
    for device in devices:
        device.start()
        net.run(4000)
    devices[1].stop_all()
    net.run(500)
    devices[1].start()
    net.run(9000)
    agree(devices)


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happened_the_devices_that_are_there_agree(seed: int) -> None:
    """Random starts, stops, cuts and heals of five devices; then 30 quiet seconds."""
    draw = random.Random(seed)
    config = PAPER if seed % 2 else None
    net, devices = network(5, config)
    up: set[int] = set()
    cut: set[int] = set()
    for _ in range(14):
        action = draw.choice(["start", "stop", "cut", "heal", "wait"])
        index = draw.randrange(5)
        device = devices[index]
        if action == "start" and index not in up:
            device.start()
            up.add(index)
        elif action == "stop" and index in up - cut:
            device.stop_all()
            up.remove(index)
            net.run(100)
        elif action == "cut" and index in up - cut:
            device.link(False)
            cut.add(index)
        elif action == "heal" and index in cut:
            device.link(True)
            cut.remove(index)
        net.run(draw.choice([10, 300, 1500, 6000]))
    for index in sorted(cut):
        devices[index].link(True)
    net.run(30_000)
    if up:
        agree([devices[index] for index in sorted(up)], paper=config is not None)
    for index in set(range(5)) - up:
        assert devices[index].backend.dump_sas() == []
