"""PF_KEYv2, the interface the paper proposed in place of ``setkey``: for comparison.

It carries only what RFC 2367 and the KAME additions know: no AEAD, no xfrm interface id, no SA
direction, and Linux truncates HMAC-SHA-256 to 96 bits through it (``aalg_list`` in
net/xfrm/xfrm_algo.c has 96 as ``icv_truncbits`` and PF_KEY has no other id for it), which RFC 4868
implementations, and our own netlink SAs, do not accept. That leaves 3DES with HMAC-SHA1-96, the
paper's own suite. Policies go through netlink: they are written once at start-up.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
from collections.abc import Sequence

from protocol.core.errors import DecodeError
from protocol.ipsec.backend import AddSa, DeleteSa, IpsecError, Operation, Outcome
from protocol.ipsec.model import Policy, SecurityAssociation
from protocol.ipsec.validation import sa_defect
from protocol.xfrm.namespace import in_namespace
from protocol.xfrm.netlink import NetlinkBackend
from protocol.xfrm.pfkey_codec import (
    MESSAGE_LENGTH_MAX,
    SADB_DUMP,
    SadbMessage,
    decode,
    encode_add,
    encode_delete,
    encode_dump,
    inexpressible,
)

_AF_KEY = 15
_ANSWER_WAIT_S = 5
_SO_RCVBUFFORCE = 33
_RECEIVE_BUFFER_LENGTH = 4 << 20

_sequences = itertools.count(1)
"""One for the whole process: the kernel tells every PF_KEY socket of every change, so two backends
of one process must not number alike."""


class PfkeyBackend:
    """An `IpsecBackend` over PF_KEYv2 for SAs and netlink for policies.

    Args:
        namespace: nsfs path or process id of another network namespace, or None.

    Raises:
        IpsecError: the kernel has no PF_KEY, or we may not use it.
    """

    name = "pfkey"
    kernel = True

    def __init__(self, namespace: str | int | None = None) -> None:
        self._sequence = 0
        self._pid = os.getpid()
        with in_namespace(namespace):
            try:
                self._socket = socket.socket(_AF_KEY, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 2)
            except PermissionError:
                raise IpsecError("PF_KEY refused: run as root (CAP_NET_ADMIN)") from None
            except OSError as error:
                raise IpsecError(
                    f"kernel has no PF_KEY ({error.strerror}): "
                    "modprobe af_key, or --sa-backend netlink"
                ) from None
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_LENGTH)
        wait = struct.pack("@ll", _ANSWER_WAIT_S, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)
        self._policies = NetlinkBackend(namespace)

    def apply(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Perform the operations in order, a message each.

        Raises:
            IpsecError: PF_KEY cannot express an SA (nothing was done), or the socket failed.
        """
        for operation in operations:
            reason = inexpressible(operation.sa) if isinstance(operation, AddSa) else ""
            if reason:
                raise IpsecError(reason)
        return [self._apply_one(operation) for operation in operations]

    def _apply_one(self, operation: Operation) -> Outcome:
        match operation:
            case AddSa(sa, limit):
                defect = sa_defect(sa)
                if defect:
                    return Outcome(errno.EINVAL, defect)
                self._sequence = next(_sequences)
                return self._ask(encode_add(sa, self._sequence, self._pid, limit))
            case DeleteSa(sa_id):
                self._sequence = next(_sequences)
                return self._ask(encode_delete(sa_id, self._sequence, self._pid))
            case _:
                return self._policies.apply([operation])[0]

    def _ask(self, data: bytes) -> Outcome:
        """Send a request; a refusal comes from ``send`` itself or in the answer."""
        try:
            self._socket.send(data)
        except OSError as error:
            return Outcome(error.errno or errno.EIO, error.strerror or "PF_KEY send failed")
        while True:
            answer = self._receive()
            if (answer.sequence, answer.pid) == (self._sequence, self._pid):
                text = os.strerror(answer.errno) if answer.errno else ""
                return Outcome(answer.errno, text)

    def dump_sas(self) -> list[SecurityAssociation]:
        """Return every SA that PF_KEY and the model can express, by SADB_DUMP."""
        self._sequence = next(_sequences)
        try:
            self._socket.send(encode_dump(self._sequence, self._pid))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return []
            raise IpsecError(f"PF_KEY send: {error.strerror}") from None
        found: list[SecurityAssociation] = []
        while True:
            answer = self._receive()
            if answer.kind != SADB_DUMP or answer.pid != self._pid:
                continue
            if answer.errno:
                return found
            if answer.sa is not None:
                found.append(answer.sa)
            if answer.sequence == 0:
                return found

    def _receive(self) -> SadbMessage:
        try:
            data = self._socket.recv(MESSAGE_LENGTH_MAX)
        except BlockingIOError:
            raise IpsecError("PF_KEY did not answer: is af_key loaded?") from None
        except OSError as error:
            raise IpsecError(f"PF_KEY receive: {error.strerror}") from None
        try:
            return decode(data)
        except DecodeError as error:
            raise IpsecError(f"kernel sent what we cannot read: {error}") from None

    def dump_policies(self) -> list[Policy]:
        """Return every policy, read by netlink."""
        return self._policies.dump_policies()

    def close(self) -> None:
        """Close both sockets; idempotent."""
        self._socket.close()
        self._policies.close()
