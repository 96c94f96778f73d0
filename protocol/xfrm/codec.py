"""XFRM over netlink, pure bytes in and out: no socket, no clock.

`encode` makes the bytes of one message (``protocol.xfrm.messages``), `decode` the messages of a
datagram. The sequence number of a request comes back in its answers, so it is the cookie that
ties them together.

`decode` raises nothing but `DecodeError`, which names field and offset and never shows content:
datagrams hold keys.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

from protocol.core.errors import DecodeError, LocalError
from protocol.ipsec.model import Policy, PolicyId, SaId, SecurityAssociation
from protocol.xfrm.attributes import pack_attribute, read_attributes
from protocol.xfrm.messages import (
    NLM_F_ACK,
    NLM_F_ACK_TLVS,
    NLM_F_CAPPED,
    NLM_F_DUMP,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_NOOP,
    NLMSG_OVERRUN,
    NLMSGERR_ATTR_MSG,
    XFRM_MSG_DELPOLICY,
    XFRM_MSG_DELSA,
    XFRM_MSG_EXPIRE,
    XFRM_MSG_FLUSHPOLICY,
    XFRM_MSG_FLUSHSA,
    XFRM_MSG_GETPOLICY,
    XFRM_MSG_GETSA,
    XFRM_MSG_NEWPOLICY,
    XFRM_MSG_NEWSA,
    XFRM_MSG_POLEXPIRE,
    XFRM_MSG_UPDPOLICY,
    XFRM_MSG_UPDSA,
    Ack,
    DelPolicy,
    DelSa,
    Done,
    DumpPolicies,
    DumpSas,
    ExpirePolicy,
    ExpireSa,
    FlushPolicy,
    FlushSa,
    Frame,
    GetPolicy,
    GetSa,
    Message,
    NewPolicy,
    NewSa,
    Overrun,
    Unknown,
    UpdPolicy,
    UpdSa,
    request_flags,
)
from protocol.xfrm.structs import (
    XFRM_USER_EXPIRE_SIZE,
    XFRM_USER_POLEXPIRE_SIZE,
    XFRM_USERPOLICY_ID_SIZE,
    XFRM_USERPOLICY_INFO_SIZE,
    XFRM_USERSA_INFO_SIZE,
    XfrmId,
    XfrmUserpolicyId,
    XfrmUserpolicyInfo,
    XfrmUsersaId,
    XfrmUsersaInfo,
    pack_hard,
    pack_usersa_flush,
)
from protocol.xfrm.template import sa_body
from protocol.xfrm.translate import (
    ForeignPolicy,
    policy_from_kernel,
    policy_to_kernel,
    policyid_from_kernel,
    policyid_to_kernel,
    sa_from_kernel,
    said_from_kernel,
    said_to_kernel,
)

DATAGRAM_LENGTH_MAX = 1 << 20
"""A dump's datagrams are at most 32 KiB (net/netlink/af_netlink.c); far more is not a kernel's."""

ERRNO_MAX = 4095
"""MAX_ERRNO in include/linux/err.h."""

_HEADER = Struct("=IHHII")
_ERROR = Struct("=i")
_U32 = Struct("=I")
_NLMSGERR_SIZE = 20


def encode(message: Message, sequence: int, flags: int | None = None, port: int = 0) -> bytes:
    """Return the bytes of one message, ``struct nlmsghdr`` included, padded to four bytes.

    Raises:
        LocalError: a value does not fit, or a foreign SA or policy, which are only received.
    """
    kind, body = _encode_body(message)
    if flags is None:
        flags = request_flags(message)
    if kind == NLMSG_ERROR:
        body += _HEADER.pack(_HEADER.size, 0, 0, sequence, 0) + _encode_text(message)
    length = _HEADER.size + len(body)
    return _HEADER.pack(length, kind, flags, sequence, port) + body + bytes(-length % 4)


def asking(request: bytes) -> bytes:
    """Return an encoded request that asks the kernel for an acknowledgement."""
    length, kind, flags, sequence, port = _HEADER.unpack_from(request)
    return _HEADER.pack(length, kind, flags | NLM_F_ACK, sequence, port) + request[_HEADER.size :]


def _encode_body(message: Message) -> tuple[int, bytes]:
    match message:
        case NewSa(SecurityAssociation() as sa, lifetime):
            kind = XFRM_MSG_UPDSA if isinstance(message, UpdSa) else XFRM_MSG_NEWSA
            return kind, sa_body(sa, lifetime)
        case DelSa(SaId() as sa_id):
            return XFRM_MSG_DELSA, said_to_kernel(sa_id).pack()
        case GetSa(SaId() as sa_id):
            return XFRM_MSG_GETSA, said_to_kernel(sa_id).pack()
        case DumpSas():
            return XFRM_MSG_GETSA, b""
        case FlushSa(protocol):
            return XFRM_MSG_FLUSHSA, pack_usersa_flush(protocol)
        case ExpireSa(SaId() as sa_id, hard):
            named = said_to_kernel(sa_id)
            state = XfrmUsersaInfo(id=XfrmId(named.daddr, named.spi, named.proto))
            return XFRM_MSG_EXPIRE, state.pack() + pack_hard(hard)
        case NewPolicy(Policy() as policy):
            pol, attributes = policy_to_kernel(policy)
            kind = XFRM_MSG_UPDPOLICY if isinstance(message, UpdPolicy) else XFRM_MSG_NEWPOLICY
            return kind, b"".join((pol.pack(), *attributes))
        case DelPolicy(PolicyId() as policy_id):
            named_policy, attributes = policyid_to_kernel(policy_id)
            return XFRM_MSG_DELPOLICY, b"".join((named_policy.pack(), *attributes))
        case GetPolicy(PolicyId() as policy_id):
            named_policy, attributes = policyid_to_kernel(policy_id)
            return XFRM_MSG_GETPOLICY, b"".join((named_policy.pack(), *attributes))
        case DumpPolicies():
            return XFRM_MSG_GETPOLICY, b""
        case FlushPolicy():
            return XFRM_MSG_FLUSHPOLICY, b""
        case ExpirePolicy(Policy() as policy, hard):
            pol, attributes = policy_to_kernel(policy)
            return XFRM_MSG_POLEXPIRE, b"".join((pol.pack(), pack_hard(hard), *attributes))
        case Ack(errno):
            return NLMSG_ERROR, _ERROR.pack(-errno)
        case Done(errno):
            return NLMSG_DONE, _ERROR.pack(-errno)
        case Overrun():
            return NLMSG_OVERRUN, b""
        case _:
            raise LocalError(f"{type(message).__name__} of another's making is only received")


def _encode_text(message: Message) -> bytes:
    """Return the extended acknowledgement's attributes."""
    if not isinstance(message, Ack) or not message.text:
        return b""
    return pack_attribute(NLMSGERR_ATTR_MSG, message.text.encode() + b"\0")


def decode(data: bytes) -> list[Frame]:
    """Return the messages of one datagram from the kernel.

    Raises:
        DecodeError: the bytes are no sequence of whole, well-formed messages.
    """
    if len(data) > DATAGRAM_LENGTH_MAX:
        raise DecodeError("datagram", 0, f"{len(data)} bytes, at most {DATAGRAM_LENGTH_MAX}")
    frames = []
    offset = 0
    while offset < len(data):
        left = len(data) - offset
        if left < _HEADER.size:
            raise DecodeError("nlmsghdr", offset, f"needs {_HEADER.size} bytes, {left} left")
        length, kind, flags, sequence, port = _HEADER.unpack_from(data, offset)
        if not _HEADER.size <= length <= left:
            raise DecodeError("nlmsg_len", offset, f"{length} of {left} bytes")
        body = data[offset + _HEADER.size : offset + length]
        try:
            message = _decode_body(kind, flags, body)
        except DecodeError as error:
            place = offset + _HEADER.size + error.offset
            raise DecodeError(error.field, place, error.reason.partition(": ")[2]) from None
        if message is not None:
            frames.append(Frame(message, sequence, flags, port))
        offset += length + -length % 4
    return frames


def _decode_body(kind: int, flags: int, body: bytes) -> Message | None:
    """Return the message in a body, or None for NLMSG_NOOP; offsets count from the body."""
    if kind == NLMSG_NOOP:
        return None
    if kind in (XFRM_MSG_GETSA, XFRM_MSG_GETPOLICY) and flags & NLM_F_DUMP == NLM_F_DUMP:
        return DumpSas() if kind == XFRM_MSG_GETSA else DumpPolicies()
    if kind == NLMSG_ERROR:
        return _decode_ack(flags, body)
    reader = _READERS.get(kind)
    return Unknown(kind) if reader is None else reader(body)


def _decode_ack(flags: int, body: bytes) -> Ack:
    """Read struct nlmsgerr; the echoed request, which may hold keys, is passed over."""
    errno = _read_errno("nlmsgerr", body)
    if len(body) < _NLMSGERR_SIZE:
        raise DecodeError("nlmsgerr", 0, f"needs {_NLMSGERR_SIZE} bytes, {len(body)} left")
    if not flags & NLM_F_ACK_TLVS:
        return Ack(errno)
    offset = _NLMSGERR_SIZE
    if errno and not flags & NLM_F_CAPPED:
        (request_length,) = _U32.unpack_from(body, _ERROR.size)
        if not _HEADER.size <= request_length <= len(body) - _ERROR.size:
            raise DecodeError("nlmsgerr", _ERROR.size, "the echoed request is cut short")
        offset = _ERROR.size + request_length + -request_length % 4
    _, text = read_attributes(body, offset).get(NLMSGERR_ATTR_MSG, (0, b""))
    return Ack(errno, text.rstrip(b"\0").decode("utf-8", "replace"))


def _read_errno(name: str, body: bytes) -> int:
    """Read the ``int error`` of struct nlmsgerr and of NLMSG_DONE."""
    if len(body) < _ERROR.size:
        raise DecodeError(name, 0, f"needs {_ERROR.size} bytes, {len(body)} left")
    (error,) = _ERROR.unpack_from(body)
    if not -ERRNO_MAX <= error <= 0:
        raise DecodeError(name, 0, "error is not between -4095 and 0")
    return -int(error)


def _read_done(body: bytes) -> Done:
    return Done(_read_errno("NLMSG_DONE", body) if body else 0)


def _read_overrun(_body: bytes) -> Overrun:
    return Overrun()


def _read_new_sa(body: bytes) -> NewSa:
    info = XfrmUsersaInfo.unpack(body)
    sa = sa_from_kernel(info, read_attributes(body, XFRM_USERSA_INFO_SIZE))
    return NewSa(sa, info.lft, info.curlft)


def _read_upd_sa(body: bytes) -> UpdSa:
    new = _read_new_sa(body)
    return UpdSa(new.sa, new.lifetime, new.usage)


def _read_del_sa(body: bytes) -> DelSa:
    return DelSa(said_from_kernel(XfrmUsersaId.unpack(body)))


def _read_get_sa(body: bytes) -> GetSa:
    return GetSa(said_from_kernel(XfrmUsersaId.unpack(body)))


def _read_flush_sa(body: bytes) -> FlushSa:
    if not body:
        raise DecodeError("xfrm_usersa_flush", 0, "needs 1 byte, 0 left")
    return FlushSa(body[0])


def _read_expire_sa(body: bytes) -> ExpireSa:
    info = XfrmUsersaInfo.unpack(body)
    if len(body) < XFRM_USER_EXPIRE_SIZE:
        raise DecodeError("xfrm_user_expire", 0, f"needs {XFRM_USER_EXPIRE_SIZE} bytes")
    named = XfrmUsersaId(info.id.daddr, info.id.spi, info.family, info.id.proto)
    return ExpireSa(said_from_kernel(named), bool(body[XFRM_USERSA_INFO_SIZE]))


def _read_new_policy(body: bytes) -> NewPolicy:
    info = XfrmUserpolicyInfo.unpack(body)
    return NewPolicy(policy_from_kernel(info, read_attributes(body, XFRM_USERPOLICY_INFO_SIZE)))


def _read_upd_policy(body: bytes) -> UpdPolicy:
    return UpdPolicy(_read_new_policy(body).policy)


def _read_policy_id(body: bytes) -> PolicyId | ForeignPolicy:
    raw = XfrmUserpolicyId.unpack(body)
    return policyid_from_kernel(raw, read_attributes(body, XFRM_USERPOLICY_ID_SIZE))


def _read_del_policy(body: bytes) -> DelPolicy:
    return DelPolicy(_read_policy_id(body))


def _read_get_policy(body: bytes) -> GetPolicy:
    return GetPolicy(_read_policy_id(body))


def _read_flush_policy(_body: bytes) -> FlushPolicy:
    return FlushPolicy()


def _read_expire_policy(body: bytes) -> ExpirePolicy:
    info = XfrmUserpolicyInfo.unpack(body)
    if len(body) < XFRM_USER_POLEXPIRE_SIZE:
        raise DecodeError("xfrm_user_polexpire", 0, f"needs {XFRM_USER_POLEXPIRE_SIZE} bytes")
    attributes = read_attributes(body, XFRM_USER_POLEXPIRE_SIZE)
    return ExpirePolicy(policy_from_kernel(info, attributes), bool(body[XFRM_USERPOLICY_INFO_SIZE]))


_READERS: dict[int, Callable[[bytes], Message]] = {
    NLMSG_DONE: _read_done,
    NLMSG_OVERRUN: _read_overrun,
    XFRM_MSG_NEWSA: _read_new_sa,
    XFRM_MSG_UPDSA: _read_upd_sa,
    XFRM_MSG_DELSA: _read_del_sa,
    XFRM_MSG_GETSA: _read_get_sa,
    XFRM_MSG_FLUSHSA: _read_flush_sa,
    XFRM_MSG_EXPIRE: _read_expire_sa,
    XFRM_MSG_NEWPOLICY: _read_new_policy,
    XFRM_MSG_UPDPOLICY: _read_upd_policy,
    XFRM_MSG_DELPOLICY: _read_del_policy,
    XFRM_MSG_GETPOLICY: _read_get_policy,
    XFRM_MSG_FLUSHPOLICY: _read_flush_policy,
    XFRM_MSG_POLEXPIRE: _read_expire_policy,
}
