"""The netlink socket: sequence numbers, matched acknowledgements, dumps and announcements.

The kernel processes an XFRM request inside ``send`` and queues its answer before ``send``
returns, so reading an answer does not wait. Several requests may travel in one ``send``:
``netlink_rcv_skb`` (net/netlink/af_netlink.c) goes through them in order and acknowledges each,
also after a failed one.

When the receive buffer is full, the kernel drops answers or announcements and the next ``recv``
fails with ENOBUFS. That is a state of its own, `XfrmOverrunError`: what was asked may have been
done, so the caller reads the SAD back instead of guessing.

Never subscribe to XFRMNLGRP_ACQUIRE: with a listener on it, an outbound policy without an SA
makes the kernel keep a larval SA under the SPI that the policy pins, and the later NEWSA fails
with EEXIST.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Sequence

from protocol.core.errors import DecodeError, LocalError
from protocol.ipsec.backend import IpsecError
from protocol.xfrm.codec import asking, decode, encode
from protocol.xfrm.messages import (
    NLM_F_ACK,
    NLM_F_DUMP_INTR,
    Ack,
    Done,
    DumpPolicies,
    DumpSas,
    Frame,
    Message,
    Overrun,
    request_flags,
)
from protocol.xfrm.namespace import in_namespace

NETLINK_XFRM = 6

XFRMNLGRP_EXPIRE = 2
XFRMNLGRP_SA = 3
XFRMNLGRP_POLICY = 4
_GROUPS_ALLOWED = (XFRMNLGRP_EXPIRE, XFRMNLGRP_SA, XFRMNLGRP_POLICY)

_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_SO_RCVBUFFORCE = 33

RECEIVE_BUFFER_LENGTH = 4 << 20
"""Bytes asked of SO_RCVBUFFORCE: room for the announcements of thousands of SAs."""

DATAGRAM_LENGTH = 64 << 10
"""Longest datagram we can read; the kernel's dumps use at most 32 KiB."""

BATCH_COUNT_MAX = 64
"""Requests in one send. An acknowledgement costs about 1 KiB of receive buffer, and 64 of them fit
even in the smallest default buffer (212992 bytes); so do 64 requests in the send buffer, of less
than 1 KiB each."""

ACCEPTED = Ack()
"""What the kernel says of a request it has nothing against."""

ANSWER_WAIT_S = 5
"""Nothing waits this long (see above); it turns a lost answer into an error instead of a hang."""

DUMP_ATTEMPTS = 8
"""How often a dump that the kernel marks inconsistent (NLM_F_DUMP_INTR) is repeated."""

_LOST = "kernel dropped messages: read the SAD back (resync)"


class XfrmOverrunError(IpsecError):
    """The kernel dropped messages for lack of room: read the SAD and SPD back (resync)."""


class XfrmSocket:
    """A NETLINK_XFRM socket in one network namespace.

    Args:
        namespace: nsfs path, or process id, or None for our own namespace.
        groups: XFRMNLGRP_* to listen to. A socket that listens is not used for requests.

    Raises:
        IpsecError: the kernel has no XFRM netlink, or we may not use it.
    """

    def __init__(self, namespace: str | int | None = None, groups: Iterable[int] = ()) -> None:
        wanted = tuple(groups)
        if not set(wanted) <= set(_GROUPS_ALLOWED):
            raise IpsecError(f"of XFRM groups {wanted} some must not be listened to (larval SAs)")
        self._sequence = 0
        self._port = 0
        self._buffer = bytearray(DATAGRAM_LENGTH)
        with in_namespace(namespace):
            try:
                self._socket = socket.socket(
                    socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_XFRM
                )
            except OSError as error:
                raise IpsecError(
                    f"kernel has no XFRM netlink ({error.strerror}): "
                    "run with --env vm, or --sa-backend memory"
                ) from None
        try:
            self._configure(wanted)
        except OSError as error:
            self._socket.close()
            raise IpsecError(
                f"XFRM netlink refused ({error.strerror}): run as root (CAP_NET_ADMIN)"
            ) from None

    def _configure(self, groups: Iterable[int]) -> None:
        sock = self._socket
        sock.bind((0, 0))
        self._port = int(sock.getsockname()[0])
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER_LENGTH)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_LENGTH)
        # Errors come with words, and without the request, which holds keys.
        sock.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        sock.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        wait = struct.pack("@ll", ANSWER_WAIT_S, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)
        for group in groups:
            sock.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)

    @property
    def port(self) -> int:
        """Our netlink port: it stands in what the kernel announces of our changes."""
        return self._port

    def fileno(self) -> int:
        """Return the descriptor, for a selector."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket; idempotent."""
        self._socket.close()

    def request(self, messages: Sequence[Message]) -> list[Ack]:
        """Send requests, as many in one send as fit; return one acknowledgement each, in order.

        Only the last of a send asks to be acknowledged: the kernel takes them in order, answers a
        request that fails whether asked or not, and goes on (netlink_rcv_skb in
        net/netlink/af_netlink.c), so one answer stands for all that were not refused before it.

        A message that cannot be put into bytes is not sent, and refused here with EINVAL and the
        reason, as the kernel would; the others are sent.

        Raises:
            XfrmOverrunError: acknowledgements were lost.
            IpsecError: the socket failed.
        """
        answers: list[Ack] = []
        for start in range(0, len(messages), BATCH_COUNT_MAX):
            answers += self._transact(messages[start : start + BATCH_COUNT_MAX])
        return answers

    def _transact(self, messages: Sequence[Message]) -> list[Ack]:
        answers: list[Ack] = [ACCEPTED] * len(messages)
        first = self._sequence + 1
        batch: list[bytes] = []
        for index, message in enumerate(messages):
            flags = request_flags(message) & ~NLM_F_ACK
            try:
                batch.append(encode(message, first + index, flags, port=self._port))
            except LocalError as error:
                answers[index] = Ack(errno.EINVAL, str(error))
            else:
                last = first + index
        self._sequence += len(messages)
        if not batch:
            return answers
        batch[-1] = asking(batch[-1])
        self._send(b"".join(batch))
        while True:
            for frame in self.receive():
                answer, sequence = frame.message, frame.sequence
                if isinstance(answer, Ack) and first <= sequence <= last:
                    answers[sequence - first] = answer
                    if sequence == last:
                        return answers

    def get(self, message: Message) -> Message | Ack:
        """Send one GETSA or GETPOLICY; return what the kernel holds, or its refusal."""
        self._sequence += 1
        self._send(encode(message, self._sequence, port=self._port))
        answer: Message | None = None
        while True:
            for frame in self.receive():
                if frame.sequence != self._sequence:
                    continue
                if isinstance(frame.message, Ack):
                    return frame.message if answer is None else answer
                answer = frame.message

    def dump(self, message: DumpSas | DumpPolicies) -> list[Message]:
        """Return everything of a kind, read again while the kernel calls it inconsistent.

        Raises:
            XfrmOverrunError: parts were lost.
            IpsecError: the kernel refused, or the table changed during every attempt.
        """
        for _ in range(DUMP_ATTEMPTS):
            found, consistent = self._dump_once(message)
            if consistent:
                return found
        raise IpsecError("the SAD or SPD changed during every dump: try again when it is quiet")

    def _dump_once(self, message: DumpSas | DumpPolicies) -> tuple[list[Message], bool]:
        self._sequence += 1
        self._send(encode(message, self._sequence, port=self._port))
        found: list[Message] = []
        consistent = True
        while True:
            for frame in self.receive():
                if frame.sequence != self._sequence:
                    continue
                consistent = consistent and not frame.flags & NLM_F_DUMP_INTR
                match frame.message:
                    case Done(0):
                        return found, consistent
                    case Done(number) | Ack(number, _):
                        reason = os.strerror(number)
                        raise IpsecError(f"reading the kernel's SAD or SPD: {reason}: run as root")
                    case _:
                        found.append(frame.message)

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise IpsecError(f"XFRM netlink send: {error.strerror}") from None

    def receive(self, flags: int = 0) -> list[Frame]:
        """Read one datagram from the kernel; messages from other processes are dropped.

        Args:
            flags: ``socket.MSG_DONTWAIT`` for a reader of announcements.

        Raises:
            XfrmOverrunError: the kernel dropped messages before this one.
            BlockingIOError: nothing is there, with MSG_DONTWAIT.
            IpsecError: the socket failed or the kernel sent what is no XFRM.
        """
        try:
            length, source = self._socket.recvfrom_into(
                self._buffer, DATAGRAM_LENGTH, flags | socket.MSG_TRUNC
            )
        except BlockingIOError:
            if flags & socket.MSG_DONTWAIT:
                raise
            raise XfrmOverrunError("kernel did not answer: read the SAD back (resync)") from None
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                raise XfrmOverrunError(
                    "kernel dropped messages: read the SAD back (resync)"
                ) from None
            raise IpsecError(f"XFRM netlink receive: {error.strerror}") from None
        if source[0] != 0:
            return []
        if length > DATAGRAM_LENGTH:
            raise XfrmOverrunError(f"datagram of {length} bytes: read the SAD back (resync)")
        try:
            frames = decode(bytes(memoryview(self._buffer)[:length]))
        except DecodeError as error:
            raise IpsecError(f"kernel sent what we cannot read: {error}") from None
        for frame in frames:
            if isinstance(frame.message, Overrun):
                raise XfrmOverrunError(_LOST)
        return frames
