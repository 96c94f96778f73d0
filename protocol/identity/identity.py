"""One device's identity: it seals our messages and opens those of known devices.

`Identity.open` is the only door for black-side datagrams (IDP's light hellos continue one that came
through it). Cheap checks come before the signature, and nothing but a counter changes before the
signature was verified. Chains were verified when the certificates were read
(`protocol.identity.certificates`); per message only the validity windows, a few comparisons and one
Ed25519 verification remain.

Absent on purpose: X.509, files, clocks, randomness. An Identity can be built from in-memory keys
(tests/support/identities.py does).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address
from itertools import chain
from typing import TYPE_CHECKING, Any, NoReturn

from cryptography.exceptions import InvalidSignature

from protocol.core.antireplay import AntiReplayWindow
from protocol.core.counters import RefusalLog, RuleCounters
from protocol.core.engine import Effect, Instant, Log
from protocol.core.errors import DecodeError, LocalError, PeerError
from protocol.identity import envelope
from protocol.identity.envelope import MARKS_MAX, Envelope
from protocol.identity.known import KnownDevice, Peer, SigningKey
from protocol.identity.marks import Agree, Marks, static_secret
from protocol.identity.shedding import Shedding

if TYPE_CHECKING:
    from protocol.identity.trust import TrustStore

FRESHNESS_MS_DEFAULT = 30_000
"""How far the sender's clock may be from ours. Bounds for how long a recorded message can be
replayed to a device that has no replay window for the sender yet; NTP keeps clocks far closer."""

STRANGERS_MAX = 32
"""Refusals remembered of senders whose certificate we do not know: anyone can invent those, so they
have a table of their own and never push out what we know of our peers."""

RULE_PROTOCOL = "AUTH-2"
RULE_FRESHNESS = "AUTH-3"
RULE_UNKNOWN = "AUTH-4"
RULE_CHAIN = "AUTH-5"
RULE_REVOKED = "AUTH-7"
RULE_ADDRESS = "AUTH-8"
RULE_SIGNATURE = "AUTH-9"
RULE_REPLAY = "AUTH-10"
RULE_BARRED = "AUTH-11"


@dataclass(frozen=True, slots=True)
class Opened:
    """An authenticated message.

    Attributes:
        peer: who signed it.
        kind: message type of the protocol.
        startup_wall_ns: start-up time-stamp of the sender's instance.
        sequence: number of the message in that instance.
        sent_wall_ns: the sender's UTC when it sealed the message.
        body: the protocol's message, authentic but not yet decoded.
    """

    peer: Peer
    kind: int
    startup_wall_ns: int
    sequence: int
    sent_wall_ns: int
    body: bytes


class RefusedError(PeerError):
    """A datagram was refused by `Identity.open`.

    Attributes:
        peer: who it claimed to be from: a device's name, else the source address.
        effects: a `Log` line if one is due (one per peer and rule a minute), else empty.
    """

    def __init__(self, rule: str, reason: str, peer: str, *, log_due: bool) -> None:
        super().__init__(rule, reason)
        self.peer = peer
        line = f"refused a message of {peer}: {reason} ({rule})"
        self.effects: list[Effect] = [Log("warning", line)] if log_due else []


class UnknownCertificateError(RefusedError):
    """A datagram of a certificate we do not have; nothing in it is authenticated.

    Attributes:
        envelope: what it claims.
        plausible: whether it is fresh and comes from the address it names: worth a question.
    """

    def __init__(self, envelope: Envelope, peer: str, *, plausible: bool, log_due: bool) -> None:
        reason = f"unknown certificate {envelope.fingerprint.hex()}"
        super().__init__(RULE_UNKNOWN, reason, peer, log_due=log_due)
        self.envelope = envelope
        self.plausible = plausible


@dataclass(slots=True)
class _Stream:
    """Replay state of one sender in one protocol."""

    startup_wall_ns: int
    window: AntiReplayWindow


class Identity:
    """Seals and opens for one instance of one daemon; two daemons have one each.

    Attributes:
        me: our own certificate's words.
        startup_wall_ns: start-up time-stamp given to `begin`, or None before.
        store: the certificates behind what we know; None where identities are made in memory.
            Whoever changes it calls `trust` with its devices.
        opened: messages that were authentic, fresh and new.
        sheds: says of a datagram, at a monotonic time in ns, whether `open` would drop it as one of
            too many, and counts it.
        shedding: in whose names too much is forged; it counts the changes of whom we know.
    """

    def __init__(
        self,
        own: KnownDevice,
        signing_key: SigningKey,
        devices: Iterable[KnownDevice],
        *,
        freshness_ms: int = FRESHNESS_MS_DEFAULT,
        store: TrustStore | None = None,
        agree: Agree = static_secret,
    ) -> None:
        self.me = own.peer
        self.store = store
        self.startup_wall_ns: int | None = None
        self._earlier_wall_ns = -1
        self._own = own
        self._signing_key = signing_key
        self._freshness_ns = freshness_ms * 1_000_000
        self._sequence = 0
        self._streams: dict[tuple[int, IPv6Address], _Stream] = {}
        self._counters = RuleCounters()
        self._refused_known = RefusalLog()
        self._refused_strangers = RefusalLog(STRANGERS_MAX)
        self._devices: dict[bytes, KnownDevice] = {}
        self._by_address: dict[IPv6Address, KnownDevice] = {}
        self._barred: dict[IPv6Address, str] = {}
        self._marks = Marks(own, signing_key, agree)
        self._receivers: tuple[KnownDevice, ...] = ()
        self.shedding = Shedding(self._marks, self._counters)
        self.sheds = self.shedding.drops
        self.opened = 0
        self.trust(devices)

    def __repr__(self) -> str:
        return f"Identity({self.me.name}, {self.me.address})"

    # Whom we know.

    def trust(self, devices: Iterable[KnownDevice]) -> None:
        """Replace the known devices (at start-up, or after certificates or CRLs were re-read).

        Replay windows of devices that stay known are kept.
        """
        ordered = sorted(devices, key=_preference)
        self._devices = {d.peer.fingerprint: d for d in ordered}
        self._own = self._devices.pop(self.me.fingerprint, self._own)
        self._by_address = {}
        for device in ordered:
            if device.refusal is None:
                self._by_address.setdefault(device.peer.address, device)
        self._by_address[self.me.address] = self._own
        known = {d.peer.address for d in ordered}
        self._streams = {key: s for key, s in self._streams.items() if key[1] in known}
        self._barred = {who: why for who, why in self._barred.items() if who in known}
        self._receivers = tuple(
            device for _, device in sorted(self._by_address.items()) if device is not self._own
        )
        self._marks.keep(self._devices)
        self.shedding.know(self._devices)

    def agree(self, most: int | None = None) -> None:
        """Compute what marks are made with now, rather than when a message is urgent.

        Args:
            most: with so many devices, in the order in which they are marked for; None: with all.
        """
        for device in self._receivers[:most]:
            self._marks.begun(device)

    def peer_by_address(self, address: IPv6Address) -> Peer | None:
        """Return the trusted device (or us) with this black address."""
        device = self._by_address.get(address)
        return None if device is None else device.peer

    def trusted_peers(self, now: Instant | None = None) -> tuple[Peer, ...]:
        """Return the other devices whose certificate is acceptable, ordered by address.

        Args:
            now: leave out those not valid at this time; None: look at the chain only.
        """
        return tuple(
            device.peer
            for device in self._receivers
            if now is None or device.problem(now.wall_ns) is None
        )

    def knows(self, fingerprint: bytes) -> bool:
        """Return whether we have this certificate, or it is ours."""
        return fingerprint in self._devices or fingerprint == self.me.fingerprint

    def problem_with(self, fingerprint: bytes, now: Instant) -> str | None:
        """Say why messages of this certificate are refused, whoever sends them, or None."""
        device = self._devices.get(fingerprint)
        if device is None:
            return "unknown certificate"
        problem = device.problem(now.wall_ns)
        return None if problem is None else problem[1]

    def bar(self, address: IPv6Address, reason: str | None) -> None:
        """Refuse all messages of a known device from now on (AUTH-11); None: no longer."""
        if reason is None:
            self._barred.pop(address, None)
        elif address in self._by_address:
            self._barred[address] = reason

    def bar_nobody(self) -> None:
        """Forget whom `bar` named."""
        self._barred.clear()

    def own_problem(self, now: Instant) -> str | None:
        """Say why other devices will refuse our own certificate, or None."""
        problem = self._own.problem(now.wall_ns)
        return None if problem is None else problem[1]

    # Sending.

    def begin(self, startup_wall_ns: int) -> None:
        """Start a new instance: later messages carry this time-stamp, numbered from 0.

        Raises:
            LocalError: the time-stamp is not above the last one used.
        """
        if self.startup_wall_ns is not None and startup_wall_ns <= self.startup_wall_ns:
            raise LocalError("a new instance needs a larger start-up time-stamp than the last one")
        if not 0 <= startup_wall_ns < 1 << 64:
            raise LocalError(f"start-up time-stamp {startup_wall_ns} does not fit in 64 bits")
        self.startup_wall_ns = startup_wall_ns
        self._sequence = 0

    def remember(self, startup_wall_ns: int) -> None:
        """Know the start-up time-stamp of an earlier process: the next one will be larger."""
        self._earlier_wall_ns = max(self._earlier_wall_ns, startup_wall_ns)

    def forget_instances(self) -> None:
        """Forget our last start-up time-stamps: a wrong clock made them, and nobody believed them.

        `begin` comes before the next message.
        """
        self.startup_wall_ns, self._earlier_wall_ns = None, -1

    def startup_after(self, trigger_wall_ns: int) -> int:
        """Return the start-up time-stamp of an instance that begins at this trigger.

        It is the trigger's time, unless the clock was set back since the last instance began: then
        the others would take us for that one (AUTH-10).
        """
        last = self._earlier_wall_ns
        if self.startup_wall_ns is not None:
            last = max(last, self.startup_wall_ns)
        return max(trigger_wall_ns, last + 1)

    def seal(
        self,
        protocol: int,
        kind: int,
        body: bytes,
        now: Instant,
        to: IPv6Address | None = None,
        *,
        marked: bool = True,
    ) -> bytes:
        """Number, time-stamp, sign and mark a message; return the datagram.

        Args:
            protocol: its number.
            kind: of the message.
            body: the protocol's message.
            now: goes with it.
            to: the device that gets it; None: everybody.
            marked: whether it has marks, which make it longer.

        Raises:
            LocalError: `begin` was not called, or the body is too long.
        """
        if self.startup_wall_ns is None:
            raise LocalError("seal before begin: the instance has no start-up time-stamp")
        marked_for = self._marks.room(body, self._addressed(to)) if marked else []
        unsigned = Envelope(
            protocol=protocol,
            kind=kind,
            sender=self.me.address,
            fingerprint=self.me.fingerprint,
            startup_wall_ns=self.startup_wall_ns,
            sequence=self._sequence,
            sent_wall_ns=now.wall_ns,
            body=body,
            mark_count=len(marked_for),
        ).encode_unsigned()
        self._sequence += 1
        signed = unsigned + self._signing_key.sign(envelope.to_sign(unsigned))
        return signed + self._marks.made(signed, marked_for)

    def _addressed(self, to: IPv6Address | None) -> Iterator[KnownDevice]:
        """Return whom a message is marked for; if not all fit, other messages are for the rest."""
        if to is not None:
            device = self._by_address.get(to)
            return iter(() if device is None else (device,))
        everybody = self._receivers
        first = self._sequence % len(everybody) if len(everybody) > MARKS_MAX else 0
        return chain(everybody[first:], everybody[:first])

    # Receiving.

    def open(
        self,
        datagram: bytes,
        protocol: int,
        source: IPv6Address,
        now: Instant,
        *,
        wanted: Container[int] | None = None,
    ) -> Opened | None:
        """Check a datagram in full; return it authenticated.

        Returns:
            None for our own message (multicast loops back) and for a kind that is not in
            ``wanted``: both are dropped before any cryptography and without a count. None also for
            what is too much (`protocol.identity.shedding`): that is counted.

        Raises:
            RefusedError: (a `PeerError`) anything else; already counted.
        """
        if self.sheds(datagram, now.mono_ns):
            return None
        try:
            message = envelope.decode(datagram)
        except DecodeError as error:
            self.shedding.explained(now)
            self._refuse_stranger(error.rule, error.reason, source, now)
        if message.protocol != protocol:
            reason = f"protocol {message.protocol} on the socket of protocol {protocol}"
            self._refuse_stranger(RULE_PROTOCOL, reason, source, now)
        if message.fingerprint == self.me.fingerprint:
            return None
        if wanted is not None and message.kind not in wanted:
            return None
        device = self._devices.get(message.fingerprint)
        if device is None:
            self._refuse_unknown(message, source, now)
        self._check_claims(message, device, source, now)
        # Before the signature, so that what is replayed costs none; marked only after it.
        self._check_replay(message, device, now)
        try:
            device.verify_key.verify(message.signature, envelope.signed_part(datagram))
        except InvalidSignature:
            self.shedding.in_vain(device.peer.fingerprint, now)
            self._refuse(RULE_SIGNATURE, "signature does not verify", device, now)
        self._admit(message, device)
        self.shedding.in_order(device, now)
        return Opened(
            peer=device.peer,
            kind=message.kind,
            startup_wall_ns=message.startup_wall_ns,
            sequence=message.sequence,
            sent_wall_ns=message.sent_wall_ns,
            body=message.body,
        )

    def vouch(self, fingerprint: bytes, source: IPv6Address, now: Instant) -> Peer:
        """Return whose certificate this is, if messages from there may be believed at all.

        For messages that are no envelopes (IDP's light hello): nothing is authenticated here.

        Raises:
            RefusedError: unknown, revoked or invalid certificate, or another address (AUTH-4 to
                AUTH-8); already counted.
        """
        device = self._devices.get(fingerprint)
        if device is None:
            reason = f"unknown certificate {fingerprint.hex()}"
            self._refuse_stranger(RULE_UNKNOWN, reason, source, now)
        self._check_certificate(device, source, source, now)
        return device.peer

    def _check_claims(
        self, message: Envelope, device: KnownDevice, source: IPv6Address, now: Instant
    ) -> None:
        """Refuse what comparisons alone can refuse, before the signature."""
        age_ns = now.wall_ns - message.sent_wall_ns
        if abs(age_ns) > self._freshness_ns:
            side = "old" if age_ns > 0 else "ahead of our clock"
            reason = f"message is {abs(age_ns) / 1e9:.1f} s {side}"
            self._refuse(RULE_FRESHNESS, reason, device, now)
        if message.startup_wall_ns > message.sent_wall_ns + self._freshness_ns:
            self._refuse(RULE_FRESHNESS, "start-up time-stamp lies in the future", device, now)
        self._check_certificate(device, message.sender, source, now)

    def _check_certificate(
        self, device: KnownDevice, sender: IPv6Address, source: IPv6Address, now: Instant
    ) -> None:
        """Refuse a certificate that is not acceptable now, or not for this address."""
        problem = device.problem(now.wall_ns)
        if problem is not None:
            self._refuse(*problem, device, now)
        certified = device.peer.address
        # Most often they are one object, which is found out faster.
        if not (sender is source is certified or sender == source == certified):
            reason = f"sent from {source} as {sender}, its certificate is for {certified}"
            self._refuse(RULE_ADDRESS, reason, device, now)
        barred = self._barred.get(certified) if self._barred else None
        if barred is not None:
            self._refuse(RULE_BARRED, barred, device, now)

    def _check_replay(self, message: Envelope, device: KnownDevice, now: Instant) -> None:
        """Refuse what was there before, of the newest instance or of an older one."""
        stream = self._streams.get((message.protocol, device.peer.address))
        if stream is None or message.startup_wall_ns > stream.startup_wall_ns:
            return
        if message.startup_wall_ns < stream.startup_wall_ns:
            self._refuse(RULE_REPLAY, "message of an earlier instance", device, now)
        if not stream.window.is_fresh(message.sequence):
            self._refuse(RULE_REPLAY, "sequence number repeated or too old", device, now)

    def _admit(self, message: Envelope, device: KnownDevice) -> None:
        """Note an authentic message; a larger start-up time-stamp restarts the window."""
        self.opened += 1
        key = (message.protocol, device.peer.address)
        stream = self._streams.get(key)
        if stream is None or message.startup_wall_ns > stream.startup_wall_ns:
            stream = self._streams[key] = _Stream(message.startup_wall_ns, AntiReplayWindow())
        stream.window.mark(message.sequence)

    # Refusals.

    def _refuse_stranger(
        self, rule: str, reason: str, source: IPv6Address, now: Instant
    ) -> NoReturn:
        """Count and refuse a datagram that names no certificate of ours."""
        self._counters.count(rule)
        peer = str(source)
        log_due = self._refused_strangers.note(peer, rule, reason, now)
        raise RefusedError(rule, reason, peer, log_due=log_due)

    def _refuse_unknown(self, message: Envelope, source: IPv6Address, now: Instant) -> NoReturn:
        """Count and refuse a datagram of a certificate we do not have, with what it claims."""
        self._counters.count(RULE_UNKNOWN)
        reason = f"unknown certificate {message.fingerprint.hex()}"
        log_due = self._refused_strangers.note(str(source), RULE_UNKNOWN, reason, now)
        fresh = abs(now.wall_ns - message.sent_wall_ns) <= self._freshness_ns
        plausible = fresh and message.sender == source
        raise UnknownCertificateError(message, str(source), plausible=plausible, log_due=log_due)

    def _refuse(self, rule: str, reason: str, device: KnownDevice, now: Instant) -> NoReturn:
        """Count and refuse a datagram that names a certificate we know."""
        self._counters.count(rule)
        peer = device.peer.name
        log_due = self._refused_known.note(peer, rule, reason, now)
        raise RefusedError(rule, reason, peer, log_due=log_due)

    @property
    def refusals(self) -> dict[str, int]:
        """Refused datagrams per rule."""
        return self._counters.as_dict()

    @property
    def counters(self) -> dict[str, int]:
        """Refused datagrams per rule, and under ``auth.opened`` those that were not refused."""
        return {**self.refusals, "auth.opened": self.opened}

    @property
    def recent_refusals(self) -> list[dict[str, Any]]:
        """The last refusals for ``status``, newest first: peer, rule, reason, last_wall_ns, count.

        The peer is a claim; before the signature is verified anyone can make it.
        """
        both = self._refused_known.recent() + self._refused_strangers.recent()
        both.sort(key=lambda refusal: refusal.last_wall_ns, reverse=True)
        return [refusal.as_dict() for refusal in both]


def _preference(device: KnownDevice) -> tuple[bool, int, bytes]:
    """Order certificates of one address: acceptable, then newest, then any fixed order."""
    newest = max((window.start_wall_ns for window in device.validity), default=0)
    return device.refusal is not None, -newest, device.peer.fingerprint
