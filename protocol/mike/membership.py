"""Who lives, who succeeds a lost TM, which of two groups stays: pure rules over addresses."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address

LEFT_MAX = 1024
"""Devices remembered as left: those that left last."""

NEWS_NS_MAX = 2_000_000_000
"""IDP tells of a JOIN within this time."""

BEGUN_MAX = 1024
"""Devices whose last instance is remembered: those that began last."""


@dataclass(frozen=True, slots=True)
class GroupFigures:
    """What decides between two groups (MIKE-16).

    Attributes:
        members: size of the group.
        number: its epoch number.
        tm: its TM.
    """

    members: int
    number: int
    tm: IPv6Address

    def outranks(self, other: GroupFigures) -> bool:
        """Say whether this group stays: more members, then later epoch, then smaller TM address.

        The order is total: two TMs have two addresses.
        """
        mine = (self.members, self.number, -int(self.tm))
        return mine > (other.members, other.number, -int(other.tm))


class Liveness:
    """What our own IDP says about the members, and whose turn in an election has passed.

    Attributes:
        gone: reported left, with our UTC at the report, in the order of the reports.
        passed: candidates that did nothing in their time.
        begun: start-up time-stamps of the instances of IDP that joined last.
        elders: connected devices that began so long before us that we need found no group
            (MIKE-17).
        anew: members that began anew, and whose JOIN no epoch has granted since.
        granted: when an epoch last granted a device's JOIN, monotonic ns.
    """

    __slots__ = ("anew", "begun", "elders", "gone", "granted", "passed")

    def __init__(self) -> None:
        self.gone: dict[IPv6Address, int] = {}
        self.passed: dict[IPv6Address, None] = {}
        self.begun: dict[IPv6Address, int] = {}
        self.elders: set[IPv6Address] = set()
        self.anew: dict[IPv6Address, None] = {}
        self.granted: dict[IPv6Address, int] = {}

    def lost(self, address: IPv6Address, wall_ns: int) -> None:
        """Note a LEAVE."""
        self.gone[address] = wall_ns
        self.elders.discard(address)
        while len(self.gone) > LEFT_MAX:
            del self.gone[next(iter(self.gone))]

    def heard(self, address: IPv6Address) -> None:
        """Note a JOIN or RESTORE of another device: it lives."""
        self.gone.pop(address, None)
        self.passed.pop(address, None)

    def began(self, address: IPv6Address, startup_wall_ns: int, *, elder: bool) -> int | None:
        """Note the instance of a JOIN; return the one before, None if there was none."""
        before = self.begun.pop(address, None)
        self.begun[address] = startup_wall_ns
        self.elders.discard(address)
        if elder:
            self.elders.add(address)
        if len(self.begun) > BEGUN_MAX:
            oldest = next(iter(self.begun))
            del self.begun[oldest]
            self.elders.discard(oldest)
        return before

    def began_anew(self, address: IPv6Address, mono_ns: int) -> None:
        """Note that a member lost what it knew of the group, unless it is in again already.

        Its JOIN may have been granted before IDP told us, since its news wait.
        """
        if mono_ns - self.granted.get(address, -NEWS_NS_MAX) >= NEWS_NS_MAX:
            self.anew[address] = None

    def grant(self, address: IPv6Address, mono_ns: int) -> None:
        """Note that an epoch granted a JOIN: whatever we knew of the device is older."""
        self.heard(address)
        self.anew.pop(address, None)
        self.granted.pop(address, None)
        self.granted[address] = mono_ns
        if len(self.granted) > BEGUN_MAX:
            del self.granted[next(iter(self.granted))]

    def outlived(self, address: IPv6Address, sent_wall_ns: int) -> bool:
        """Say whether a message was sent after the LEAVE of its sender, if there was one."""
        left_wall_ns = self.gone.get(address)
        return left_wall_ns is None or sent_wall_ns > left_wall_ns

    def turn_passed(self, address: IPv6Address) -> None:
        """Note that a candidate let its turn pass."""
        self.passed[address] = None

    def settled(self) -> None:
        """Forget the election after a new epoch.

        Who left is kept: a JOIN made before the LEAVE may still be under way (MIKE-12).
        """
        self.passed.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.gone.clear()
        self.passed.clear()
        self.begun.clear()
        self.elders.clear()
        self.anew.clear()
        self.granted.clear()


def candidate(
    members: Sequence[IPv6Address],
    gone: Collection[IPv6Address],
    passed: Collection[IPv6Address] = (),
) -> IPv6Address | None:
    """MIKE-13: return the first live member in position order whose turn has not passed."""
    return next((who for who in members if who not in gone and who not in passed), None)


def absent(members: Iterable[IPv6Address], gone: Collection[IPv6Address]) -> list[IPv6Address]:
    """Return the members to exclude, in position order."""
    return [who for who in members if who in gone]
