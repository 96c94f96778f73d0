"""Our own hellos: when one is sent, to whom, and whether the others can have heard us lately.

Pure state, owned and driven by the engine, which says what a hello contains.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from ipaddress import IPv6Address

from protocol.core.engine import CancelTimer, Effect, Instant, KeySource, SendDatagram, SetTimer
from protocol.identity import PROTOCOL_IDP, Identity
from protocol.idp import rules
from protocol.idp.config import IdpConfig
from protocol.idp.messages import Hello, MessageKind

GROUP = "group"
"""Channel of the black network."""

NS_PER_MS = 1_000_000

TIMER_HELLO = "idp.hello"
TIMER_ANSWER = "idp.answer"


class Hellos:
    """Sends hellos: the periodic ones, and those that answer new devices.

    Args:
        config: settings.
        identity: what seals.
        keys: where unpredictable bytes come from (jitter only).
        content: returns the hello to be sent now; its flag TRIGGERED is set here.
    """

    def __init__(
        self,
        config: IdpConfig,
        identity: Identity,
        keys: KeySource,
        content: Callable[[bool], Hello],
    ) -> None:
        self._config = config
        self._identity = identity
        self._keys = keys
        self._content = content
        self._interval_ns = config.hello_interval_ms * NS_PER_MS
        self._dead_interval_ns = config.dead_interval_ms * NS_PER_MS
        self.link_up = True
        self.forget()

    def forget(self) -> None:
        """Begin anew with an instance; the carrier's state stays."""
        self._sent_mono_ns: int | None = None
        self._audible_mono_ns: int | None = None
        self._cut_off_mono_ns: int | None = None
        self._answered_mono_ns: int | None = None
        self._newcomers: dict[IPv6Address, None] = {}

    # Sending.

    def first(self, now: Instant) -> list[Effect]:
        """Say hello for the first time in an instance; `next_timer` is the caller's to set."""
        return self._hello(now, triggered=False)

    def _hello(
        self, now: Instant, *, triggered: bool, destination: IPv6Address | None = None
    ) -> list[Effect]:
        """Send one hello, to the group unless there is a destination."""
        body = self._content(triggered).encode()
        payload = self._identity.seal(PROTOCOL_IDP, MessageKind.HELLO, body, now)
        if destination is None:
            self._sent_mono_ns = now.mono_ns
            if self.link_up:
                self._note_audible(now)
        return [SendDatagram(GROUP, payload, destination)]

    def next_timer(self, now: Instant) -> SetTimer:
        """Never later than announced: `dead_factor` - 1 lost hellos in a row must do no harm."""
        earlier_ns = self._random_below(self._config.jitter_ms * NS_PER_MS)
        return SetTimer(TIMER_HELLO, now.mono_ns + self._interval_ns - earlier_ns)

    def _random_below(self, bound_ns: int) -> int:
        """Return a random number below the bound, 0 if the bound is 0."""
        return int.from_bytes(self._keys.random_bytes(8), "big") % bound_ns if bound_ns else 0

    def on_due(self, now: Instant) -> list[Effect]:
        """Send the periodic hello; it also answers every device that waits for an answer."""
        effects = self._hello(now, triggered=False)
        if self._newcomers:
            self._newcomers.clear()
            effects.append(CancelTimer(TIMER_ANSWER))
        effects.append(self.next_timer(now))
        return effects

    def on_link_up(self, now: Instant) -> list[Effect]:
        """Say hello as soon as the carrier is back, unless we have just done so."""
        gap_ns = self._config.triggered_hello_gap_ms * NS_PER_MS
        if self._sent_mono_ns is not None and now.mono_ns - self._sent_mono_ns < gap_ns:
            return []
        return self.on_due(now)

    # Answers to new devices.

    def answer_later(self, address: IPv6Address, now: Instant) -> list[Effect]:
        """IDP-8: let a new device know us before our next hello is due."""
        waiting = bool(self._newcomers)
        self._newcomers[address] = None
        if waiting:
            return []
        at_mono_ns = rules.triggered_hello_mono_ns(
            now.mono_ns,
            self._answered_mono_ns,
            self._config.triggered_hello_gap_ms * NS_PER_MS,
            self._random_below(self._config.triggered_hello_spread_ms * NS_PER_MS),
        )
        return [SetTimer(TIMER_ANSWER, at_mono_ns)]

    def on_answer_due(self, now: Instant) -> list[Effect]:
        """Answer: one new device by unicast, so that the others need not verify it, more by one."""
        if not self._newcomers:
            return []
        only = next(iter(self._newcomers)) if len(self._newcomers) == 1 else None
        self._newcomers.clear()
        self._answered_mono_ns = now.mono_ns
        return self._hello(now, triggered=True, destination=only)

    def answer_early(self, members: Container[IPv6Address], now: Instant) -> list[Effect]:
        """Answer now if all new devices that wait for it have just become members.

        The key agreement, with which answers shall not compete, is over, and a device can make no
        unicast SAs with us before it has our pair key.
        """
        if not self._newcomers or not all(one in members for one in self._newcomers):
            return []
        return [CancelTimer(TIMER_ANSWER), *self.on_answer_due(now)]

    # Cut off or not (IDP-9).

    @property
    def cut_off(self) -> bool:
        """Whether the others take us for down, as far as we can know."""
        return self._cut_off_mono_ns is not None

    def _note_audible(self, now: Instant) -> None:
        """IDP-9: others may hear us now; remember if they have not for too long."""
        if rules.was_inaudible(self._audible_mono_ns, self._dead_interval_ns, now.mono_ns):
            self._cut_off_mono_ns = now.mono_ns
        self._audible_mono_ns = now.mono_ns

    def note_alone(self, now: Instant) -> None:
        """IDP-9: the last device that was up has fallen silent."""
        self._cut_off_mono_ns = now.mono_ns

    def is_reconnected(self, instance_first_mono_ns: int) -> bool:
        """IDP-9: whether hearing this instance ends the cut; True once for each cut."""
        if not rules.proves_reconnection(self._cut_off_mono_ns, instance_first_mono_ns):
            return False
        self._cut_off_mono_ns = None
        return True
