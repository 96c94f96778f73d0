"""One downstream interface for one family: who is its querier, and what is asked when.

RFC 3810 section 7.6 and RFC 3376 section 6.6, which say the same.
"""

from __future__ import annotations

from enum import Enum

from protocol.core.transitions import Move, StateCell, TransitionTable
from protocol.mproxy import igmp, mld, rules
from protocol.mproxy.buckets import LanBuckets
from protocol.mproxy.config import Downstream, MproxyConfig
from protocol.mproxy.listeners import Listeners, Times
from protocol.mproxy.messages import Address, Family, Query

NS_PER_MS = 1_000_000
_NS_PER_S = 1_000_000_000


class PortState(Enum):
    """What we are on a LAN."""

    DOWN = "down"
    QUERIER = "querier"
    WATCHING = "watching"


PORT: TransitionTable[PortState] = TransitionTable(
    "port",
    PortState.DOWN,
    [
        Move(PortState.DOWN, PortState.QUERIER, "the interface has an address / start-up queries"),
        Move(PortState.QUERIER, PortState.WATCHING, "query from a lower address"),
        Move(PortState.WATCHING, PortState.QUERIER, "that router has fallen silent / query"),
        Move(PortState.QUERIER, PortState.DOWN, "the address is gone, or changes"),
        Move(PortState.WATCHING, PortState.DOWN, "the address is gone, or changes"),
    ],
)
"""The states of a downstream interface; docs/mproxy.md draws them from here."""


class Port:
    """A downstream interface for one family.

    Attributes:
        interface: its name.
        family: the family.
        prefixes: the LAN's prefixes of both families.
        address: ours there, None while the port is down.
        querier: the other router that is querier, if one is.
        listeners: the groups.
        buckets: what is taken in a second.
        wake_mono_ns: when `due` has something to do, 0 for never.
    """

    def __init__(self, downstream: Downstream, family: Family, config: MproxyConfig) -> None:
        self.interface = downstream.interface
        self.family = family
        self.prefixes = downstream.prefixes
        self.address: Address | None = None
        self.querier: Address | None = None
        self.listeners = Listeners(config)
        self.buckets = LanBuckets(config.records_per_s, config.host_records_per_s)
        self.wake_mono_ns = 0
        self._cell = StateCell(PORT)
        self._config = config
        self._startup_left = 0
        self._robustness = config.robustness
        self._interval_ns = config.query_interval_ms * NS_PER_MS
        self.decode = mld.decode if family is Family.IPV6 else igmp.decode
        self._encode = mld.encode if family is Family.IPV6 else igmp.encode
        self._version = 2 if family is Family.IPV6 else 3

    @property
    def state(self) -> PortState:
        """What we are on this LAN."""
        return self._cell.state

    @property
    def serves(self) -> bool:
        """MPROXY-4: whether we forward to this LAN."""
        return self._cell.state is PortState.QUERIER

    @property
    def times(self) -> Times:
        """The timing of the LAN, as its querier has it."""
        config = self._config
        last_listener_ns = config.last_listener_interval_ms * NS_PER_MS
        return Times(
            self._robustness * self._interval_ns + config.query_response_ms * NS_PER_MS,
            self._robustness * last_listener_ns,
            last_listener_ns,
            self._robustness,
        )

    def up(self, address: Address, now_mono_ns: int) -> None:
        """Take the interface for ours until a lower address is heard."""
        self.address = address
        self._cell.move(PortState.QUERIER)
        self._startup_left = self._config.robustness
        self.wake_mono_ns = now_mono_ns

    def down(self) -> None:
        """Forget who is querier; the groups run out by their timers."""
        if self._cell.state is not PortState.DOWN:
            self._cell.move(PortState.DOWN)
        self.address = None
        self._own_timing()
        self.wake_mono_ns = 0

    def _own_timing(self) -> None:
        self.querier = None
        self._robustness = self._config.robustness
        self._interval_ns = self._config.query_interval_ms * NS_PER_MS

    def heard(self, query: Query, source: Address, now_mono_ns: int) -> bool:
        """Take in another router's query; True if it is the querier (MPROXY-4)."""
        if self.address is None or not rules.outranks(source, self.address):
            return False
        if self.state is PortState.QUERIER:
            self._cell.move(PortState.WATCHING)
        self.querier = source
        # RFC 3810 sections 9.1 and 9.2: the others take over what the querier announces.
        self._robustness = query.robustness or self._config.robustness
        own_interval_ns = self._config.query_interval_ms * NS_PER_MS
        self._interval_ns = query.interval_s * _NS_PER_S or own_interval_ns
        silence_ns = self._config.query_response_ms * NS_PER_MS // 2
        self.wake_mono_ns = now_mono_ns + self._robustness * self._interval_ns + silence_ns
        return True

    def due(self, now_mono_ns: int) -> Query | None:
        """Take the step whose time has come; return the general query to be sent."""
        if not self.wake_mono_ns or self.wake_mono_ns > now_mono_ns:
            return None
        if self.state is PortState.WATCHING:
            self._cell.move(PortState.QUERIER)
            self._own_timing()
        config = self._config
        starting = self._startup_left > 0
        self._startup_left -= starting
        more = self._startup_left > 0
        # RFC 3810 section 9.6: a quarter of the interval between the start-up queries.
        self.wake_mono_ns = now_mono_ns + (self._interval_ns // 4 if more else self._interval_ns)
        response_ms = config.startup_response_ms if starting else config.query_response_ms
        return Query(None, response_ms)

    def query_bytes(self, query: Query) -> tuple[Address, bytes]:
        """Return destination and bytes of a query of ours."""
        complete = Query(
            query.group,
            query.response_ms,
            query.sources,
            query.suppress,
            self._robustness,
            self._interval_ns // _NS_PER_S,
            self._version,
        )
        everybody = mld.ALL_NODES if self.family is Family.IPV6 else igmp.ALL_SYSTEMS
        return query.group or everybody, self._encode(complete)
