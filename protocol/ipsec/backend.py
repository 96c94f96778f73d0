"""The interface behind which the SAD and SPD lie: kernel by netlink, commands, PF_KEY, or memory.

The kernel is reached by blocking calls (an acknowledged netlink message takes a fraction of a
millisecond); the caller takes its time-stamps around `IpsecBackend.apply`.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from protocol.core.errors import LocalError
from protocol.ipsec.model import Policy, PolicyId, SaId, SecurityAssociation


class IpsecError(LocalError):
    """The SAD or SPD refused, or a backend is not usable on this machine (names cause and cure)."""


@dataclass(frozen=True, slots=True)
class ByteLimit:
    """How much an SA may carry (RFC 4301 section 4.4.2.1), counted by the kernel.

    Attributes:
        soft: bytes at which it says so, once.
        hard: bytes at which it removes the SA.
    """

    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class AddSa:
    """Add an SA; fails if one with the same id exists.

    Attributes:
        sa: what is added.
        limit: None: it may carry any number of bytes.
    """

    sa: SecurityAssociation
    limit: ByteLimit | None = None


@dataclass(frozen=True, slots=True)
class DeleteSa:
    """Delete the SA with this id; an SA that is already gone is reported, see `Outcome`."""

    id: SaId


@dataclass(frozen=True, slots=True)
class PutPolicy:
    """Add the policy, or replace the one with the same id in one atomic step (XFRM UPDPOLICY)."""

    policy: Policy


@dataclass(frozen=True, slots=True)
class DeletePolicy:
    """Delete the policy with this id."""

    id: PolicyId


Operation = AddSa | DeleteSa | PutPolicy | DeletePolicy


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one operation.

    Attributes:
        errno: 0 on success, else the kernel's error number (EEXIST, ESRCH, ...).
        text: empty on success, else what the kernel or command said.
    """

    errno: int = 0
    text: str = ""

    @property
    def ok(self) -> bool:
        """True if the operation was done."""
        return self.errno == 0


DONE = Outcome()
"""The outcome of every operation that was done."""

LOST = Outcome(errno.EIO, "the backend reported no outcome")
"""The outcome of an operation of which nothing was said."""


def name_of(operation: Operation) -> str:
    """Name an operation for the log: no key material."""
    match operation:
        case AddSa(sa):
            return f"add SA {sa.spi:#010x}"
        case DeleteSa(sa_id):
            return f"delete SA {sa_id.spi:#010x}"
        case PutPolicy(policy):
            return f"put {policy.direction.value} policy"
        case _:
            return f"delete {operation.id.direction.value} policy"


class IpsecBackend(Protocol):
    """An SAD and SPD of the network namespace the process runs in."""

    name: str
    """``netlink``, ``command``, ``pfkey`` or ``memory``; recorded in every manifest."""

    kernel: bool
    """Whether SAs are really in a kernel."""

    def apply(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Perform the operations in order; one outcome each. Batches where the backend can.

        Raises:
            IpsecError: the backend itself failed (socket lost, command missing), not one operation.
        """
        ...

    def dump_sas(self) -> list[SecurityAssociation]:
        """Return every SA of the SAD with its keys (needs CAP_NET_ADMIN)."""
        ...

    def dump_policies(self) -> list[Policy]:
        """Return every policy of the SPD that this project's model can express."""
        ...

    def close(self) -> None:
        """Release sockets; idempotent."""
        ...
