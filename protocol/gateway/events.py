"""Events and effects of a gateway besides the common ones and those of multicast forwarding.

A leg goes by the name of its partition, which is also the channel of its datagrams. `FetchKey` is
answered by one `KeyFetched`, after the effect list that caused it was performed to its end.
Multicast: `protocol.mproxy.events` (`Upcall`, `CountersRead`, `SetMfc`, `DeleteMfc`,
`ReadCounters`), whose interfaces are the tunnels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv6Address

from protocol.core.engine import Effect, Event
from protocol.gateway.config import Network
from protocol.gateway.messages import Member
from protocol.idpmike import EpochId


@dataclass(frozen=True, slots=True)
class LegView:
    """What a leg's idpd says of its partition.

    Attributes:
        startup_wall_ns: of its instance.
        epoch: the newest epoch whose key it has, or None.
        up: the other devices and legs that are up.
        prefixes: announced red prefixes, each with the address of who announced it.
        announced: what it announces for us, or None if it does not say.
        trust_digest: of the revocation lists that it has.
    """

    startup_wall_ns: int
    epoch: EpochId | None
    up: tuple[Member, ...] = ()
    prefixes: tuple[tuple[Network, IPv6Address], ...] = ()
    announced: frozenset[Network] | None = None
    trust_digest: str = ""


@dataclass(frozen=True, slots=True)
class LegPolled(Event):
    """A leg's idpd was asked how it is.

    Attributes:
        leg: which.
        view: what it said; None: it does not run, or does not answer.
    """

    leg: str
    view: LegView | None


@dataclass(frozen=True, slots=True)
class KeyFetched(Event):
    """The answer to `FetchKey`.

    Attributes:
        leg: which.
        epoch: of the key.
        group_key: 32 bytes, or None: MIKE has removed it already.
    """

    leg: str
    epoch: EpochId
    group_key: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class FetchKey(Effect):
    """Read the group key that MIKE left for the leg.

    Attributes:
        leg: which.
        epoch: of the key.
    """

    leg: str
    epoch: EpochId


@dataclass(frozen=True, slots=True)
class AnnouncePrefix(Effect):
    """Have the leg's idpd announce a prefix; no error if it does already.

    Attributes:
        leg: which.
        prefix: red, of another partition.
    """

    leg: str
    prefix: Network


@dataclass(frozen=True, slots=True)
class WithdrawPrefix(Effect):
    """Have the leg's idpd announce a prefix no longer; no error if it does not."""

    leg: str
    prefix: Network


@dataclass(frozen=True, slots=True)
class SetRoute(Effect):
    """Route a red prefix into a leg's tunnel, before any route that a leg's idpd has made.

    Attributes:
        prefix: of the partition that the leg leads to.
        leg: which.
    """

    prefix: Network
    leg: str


@dataclass(frozen=True, slots=True)
class DeleteRoute(Effect):
    """Undo a `SetRoute`."""

    prefix: Network
    leg: str
