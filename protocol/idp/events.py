"""Events and effects of IDP besides the common ones in `protocol.core.engine`.

The contract with whoever runs the engine (daemon or simulator):

* effects are performed in the order returned;
* every `ApplySas` is answered by exactly one `SasApplied` with the same label and one outcome per
  operation, in the order of the `ApplySas` effects. If the backend as a whole failed
  (`protocol.ipsec.backend.IpsecError`), every outcome carries an error;
* every `ApplyRoutes` is answered by exactly one `RoutesApplied` in the same way;
* every `ReadKernel` is answered by exactly one `KernelRead`;
* every `FetchKey` is answered by exactly one `KeyFetched` with the same pointer;
* the answers are events like any other: they are handed in after the effect list that caused them
  was performed to its end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from protocol.core.engine import Effect, Event
from protocol.ipsec.backend import Operation, Outcome
from protocol.ipsec.model import Policy, Prefix, SaId

if TYPE_CHECKING:
    from protocol.idp.policykeeper import OwnPolicy


@dataclass(frozen=True, slots=True)
class ApplySas(Effect):
    """Perform these operations on the SAD and SPD as one batch, in order.

    Attributes:
        label: what the batch is for: ``policies``, ``write:EPOCH``, ``activate:EPOCH``,
            ``delete:EPOCH``, ``exclude`` (we are no member any more), ``remove`` (stop), or
            ``repair:...`` for what failed before; ``pairs:...`` for what belongs to pairs of
            devices; goes to the trace.
        operations: never empty.
    """

    label: str
    operations: Sequence[Operation]


@dataclass(frozen=True, slots=True)
class SasApplied(Event):
    """A batch was performed.

    Attributes:
        label: of the `ApplySas`.
        outcomes: one for each operation, in order.
    """

    label: str
    outcomes: Sequence[Outcome]


@dataclass(frozen=True, slots=True)
class SaExpired(Event):
    """The kernel says that an SA has carried the bytes of a limit (`AddSa.limit`).

    Attributes:
        id: of the SA; one that is not ours means nothing.
        hard: all of them: the kernel has removed the SA. Else it goes on for a while.
    """

    id: SaId
    hard: bool


@dataclass(frozen=True, slots=True)
class FetchKey(Effect):
    """Read the group key that MIKE's status points at.

    Attributes:
        pointer: as in ``GroupStatus``.
    """

    pointer: str


@dataclass(frozen=True, slots=True)
class KeyFetched(Event):
    """The group key was read, or could not be.

    Attributes:
        pointer: of the `FetchKey`.
        group_key: None if there is no such key, or it is not readable.
    """

    pointer: str
    group_key: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class LinkChanged(Event):
    """The carrier of the black interface came or went.

    Attributes:
        up: True if the interface can send now.
    """

    up: bool


@dataclass(frozen=True, slots=True)
class AddRoute:
    """Route this red prefix into the xfrm interface; fails if the kernel has a route to it."""

    prefix: Prefix


@dataclass(frozen=True, slots=True)
class RemoveRoute:
    """Remove our route to this red prefix."""

    prefix: Prefix


RouteOperation = AddRoute | RemoveRoute


@dataclass(frozen=True, slots=True)
class ApplyRoutes(Effect):
    """Perform these operations on the routing table as one batch, in order.

    Attributes:
        label: as of the `ApplySas` that belongs to it.
        operations: never empty.
    """

    label: str
    operations: Sequence[RouteOperation]


@dataclass(frozen=True, slots=True)
class RoutesApplied(Event):
    """A batch was performed.

    Attributes:
        label: of the `ApplyRoutes`.
        outcomes: one for each operation, in order.
    """

    label: str
    outcomes: Sequence[Outcome]


@dataclass(frozen=True, slots=True)
class PrefixAdded(Event):
    """We shall announce one more red prefix; it was found to be allowed."""

    prefix: Prefix


@dataclass(frozen=True, slots=True)
class PrefixRemoved(Event):
    """We shall not announce this red prefix any more."""

    prefix: Prefix


@dataclass(frozen=True, slots=True)
class KernelChanged(Event):
    """Somebody else has changed SAs, policies or our routes, or what the kernel said was lost."""


@dataclass(frozen=True, slots=True)
class ReadKernel(Effect):
    """Read back what carries our marks in SAD, SPD and routing table."""


@dataclass(frozen=True, slots=True)
class KernelRead(Event):
    """What carries our marks: reqids and interface of SAs and policies, protocol of routes.

    Attributes:
        sas: of the group and of pairs; no keys.
        policies: of the group and of pairs.
        routes: destinations.
        problem: why it could not be read, or empty.
    """

    sas: frozenset[SaId] = frozenset()
    policies: tuple[Policy, ...] = ()
    routes: frozenset[Prefix] = frozenset()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class KeepTrust(Effect):
    """Store what was learned, so that it is there after a restart (`[identity] cache`).

    Attributes:
        kind: ``certificate``, ``revocations`` or ``policy``.
        name: fingerprint or issuer; one file for each.
        data: the bytes, public.
    """

    kind: str
    name: bytes
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class DropTrust(Effect):
    """Forget what was stored.

    Attributes:
        kind: as in `KeepTrust`.
        name: as in `KeepTrust`.
    """

    kind: str
    name: bytes


@dataclass(frozen=True, slots=True)
class TrustReread(Event):
    """The operator had the files read again; the identity's store holds what is in them.

    Attributes:
        certificates: device certificates (DER) that were not there before, by fingerprint.
        revocations: revocation lists (DER) that were not there before, by issuer.
        policy: the domain policy in the file, which our settings do not break.
    """

    certificates: Mapping[bytes, bytes] = field(default_factory=dict, repr=False)
    revocations: Mapping[bytes, bytes] = field(default_factory=dict, repr=False)
    policy: OwnPolicy | None = field(default=None, repr=False)
