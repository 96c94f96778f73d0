"""One datagram that many devices receive is decoded once: the same bytes are the same message.

Decoders are pure functions from bytes to messages that nobody changes (a test sees to that), so
the receivers cannot tell. What a decoder refuses, it refuses each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from protocol.identity import envelope
from protocol.idp.lighthello import LightHello
from protocol.idp.messages import Hello
from protocol.mike.messages import DECODERS

MESSAGES_KEPT = 256
"""Of each decoder: more than are under way at one time on most networks."""


@contextmanager
def shared_decoding() -> Iterator[None]:
    """Let decoders remember what they read, as long as this lasts."""
    decoders = dict(DECODERS)
    decode_envelope = envelope.decode
    decode_light, decode_hello = LightHello.__dict__["decode"], Hello.__dict__["decode"]
    for kind, decode in decoders.items():
        DECODERS[kind] = lru_cache(MESSAGES_KEPT)(decode)
    envelope.decode = lru_cache(MESSAGES_KEPT)(decode_envelope)
    LightHello.decode = staticmethod(lru_cache(MESSAGES_KEPT)(LightHello.decode))  # type: ignore
    Hello.decode = staticmethod(lru_cache(MESSAGES_KEPT)(Hello.decode))  # type: ignore
    try:
        yield
    finally:
        DECODERS.update(decoders)
        envelope.decode = decode_envelope
        LightHello.decode, Hello.decode = decode_light, decode_hello  # type: ignore[method-assign]
