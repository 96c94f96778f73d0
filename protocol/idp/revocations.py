"""Revocation lists between devices: who notices that a peer has others asks for what is newer.

Every hello carries a digest of the sender's lists. Lists travel between devices that know each
other, and are believed because a nation's CA signed them (`protocol.identity.trust`).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from ipaddress import IPv6Address

from protocol.core.counters import RuleCounters
from protocol.core.engine import Effect, Instant, Log, SendDatagram, SetTimer
from protocol.identity import PROTOCOL_IDP, CrlEntry, Identity, Peer
from protocol.idp.documents import ENTRIES_MAX, LENGTH_MAX, Request, Subject, fits, split
from protocol.idp.hellos import GROUP
from protocol.idp.messages import NO_DIGEST, MessageKind

TIMER_TRUST = "idp.trust"

PEERS_MAX = 512
"""Peers remembered because their lists differ from ours."""

DELAY_NS = 250_000_000
"""From the first hello with another digest to the question: by then others may have asked."""

GAP_NS = 2_000_000_000
GAP_MAX_NS = 60_000_000_000
"""The question is repeated after this while both digests stay as they are, doubling up to that: two
devices with different anchors never agree."""


@dataclass(slots=True)
class _Differing:
    """A peer whose digest is not ours."""

    address: IPv6Address
    digests: tuple[bytes, bytes]
    due_mono_ns: int
    gap_ns: int = GAP_NS


class Revocations:
    """Owned and driven by `protocol.idp.exchange`."""

    def __init__(self, identity: Identity, counters: RuleCounters) -> None:
        self._identity = identity
        self._counters = counters
        self.forget()

    def forget(self) -> None:
        """Begin anew with an instance."""
        self._differing: OrderedDict[bytes, _Differing] = OrderedDict()
        self._timer_set = False
        self.refresh()

    def refresh(self) -> None:
        """Compute our digest again: the store has changed."""
        store = self._identity.store
        self.digest = NO_DIGEST if store is None else store.digest()

    # Asking.

    def settles(self, peer: Peer, digest: bytes) -> bool:
        """Forget a question to a peer that has our lists by now; False: it has others."""
        if digest != self.digest and self._identity.store is not None:
            return False
        if self._differing:
            self._differing.pop(peer.fingerprint, None)
        return True

    def on_hello(self, peer: Peer, digest: bytes, now: Instant, delay_ns: int) -> list[Effect]:
        """IDP-55: note that a peer has other lists; its question comes a little later.

        Args:
            peer: who sent the hello.
            digest: in it.
            now: the time.
            delay_ns: random, below `DELAY_NS`.
        """
        known = self._differing.get(peer.fingerprint)
        if known is None or known.digests != (digest, self.digest):
            due_mono_ns = now.mono_ns + delay_ns
            known = _Differing(peer.address, (digest, self.digest), due_mono_ns)
            self._differing[peer.fingerprint] = known
            if len(self._differing) > PEERS_MAX:
                self._differing.popitem(last=False)
        if self._timer_set:
            return []
        self._timer_set = True
        return [SetTimer(TIMER_TRUST, max(now.mono_ns + delay_ns, known.due_mono_ns))]

    def on_timer(self, now: Instant) -> list[Effect]:
        """Ask one peer whose lists still differ and whose time has come; later the next."""
        self._timer_set = False
        effects: list[Effect] = []
        for fingerprint, known in list(self._differing.items()):
            if known.digests[1] != self.digest:
                del self._differing[fingerprint]  # its next hello says whether it still differs
                continue
            if known.due_mono_ns <= now.mono_ns:
                known.due_mono_ns = now.mono_ns + known.gap_ns
                known.gap_ns = min(2 * known.gap_ns, GAP_MAX_NS)
                effects += self._ask(known.address, now)
                break
        waiting = [known.due_mono_ns for known in self._differing.values()]
        if waiting:
            self._timer_set = True
            effects.append(SetTimer(TIMER_TRUST, max(min(waiting), now.mono_ns + DELAY_NS // 5)))
        return effects

    def _ask(self, to: IPv6Address, now: Instant) -> list[Effect]:
        self._counters.count("idp.revocations_asked")
        request = Request(Subject.REVOCATIONS, entries=self._entries())
        body = request.encode()
        sealed = self._identity.seal(PROTOCOL_IDP, MessageKind.REQUEST, body, now, to)
        return [SendDatagram(GROUP, sealed, to)]

    def _entries(self) -> tuple[CrlEntry, ...]:
        store = self._identity.store
        return () if store is None else store.entries()[:ENTRIES_MAX]

    # Answering.

    def on_request(self, peer: Peer, request: Request, now: Instant) -> list[Effect]:
        """Send what the peer lacks; ask back if it has something newer."""
        store = self._identity.store
        if store is None:
            return []
        theirs = {entry.issuer: (entry.number, entry.issued_s) for entry in request.entries}
        ours = {item.issuer_id: item for item in store.revocations}
        effects: list[Effect] = []
        for issuer, item in ours.items():
            if issuer not in theirs or theirs[issuer] < item.version:
                effects += self._send(item.der, peer.address, now)
        newer = [i for i, version in theirs.items() if i in ours and version > ours[i].version]
        known = self._differing.get(peer.fingerprint)
        if newer and (known is None or known.due_mono_ns <= now.mono_ns):
            effects += self._ask(peer.address, now)
        return effects

    def announce(self, lists: list[bytes], now: Instant) -> list[Effect]:
        """Send lists to everybody."""
        return [effect for der in lists for effect in self._send(der, None, now)]

    def _send(self, der: bytes, to: IPv6Address | None, now: Instant) -> list[Effect]:
        if not fits(der):
            text = f"a revocation list of {len(der)} bytes is too long to hand on: more than"
            return [Log("error", f"{text} {LENGTH_MAX}; every device needs it as a file")]
        self._counters.count("idp.revocations_sent")
        parts = [part.encode() for part in split(der)]
        seal = self._identity.seal
        return [
            SendDatagram(GROUP, seal(PROTOCOL_IDP, MessageKind.REVOCATIONS, body, now, to), to)
            for body in parts
        ]
