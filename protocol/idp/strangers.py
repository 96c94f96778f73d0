"""Certificates of devices that we do not know: we ask for theirs, and hand out our own.

Nothing here is authenticated before a certificate is learned, so everything is bounded: what is
remembered, what is sent, what is parsed, what is signed (IDP-51 to IDP-54). Nobody can be made to
receive more bytes from us than were sent in his name: a question is never longer than the message
that caused it, and our certificate goes only where a cookie came back from.

::

    A (does not know B)                       B (does not know A)
     |<------------------ hello ---------------------|
     |---- request(certificate of B) --------------->|
     |<--- request(returned, cookie) ----------------|   as long as the question
     |---- request(certificate of B, cookie) ------->|
     |<--- certificate, in parts --------------------|
     |  verified: the hello that was kept is read now
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Container
from dataclasses import dataclass, field
from ipaddress import IPv6Address

from protocol.core.buckets import Bucket
from protocol.core.counters import RuleCounters
from protocol.core.engine import DatagramReceived, Effect, Instant, SendDatagram
from protocol.core.errors import PeerError
from protocol.identity import (
    PROTOCOL_IDP,
    Identity,
    KnownDevice,
    UnknownCertificateError,
)
from protocol.identity.envelope import OVERHEAD, Envelope
from protocol.idp.documents import (
    COOKIE_LENGTH,
    NO_COOKIE,
    REQUEST_LENGTH,
    Assembler,
    Part,
    Request,
    Subject,
    decode_chain,
    encode_chain,
    split,
)
from protocol.idp.hellos import GROUP
from protocol.idp.messages import MessageKind

ASKED_MAX = 64
"""Strangers of whom an answer is awaited."""

REFUSED_MAX = 256
"""Fingerprints remembered because their certificate was refused."""

SOURCES_MAX = 256
"""Sources remembered because they were asked."""

ASK_GAP_NS = 500_000_000
"""One source is asked at most this often, whatever it sends."""

ASKS_PER_S = 50
RETURNS_PER_S = 50
ANSWERS_PER_S = 50
"""Questions, cookies and certificates a second, each with the burst of `Bucket`: every one of them
costs us a signature."""

PATIENCE_NS = 3_000_000_000
"""An answer that takes longer is not awaited any more."""

REFUSED_NS = 60_000_000_000
"""A certificate that was refused is not asked for again for so long."""

HELD_MAX = 1024
"""Bytes of the message that is kept until its sender's certificate is there."""

WINDOW_NS = 10_000_000_000
"""A cookie is good for this time and the next of the same length."""

CHAIN_PARTS_MAX = 5
"""Parts in which a chain that we would accept can come."""

_COOKIE_LABEL = b"idpmike cookie v1\x00"


@dataclass(slots=True)
class _Asked:
    """A stranger whose certificate we asked for."""

    fingerprint: bytes
    at_mono_ns: int
    cookies: int = 0
    held: DatagramReceived | None = field(default=None, repr=False)


class Strangers:
    """Owned and driven by `protocol.idp.exchange`.

    Args:
        identity: what seals, and whose store learns.
        counters: of the engine.
    """

    def __init__(self, identity: Identity, counters: RuleCounters) -> None:
        self._identity = identity
        self._counters = counters
        self.begin(bytes(32))

    def begin(self, secret: bytes) -> None:
        """Begin anew with an instance.

        Args:
            secret: 32 fresh bytes; keys the cookies.
        """
        self._secret = secret
        self._asked: OrderedDict[IPv6Address, _Asked] = OrderedDict()
        self._last_asked: OrderedDict[IPv6Address, int] = OrderedDict()
        self._refused: OrderedDict[bytes, int] = OrderedDict()
        self._asks = Bucket(ASKS_PER_S, 0)
        self._returns = Bucket(RETURNS_PER_S, 0)
        self._answers = Bucket(ANSWERS_PER_S, 0)
        self._assembler = Assembler()
        self._chain: bytes | None = None
        self._received: OrderedDict[IPv6Address, int] = OrderedDict()
        self.released: list[DatagramReceived] = []
        self.met: list[IPv6Address] = []

    @property
    def awaited(self) -> int:
        """Return of how many strangers an answer is awaited."""
        return len(self._asked)

    # A message of a certificate that we do not have.

    def on_message(
        self,
        error: UnknownCertificateError,
        event: DatagramReceived,
        now: Instant,
        in_use: Container[IPv6Address],
    ) -> tuple[KnownDevice | None, list[Effect]]:
        """Take a message that could not be authenticated.

        Returns:
            A device whose certificate was learned from it, and the effects.

        Raises:
            PeerError: what is wrong with it, or with the certificate in it.
        """
        envelope = error.envelope
        if not error.plausible or event.source == self._identity.me.address:
            return None, []
        if envelope.kind == MessageKind.CERTIFICATE:
            return self._on_certificate(envelope, event, now, in_use), []
        effects: list[Effect] = []
        if envelope.kind == MessageKind.REQUEST:
            request = Request.decode(envelope.body)
            if request.returned:
                return None, self._on_cookie(request, envelope, now)
            effects, proven = self._answer(request, envelope, now)
            if not proven:
                return None, effects  # a question in return would be a second answer to it
        return None, effects + self._ask(envelope, event, now)

    def _ask(self, envelope: Envelope, event: DatagramReceived, now: Instant) -> list[Effect]:
        """IDP-51: ask the sender for its certificate, by no longer message than it sent."""
        source, fingerprint = event.source, envelope.fingerprint
        if len(event.payload) < OVERHEAD + REQUEST_LENGTH:
            self._counters.count("IDP-51")
            return []
        kept = envelope.kind == MessageKind.HELLO and len(event.payload) <= HELD_MAX
        return self._question(source, fingerprint, event if kept else None, now)

    def on_light(self, event: DatagramReceived, fingerprint: bytes, now: Instant) -> list[Effect]:
        """IDP-51: ask the sender of light hellos once they are together as long as the question."""
        source = event.source
        if source == self._identity.me.address:
            return []
        received = self._received.pop(source, 0) + len(event.payload)
        if received >= OVERHEAD + REQUEST_LENGTH:
            return self._question(source, fingerprint, None, now)
        self._received[source] = received
        if len(self._received) > SOURCES_MAX:
            self._received.popitem(last=False)
        return []

    def _question(
        self, source: IPv6Address, fingerprint: bytes, held: DatagramReceived | None, now: Instant
    ) -> list[Effect]:
        """IDP-52: ask for a certificate if there is room in the bounds."""
        if not self._may_ask(source, fingerprint, now.mono_ns):
            self._counters.count("IDP-52")
            return []
        asked = _Asked(fingerprint, now.mono_ns, held=held)
        self._asked[source] = asked
        self._asked.move_to_end(source)
        if len(self._asked) > ASKED_MAX:
            self._asked.popitem(last=False)
        self._counters.count("idp.certificate_asked")
        return [self._send(Request(Subject.CERTIFICATE, fingerprint), source, now)]

    def _may_ask(self, source: IPv6Address, fingerprint: bytes, now_mono_ns: int) -> bool:
        """IDP-52: one question per source and gap, so many in all, none for what was refused."""
        refused = self._refused.get(fingerprint)
        if refused is not None and now_mono_ns - refused < REFUSED_NS:
            return False
        last = self._last_asked.get(source)
        if last is not None and now_mono_ns - last < ASK_GAP_NS:
            return False
        if not self._asks.take(now_mono_ns):
            return False
        self._last_asked[source] = now_mono_ns
        self._last_asked.move_to_end(source)
        if len(self._last_asked) > SOURCES_MAX:
            self._last_asked.popitem(last=False)
        return True

    def _on_cookie(self, request: Request, envelope: Envelope, now: Instant) -> list[Effect]:
        """Whom we asked wants to know that we are where we say: ask again with its cookie."""
        asked = self._asked.get(envelope.sender)
        wanted = asked is not None and asked.fingerprint == envelope.fingerprint
        if asked is None or not wanted or asked.cookies > 1 or request.cookie == NO_COOKIE:
            self._counters.count("IDP-54")
            return []
        asked.cookies += 1
        again = Request(Subject.CERTIFICATE, asked.fingerprint, request.cookie)
        return [self._send(again, envelope.sender, now)]

    def _on_certificate(
        self,
        envelope: Envelope,
        event: DatagramReceived,
        now: Instant,
        in_use: Container[IPv6Address],
    ) -> KnownDevice | None:
        """IDP-54: take a part of the certificate we asked for; learn it when it is complete."""
        asked = self._asked.get(event.source)
        if asked is None or asked.fingerprint != envelope.fingerprint:
            raise PeerError("IDP-54", "a certificate that was not asked for")
        if now.mono_ns - asked.at_mono_ns > PATIENCE_NS:
            raise PeerError("IDP-54", "a certificate that comes too late")
        part = Part.decode(envelope.body)
        if part.count > CHAIN_PARTS_MAX:
            raise PeerError("IDP-54", f"a certificate in {part.count} parts")
        document = self._assembler.add(event.source, envelope.kind, part, now.mono_ns)
        if document is None:
            return None
        del self._asked[event.source]
        store = self._identity.store
        assert store is not None
        try:
            device = store.learn(
                decode_chain(document),
                now.wall_ns,
                source=event.source,
                claimed=asked.fingerprint,
                in_use=in_use,
            )
        except PeerError:
            self._refused[asked.fingerprint] = now.mono_ns
            if len(self._refused) > REFUSED_MAX:
                self._refused.popitem(last=False)
            raise
        if asked.held is not None:
            self.released.append(asked.held)
        else:
            self.met.append(event.source)
        return device

    # Our own certificate.

    def _answer(
        self, request: Request, envelope: Envelope, now: Instant
    ) -> tuple[list[Effect], bool]:
        """IDP-53: answer a stranger: a cookie first, our certificate to who returns it.

        Returns:
            The effects, and whether the stranger is proven to be where it says.
        """
        own = self._identity.me.fingerprint
        if request.subject is not Subject.CERTIFICATE or request.fingerprint != own:
            self._counters.count("idp.asked_for_other")
            return [], False
        window = now.mono_ns // WINDOW_NS + 1
        if any(
            hmac.compare_digest(request.cookie, self._cookie(envelope, each))
            for each in (window, window - 1)
        ):
            return self.hand_out(envelope.sender, now), True
        if not self._returns.take(now.mono_ns):
            self._counters.count("IDP-53")
            return [], False
        cookie = self._cookie(envelope, window)
        returned = Request(Subject.CERTIFICATE, own, cookie, returned=True)
        return [self._send(returned, envelope.sender, now)], False

    def hand_out(self, to: IPv6Address, now: Instant) -> list[Effect]:
        """Send our certificate and its chain to a device that is where it says."""
        store = self._identity.store
        if store is None or not self._answers.take(now.mono_ns):
            self._counters.count("IDP-53")
            return []
        if self._chain is None:
            self._chain = encode_chain(store.own_chain())
        self._counters.count("idp.certificate_sent")
        return [self._part(part, to, now) for part in split(self._chain)]

    def _cookie(self, envelope: Envelope, window: int) -> bytes:
        """Return what proves that a device receives what is sent to its address."""
        claim = envelope.sender.packed + envelope.fingerprint + window.to_bytes(8, "big")
        return hmac.digest(self._secret, _COOKIE_LABEL + claim, "sha256")[:COOKIE_LENGTH]

    def _send(self, request: Request, to: IPv6Address, now: Instant) -> SendDatagram:
        """Send a question or a cookie: never marked, for it may not be longer than its cause."""
        body = request.encode()
        sealed = self._identity.seal(PROTOCOL_IDP, MessageKind.REQUEST, body, now, marked=False)
        return SendDatagram(GROUP, sealed, to)

    def _part(self, part: Part, to: IPv6Address, now: Instant) -> SendDatagram:
        body = part.encode()
        sealed = self._identity.seal(PROTOCOL_IDP, MessageKind.CERTIFICATE, body, now, to)
        return SendDatagram(GROUP, sealed, to)
