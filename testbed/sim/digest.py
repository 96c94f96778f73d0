"""What names a whole run: a hash over every effect of every engine, in order and with its time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from protocol.core.engine import CancelTimer, Effect, Log, Report, SendDatagram, SetTimer
from protocol.idp.events import ApplySas
from protocol.mike.events import PublishKey

UNHASHED_MAX = 4_096
"""Effects that are hashed at once."""


class Digest:
    """Hashes effects; many at once."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._unhashed: list[bytes] = []

    def add(self, at_ns: int, stamp: str, effect: Effect) -> None:
        """Take in an effect.

        Args:
            at_ns: virtual time.
            stamp: who performs it.
            effect: it.
        """
        words = _WORDS.get(effect.__class__, _other)
        self._unhashed.append(words(at_ns, stamp, effect))
        if len(self._unhashed) >= UNHASHED_MAX:
            self._take_in()

    def hexdigest(self) -> str:
        """Return the hash of all so far."""
        self._take_in()
        return self._hash.hexdigest()

    def _take_in(self) -> None:
        self._hash.update(b"".join(self._unhashed))
        self._unhashed.clear()


def _other(at_ns: int, stamp: str, effect: Effect) -> bytes:
    return f"{at_ns}{stamp}{effect!r}".encode()


def _datagram(at_ns: int, stamp: str, effect: SendDatagram) -> bytes:
    return (
        f"{at_ns}{stamp}{effect.channel} {int(effect.destination or 0)} ".encode() + effect.payload
    )


def _timer(at_ns: int, stamp: str, effect: SetTimer) -> bytes:
    return f"{at_ns}{stamp}{effect.name} {effect.at_mono_ns}".encode()


def _no_timer(at_ns: int, stamp: str, effect: CancelTimer) -> bytes:
    return f"{at_ns}{stamp}no {effect.name}".encode()


def _key(at_ns: int, stamp: str, effect: PublishKey) -> bytes:
    return f"{at_ns}{stamp}{effect.pointer} ".encode() + effect.group_key


def _report(at_ns: int, stamp: str, effect: Report) -> bytes:
    return f"{at_ns}{stamp}{effect.point} {sorted(effect.fields.items())}".encode()


def _batch(at_ns: int, stamp: str, effect: ApplySas) -> bytes:
    return f"{at_ns}{stamp}{effect.label} {len(effect.operations)}".encode()


def _line(at_ns: int, stamp: str, effect: Log) -> bytes:
    return f"{at_ns}{stamp}{effect.level} {effect.text}".encode()


_WORDS: dict[type[Effect], Callable[[int, str, Any], bytes]] = {
    SendDatagram: _datagram,
    SetTimer: _timer,
    CancelTimer: _no_timer,
    PublishKey: _key,
    Report: _report,
    ApplySas: _batch,
    Log: _line,
}
