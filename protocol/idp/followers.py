"""What we know of the others' hello chains: whether a hello, signed or light, still counts.

Pure state, owned and driven by the engine. A signed hello is taken in after its envelope was
verified; a light one is nothing but a claim until its value leads to one that was signed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from protocol.core.buckets import Bucket
from protocol.core.counters import RuleCounters
from protocol.core.engine import DatagramReceived, Effect, Instant
from protocol.core.errors import PeerError
from protocol.identity import Identity, Opened, Peer, RefusedError
from protocol.idp import lighthello, rules
from protocol.idp.connectivity import ConnectivityTable, PeerEntry
from protocol.idp.lighthello import Commitment, LightHello
from protocol.idp.messages import Hello

NS_PER_MS = 1_000_000

IN_VAIN_PER_S = 50
"""Light hellos that do not count which are looked at in full in a second."""

AHEAD_MAX = 8
"""When there were more, only values so little ahead of the newest one: who lost as many hellos has
taken their sender for down."""


@dataclass(slots=True)
class Follower:
    """The newest signed hello of one certificate, and how far its chain was revealed to us.

    Attributes:
        peer: who signed it.
        startup_wall_ns: its instance.
        sequence: its number in the envelope.
        hello: what it said.
        chain: number of its chain, or None if it began none.
        chain_context: see `lighthello.context`.
        index: newest index known to us.
        value: the value with that index.
        length: largest index of the chain.
        step_ns: a value is revealed up to this long after the one before.
        interval_ns: the announced hello interval.
        slack_ns: the announced dead interval: so late a hello still counts.
        began_mono_ns: when the chain began, never too early by more than the clocks differ.
    """

    peer: Peer
    startup_wall_ns: int
    sequence: int
    hello: Hello
    chain: int | None = None
    chain_context: bytes = field(default=b"", repr=False)
    index: int = 0
    value: bytes = field(default=b"", repr=False)
    length: int = 0
    step_ns: int = 0
    interval_ns: int = 0
    slack_ns: int = 0
    began_mono_ns: int = 0

    def earlier(self, began_mono_ns: int) -> None:
        """A hello shows that the chain began no later than this; the windows get narrower."""
        self.began_mono_ns = min(self.began_mono_ns, began_mono_ns)

    def sent_mono_ns(self, commitment: Commitment) -> int:
        """Return when a signed hello of this chain was sent, by our clock."""
        return self.began_mono_ns + commitment.age_ms * NS_PER_MS


Refuse = Callable[[str, PeerError, Instant], list[Effect]]
"""Counts what broke a rule, logs it if a line is due; the peer's name comes first."""

Heard = tuple[Peer, int, Hello, PeerEntry | None]
"""Whose hello, the start-up time-stamp of which instance, what it says, and what the connectivity
table has of that device."""


class Followers:
    """One `Follower` for each certificate that has signed a hello, by fingerprint.

    Args:
        identity: whom we trust.
        counters: count the hellos that count.
        refuse: the engine's.
    """

    def __init__(self, identity: Identity, counters: RuleCounters, refuse: Refuse) -> None:
        self._identity = identity
        self._counters = counters
        self._refuse = refuse
        self._known: dict[bytes, Follower] = {}
        self._in_vain = Bucket(IN_VAIN_PER_S, 0, burst_s=1)

    def check_signed(self, opened: Opened, hello: Hello, arrived: Instant) -> None:
        """Refuse a signed hello that does not count any more; changes nothing.

        Raises:
            PeerError: overtaken by a later one (IDP-39), or too late (IDP-35).
        """
        known = self._known.get(opened.peer.fingerprint)
        if known is None or known.startup_wall_ns != opened.startup_wall_ns:
            return
        rules.check_not_overtaken(opened.sequence, known.sequence)
        commitment = hello.chain
        if commitment is None or commitment.chain != known.chain:
            return
        if not rules.was_just_signed(opened.sent_wall_ns, known.slack_ns, arrived.wall_ns):
            rules.check_in_time(known.sent_mono_ns(commitment), known.slack_ns, arrived.mono_ns)

    def take_signed(self, opened: Opened, hello: Hello, arrived: Instant) -> None:
        """Remember a signed hello that counts, and where its chain is.

        One that comes too late by its chain, but was signed just now, is right about the chain:
        its sender's clock stood still. Then the chain began as long before the signature as it
        says, and the signature was made when the wall clocks say.
        """
        self._counters.count("idp.hello_signed")
        fingerprint = opened.peer.fingerprint
        fresh = Follower(opened.peer, opened.startup_wall_ns, opened.sequence, hello)
        if hello.chain is not None:
            self._commit(fresh, hello, hello.chain, arrived.mono_ns)
            known = self._known.get(fingerprint)
            if (
                known is not None
                and known.startup_wall_ns == fresh.startup_wall_ns
                and known.chain == fresh.chain
            ):
                sent_mono_ns = known.sent_mono_ns(hello.chain)
                if rules.is_in_time(sent_mono_ns, known.slack_ns, arrived.mono_ns):
                    fresh.earlier(known.began_mono_ns)
                else:
                    self._counters.count("idp.chain_moved")
                    transit_ns = max(arrived.wall_ns - opened.sent_wall_ns, 0)
                    fresh.earlier(fresh.began_mono_ns - transit_ns)
                if known.index > fresh.index:
                    fresh.index, fresh.value = known.index, known.value
        self._known[fingerprint] = fresh

    @staticmethod
    def _commit(
        fresh: Follower, hello: Hello, commitment: Commitment, arrived_mono_ns: int
    ) -> None:
        fresh.chain = commitment.chain
        fresh.chain_context = lighthello.context(
            fresh.peer.fingerprint, fresh.startup_wall_ns, commitment.chain
        )
        fresh.index, fresh.value = commitment.index, commitment.value
        fresh.length = commitment.length
        fresh.step_ns = commitment.step_ms * NS_PER_MS
        fresh.slack_ns = hello.dead_interval_ns
        fresh.interval_ns = hello.hello_interval_ms * NS_PER_MS
        fresh.began_mono_ns = arrived_mono_ns - commitment.age_ms * NS_PER_MS

    def sheds(self, payload: bytes, mono_ns: int) -> bool:
        """Say whether a light hello of a known device's address is one of too many, and count it.

        What passes is still to be checked. Who goes on with its chain always passes.
        """
        if self._in_vain.has_one(mono_ns):
            return False
        light, known = lighthello.peeked(payload), None
        if light is not None:
            known = self._known.get(light.fingerprint)
        if light is None or known is None:
            rule = "IDP-30" if light is None else "IDP-32"
        elif (known.startup_wall_ns, known.chain) != (light.startup_wall_ns, light.chain):
            rule = "IDP-32"
        elif not known.index < light.index <= known.index + AHEAD_MAX:
            rule = "IDP-33"
        elif lighthello.leads_to(
            known.chain_context, light.index, light.value, known.index, known.value
        ):
            return False
        else:
            rule = "IDP-34"
        self._counters.count(rule)
        return True

    def read_light(
        self, event: DatagramReceived, table: ConnectivityTable, arrived: Instant, now: Instant
    ) -> tuple[Heard | None, list[Effect]]:
        """Take a datagram that begins as a light hello; return what it repeats if it counts."""
        try:
            light = LightHello.decode(event.payload)
        except PeerError as error:
            self._in_vain.take(now.mono_ns)
            return None, self._refuse(str(event.source), error, now)
        if light.fingerprint == self._identity.me.fingerprint:
            return None, []
        try:
            peer = self._identity.vouch(light.fingerprint, event.source, now)
        except RefusedError as refused:
            self._in_vain.take(now.mono_ns)
            return None, refused.effects
        try:
            if light.fingerprint not in self._known:  # those signed, and were looked at then
                rules.check_not_own_address(peer.address, self._identity.me.address)
            entry = table.get(peer.address)
            listed_wall_ns = None if entry is None else entry.startup_wall_ns
            known = self.take_light(light, listed_wall_ns, arrived.mono_ns)
        except PeerError as error:
            self._in_vain.take(now.mono_ns)
            return None, self._refuse(peer.name, error, now)
        self._counters.count("idp.hello_light")
        return (peer, light.startup_wall_ns, known.hello, entry), []

    def take_light(
        self, light: LightHello, listed_wall_ns: int | None, arrived_mono_ns: int
    ) -> Follower:
        """Verify a light hello; return whose it is and what it repeats.

        Args:
            light: from an address that its certificate is for.
            listed_wall_ns: start-up time-stamp of that device in the connectivity table, or None:
                only a signed hello makes an entry.
            arrived_mono_ns: when it arrived.

        Raises:
            PeerError: it continues nothing that we know (IDP-32), its index is used up (IDP-33), it
                is too late (IDP-35), or its value is not of the chain (IDP-34).
        """
        known = self._known.get(light.fingerprint)
        if known is None or not listed_wall_ns == known.startup_wall_ns == light.startup_wall_ns:
            rules.fail_unknown_chain()
        if known.chain != light.chain:
            rules.fail_unknown_chain()
        rules.check_index(light.index, known.index, known.length)
        due_ns = light.index * known.step_ns
        rules.check_in_time(known.began_mono_ns + due_ns, known.slack_ns, arrived_mono_ns)
        rules.check_value(
            lighthello.leads_to(
                known.chain_context, light.index, light.value, known.index, known.value
            )
        )
        known.index, known.value = light.index, light.value
        # It was revealed no earlier than the jitter before its time.
        known.earlier(arrived_mono_ns - due_ns + known.interval_ns - known.step_ns)
        return known
