"""Our own hellos: when one is sent, to whom, signed or light, and whether others can have heard us.

Pure state, owned and driven by the engine, which says what a hello contains.

Hellos come in series. The first of a series is signed and begins a hash chain; number i follows at
most i steps later and reveals value i, alone (a light hello) or in a signed hello. A step is the
announced hello interval less the jitter, so that no two hellos are further apart than announced.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import NamedTuple

from protocol.core.engine import CancelTimer, Effect, Instant, KeySource, SendDatagram, SetTimer
from protocol.identity import PROTOCOL_IDP, Identity
from protocol.idp import lighthello, rules
from protocol.idp.config import IdpConfig
from protocol.idp.lighthello import CHAIN_LENGTH, Commitment, HashChain, LightHello
from protocol.idp.messages import Hello, MessageKind

GROUP = "group"
"""Channel of the black network."""

NS_PER_MS = 1_000_000

TIMER_HELLO = "idp.hello"
TIMER_ANSWER = "idp.answer"
TIMER_ASK = "idp.ask"


ASKED_SINGLY_MAX = 8
"""So many devices are asked one by one; for more, the periodic hello asks all."""


class Around(NamedTuple):
    """How the other devices are.

    Attributes:
        up: how many are up.
        lost: how many are lost.
        to_ask: those who shall prove that they are there (IDP-36).
    """

    up: int
    lost: int
    to_ask: tuple[IPv6Address, ...]


@dataclass(slots=True)
class _Series:
    """Hellos that all say the same.

    Attributes:
        number: counts the series of an instance.
        content: what they say, without the chain.
        chain: what makes the light ones authentic.
        began_mono_ns: when the first one was sent.
        step_ms: hello i follows at most i times this later.
        index: of the newest one.
    """

    number: int
    content: Hello
    chain: HashChain
    began_mono_ns: int
    step_ms: int
    index: int = 0

    def due_mono_ns(self, index: int) -> int:
        """When a hello is sent at the latest."""
        return self.began_mono_ns + index * self.step_ms * NS_PER_MS

    def next_index(self, now_mono_ns: int) -> int:
        """Return the index of the next hello if it is sent now."""
        return rules.next_index(
            self.index, now_mono_ns - self.began_mono_ns, self.step_ms * NS_PER_MS
        )

    def commitment(self, now_mono_ns: int) -> Commitment:
        """Say where the series is."""
        return Commitment(
            chain=self.number,
            index=self.index,
            length=self.chain.length,
            step_ms=self.step_ms,
            age_ms=(now_mono_ns - self.began_mono_ns) // NS_PER_MS,
            value=self.chain.value(self.index),
        )


class Hellos:
    """Sends hellos: the periodic ones, and those that answer or ask single devices.

    Args:
        config: settings.
        identity: what seals.
        keys: where unpredictable bytes come from (chains and jitter).
        content: returns what a hello says now, without flags and chain.
        around: returns how the others are at this time.

    Attributes:
        link_up: whether the black interface has a carrier.
    """

    def __init__(
        self,
        config: IdpConfig,
        identity: Identity,
        keys: KeySource,
        content: Callable[[], Hello],
        around: Callable[[Instant], Around],
    ) -> None:
        self._config = config
        self._identity = identity
        self._keys = keys
        self._content = content
        self._around = around
        self.link_up = True
        self.forget()

    def forget(self) -> None:
        """Begin anew with an instance; the carrier's state stays."""
        self._series: _Series | None = None
        self._series_count = 0
        self._sent_count = 0
        self._audible_mono_ns: int | None = None
        self._audible_for_ns = 0
        self._cut_off_mono_ns: int | None = None
        self._answered_mono_ns: int | None = None
        self._newcomers: dict[IPv6Address, None] = {}

    @property
    def interval_ms(self) -> int:
        """The hello interval that we announce."""
        if self._series is None:
            return self._config.hello_interval_ms
        return self._series.content.hello_interval_ms

    def random_below(self, bound_ns: int) -> int:
        """Return a random number below the bound, 0 if the bound is 0."""
        return int.from_bytes(self._keys.random_bytes(8), "big") % bound_ns if bound_ns else 0

    # The periodic hello.

    def first(self, now: Instant) -> list[Effect]:
        """Say hello for the first time in an instance; `next_timer` is the caller's to set."""
        return self._begin(self._content(), now)

    def next_timer(self) -> SetTimer:
        """Never later than announced: `dead_factor` - 1 lost hellos in a row must do no harm."""
        assert self._series is not None
        earlier_ns = self.random_below(self._config.jitter_ms * NS_PER_MS)
        due_mono_ns = self._series.due_mono_ns(self._series.index + 1)
        return SetTimer(TIMER_HELLO, due_mono_ns - earlier_ns)

    def on_due(self, now: Instant) -> list[Effect]:
        """Send the periodic hello; a signed one also answers every device that waits for one."""
        content = self._content()
        series = self._series
        around = self._around(now)
        ask_all = len(around.to_ask) > ASKED_SINGLY_MAX
        index = 0 if series is None else series.next_index(now.mono_ns)
        if series is None or content != series.content or index > series.chain.length:
            effects = self._begin(content, now, asking=ask_all)
        else:
            signs = ask_all or self._signs(series.index, index, around)
            series.index = index
            if signs:
                effects = self._signed(content, now, asking=ask_all)
            else:
                effects = self._light(series, now)
        if not ask_all:
            effects += self._ask(content, around, now)
        return [*effects, self.next_timer()]

    def _signs(self, last: int, index: int, around: Around) -> bool:
        """Whether this hello is signed although its content is old: others may not know it."""
        factor = self._config.dead_factor
        if self._sent_count < factor or not around.up:
            return True
        every = self._config.full_hello_every
        every = min(every, factor) if around.lost else every
        return index // every > last // every

    def on_ask_due(self, now: Instant) -> list[Effect]:
        """IDP-36: ask again who is still silent, until it answers or is taken for down."""
        around = self._around(now)
        if len(around.to_ask) > ASKED_SINGLY_MAX:
            return []
        return self._ask(self._content(), around, now)

    def _ask(self, content: Hello, around: Around, now: Instant) -> list[Effect]:
        """Ask each silent device, and again a quarter of a hello interval later or sooner.

        Not in step with any hello: a link that flips in step with ours would lose all of them. So
        often, because half of the questions are lost on a link that is out for half of the time.
        """
        if not around.to_ask:
            return []
        quarter_ns = content.hello_interval_ms * NS_PER_MS // 4
        again = SetTimer(TIMER_ASK, now.mono_ns + quarter_ns - self.random_below(quarter_ns // 2))
        return [
            *(
                effect
                for who in around.to_ask
                for effect in self._signed(content, now, who, asking=True)
            ),
            again,
        ]

    def _begin(self, content: Hello, now: Instant, *, asking: bool = False) -> list[Effect]:
        """Begin a series by a signed hello to all."""
        startup_wall_ns = self._identity.startup_wall_ns
        assert startup_wall_ns is not None
        number = self._series_count
        self._series_count += 1
        context = lighthello.context(self._identity.me.fingerprint, startup_wall_ns, number)
        seed = self._keys.random_bytes(lighthello.VALUE_LENGTH)
        self._series = _Series(
            number=number,
            content=content,
            chain=HashChain(context, seed, CHAIN_LENGTH),
            began_mono_ns=now.mono_ns,
            step_ms=content.hello_interval_ms - self._config.jitter_ms,
        )
        return self._signed(content, now, asking=asking)

    def _light(self, series: _Series, now: Instant) -> list[Effect]:
        """Say to all that nothing has changed."""
        startup_wall_ns = self._identity.startup_wall_ns
        assert startup_wall_ns is not None
        light = LightHello(
            fingerprint=self._identity.me.fingerprint,
            startup_wall_ns=startup_wall_ns,
            chain=series.number,
            index=series.index,
            value=series.chain.value(series.index),
        )
        self._note_sent(series.content, now)
        return [SendDatagram(GROUP, light.encode())]

    def _signed(
        self,
        content: Hello,
        now: Instant,
        destination: IPv6Address | None = None,
        *,
        triggered: bool = False,
        asking: bool = False,
    ) -> list[Effect]:
        """Send a signed hello, to the group unless there is a destination.

        It commits to the running series if it says the same; else the next periodic one begins one.
        """
        effects: list[Effect] = []
        series, chain = self._series, None
        if series is not None and content == series.content:
            chain = series.commitment(now.mono_ns)
        hello = content.marked(triggered=triggered, asking=asking, chain=chain)
        body = hello.encode()
        payload = self._identity.seal(PROTOCOL_IDP, MessageKind.HELLO, body, now, destination)
        effects.append(SendDatagram(GROUP, payload, destination))
        if destination is None:
            self._note_sent(hello, now)
            if self._newcomers:
                self._newcomers.clear()
                effects.append(CancelTimer(TIMER_ANSWER))
        return effects

    def _note_sent(self, hello: Hello, now: Instant) -> None:
        """A hello goes to all."""
        self._sent_count += 1
        if self.link_up:
            self._note_audible(hello.dead_interval_ns, now)

    def on_link_up(self, now: Instant) -> list[Effect]:
        """Say hello as soon as the carrier is back, unless we have just done so.

        If somebody was missed meanwhile, it asks: the next hello of who is silent may find the
        link out again. It asks all, because the kernel has forgotten its neighbours with the
        carrier and would have to look for each before it sent a question to it alone.
        """
        gap_ns = self._config.triggered_hello_gap_ms * NS_PER_MS
        audible_mono_ns = self._audible_mono_ns
        if audible_mono_ns is not None and now.mono_ns - audible_mono_ns < gap_ns:
            return []
        missed = bool(self._around(now).to_ask)
        return self._signed(self._content(), now, asking=missed)

    # Answers.

    def answer_later(
        self, address: IPv6Address, now: Instant, *, asked: bool = False
    ) -> list[Effect]:
        """IDP-8: let a new device know us before our next hello is due; who asked, at once."""
        waiting = bool(self._newcomers)
        self._newcomers[address] = None
        if waiting:
            return []
        spread_ns = self._config.triggered_hello_spread_ms * NS_PER_MS
        at_mono_ns = rules.triggered_hello_mono_ns(
            now.mono_ns,
            self._answered_mono_ns,
            self._config.triggered_hello_gap_ms * NS_PER_MS,
            0 if asked else self.random_below(spread_ns),
        )
        return [SetTimer(TIMER_ANSWER, at_mono_ns)]

    def on_answer_due(self, now: Instant) -> list[Effect]:
        """Answer: one new device by unicast, so that the others need not verify it, more by one."""
        if not self._newcomers:
            return []
        only = next(iter(self._newcomers)) if len(self._newcomers) == 1 else None
        self._newcomers.clear()
        self._answered_mono_ns = now.mono_ns
        return self._signed(self._content(), now, only, triggered=True)

    def ask(self, address: IPv6Address, now: Instant) -> list[Effect]:
        """Ask a device for a signed hello."""
        return self._signed(self._content(), now, address, asking=True)

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

    def _note_audible(self, dead_interval_ns: int, now: Instant) -> None:
        """IDP-9: others may hear us now; remember if they have not for too long."""
        if rules.was_inaudible(self._audible_mono_ns, self._audible_for_ns, now.mono_ns):
            self._cut_off_mono_ns = now.mono_ns
        self._audible_mono_ns = now.mono_ns
        self._audible_for_ns = dead_interval_ns

    def note_alone(self, now: Instant) -> None:
        """IDP-9: the last device that was up has fallen silent."""
        self._cut_off_mono_ns = now.mono_ns

    def is_reconnected(self, instance_first_mono_ns: int) -> bool:
        """IDP-9: whether hearing this instance ends the cut; True once for each cut."""
        if self._cut_off_mono_ns is None:
            return False
        if not rules.proves_reconnection(self._cut_off_mono_ns, instance_first_mono_ns):
            return False
        self._cut_off_mono_ns = None
        return True
