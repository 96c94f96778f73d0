"""Byte layouts of the kernel's XFRM structures, under their names in ``uapi/linux/xfrm.h``.

Each class is one C structure as a named tuple with ``pack`` and ``unpack``. Integers are in host
byte order as netlink has them, except what the header marks ``__be16``/``__be32`` (ports and
SPI). Address fields are the 16 bytes of ``xfrm_address_t``; an IPv4 address occupies the first
four. Layouts are those of 64-bit Linux, where the ``__u64`` of the lifetimes aligns structures
to 8 bytes. Fields that this project never sets are kept as integers, so that what the kernel
sent can be shown.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple, Self

from protocol.core.errors import DecodeError

AF_UNSPEC = 0
AF_INET = 2
AF_INET6 = 10

# XFRM_MODE_*
XFRM_MODE_TRANSPORT = 0
XFRM_MODE_TUNNEL = 1

# XFRM_POLICY_* directions and actions
XFRM_POLICY_IN = 0
XFRM_POLICY_OUT = 1
XFRM_POLICY_FWD = 2
XFRM_POLICY_ALLOW = 0
XFRM_POLICY_BLOCK = 1

# XFRM_STATE_* flags
XFRM_STATE_AF_UNSPEC = 32
XFRM_STATE_ESN = 128

XFRM_INF = 0xFFFF_FFFF_FFFF_FFFF
"""No limit, in `XfrmLifetimeCfg`."""

ANY = bytes(16)
"""The address ``::`` (or 0.0.0.0) as ``xfrm_address_t``."""


def _read(layout: Struct, name: str, data: bytes, offset: int) -> tuple[int | bytes, ...]:
    """Unpack a structure; too few bytes are a `DecodeError` that names it."""
    if len(data) < offset + layout.size:
        raise DecodeError(name, offset, f"needs {layout.size} bytes, {len(data) - offset} left")
    return layout.unpack_from(data, offset)


class XfrmSelector(NamedTuple):
    """``struct xfrm_selector``: which packets."""

    daddr: bytes = ANY
    saddr: bytes = ANY
    dport: int = 0
    dport_mask: int = 0
    sport: int = 0
    sport_mask: int = 0
    family: int = AF_UNSPEC
    prefixlen_d: int = 0
    prefixlen_s: int = 0
    proto: int = 0
    ifindex: int = 0
    user: int = 0

    def pack(self) -> bytes:
        """Return the structure's bytes."""
        ports = _PORTS.pack(self.dport, self.dport_mask, self.sport, self.sport_mask)
        return _SELECTOR.pack(
            self.daddr,
            self.saddr,
            ports,
            self.family,
            self.prefixlen_d,
            self.prefixlen_s,
            self.proto,
            self.ifindex,
            self.user,
        )

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> Self:
        """Read the structure at ``offset``."""
        daddr, saddr, ports, *rest = _read(_SELECTOR, "xfrm_selector", data, offset)
        assert isinstance(ports, bytes)
        return cls._make((daddr, saddr, *_PORTS.unpack(ports), *rest))


_PORTS = Struct("!4H")
_SELECTOR = Struct("=16s16s8sHBBB3xiI")


class XfrmId(NamedTuple):
    """``struct xfrm_id``: destination, SPI, protocol."""

    daddr: bytes = ANY
    spi: int = 0
    proto: int = 0

    def pack(self) -> bytes:
        """Return the structure's bytes."""
        return _ID.pack(self.daddr, self.spi, self.proto)

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> Self:
        """Read the structure at ``offset``."""
        return cls._make(_read(_ID, "xfrm_id", data, offset))


_ID = Struct("!16sIB3x")


class XfrmLifetimeCfg(NamedTuple):
    """``struct xfrm_lifetime_cfg``: limits that make an SA expire."""

    soft_byte_limit: int = XFRM_INF
    hard_byte_limit: int = XFRM_INF
    soft_packet_limit: int = XFRM_INF
    hard_packet_limit: int = XFRM_INF
    soft_add_expires_seconds: int = 0
    hard_add_expires_seconds: int = 0
    soft_use_expires_seconds: int = 0
    hard_use_expires_seconds: int = 0

    def pack(self) -> bytes:
        """Return the structure's bytes."""
        return _LIFETIME_CFG.pack(*self)

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> Self:
        """Read the structure at ``offset``."""
        return cls._make(_read(_LIFETIME_CFG, "xfrm_lifetime_cfg", data, offset))


_LIFETIME_CFG = Struct("=8Q")


class XfrmLifetimeCur(NamedTuple):
    """``struct xfrm_lifetime_cur``: what an SA has carried; times are seconds since 1970."""

    byte_count: int = 0
    packet_count: int = 0
    add_time: int = 0
    use_time: int = 0

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> Self:
        """Read the structure at ``offset``."""
        return cls._make(_read(_LIFETIME_CUR, "xfrm_lifetime_cur", data, offset))


_LIFETIME_CUR = Struct("=4Q")


class XfrmUsersaInfo(NamedTuple):
    """``struct xfrm_usersa_info``: an SA without its algorithms, which are attributes.

    ``curlft`` and ``stats`` are the kernel's to fill in and are sent as zeros.
    """

    sel: XfrmSelector = XfrmSelector()
    id: XfrmId = XfrmId()
    saddr: bytes = ANY
    lft: XfrmLifetimeCfg = XfrmLifetimeCfg()
    curlft: XfrmLifetimeCur = XfrmLifetimeCur()
    seq: int = 0
    reqid: int = 0
    family: int = AF_INET6
    mode: int = XFRM_MODE_TUNNEL
    replay_window: int = 0
    flags: int = 0

    def pack(self) -> bytes:
        """Return the structure's bytes."""
        tail = (self.seq, self.reqid, self.family, self.mode, self.replay_window, self.flags)
        head = self.sel.pack() + self.id.pack() + self.saddr + self.lft.pack()
        return head + _USERSA_COUNTERS + _USERSA_TAIL.pack(*tail)

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> Self:
        """Read the structure at ``offset``."""
        if len(data) < offset + XFRM_USERSA_INFO_SIZE:
            raise DecodeError("xfrm_usersa_info", offset, f"needs {XFRM_USERSA_INFO_SIZE} bytes")
        return cls._make(
            (
                XfrmSelector.unpack(data, offset),
                XfrmId.unpack(data, offset + 56),
                data[offset + 80 : offset + 96],
                XfrmLifetimeCfg.unpack(data, offset + 96),
                XfrmLifetimeCur.unpack(data, offset + 160),
                *_USERSA_TAIL.unpack_from(data, offset + 204),
            )
        )


_USERSA_COUNTERS = bytes(44)
_USERSA_TAIL = Struct("=IIHBBB7x")


class XfrmUsersaId(NamedTuple):
    """``struct xfrm_usersa_id``: how DELSA and GETSA name an SA."""

    daddr: bytes = ANY
    spi: int = 0
    family: int = AF_INET6
    proto: int = 0

    def pack(self) -> bytes:
        """Return the structure's bytes."""
        spi = self.spi.to_bytes(4, "big")
        return _USERSA_ID.pack(self.daddr, spi, self.family, self.proto)

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> Self:
        """Read the structure at ``offset``."""
        daddr, spi, family, proto = _read(_USERSA_ID, "xfrm_usersa_id", data, offset)
        assert isinstance(spi, bytes)
        return cls._make((daddr, int.from_bytes(spi, "big"), family, proto))


_USERSA_ID = Struct("=16s4sHBx")


class XfrmUserTmpl(NamedTuple):
    """``struct xfrm_user_tmpl``: the SA that a policy asks for."""

    id: XfrmId = XfrmId()
    family: int = AF_INET6
    saddr: bytes = ANY
    reqid: int = 0
    mode: int = XFRM_MODE_TUNNEL
    share: int = 0
    optional: int = 0
    aalgos: int = 0xFFFFFFFF
    ealgos: int = 0xFFFFFFFF
    calgos: int = 0xFFFFFFFF

    def pack(self) -> bytes:
        """Return the structure's bytes."""
        return self.id.pack() + _TMPL_TAIL.pack(*self[1:])

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> Self:
        """Read the structure at ``offset``."""
        tail = _read(_TMPL_TAIL, "xfrm_user_tmpl", data, offset + 24)
        return cls._make((XfrmId.unpack(data, offset), *tail))


_TMPL_TAIL = Struct("=H2x16sIBBBxIII")


class XfrmUserpolicyInfo(NamedTuple):
    """``struct xfrm_userpolicy_info``: a policy without its templates, which are an attribute."""

    sel: XfrmSelector = XfrmSelector()
    lft: XfrmLifetimeCfg = XfrmLifetimeCfg()
    curlft: XfrmLifetimeCur = XfrmLifetimeCur()
    priority: int = 0
    policy_index: int = 0
    dir: int = XFRM_POLICY_IN
    action: int = XFRM_POLICY_ALLOW
    flags: int = 0
    share: int = 0

    def pack(self) -> bytes:
        """Return the structure's bytes."""
        return self.sel.pack() + self.lft.pack() + bytes(32) + _POLICY_TAIL.pack(*self[3:])

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> Self:
        """Read the structure at ``offset``."""
        tail = _read(_POLICY_TAIL, "xfrm_userpolicy_info", data, offset + 152)
        return cls._make(
            (
                XfrmSelector.unpack(data, offset),
                XfrmLifetimeCfg.unpack(data, offset + 56),
                XfrmLifetimeCur.unpack(data, offset + 120),
                *tail,
            )
        )


_POLICY_TAIL = Struct("=IIBBBB4x")


class XfrmUserpolicyId(NamedTuple):
    """``struct xfrm_userpolicy_id``: how DELPOLICY and GETPOLICY name a policy."""

    sel: XfrmSelector = XfrmSelector()
    policy_index: int = 0
    dir: int = XFRM_POLICY_IN

    def pack(self) -> bytes:
        """Return the structure's bytes."""
        return self.sel.pack() + _POLICY_ID_TAIL.pack(self.policy_index, self.dir)

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> Self:
        """Read the structure at ``offset``."""
        tail = _read(_POLICY_ID_TAIL, "xfrm_userpolicy_id", data, offset + 56)
        return cls._make((XfrmSelector.unpack(data, offset), *tail))


_POLICY_ID_TAIL = Struct("=IB3x")

XFRM_USERSA_INFO_SIZE = 224
XFRM_USERPOLICY_INFO_SIZE = 168
XFRM_USERPOLICY_ID_SIZE = 64
XFRM_USER_TMPL_SIZE = 64

XFRM_USER_EXPIRE_SIZE = XFRM_USERSA_INFO_SIZE + 8
"""``struct xfrm_user_expire``: an xfrm_usersa_info, then ``__u8 hard`` and padding."""

XFRM_USER_POLEXPIRE_SIZE = XFRM_USERPOLICY_INFO_SIZE + 8
"""``struct xfrm_user_polexpire``: an xfrm_userpolicy_info, then ``__u8 hard`` and padding."""


def pack_hard(hard: bool) -> bytes:
    """Return the tail of both expire structures."""
    return bytes((int(hard),)) + bytes(7)


def pack_usersa_flush(proto: int) -> bytes:
    """Return ``struct xfrm_usersa_flush``: the protocol whose SAs go, 0 for all."""
    return bytes((proto,))
