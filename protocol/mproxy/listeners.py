"""Who listens to what on one LAN: the router side of MLDv2 and IGMPv3 in its lightweight form.

RFC 5790 section 5: a group is either wanted from every source (``EXCLUDE {}``: `Group.any_mono_ns`
runs) or from a list of sources (``INCLUDE``: each with its timer), or both while one runs out. What
a listener excludes is not kept: it gets the whole group and its own host filters. So no timer is
ever about a source that nobody asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from protocol.mproxy import rules
from protocol.mproxy.config import MproxyConfig
from protocol.mproxy.messages import Address, Query, Record, RecordKind


class Times(NamedTuple):
    """The timing of one LAN, as its querier has it (nanoseconds).

    Attributes:
        membership_ns: group membership interval (RFC 3810 section 9.4).
        last_listener_ns: within what time somebody must answer after a leave (section 9.9).
        interval_ns: between two such questions (section 9.8).
        questions: how many of them (section 9.9).
    """

    membership_ns: int
    last_listener_ns: int
    interval_ns: int
    questions: int


@dataclass(slots=True)
class Group:
    """One group on one LAN. Times are monotonic nanoseconds, 0: not running.

    Attributes:
        group: the group.
        host: on whose word it was made.
        any_mono_ns: until when every source is wanted.
        sources: until when single sources are wanted.
        asks_left: questions about the whole group still to be sent.
        asked: sources to be asked about, with the questions left.
        ask_mono_ns: when the next question is due.
        timer_mono_ns: for when the engine's timer is set.
    """

    group: Address
    host: Address
    any_mono_ns: int = 0
    sources: dict[Address, int] = field(default_factory=dict)
    asks_left: int = 0
    asked: dict[Address, int] = field(default_factory=dict)
    ask_mono_ns: int = 0
    timer_mono_ns: int = 0

    @property
    def wanted(self) -> frozenset[Address] | None:
        """The sources wanted; None: every one."""
        return None if self.any_mono_ns else frozenset(self.sources)

    @property
    def wake_mono_ns(self) -> int:
        """When something runs out or is to be asked."""
        times = [at for at in (self.any_mono_ns, self.ask_mono_ns) if at]
        return min((*times, *self.sources.values()))


class Listeners:
    """The groups of one interface and family."""

    def __init__(self, config: MproxyConfig) -> None:
        self._config = config
        self._groups: dict[Address, Group] = {}
        self._of_host: Counter[Address] = Counter()

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[Group]:
        return iter(self._groups.values())

    def get(self, group: Address) -> Group | None:
        """Return what is known of a group."""
        return self._groups.get(group)

    def wish(self, group: Address) -> frozenset[Address] | None:
        """Return the sources wanted of a group, None for every one; empty: nobody listens."""
        found = self._groups.get(group)
        return frozenset() if found is None else found.wanted

    def wants(self, source: Address, group: Address) -> bool:
        """Tell whether somebody wants the group from this source."""
        wish = self.wish(group)
        return wish is None or source in wish

    def take(
        self, record: Record, host: Address, times: Times, now_mono_ns: int, *, asking: bool
    ) -> Group | None:
        """Take in a record (RFC 5790 section 5); return the group if there is one now.

        Args:
            record: what the host says.
            host: who.
            times: the LAN's timing.
            now_mono_ns: the time.
            asking: whether we are the querier, who asks after what somebody leaves.

        Raises:
            PeerError: no room (MPROXY-7).
        """
        group = self._groups.get(record.group)
        until = now_mono_ns + times.membership_ns
        wants_all = record.kind in (RecordKind.IS_EXCLUDE, RecordKind.TO_EXCLUDE)
        adds = record.sources if record.kind in _ADDING else ()
        if group is None:
            if not wants_all and not adds:
                return None
            rules.check_source_room(len(set(adds)), self._config)
            rules.check_group_room(len(self._groups), self._of_host[host], self._config)
            group = self._groups[record.group] = Group(record.group, host)
            self._of_host[host] += 1
        elif adds:
            rules.check_source_room(len(group.sources.keys() | set(adds)), self._config)
        before = tuple(group.sources)
        if wants_all:
            group.any_mono_ns = until
        for source in adds:
            group.sources[source] = until
        if asking and record.kind is RecordKind.TO_INCLUDE:
            self._ask(group, [s for s in before if s not in adds], times, now_mono_ns)
            if group.any_mono_ns:
                self._ask(group, None, times, now_mono_ns)
        elif asking and record.kind is RecordKind.BLOCK:
            self._ask(group, [s for s in before if s in record.sources], times, now_mono_ns)
        return group

    def _ask(
        self, group: Group, sources: list[Address] | None, times: Times, now_mono_ns: int
    ) -> None:
        """Plan the questions about sources (None: about the group) and lower their timers."""
        if sources is None:
            self._lower(group, (), times.last_listener_ns, now_mono_ns)
            group.asks_left = times.questions
        elif sources:
            self._lower(group, sources, times.last_listener_ns, now_mono_ns)
            group.asked.update(dict.fromkeys(sources, times.questions))
        else:
            return
        group.ask_mono_ns = now_mono_ns

    @staticmethod
    def _lower(
        group: Group,
        sources: tuple[Address, ...] | list[Address],
        last_listener_ns: int,
        now_mono_ns: int,
    ) -> None:
        if not sources and group.any_mono_ns:
            group.any_mono_ns = rules.lowered_ns(group.any_mono_ns, now_mono_ns, last_listener_ns)
        for source in sources:
            if source in group.sources:
                lowered = rules.lowered_ns(group.sources[source], now_mono_ns, last_listener_ns)
                group.sources[source] = lowered

    def questions(
        self, group: Group, times: Times, now_mono_ns: int, *, asking: bool
    ) -> list[Query]:
        """Return the questions that are due, and plan the next ones; none if it is not ours to ask.

        A question that was answered is repeated with the S flag (the group) or not at all
        (a source): RFC 3810 section 7.6.3.
        """
        if not asking:
            group.asks_left, group.asked, group.ask_mono_ns = 0, {}, 0
        if not group.ask_mono_ns or group.ask_mono_ns > now_mono_ns:
            return []
        response_ms = times.interval_ns // 1_000_000
        threshold = now_mono_ns + times.last_listener_ns
        found = []
        if group.asks_left:
            group.asks_left -= 1
            answered = group.any_mono_ns > threshold
            found.append(Query(group.group, response_ms, suppress=answered))
        due = [s for s in group.asked if 0 < group.sources.get(s, 0) <= threshold]
        if due:
            found.append(Query(group.group, response_ms, tuple(due)))
        group.asked = {s: left - 1 for s, left in group.asked.items() if s in due and left > 1}
        more = group.asks_left or group.asked
        group.ask_mono_ns = now_mono_ns + times.interval_ns if more else 0
        return found

    def asked_by_querier(self, query: Query, times: Times, now_mono_ns: int) -> Group | None:
        """Lower our timers as the querier has lowered its own; return the group, if known."""
        group = None if query.group is None else self._groups.get(query.group)
        if group is None or query.suppress:
            return None
        within_ns = times.questions * query.response_ms * 1_000_000
        self._lower(group, query.sources, within_ns, now_mono_ns)
        return group

    def expire(self, group: Group, now_mono_ns: int) -> None:
        """Drop what has run out, the group itself with its last listener."""
        if group.any_mono_ns <= now_mono_ns:
            group.any_mono_ns = 0
        for source in [s for s, until in group.sources.items() if until <= now_mono_ns]:
            del group.sources[source]
        if group.any_mono_ns or group.sources:
            return
        del self._groups[group.group]
        self._of_host[group.host] -= 1
        if not self._of_host[group.host]:
            del self._of_host[group.host]

    def clear(self) -> None:
        """Forget all."""
        self._groups.clear()
        self._of_host.clear()


_ADDING = frozenset({RecordKind.IS_INCLUDE, RecordKind.TO_INCLUDE, RecordKind.ALLOW})
