"""XFRM netlink messages as frozen dataclasses, named after their types in ``uapi/linux/xfrm.h``.

``XFRM_MSG_NEWSA`` is `NewSa`, and so on. The same classes serve for requests and for what the
kernel answers or announces, as in the kernel. No field shows a key: an SA's ``repr`` holds a
digest.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.ipsec.model import Policy, PolicyId, SaId, SecurityAssociation
from protocol.xfrm.structs import XfrmLifetimeCfg, XfrmLifetimeCur
from protocol.xfrm.translate import ForeignPolicy, ForeignSa

# XFRM_MSG_*
XFRM_MSG_NEWSA = 0x10
XFRM_MSG_DELSA = 0x11
XFRM_MSG_GETSA = 0x12
XFRM_MSG_NEWPOLICY = 0x13
XFRM_MSG_DELPOLICY = 0x14
XFRM_MSG_GETPOLICY = 0x15
XFRM_MSG_EXPIRE = 0x18
XFRM_MSG_UPDPOLICY = 0x19
XFRM_MSG_UPDSA = 0x1A
XFRM_MSG_POLEXPIRE = 0x1B
XFRM_MSG_FLUSHSA = 0x1C
XFRM_MSG_FLUSHPOLICY = 0x1D

# uapi/linux/netlink.h
NLMSG_NOOP = 1
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLMSG_OVERRUN = 4
NLM_F_REQUEST = 0x01
NLM_F_MULTI = 0x02
NLM_F_ACK = 0x04
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLMSGERR_ATTR_MSG = 1
NLMSGERR_ATTR_OFFS = 2


UNLIMITED = XfrmLifetimeCfg()
UNUSED = XfrmLifetimeCur()


@dataclass(frozen=True, slots=True)
class NewSa:
    """XFRM_MSG_NEWSA: struct xfrm_usersa_info and attributes. Also each answer to a dump.

    Attributes:
        sa: the SA; a `ForeignSa` is only received.
        lifetime: when the kernel shall let it expire.
        usage: what it has carried; only received, sent as zeros.
    """

    sa: SecurityAssociation | ForeignSa
    lifetime: XfrmLifetimeCfg = UNLIMITED
    usage: XfrmLifetimeCur = UNUSED


@dataclass(frozen=True, slots=True)
class UpdSa(NewSa):
    """XFRM_MSG_UPDSA: as `NewSa`, for an SA that exists."""


@dataclass(frozen=True, slots=True)
class DelSa:
    """XFRM_MSG_DELSA: struct xfrm_usersa_id; the announcement adds the SA in XFRMA_SA."""

    id: SaId | ForeignSa


@dataclass(frozen=True, slots=True)
class GetSa:
    """XFRM_MSG_GETSA: struct xfrm_usersa_id; answered by a `NewSa`."""

    id: SaId | ForeignSa


@dataclass(frozen=True, slots=True)
class DumpSas:
    """XFRM_MSG_GETSA with NLM_F_DUMP and no structure; answered by `NewSa` ... `Done`."""


@dataclass(frozen=True, slots=True)
class FlushSa:
    """XFRM_MSG_FLUSHSA: struct xfrm_usersa_flush; protocol 0 is all."""

    protocol: int = 0


@dataclass(frozen=True, slots=True)
class ExpireSa:
    """XFRM_MSG_EXPIRE: struct xfrm_user_expire, announced when a soft or hard limit is reached."""

    id: SaId | ForeignSa
    hard: bool


@dataclass(frozen=True, slots=True)
class NewPolicy:
    """XFRM_MSG_NEWPOLICY: struct xfrm_userpolicy_info and XFRMA_TMPL; EEXIST if it is there."""

    policy: Policy | ForeignPolicy


@dataclass(frozen=True, slots=True)
class UpdPolicy(NewPolicy):
    """XFRM_MSG_UPDPOLICY: as `NewPolicy`, but adds or replaces in one step."""


@dataclass(frozen=True, slots=True)
class DelPolicy:
    """XFRM_MSG_DELPOLICY: struct xfrm_userpolicy_id and XFRMA_IF_ID."""

    id: PolicyId | ForeignPolicy


@dataclass(frozen=True, slots=True)
class GetPolicy:
    """XFRM_MSG_GETPOLICY: struct xfrm_userpolicy_id; answered by a `NewPolicy`."""

    id: PolicyId | ForeignPolicy


@dataclass(frozen=True, slots=True)
class DumpPolicies:
    """XFRM_MSG_GETPOLICY with NLM_F_DUMP; answered by `NewPolicy` ... `Done`."""


@dataclass(frozen=True, slots=True)
class FlushPolicy:
    """XFRM_MSG_FLUSHPOLICY: no structure."""


@dataclass(frozen=True, slots=True)
class ExpirePolicy:
    """XFRM_MSG_POLEXPIRE: struct xfrm_user_polexpire."""

    policy: Policy | ForeignPolicy
    hard: bool


@dataclass(frozen=True, slots=True)
class Ack:
    """NLMSG_ERROR: struct nlmsgerr; the answer to a request with NLM_F_ACK.

    Attributes:
        errno: 0 for success, else positive.
        text: the kernel's own words (NLMSGERR_ATTR_MSG), if NETLINK_EXT_ACK is on.
    """

    errno: int = 0
    text: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """NLMSG_DONE: end of a dump; ``errno`` is not 0 if it ended early."""

    errno: int = 0


@dataclass(frozen=True, slots=True)
class Overrun:
    """NLMSG_OVERRUN: the kernel lost messages."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """A message of a type that this codec does not interpret, e.g. XFRM_MSG_ACQUIRE."""

    kind: int


Message = (
    NewSa
    | UpdSa
    | DelSa
    | GetSa
    | DumpSas
    | FlushSa
    | ExpireSa
    | NewPolicy
    | UpdPolicy
    | DelPolicy
    | GetPolicy
    | DumpPolicies
    | FlushPolicy
    | ExpirePolicy
    | Ack
    | Done
    | Overrun
    | Unknown
)


@dataclass(frozen=True, slots=True)
class Frame:
    """One message with what its ``struct nlmsghdr`` says.

    Attributes:
        message: the content.
        sequence: cookie of the request; 0 in most announcements.
        flags: NLM_F_*.
        port: netlink port that asked; 0 is the kernel.
    """

    message: Message
    sequence: int = 0
    flags: int = 0
    port: int = 0


_FLAGS: dict[type[Message], int] = {
    DumpSas: NLM_F_REQUEST | NLM_F_DUMP,
    DumpPolicies: NLM_F_REQUEST | NLM_F_DUMP,
    NewSa: NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
    NewPolicy: NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
    Ack: NLM_F_CAPPED | NLM_F_ACK_TLVS,
    Done: 0,
    Overrun: 0,
    ExpireSa: 0,
    ExpirePolicy: 0,
}
"""What is not a plain acknowledged request."""


def request_flags(message: Message) -> int:
    """Return the NLM_F_* flags with which this message is sent."""
    return _FLAGS.get(message.__class__, NLM_F_REQUEST | NLM_F_ACK)
