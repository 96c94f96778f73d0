"""What must hold between every two devices: SAs each way, policies, routes, and whose prefixes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv6Address, IPv6Network
from itertools import combinations

from protocol.ipsec.model import Prefix
from protocol.ipsec.pairpolicy import control_network
from protocol.ipsec.schedule import EPOCH_BITS
from testbed.sim.checkers import Checker
from testbed.sim.history import Announced, Evidence, Led, Record, View
from testbed.sim.people import People

QUIET_MS = 1_900
"""Nothing is announced so long before the end of a rest: 6.5 s, less four hello intervals and the
time between the last change and its announcement."""


class PairsAgree(Checker):
    """Each device has SAs each way with every other live one, and with those policies and routes.

    What is announced is accepted, unless it overlaps what was accepted of another device, or is our
    own; then there is neither policy nor route. Without unicast there is nothing at all.

    Args:
        unicast: whether there is.
        of_epochs: whether SAs belong to an epoch, which the lowest bits of their SPIs name.
    """

    name = "pairs-agree"

    def __init__(self, *, unicast: bool, of_epochs: bool = False) -> None:
        self._unicast = unicast
        self._of_epochs = of_epochs

    def judge(self, views: Sequence[View]) -> str | None:
        """Compare every two devices."""
        for view in views:
            others = [other for other in views if other is not view] if self._unicast else []
            for text in (*self._past(view), *self._objections(view, others)):
                return f"d{view.device + 1} {text}"
        return None

    def _past(self, view: View) -> Iterator[str]:
        if self._of_epochs and view.epoch is not None:
            number = int(view.epoch.partition("-")[0])
            for sa in view.pairs.sas:
                if (sa.spi ^ number) & (1 << EPOCH_BITS) - 1:
                    yield f"has an SA from {sa.source} to {sa.destination} of another epoch"

    @staticmethod
    def _objections(view: View, others: Sequence[View]) -> Iterator[str]:
        there = {other.address for other in others}
        strangers = view.pairs.peers - there - {view.address}
        if strangers:
            yield f"has SAs or policies with {', '.join(sorted(map(str, strangers)))}, not there"
        accepted: dict[Prefix, IPv6Address] = {}
        for other in others:
            networks = {
                net
                for way, peer, net in view.pairs.policies
                if (way, peer) == ("out", other.address)
            }
            control = control_network(other.address)
            if control not in networks:
                yield f"has no policy to d{other.device + 1}"
            accepted |= dict.fromkeys(networks - {control}, other.address)
            wanted = {("out", net) for net in networks} | {("in", net) for net in networks}
            wanted |= {("fwd", net) for net in networks - {control}}
            has = {(way, net) for way, peer, net in view.pairs.policies if peer == other.address}
            if has != wanted:
                differ = sorted(f"{way} {net}" for way, net in has ^ wanted)
                yield f"has only some policies with d{other.device + 1}: {', '.join(differ)}"
            pinned = view.pairs.sends.get(other.address, frozenset())
            if len(pinned) != 1 or not pinned <= other.pairs.sas:
                yield f"sends to d{other.device + 1} with no SA that is there: {[*pinned]}"
        if view.routes != accepted.keys():
            differ = sorted(map(str, view.routes ^ accepted.keys()))
            yield f"has a route without policies, or policies without a route: {', '.join(differ)}"
        for one, two in combinations(sorted(accepted, key=str), 2):
            if accepted[one] != accepted[two] and _overlap(one, two):
                yield f"leads {one} to {accepted[one]}, and {two} to {accepted[two]}"
        announced = {(net, other.address) for other in others for net in other.announced}
        for net, peer in sorted(accepted.items() - announced, key=str):
            yield f"leads {net} to {peer}, who does not announce it"
        for net, peer in sorted(announced - accepted.items(), key=str):
            rivals = {one for one, owner in accepted.items() if owner != peer} | view.announced
            if not any(_overlap(net, rival) for rival in rivals):
                yield f"does not lead {net} to {peer}, who announces it"


class NothingStolen(Checker):
    """At no time does a policy lead to a device what its certificate does not authorise."""

    name = "nothing-stolen"
    watches = (Led,)

    def __init__(self, people: People) -> None:
        self._rightful = {
            people.address(index): people.authorised(index) for index in range(people.size)
        }
        self._black = IPv6Network((people.address(0), 64), strict=False)

    def record(self, record: Record) -> str | None:
        """Compare with the certificate."""
        if not isinstance(record, Led) or record.prefix == control_network(record.peer):
            return None
        rightful = self._rightful.get(record.peer, ())
        if not any(_within(record.prefix, whole) for whole in rightful):
            return f"leads {record.prefix} to {record.peer}, whose it is not"
        if _overlap(record.prefix, self._black):
            return f"leads {record.prefix} to {record.peer}: that is the black network"
        return None


class AnnouncingStops(Checker):
    """Who has nothing new to say says nothing (IDP-24)."""

    name = "announcing-stops"
    watches = (Announced,)

    def __init__(self) -> None:
        self._last_ms = 0.0

    def record(self, record: Record) -> str | None:
        """Note the last announcement."""
        if isinstance(record, Announced):
            self._last_ms = record.at_ms
        return None

    def conclude(self, evidence: Evidence) -> str | None:
        """Compare with the end of the rest."""
        if evidence.at_ms - self._last_ms < QUIET_MS:
            return f"still announced at {self._last_ms:.0f} ms, with nothing new to say"
        return None


def _overlap(one: Prefix, two: Prefix) -> bool:
    return one.version == two.version and one.overlaps(two)


def _within(inner: Prefix, outer: Prefix) -> bool:
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]
