"""A few devices join a group in memory, so that the first real join finds everything warm.

The interpreter adapts each function to what it sees when it is called a few times (PEP 659), and
much is looked up for the first time then. Both engines are without I/O, so what they do in a join
can be done before one is urgent: devices that exist nowhere else, keys that are thrown away, time
that does not pass. Nothing of it leaves this process, and no state of it stays.
"""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.core.agenda import Agenda
from protocol.core.engine import (
    CancelTimer,
    DatagramReceived,
    Effect,
    Engine,
    Event,
    Instant,
    SendDatagram,
    SetTimer,
    Started,
    TimerExpired,
)
from protocol.core.timers import TimerTable
from protocol.daemon.entropy import OsKeySource
from protocol.daemon.sockets import LOCALHOST
from protocol.identity import Identity, KnownDevice, Peer
from protocol.idp.config import IdpConfig
from protocol.idp.engine import IdpEngine
from protocol.idp.events import (
    ApplyRoutes,
    ApplySas,
    FetchKey,
    KernelRead,
    KeyFetched,
    ReadKernel,
    RoutesApplied,
    SasApplied,
)
from protocol.ipsec.backend import Outcome
from protocol.mike.config import MikeConfig
from protocol.mike.engine import MikeEngine
from protocol.mike.events import PublishKey

DEVICES: Final = 4
"""The last of them joins a group with a tree of more than one level."""

JOIN_NS: Final = 4_000_000_000
"""For one device to become a member; the first waits for a while whether there is a group."""

LATENCY_NS: Final = 100_000

_FIRST = IPv6Address("2001:db8::1")
_SA_GROUP = IPv6Address("ff0e::1")
_BEGIN = Instant(1_000_000_000, 1_800_000_000_000_000_000)


class _Device:
    """Both engines of a device, and what the rest of it would keep."""

    def __init__(self, me: KnownDevice, key: Ed25519PrivateKey, known: list[KnownDevice]) -> None:
        keys = OsKeySource()
        secret = keys.random_bytes(32)
        idp, mike = Identity(me, key, known), Identity(me, key, known)
        self.address = me.peer.address
        self.engines: dict[str, Engine] = {
            "mike": MikeEngine(MikeConfig(), mike, secret, keys),
            "idp": IdpEngine(IdpConfig(sa_group=_SA_GROUP), idp, secret, keys),
        }
        self.timers = {side: TimerTable() for side in self.engines}
        self.key_directory: dict[str, bytes] = {}


class _Stage:
    """The devices, what is under way between their engines, and the time."""

    def __init__(self) -> None:
        signing_keys = [Ed25519PrivateKey.generate() for _ in range(DEVICES)]
        known = [
            KnownDevice(
                Peer(_FIRST + number, f"rehearsal{number}", "nation", bytes([number]) * 16),
                key.public_key(),
            )
            for number, key in enumerate(signing_keys)
        ]
        self.devices = [
            _Device(me, key, known) for me, key in zip(known, signing_keys, strict=True)
        ]
        self._agenda = Agenda()

    @property
    def now(self) -> Instant:
        """Virtual time."""
        passed_ns = self._agenda.now_ns
        return Instant(_BEGIN.mono_ns + passed_ns, _BEGIN.wall_ns + passed_ns)

    def start(self, device: _Device) -> None:
        """Switch a device on."""
        for side in device.engines:
            self._feed(device, side, Started(self.now.wall_ns))

    def run(self, duration_ns: int) -> None:
        """Let virtual time pass."""
        self._agenda.run(self._agenda.now_ns + duration_ns)

    def _feed(self, device: _Device, side: str, event: Event) -> None:
        for effect in device.engines[side].handle(event, self.now):
            answer = self._perform(device, side, effect)
            if answer is not None:
                self._agenda.after(0, self._feed, device, side, answer)

    def _wake(self, device: _Device, side: str) -> None:
        while (name := device.timers[side].pop_expired(self.now.mono_ns)) is not None:
            self._feed(device, side, TimerExpired(name))

    def _perform(self, device: _Device, side: str, effect: Effect) -> Event | None:
        """Do what a daemon would; what the kernel is asked for, it has done."""
        match effect:
            case SendDatagram("local", payload):
                other = "mike" if side == "idp" else "idp"
                event = DatagramReceived("local", LOCALHOST, payload)
                self._agenda.after(LATENCY_NS, self._feed, device, other, event)
            case SendDatagram(channel, payload, destination):
                event = DatagramReceived(channel, device.address, payload)
                for one in self.devices:
                    if one is not device and destination in (None, one.address):
                        self._agenda.after(LATENCY_NS, self._feed, one, side, event)
            case SetTimer(name, at_mono_ns):
                device.timers[side].set(name, at_mono_ns)
                self._agenda.at(at_mono_ns - _BEGIN.mono_ns, self._wake, device, side)
            case CancelTimer(name):
                device.timers[side].cancel(name)
            case ApplySas(label, operations):
                return SasApplied(label, [Outcome() for _ in operations])
            case ApplyRoutes(label, operations):
                return RoutesApplied(label, [Outcome() for _ in operations])
            case ReadKernel():
                return KernelRead(problem="a rehearsal has no kernel")
            case PublishKey(pointer, key):
                device.key_directory[pointer] = key
            case FetchKey(pointer):
                return KeyFetched(pointer, device.key_directory.get(pointer))
        return None


def rehearse() -> int:
    """Have devices join one after the other; return in how many the same epoch is in use."""
    stage = _Stage()
    for device in stage.devices:
        stage.start(device)
        stage.run(JOIN_NS)
    epochs = [device.engines["idp"].status(stage.now)["active_epoch"] for device in stage.devices]
    return 0 if epochs[0] is None else epochs.count(epochs[0])
