"""The SAD and SPD of a kernel through XFRM netlink: the project's own backend.

All operations of one `NetlinkBackend.apply` travel in as few sends as possible (usually one) and
each is acknowledged by the kernel; the outcome of each is the kernel's own error number and
words.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from protocol.ipsec.backend import (
    DONE,
    AddSa,
    ByteLimit,
    DeletePolicy,
    DeleteSa,
    IpsecError,
    Operation,
    Outcome,
    PutPolicy,
)
from protocol.ipsec.model import Policy, SecurityAssociation
from protocol.xfrm.messages import (
    Ack,
    DelPolicy,
    DelSa,
    DumpPolicies,
    DumpSas,
    Message,
    NewPolicy,
    NewSa,
    UpdPolicy,
)
from protocol.xfrm.socket import XfrmSocket
from protocol.xfrm.structs import XfrmLifetimeCfg


class NetlinkBackend:
    """An `IpsecBackend` over NETLINK_XFRM.

    Args:
        namespace: nsfs path or process id of another network namespace, or None.
    """

    name = "netlink"
    kernel = True

    def __init__(self, namespace: str | int | None = None) -> None:
        self._socket = XfrmSocket(namespace)

    @property
    def port(self) -> int:
        """Netlink port that the kernel names when it announces our changes."""
        return self._socket.port

    def apply(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Perform the operations in order, in as few sends as possible; one outcome each."""
        acks = self._socket.request([_message(operation) for operation in operations])
        return [_outcome(ack) for ack in acks]

    def dump_sas(self) -> list[SecurityAssociation]:
        """Return every SA of the SAD that the model can express, with its keys."""
        return [
            message.sa
            for message in self._socket.dump(DumpSas())
            if isinstance(message, NewSa) and isinstance(message.sa, SecurityAssociation)
        ]

    def dump_policies(self) -> list[Policy]:
        """Return every policy of the SPD that the model can express."""
        return [
            message.policy
            for message in self._socket.dump(DumpPolicies())
            if isinstance(message, NewPolicy) and isinstance(message.policy, Policy)
        ]

    def close(self) -> None:
        """Close the socket; idempotent."""
        self._socket.close()


def _message(operation: Operation) -> Message:
    """Return the request that performs the operation."""
    match operation:
        case AddSa(sa, None):
            return NewSa(sa)
        case AddSa(sa, ByteLimit(soft, hard)):
            return NewSa(sa, XfrmLifetimeCfg(soft_byte_limit=soft, hard_byte_limit=hard))
        case DeleteSa(sa_id):
            return DelSa(sa_id)
        case PutPolicy(policy):
            return UpdPolicy(policy)
        case DeletePolicy(policy_id):
            return DelPolicy(policy_id)
    raise IpsecError(f"no operation: {type(operation).__name__}")


def _outcome(ack: Ack) -> Outcome:
    """Return what the kernel said of one request."""
    if ack.errno == 0:
        return DONE
    return Outcome(ack.errno, ack.text or os.strerror(ack.errno))
