"""What many devices compute from the same bytes is computed once.

A datagram that many receive is decoded once: decoders are pure functions from bytes to messages
that nobody changes (a test sees to that), so the receivers cannot tell. What a decoder refuses, it
refuses each time. In the same way a light hello's value is followed to a known one once, and an
HMAC (keys that all members derive, what a sender says and a receiver checks) is taken once.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from protocol.identity import envelope
from protocol.idp import lighthello
from protocol.idp.lighthello import LightHello
from protocol.idp.messages import Hello
from protocol.mike.messages import DECODERS

MESSAGES_KEPT = 256
"""Of each decoder: more than are under way at one time on most networks."""

DIGESTS_KEPT = 1_024
"""Of HMACs and of hash chains: those of one epoch, whose members derive them at about one time."""


@contextmanager
def shared_work() -> Iterator[None]:
    """Let pure functions remember what they returned, as long as this lasts."""
    decoders = dict(DECODERS)
    decode_envelope = envelope.decode
    decode_light, decode_hello = LightHello.__dict__["decode"], Hello.__dict__["decode"]
    for kind, decode in decoders.items():
        DECODERS[kind] = lru_cache(MESSAGES_KEPT)(decode)
    envelope.decode = lru_cache(MESSAGES_KEPT)(decode_envelope)
    LightHello.decode = staticmethod(lru_cache(MESSAGES_KEPT)(LightHello.decode))  # type: ignore
    Hello.decode = staticmethod(lru_cache(MESSAGES_KEPT)(Hello.decode))  # type: ignore
    leads_to, digest = lighthello.leads_to, hmac.digest
    lighthello.leads_to = lru_cache(DIGESTS_KEPT)(leads_to)
    hmac.digest = lru_cache(DIGESTS_KEPT)(digest)  # type: ignore[assignment]
    try:
        yield
    finally:
        DECODERS.update(decoders)
        envelope.decode = decode_envelope
        lighthello.leads_to, hmac.digest = leads_to, digest
        LightHello.decode, Hello.decode = decode_light, decode_hello  # type: ignore[method-assign]
