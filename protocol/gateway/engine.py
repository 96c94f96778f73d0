"""An IDP security gateway as a sans-I/O engine: docs/gateways.md is its specification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from protocol.core.counters import RefusalLog, RuleCounters
from protocol.core.engine import (
    CancelTimer,
    DatagramReceived,
    Effect,
    Event,
    Instant,
    Log,
    Report,
    SendDatagram,
    SetTimer,
    Started,
    Stopped,
    TimerExpired,
)
from protocol.core.errors import PeerError
from protocol.gateway import rules
from protocol.gateway.config import GatewayConfig, Network
from protocol.gateway.events import (
    AnnouncePrefix,
    DeleteRoute,
    FetchKey,
    KeyFetched,
    LegPolled,
    SetRoute,
    WithdrawPrefix,
)
from protocol.gateway.forwarding import Forwarding
from protocol.gateway.legs import LegState
from protocol.gateway.messages import KIND_TABLE
from protocol.gateway.reach import Reach, Way, reach
from protocol.gateway.status import describe
from protocol.identity import Identity
from protocol.identity.envelope import PROTOCOL_IDP
from protocol.identity.identity import RefusedError
from protocol.mproxy.events import CountersRead, Upcall

_REFRESH = "gateway.refresh"
_SETTLE = "gateway.settle"
_SWEEP = "gateway.sweep"
_NS_PER_MS = 1_000_000


class GatewayEngine:
    """Legs, ways and flows of one gateway.

    Args:
        config: settings.
        identities: of each leg, by partition; no other engine signs or opens with them.
    """

    def __init__(self, config: GatewayConfig, identities: Mapping[str, Identity]) -> None:
        self._config = config
        self._identities = identities
        self._running = False
        self._counters = RuleCounters()
        self._refusals = RefusalLog()
        self._clear()

    def _clear(self) -> None:
        self._legs = {
            leg.partition: LegState(leg, self._identities[leg.partition], self._config)
            for leg in self._config.legs
        }
        self._own = {identity.me.fingerprint for identity in self._identities.values()}
        self._reach = Reach()
        self._routes: dict[Network, str] = {}
        self._forwarding = Forwarding(self._config)

    def handle(self, event: Event, now: Instant) -> Sequence[Effect]:
        """Consume one event; return what is to be done, in order."""
        out: list[Effect] = []
        if isinstance(event, Started):
            self._start(event, now, out)
        elif not rules.may_act(self._running):
            return out
        elif isinstance(event, Upcall):
            refusal = self._forwarding.upcall(event, self._reach, now, out)
            if refusal is not None:
                self._refuse(str(event.source), refusal, now, out)
        elif isinstance(event, DatagramReceived):
            self._datagram(event, now, out)
        elif isinstance(event, LegPolled):
            self._polled(event, now, out)
        elif isinstance(event, KeyFetched):
            self._keyed(event, now, out)
        elif isinstance(event, TimerExpired):
            self._timer(event.name, now, out)
        elif isinstance(event, CountersRead):
            strayed = self._forwarding.counted(event, now, out)
            if strayed:
                self._counters.count("GATE-15", strayed)
        elif isinstance(event, Stopped):
            self._stop(now, out)
        return out

    # Life.

    def _start(self, event: Started, now: Instant, out: list[Effect]) -> None:
        assert not self._running
        self._running = True
        for identity in self._identities.values():
            identity.begin(identity.startup_after(event.trigger_wall_ns))
        out += [
            SetTimer(_REFRESH, now.mono_ns + self._config.refresh_ms * _NS_PER_MS),
            SetTimer(_SWEEP, now.mono_ns + self._config.sweep_interval_ms * _NS_PER_MS),
        ]

    def _stop(self, now: Instant, out: list[Effect]) -> None:
        """GATE-17: leave nothing behind; say so, and the others take over at once."""
        for leg in self._legs.values():
            out += [WithdrawPrefix(leg.name, net) for net in _ordered(leg.told)]
            if leg.table is not None:
                self._send(leg, leg.say([])[1], now, out)
        out += [DeleteRoute(net, leg) for net, leg in self._routes.items()]
        out += self._forwarding.end()
        out += [CancelTimer(name) for name in (_REFRESH, _SETTLE, _SWEEP)]
        self._running = False
        self._clear()

    def _timer(self, name: str, now: Instant, out: list[Effect]) -> None:
        if name == _REFRESH:
            out.append(SetTimer(_REFRESH, now.mono_ns + self._config.refresh_ms * _NS_PER_MS))
            for leg in self._legs.values():
                leg.forget_silent(now.mono_ns)
            self._conclude(now, out, repeat=True)
        elif name == _SWEEP:
            out.append(SetTimer(_SWEEP, now.mono_ns + self._config.sweep_interval_ms * _NS_PER_MS))
            out += self._forwarding.sweep()
        elif name == _SETTLE:
            self._conclude(now, out)

    # What comes in.

    def _polled(self, event: LegPolled, now: Instant, out: list[Effect]) -> None:
        leg = self._legs[event.leg]
        changed = leg.look(event.view, now.mono_ns)
        epoch = leg.lacks_key
        if epoch is not None:
            out.append(FetchKey(leg.name, epoch))
        if changed:
            self._conclude(now, out)

    def _keyed(self, event: KeyFetched, now: Instant, out: list[Effect]) -> None:
        leg = self._legs[event.leg]
        if event.group_key is not None and leg.lacks_key == event.epoch:
            leg.learn(event.epoch, event.group_key, now.mono_ns)
            self._conclude(now, out)

    def _datagram(self, event: DatagramReceived, now: Instant, out: list[Effect]) -> None:
        leg = self._legs[event.channel]
        try:
            opened = leg.identity.open(
                event.payload, PROTOCOL_IDP, event.source, now, wanted=(KIND_TABLE,)
            )
        except RefusedError as error:
            out += error.effects
            return
        if opened is None or opened.peer.fingerprint in self._own:
            return
        try:
            changed = leg.hear(opened, now.mono_ns)
        except PeerError as error:
            self._refuse(opened.peer.name, error, now, out)
            return
        if changed:
            self._conclude(now, out)

    def _refuse(self, peer: str, error: PeerError, now: Instant, out: list[Effect]) -> None:
        self._counters.count(error.rule)
        if self._refusals.note(peer, error.rule, error.reason, now):
            out.append(Log("warning", f"refused of {peer}: {error.reason} ({error.rule})"))

    # What follows.

    def _settled(self, now: Instant, out: list[Effect]) -> list[str]:
        """Return the legs that may speak (GATE-13); be woken when the next one may."""
        settle_ns = self._config.settle_ms * _NS_PER_MS
        settled, waiting = [], []
        for leg in self._legs.values():
            if leg.since_mono_ns is None:
                continue
            if rules.has_settled(leg.since_mono_ns, now.mono_ns, settle_ns):
                settled.append(leg.name)
            else:
                waiting.append(leg.since_mono_ns + settle_ns)
        if waiting:
            out.append(SetTimer(_SETTLE, min(waiting)))
        return settled

    def _conclude(self, now: Instant, out: list[Effect], *, repeat: bool = False) -> None:
        """Do what follows from what the legs know; with ``repeat`` say it again in any case.

        Routes first: packets wait for them. Withdrawals before announcements: another gateway's
        announcement of the same prefix is refused as long as ours stands.
        """
        before, settled = self._reach, self._settled(now, out)
        self._reach = reach(self._legs, self._config, settled)
        self._forwarding.refit(self._reach, out)
        self._route(out)
        for rule, origin, reason in self._reach.left_out:
            if self._refusals.note(origin, rule, reason, now):
                self._counters.count(rule)
                out.append(Log("warning", f"left out of {origin}: {reason} ({rule})"))
        for partition in settled:
            leg = self._legs[partition]
            self._announce(leg, self._reach.prefixes(partition), out)
            news, bodies = leg.say(self._reach.claims(partition))
            if news and leg.left_out:
                self._counters.count("GATE-11", leg.left_out)
                text = f"table in {partition}: {leg.left_out} claims shortened (GATE-11)"
                out.append(Log("warning", text))
            if news or repeat:
                self._send(leg, bodies, now, out)
        self._report(before, out)

    @staticmethod
    def _send(leg: LegState, bodies: Sequence[bytes], now: Instant, out: list[Effect]) -> None:
        for body in bodies:
            payload = leg.identity.seal(PROTOCOL_IDP, KIND_TABLE, body, now)
            out.append(SendDatagram(leg.name, payload))

    def _route(self, out: list[Effect]) -> None:
        """GATE-6: route each prefix by the best way to it, whatever legs may lead there."""
        wanted = {net: way.leg for way in self._reach.ways.values() for net in way.prefixes}
        for net, leg in list(self._routes.items()):
            if wanted.get(net) != leg:
                del self._routes[net]
                out.append(DeleteRoute(net, leg))
        for net, leg in wanted.items():
            if net not in self._routes:
                self._routes[net] = leg
                out.append(SetRoute(net, leg))

    @staticmethod
    def _announce(leg: LegState, wanted: set[Network], out: list[Effect]) -> None:
        """Tell idpd what has changed, and what it has forgotten or kept of an earlier gatewayd."""
        announced = None if leg.view is None else leg.view.announced
        there = leg.told if announced is None else announced
        gone, new = (leg.told | there) - wanted, wanted - (leg.told & there)
        out += [WithdrawPrefix(leg.name, net) for net in _ordered(gone)]
        out += [AnnouncePrefix(leg.name, net) for net in _ordered(new)]
        leg.told = set(wanted)

    def _report(self, before: Reach, out: list[Effect]) -> None:
        """Trace where we begin and cease to speak for an origin."""
        for partition in self._legs:
            old, new = before.spoken.get(partition, {}), self._reach.spoken.get(partition, {})
            for origin in sorted(old.keys() | new.keys()):
                if (origin in old) != (origin in new):
                    way: Way = new[origin] if origin in new else old[origin]
                    fields = {"origin": origin, "into": partition, "path": list(way.path)}
                    point = "gateway.active" if origin in new else "gateway.standby"
                    out.append(Report(point, fields))

    # Status.

    def status(self, now: Instant) -> dict[str, Any]:
        """Describe the present state as plain JSON values; never key material."""
        counters = RuleCounters()
        refused = [entry.as_dict() for entry in self._refusals.recent()]
        sources = [self._counters.as_dict()]
        for identity in self._identities.values():
            sources.append(identity.refusals)
            refused += identity.recent_refusals
        for source in sources:
            for name, amount in source.items():
                counters.count(name, amount)
        return describe(self._legs.values(), self._reach, self._forwarding.flows, now) | {
            "counters": counters.as_dict(),
            "refused": refused,
        }


def _ordered(prefixes: set[Network] | frozenset[Network]) -> list[Network]:
    return sorted(prefixes, key=lambda net: (net.version, int(net.network_address), net.prefixlen))
