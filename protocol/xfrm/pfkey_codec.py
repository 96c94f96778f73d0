"""PF_KEYv2 messages (RFC 2367, ``uapi/linux/pfkeyv2.h``), pure bytes in and out.

Only what the paper's suite needs: adding, deleting and dumping ESP SAs over IPv6. Lengths on the
wire count 8-byte words; integers are in host byte order but for the SPI and the ports.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address
from struct import Struct

from protocol.core.errors import DecodeError, LocalError
from protocol.ipsec.backend import ByteLimit
from protocol.ipsec.model import (
    SUITES,
    KeyMaterial,
    Mode,
    SaId,
    SecurityAssociation,
    Suite,
)

PF_KEY_V2 = 2
SADB_ADD = 3
SADB_DELETE = 4
SADB_DUMP = 10
SADB_SATYPE_ESP = 3
SADB_SASTATE_MATURE = 1
SADB_AALG_SHA1HMAC = 3
SADB_EALG_3DESCBC = 3
SADB_EXT_SA = 1
SADB_EXT_LIFETIME_HARD = 3
SADB_EXT_LIFETIME_SOFT = 4
SADB_EXT_ADDRESS_SRC = 5
SADB_EXT_ADDRESS_DST = 6
SADB_EXT_KEY_AUTH = 8
SADB_EXT_KEY_ENCRYPT = 9
SADB_X_EXT_SA2 = 19
IPSEC_MODE_TRANSPORT = 1
IPSEC_MODE_TUNNEL = 2

MESSAGE_LENGTH_MAX = 64 << 10
REPLAY_WINDOW_MAX = 32
"""``sadb_sa_replay`` counts packets in the kernel's 32-bit bitmap (net/key/af_key.c)."""

_ALGORITHMS = {Suite.TDES_SHA1: (SADB_AALG_SHA1HMAC, SADB_EALG_3DESCBC)}
_SUITES = {numbers: suite for suite, numbers in _ALGORITHMS.items()}
_MODES = {Mode.TRANSPORT: IPSEC_MODE_TRANSPORT, Mode.TUNNEL: IPSEC_MODE_TUNNEL}
_MODE_NAMES = {number: mode for mode, number in _MODES.items()}

_AF_INET6 = 10
_MSG = Struct("=BBBBHHII")
_EXT = Struct("=HH")
_SA = Struct("=HH4sBBBBI")
_SA2 = Struct("=HHBBHII")
_LIFETIME = Struct("=HHIQQQ")
_ADDRESS = Struct("=HHBBHHHI16sI4x")
_KEY = Struct("=HHHH")


@dataclass(frozen=True, slots=True)
class SadbMessage:
    """``struct sadb_msg`` with the SA, if it is one that the model and this codec express.

    Attributes:
        kind: SADB_*.
        errno: 0 or why the kernel refused.
        sequence: of the request; counts down to 0 in a dump.
        pid: process that asked.
        sa: the SA, in answers to a dump.
    """

    kind: int
    errno: int
    sequence: int
    pid: int
    sa: SecurityAssociation | None = None


def inexpressible(sa: SecurityAssociation) -> str:
    """Say why PF_KEY cannot carry the SA and what to do, or return an empty string."""
    if SUITES[sa.suite].aead is not None:
        return f"PF_KEY has no AEAD ({sa.suite}): use suite 3des-sha1, or --sa-backend netlink"
    if sa.suite not in _ALGORITHMS:
        return (
            f"PF_KEY truncates HMAC-SHA-256 to 96 bits, RFC 4868 wants 128 ({sa.suite}): "
            "use suite 3des-sha1, or --sa-backend netlink"
        )
    if sa.if_id is not None:
        return "PF_KEY has no xfrm interface id: use SAs without if_id, or --sa-backend netlink"
    if sa.direction is not None:
        return "PF_KEY has no SA direction: use SAs without, or --sa-backend netlink"
    if sa.esn or sa.replay_window > REPLAY_WINDOW_MAX:
        return (
            f"PF_KEY has no ESN and no window over {REPLAY_WINDOW_MAX} packets: "
            "use a smaller window, or --sa-backend netlink"
        )
    return ""


def encode_add(
    sa: SecurityAssociation, sequence: int, pid: int, limit: ByteLimit | None = None
) -> bytes:
    """Return SADB_ADD.

    In a lifetime (RFC 2367 section 2.3.2) 0 stands for no limit.

    Raises:
        LocalError: PF_KEY cannot express the SA.
    """
    reason = inexpressible(sa)
    if reason:
        raise LocalError(reason)
    auth, encrypt = _ALGORITHMS[sa.suite]
    spi = sa.spi.to_bytes(4, "big")
    lifetimes = (
        ()
        if limit is None
        else (
            _LIFETIME.pack(4, SADB_EXT_LIFETIME_HARD, 0, limit.hard, 0, 0),
            _LIFETIME.pack(4, SADB_EXT_LIFETIME_SOFT, 0, limit.soft, 0, 0),
        )
    )
    extensions = (
        _SA.pack(2, SADB_EXT_SA, spi, sa.replay_window, SADB_SASTATE_MATURE, auth, encrypt, 0),
        _SA2.pack(2, SADB_X_EXT_SA2, _MODES[sa.mode], 0, 0, 0, sa.reqid),
        _address(SADB_EXT_ADDRESS_SRC, sa.source),
        _address(SADB_EXT_ADDRESS_DST, sa.destination),
        _key(SADB_EXT_KEY_AUTH, sa.key.authentication),
        _key(SADB_EXT_KEY_ENCRYPT, sa.key.encryption),
    )
    return _message(SADB_ADD, sequence, pid, *extensions, *lifetimes)


def encode_delete(sa_id: SaId, sequence: int, pid: int) -> bytes:
    """Return SADB_DELETE; the kernel demands a source address and ignores it."""
    spi = sa_id.spi.to_bytes(4, "big")
    return _message(
        SADB_DELETE,
        sequence,
        pid,
        _SA.pack(2, SADB_EXT_SA, spi, 0, SADB_SASTATE_MATURE, 0, 0, 0),
        _address(SADB_EXT_ADDRESS_SRC, IPv6Address(0)),
        _address(SADB_EXT_ADDRESS_DST, sa_id.destination),
    )


def encode_dump(sequence: int, pid: int) -> bytes:
    """Return SADB_DUMP for ESP."""
    return _message(SADB_DUMP, sequence, pid)


def _message(kind: int, sequence: int, pid: int, *extensions: bytes) -> bytes:
    body = b"".join(extensions)
    words = (_MSG.size + len(body)) // 8
    return _MSG.pack(PF_KEY_V2, kind, 0, SADB_SATYPE_ESP, words, 0, sequence, pid) + body


def _address(kind: int, address: IPv6Address) -> bytes:
    """Return struct sadb_address with its struct sockaddr_in6."""
    return _ADDRESS.pack(5, kind, 0, 128, 0, _AF_INET6, 0, 0, address.packed, 0)


def _key(kind: int, key: bytes) -> bytes:
    """Return struct sadb_key, padded to a word."""
    padding = -len(key) % 8
    words = (_KEY.size + len(key) + padding) // 8
    return _KEY.pack(words, kind, len(key) * 8, 0) + key + bytes(padding)


def decode(data: bytes) -> SadbMessage:
    """Return the message in one datagram from the kernel.

    Raises:
        DecodeError: the bytes are no whole, well-formed message.
    """
    if not _MSG.size <= len(data) <= MESSAGE_LENGTH_MAX:
        raise DecodeError("sadb_msg", 0, f"{len(data)} bytes")
    version, kind, errno, _, words, _, sequence, pid = _MSG.unpack_from(data)
    if version != PF_KEY_V2 or words * 8 != len(data):
        raise DecodeError("sadb_msg_len", 4, f"{words * 8} of {len(data)} bytes")
    sa = None
    if not errno and kind == SADB_DUMP and len(data) > _MSG.size:
        sa = _decode_sa(data)
    return SadbMessage(kind, errno, sequence, pid, sa)


def _decode_sa(data: bytes) -> SecurityAssociation | None:
    """Return the SA of a dump's message, or None if it is not one of ours."""
    found = _extensions(data)
    sa, sa2 = found.get(SADB_EXT_SA, b""), found.get(SADB_X_EXT_SA2, b"")
    source = _read_address(found.get(SADB_EXT_ADDRESS_SRC, b""))
    destination = _read_address(found.get(SADB_EXT_ADDRESS_DST, b""))
    if len(sa) < _SA.size or len(sa2) < _SA2.size or source is None or destination is None:
        return None
    _, _, spi, window, _, auth, encrypt, _ = _SA.unpack_from(sa)
    _, _, mode, _, _, _, reqid = _SA2.unpack_from(sa2)
    suite = _SUITES.get((auth, encrypt))
    if suite is None or mode not in _MODE_NAMES:
        return None
    sizes = SUITES[suite]
    mac = _read_key(found.get(SADB_EXT_KEY_AUTH, b""))
    cipher = _read_key(found.get(SADB_EXT_KEY_ENCRYPT, b""))
    if (len(cipher), len(mac)) != (sizes.encryption_key_length, sizes.authentication_key_length):
        return None
    return SecurityAssociation(
        source=source,
        destination=destination,
        spi=int.from_bytes(spi, "big"),
        suite=suite,
        key=KeyMaterial(cipher, mac),
        mode=_MODE_NAMES[mode],
        reqid=reqid,
        replay_window=window,
    )


def _extensions(data: bytes) -> dict[int, bytes]:
    """Return type to bytes of every struct sadb_ext after the header."""
    found: dict[int, bytes] = {}
    offset = _MSG.size
    while offset < len(data):
        words, kind = _EXT.unpack_from(data, offset)
        if not words or words * 8 > len(data) - offset:
            raise DecodeError("sadb_ext_len", offset, f"{words * 8} of {len(data) - offset} bytes")
        found[kind] = data[offset : offset + words * 8]
        offset += words * 8
    return found


def _read_address(extension: bytes) -> IPv6Address | None:
    if len(extension) < _ADDRESS.size:
        return None
    fields = _ADDRESS.unpack_from(extension)
    return IPv6Address(fields[8]) if fields[5] == _AF_INET6 else None


def _read_key(extension: bytes) -> bytes:
    if len(extension) < _KEY.size:
        return b""
    bits = _KEY.unpack_from(extension)[2]
    return extension[_KEY.size : _KEY.size + bits // 8]
