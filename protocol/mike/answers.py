"""What is answered to whom: questions of many devices for the same thing get one answer.

Devices that lost the same datagram ask at different times (they wait by chance). The first question
is answered to its asker alone, the second device's to all, and those that have not asked by then
need not. Questions that were under way meanwhile are answered already (MIKE-28).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum, auto
from ipaddress import IPv6Address
from typing import TypeVar

ANSWERED_MAX = 1024
"""Devices whose last answer's time is remembered (MIKE-18)."""

SUBJECTS_MAX = 16
"""Subjects of questions that are remembered."""

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


class To(Enum):
    """Whom an answer goes to."""

    ASKER = auto()
    ALL = auto()
    NOBODY = auto()
    """It went to all a moment ago."""


@dataclass(slots=True)
class _Subject:
    """What was asked for, lately.

    Attributes:
        asker: who asked last.
        asked_mono_ns: when.
        missing: all that was asked for since it was last told to all (a bitmap).
        told_mono_ns: when it was last told to all.
    """

    asker: IPv6Address
    asked_mono_ns: int
    missing: int
    told_mono_ns: int | None = None


class Answers:
    """Bounds answers per device (MIKE-18), and joins those that several devices need (MIKE-28)."""

    __slots__ = ("_answered", "_subjects")

    def __init__(self) -> None:
        self._answered: dict[IPv6Address, int] = {}
        self._subjects: dict[bytes, _Subject] = {}

    def may_answer(self, address: IPv6Address, mono_ns: int, interval_ns: int) -> bool:
        """MIKE-18: say whether this device's question may be answered now, and note that it is."""
        last = self._answered.get(address)
        if last is not None and mono_ns - last < interval_ns:
            return False
        remember(self._answered, address, mono_ns, ANSWERED_MAX)
        return True

    def to_whom(
        self,
        subject: bytes,
        asker: IPv6Address,
        missing: int,
        mono_ns: int,
        interval_ns: int,
    ) -> tuple[To, int]:
        """MIKE-28: say who shall get an answer, and what it must contain.

        Args:
            subject: names what is asked for.
            asker: who asks.
            missing: bitmap of what of it the asker lacks.
            mono_ns: now.
            interval_ns: two devices that ask within this time lost the same datagram; a
                question within a quarter of it after an answer to all was sent before that came.
        """
        known = self._subjects.get(subject)
        if known is None:
            remember(self._subjects, subject, _Subject(asker, mono_ns, missing), SUBJECTS_MAX)
            return To.ASKER, missing
        told_ns = known.told_mono_ns
        if told_ns is not None and mono_ns - told_ns < interval_ns // 4 and asker != known.asker:
            return To.NOBODY, 0
        recent = mono_ns - known.asked_mono_ns < interval_ns
        union = (known.missing if recent else 0) | missing
        to_all = recent and asker != known.asker
        known.asker, known.asked_mono_ns, known.missing = asker, mono_ns, union
        if to_all:
            known.told_mono_ns, known.missing = mono_ns, 0
            return To.ALL, union
        return To.ASKER, missing


def remember(table: dict[K, T], key: K, value: T, entries_max: int) -> None:
    """Put an entry last, and drop the oldest ones above the bound."""
    table.pop(key, None)
    table[key] = value
    while len(table) > entries_max:
        del table[next(iter(table))]
