"""The SAD and SPD as two dictionaries: for the simulator, and for timing without kernel SAs.

It answers as the kernel does: adding what exists is EEXIST, deleting what does not is ESRCH (SA) or
ENOENT (policy). No packet is ever encrypted by it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from ipaddress import IPv6Address

from protocol.ipsec.backend import (
    DONE,
    AddSa,
    DeletePolicy,
    DeleteSa,
    Operation,
    Outcome,
    PutPolicy,
)
from protocol.ipsec.model import (
    Policy,
    PolicyDirection,
    PolicyId,
    SaDirection,
    SaId,
    SecurityAssociation,
)
from protocol.ipsec.validation import policy_defect, sa_defect


class MemoryBackend:
    """An `IpsecBackend` without a kernel."""

    name = "memory"
    kernel = False

    def __init__(self) -> None:
        self._sad: dict[SaId, SecurityAssociation] = {}
        self._spd: dict[PolicyId, Policy] = {}
        self._sending: list[_Sending] | None = None

    def apply(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Perform the operations in order; one outcome each."""
        return [self._apply_one(operation) for operation in operations]

    def _apply_one(self, operation: Operation) -> Outcome:
        match operation:
            case AddSa(sa):
                defect = sa_defect(sa)
                if defect:
                    return Outcome(errno.EINVAL, defect)
                sa_id = sa.id
                if sa_id in self._sad:
                    return Outcome(errno.EEXIST, "File exists")
                self._sad[sa_id] = sa
            case DeleteSa(sa_id):
                if self._sad.pop(sa_id, None) is None:
                    return Outcome(errno.ESRCH, "No such process")
            case PutPolicy(policy):
                defect = policy_defect(policy)
                if defect:
                    return Outcome(errno.EINVAL, defect)
                self._spd[policy.id] = policy
                self._sending = None
            case DeletePolicy(policy_id):
                if self._spd.pop(policy_id, None) is None:
                    return Outcome(errno.ENOENT, "No such file or directory")
                self._sending = None
        return DONE

    def sending_sa(self, destination: IPv6Address) -> SecurityAssociation | None:
        """Return the SA that a unicast packet to this address would leave with, None if dropped."""
        if self._sending is None:
            self._sending = _sending(self._spd.values())
        wanted = int(destination)
        for low, high, sa_id in self._sending:
            if low <= wanted <= high:
                return self._sad.get(sa_id)
        return None

    def receives(self, sa: SecurityAssociation) -> bool:
        """Return whether a packet that was sent with this SA would be decrypted here."""
        found = self._sad.get(sa.id)
        return found is not None and found.key == sa.key and found.direction is not SaDirection.OUT

    def dump_sas(self) -> list[SecurityAssociation]:
        """Return every SA in order of addition."""
        return list(self._sad.values())

    def dump_policies(self) -> list[Policy]:
        """Return every policy in order of addition."""
        return list(self._spd.values())

    def close(self) -> None:
        """Nothing to release."""


_Sending = tuple[int, int, SaId]
"""First and last IPv6 destination of a policy, and the SA that it names."""


def _sending(policies: Iterable[Policy]) -> list[_Sending]:
    """Return outbound policies as a look-up needs them, the lowest priority value first."""
    outbound = [
        policy
        for policy in policies
        if policy.direction is PolicyDirection.OUT and policy.selector.destination.version == 6
    ]
    return [
        (
            int(policy.selector.destination.network_address),
            int(policy.selector.destination.broadcast_address),
            SaId(policy.template_destination, policy.template_spi),
        )
        for policy in sorted(outbound, key=lambda policy: policy.priority)
    ]
