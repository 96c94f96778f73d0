"""One end of the local interface: reliable, in order, at most once per instance of the receiver.

Pure state, used inside both engines. Sender: cumulative acknowledgements and go-back-N, because
datagrams on ::1 are lost only when a daemon is down or its buffer is full, and because a LEAVE
must never overtake its JOIN. Restarts: every end has an instance number (its UTC at the start), so
that serials can begin anew; the rules are in docs/local-interface.md.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Any

from protocol.core.engine import (
    CancelTimer,
    DatagramReceived,
    Effect,
    Instant,
    Log,
    SendDatagram,
    SetTimer,
)
from protocol.core.errors import LocalError, PeerError
from protocol.core.retransmit import NS_PER_MS, Backoff
from protocol.idpmike.messages import (
    Frame,
    FromIdp,
    GroupStatus,
    LinkOpened,
    Message,
    Reliable,
    Resync,
    Side,
    Signal,
    SignalAck,
    StatusAck,
    decode,
    direction_key,
    encode,
)

CHANNEL = "local"
TIMER = "local.retransmit"

OUTSTANDING_MAX = 1024
"""Messages waiting for an acknowledgement; more means that the other daemon is gone."""

FRESHNESS_NS = 30_000 * NS_PER_MS
"""How old a message may be whose sender has not yet learnt our instance."""

BACKOFF = Backoff(initial_ns=200 * NS_PER_MS, maximum_ns=1000 * NS_PER_MS, repetitions_max=8)
"""The loopback loses nothing but what overflows a buffer, so an early repetition only wakes both
daemons for nothing where many devices share a processor; doubled to 1 s, given up after 7 s."""

RULE_SOURCE = "LOCAL-2"


@dataclass(slots=True)
class _Pending:
    """A message that waits for its acknowledgement."""

    message: Reliable
    repetitions: int = 0


class LocalLink:
    """The link end of one daemon.

    Feed it every `DatagramReceived` on channel ``local`` and every `TimerExpired` whose name is
    `TIMER`. Create a new one (or call `begin`) whenever the engine starts a new instance.

    Attributes:
        last_serial: serial of the last message sent reliably.
        given_up_total: messages given up because they were never acknowledged.
    """

    __slots__ = (
        "_expected",
        "_instance",
        "_origin",
        "_outstanding",
        "_peer_instance",
        "_peer_origin",
        "_peer_side",
        "_receive_key",
        "_send_key",
        "_side",
        "given_up_total",
        "last_serial",
    )

    def __init__(self, secret: bytes, side: Side) -> None:
        self._side = side
        self._peer_side = Side.MIKE if side is Side.IDP else Side.IDP
        self._send_key = direction_key(secret, side)
        self._receive_key = direction_key(secret, self._peer_side)
        self._instance = 0
        self._origin = 0
        self._peer_instance = 0
        self._peer_origin = 0
        self._expected = 0
        self._outstanding: deque[_Pending] = deque()
        self.last_serial = 0
        self.given_up_total = 0

    @property
    def peer_instance(self) -> int:
        """The newest instance of the other daemon that we heard, 0 if none."""
        return self._peer_instance

    @property
    def outstanding(self) -> int:
        """Number of messages that wait for an acknowledgement."""
        return len(self._outstanding)

    def status(self) -> dict[str, Any]:
        """Describe the link as plain JSON values."""
        return {
            "instance": self._instance,
            "peer_instance": self._peer_instance,
            "outstanding": len(self._outstanding),
            "given_up_total": self.given_up_total,
        }

    # Sending.

    def begin(self, now: Instant) -> list[Effect]:
        """Start a new instance and tell the other daemon (`LinkOpened`).

        The first `send` or `handle` does it where it was not called.
        """
        self._instance = max(now.wall_ns, self._instance + 1)
        self._origin = self._instance
        self._peer_instance = 0
        self._peer_origin = 0
        self._expected = 0
        self._outstanding.clear()
        self.last_serial = 0
        return self._queue(LinkOpened(), now)

    def send(self, message: FromIdp | GroupStatus, now: Instant) -> list[Effect]:
        """Number, time-stamp and send a message; it is repeated until acknowledged."""
        allowed = FromIdp if self._side is Side.IDP else GroupStatus
        if not isinstance(message, allowed):
            raise LocalError(f"{type(message).__name__} is not for {self._side.name} to send")
        effects = self.begin(now) if self._instance == 0 else []
        return effects + self._queue(message, now)

    def _queue(self, message: Reliable, now: Instant) -> list[Effect]:
        """Send the first copy."""
        effects: list[Effect] = []
        if len(self._outstanding) >= OUTSTANDING_MAX:
            effects.append(self._give_up(self._outstanding.popleft()))
        idle = not self._outstanding
        self.last_serial += 1
        numbered: Reliable
        if isinstance(message, Signal | GroupStatus):
            numbered = replace(message, serial=self.last_serial, sent_wall_ns=now.wall_ns)
        else:
            numbered = replace(message, serial=self.last_serial)
        self._outstanding.append(_Pending(numbered))
        effects.append(self._datagram(numbered, now))
        if idle:
            effects.append(self._timer(now))
        return effects

    def _datagram(self, message: Message, now: Instant) -> SendDatagram:
        """Encode one copy with what we know now."""
        oldest = self.last_serial + 1
        if self._outstanding:
            oldest = self._outstanding[0].message.serial
        return self._encode(message, self._peer_instance, oldest, now)

    def _encode(self, message: Message, echo: int, oldest: int, now: Instant) -> SendDatagram:
        """Put a message into a frame of ours."""
        frame = Frame(self._instance, self._origin, echo, oldest, now.wall_ns, message)
        return SendDatagram(CHANNEL, encode(frame, self._send_key))

    def _timer(self, now: Instant) -> SetTimer:
        """Set the timer for the oldest message."""
        delay_ns = BACKOFF.delay_ns(self._outstanding[0].repetitions)
        return SetTimer(TIMER, now.mono_ns + delay_ns)

    def _give_up(self, pending: _Pending) -> Log:
        """Count a message that nobody acknowledged."""
        self.given_up_total += 1
        name = type(pending.message).__name__
        other = self._peer_side.name
        # That nobody listened to our start is usual: the other daemon may be parked.
        level = "info" if isinstance(pending.message, LinkOpened) else "warning"
        return Log(level, f"{other} never acknowledged {name} {pending.message.serial}")

    def on_timer(self, name: str, now: Instant) -> list[Effect]:
        """Repeat what is not acknowledged; other timers' names are ignored."""
        if name != TIMER:
            return []
        effects: list[Effect] = []
        while self._outstanding and BACKOFF.is_spent(self._outstanding[0].repetitions):
            effects.append(self._give_up(self._outstanding.popleft()))
        for pending in self._outstanding:
            pending.repetitions += 1
        return effects + self._send_all(now)

    def _send_all(self, now: Instant) -> list[Effect]:
        """Send every outstanding message again, in order."""
        if not self._outstanding:
            return []
        effects: list[Effect] = [self._datagram(p.message, now) for p in self._outstanding]
        effects.append(self._timer(now))
        return effects

    # Receiving.

    def handle(self, event: DatagramReceived, now: Instant) -> tuple[Reliable | None, list[Effect]]:
        """Take one datagram of channel ``local``.

        Returns:
            The message, once, if it is new and next in order (a `Signal` at MIKE, a `GroupStatus`
            at IDP, `LinkOpened` at both); and the effects, its acknowledgement among them.

        Raises:
            PeerError: not from ::1, not authentic, or not a message; nothing changed.
        """
        if not event.source.is_loopback:
            raise PeerError(RULE_SOURCE, f"local message from {event.source}")
        frame = decode(event.payload, self._receive_key, self._peer_side)
        if isinstance(frame.message, Resync):
            return None, self._on_resync(frame, frame.message, now)
        if not self._is_current(frame, now):
            return None, [*self._opening(now), self._resync(frame.instance, now)]
        effects = self._adopt(frame, now)
        effects += self._opening(now)
        if isinstance(frame.message, (SignalAck, StatusAck)):
            return None, effects + self._on_acknowledged(frame.message.serial, now)
        self._expected = max(self._expected, frame.oldest)
        fresh = frame.message.serial == self._expected
        if fresh:
            self._expected += 1
        effects.append(self._acknowledgement(now))
        return frame.message if fresh else None, effects

    def _opening(self, now: Instant) -> list[Effect]:
        """Begin on the first datagram where nobody called `begin`; keep whom we have adopted."""
        if self._instance != 0:
            return []
        adopted = (self._peer_instance, self._peer_origin, self._expected)
        self.begin(now)
        self._peer_instance, self._peer_origin, self._expected = adopted
        return self._send_all(now)

    def _is_current(self, frame: Frame, now: Instant) -> bool:
        """Say whether the frame is of the other daemon's newest instance and meant for ours.

        Without our echo a frame is believed at first contact only, if fresh; an instance that
        takes the place of one we know must prove by the echo that it lives now.
        """
        if frame.instance < self._peer_instance:
            return False
        if frame.echo != 0:
            return frame.echo == self._instance
        if isinstance(frame.message, (SignalAck, StatusAck)):
            return False
        if self._peer_instance not in (0, frame.instance):
            return False
        return abs(now.wall_ns - frame.sent_wall_ns) <= FRESHNESS_NS

    def _adopt(self, frame: Frame, now: Instant) -> list[Effect]:
        """Note a new instance of the other daemon; tell it at once what it has not acknowledged."""
        if frame.instance <= self._peer_instance:
            return []
        stale = self._peer_instance != 0 or any(p.repetitions for p in self._outstanding)
        self._learn(frame)
        return self._send_anew(now) if stale else []

    def _learn(self, frame: Frame) -> None:
        """Remember the other daemon's instance; another origin numbers its serials anew."""
        self._peer_instance = frame.instance
        if frame.origin != self._peer_origin:
            self._peer_origin = frame.origin
            self._expected = 0

    def _send_anew(self, now: Instant) -> list[Effect]:
        """Send every outstanding message again, with the back-off from its start."""
        for pending in self._outstanding:
            pending.repetitions = 0
        return self._send_all(now)

    def _resync(self, instance: int, now: Instant) -> SendDatagram:
        """Tell the sender of a frame we cannot accept which instances we know."""
        return self._encode(Resync(self._peer_instance), instance, self.last_serial + 1, now)

    def _on_resync(self, frame: Frame, message: Resync, now: Instant) -> list[Effect]:
        """Learn the other daemon's instance, and move ours above what it knows of us."""
        if self._instance == 0 or frame.echo != self._instance:
            return []
        known = (self._instance, self._peer_instance)
        if message.floor > self._instance:
            self._instance = message.floor + 1
        if frame.instance > self._peer_instance:
            self._learn(frame)
        if known == (self._instance, self._peer_instance):
            return []
        return self._send_anew(now)

    def _on_acknowledged(self, serial: int, now: Instant) -> list[Effect]:
        """Forget what the other daemon has handled."""
        progress = False
        while self._outstanding and self._outstanding[0].message.serial <= serial:
            self._outstanding.popleft()
            progress = True
        if not progress:
            return []
        if not self._outstanding:
            return [CancelTimer(TIMER)]
        return [self._timer(now)]

    def _acknowledgement(self, now: Instant) -> SendDatagram:
        """Acknowledge everything handled so far."""
        handled = self._expected - 1
        kind = SignalAck if self._side is Side.MIKE else StatusAck
        return self._datagram(kind(handled), now)
