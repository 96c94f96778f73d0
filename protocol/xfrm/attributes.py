"""XFRM netlink attributes (``enum xfrm_attr_type_t`` in ``uapi/linux/xfrm.h``), bytes in and out.

Only what this project sets or needs to recognise is interpreted; others (offload, marks, encap,
...) are passed over, and the codec says where their presence makes an SA or policy foreign to
our model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import Struct

from protocol.core.errors import DecodeError

XFRMA_ALG_AUTH = 1
XFRMA_ALG_CRYPT = 2
XFRMA_ALG_COMP = 3
XFRMA_ENCAP = 4
XFRMA_TMPL = 5
XFRMA_SA = 6
XFRMA_POLICY = 7
XFRMA_SRCADDR = 13
XFRMA_ALG_AEAD = 18
XFRMA_ALG_AUTH_TRUNC = 20
XFRMA_MARK = 21
XFRMA_REPLAY_ESN_VAL = 23
XFRMA_OFFLOAD_DEV = 28
XFRMA_IF_ID = 31
XFRMA_SA_DIR = 33

XFRM_SA_DIR_IN = 1
XFRM_SA_DIR_OUT = 2

ATTRIBUTE_COUNT_MAX = 64
"""More attributes than the kernel knows types of (33 in Linux 6.12) are not a kernel's message."""

ALG_NAME_LENGTH = 64
"""``char alg_name[64]`` of struct xfrm_algo, xfrm_algo_auth and xfrm_algo_aead."""

_HEADER = Struct("=HH")
_U32 = Struct("=I")
_BITS = Struct("=II")
_ESN = Struct("=6I")
_TYPE_MASK = 0x3FFF
"""NLA_TYPE_MASK: the two high bits of ``nla_type`` are flags (``uapi/linux/netlink.h``)."""


@dataclass(frozen=True, slots=True)
class Algorithm:
    """``struct xfrm_algo``, ``xfrm_algo_auth`` or ``xfrm_algo_aead``.

    Attributes:
        name: kernel name of the transform.
        key: the key; never shown.
        bits: truncation (auth) or ICV length (AEAD); 0 for a cipher, which has none.
    """

    name: str
    key: bytes = field(repr=False)
    bits: int = 0


@dataclass(frozen=True, slots=True)
class ReplayEsn:
    """``struct xfrm_replay_state_esn``: the window when it exceeds 32 packets or with ESN."""

    oseq: int = 0
    seq: int = 0
    oseq_hi: int = 0
    seq_hi: int = 0
    replay_window: int = 0


def pack_attribute(kind: int, payload: bytes) -> bytes:
    """Return one attribute with ``struct nlattr`` header and padding to four bytes."""
    length = _HEADER.size + len(payload)
    return _HEADER.pack(length, kind) + payload + bytes(-length % 4)


def read_attributes(data: bytes, offset: int) -> dict[int, tuple[int, bytes]]:
    """Read attributes up to the end of ``data``; of a repeated type the last counts, as in Linux.

    Returns:
        Type to (offset of the payload, payload).

    Raises:
        DecodeError: an attribute is cut short or claims more than there is.
    """
    found: dict[int, tuple[int, bytes]] = {}
    for _ in range(ATTRIBUTE_COUNT_MAX):
        if len(data) - offset < _HEADER.size:
            if any(data[offset:]):
                raise DecodeError("nlattr", offset, "cut short")
            return found
        length, kind = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or length > len(data) - offset:
            raise DecodeError("nla_len", offset, f"{length} of {len(data) - offset} bytes")
        found[kind & _TYPE_MASK] = (offset + 4, data[offset + 4 : offset + length])
        offset += length + -length % 4
    raise DecodeError("nlattr", offset, f"more than {ATTRIBUTE_COUNT_MAX} attributes")


def pack_u32(value: int) -> bytes:
    """Return the payload of XFRMA_IF_ID and its like."""
    return _U32.pack(value)


def read_u32(name: str, found: tuple[int, bytes]) -> int:
    """Read a ``__u32`` payload."""
    offset, payload = found
    if len(payload) < _U32.size:
        raise DecodeError(name, offset, "needs 4 bytes")
    (value,) = _U32.unpack_from(payload)
    return int(value)


def read_u8(name: str, found: tuple[int, bytes]) -> int:
    """Read a ``__u8`` payload."""
    offset, payload = found
    if not payload:
        raise DecodeError(name, offset, "is empty")
    return payload[0]


def pack_algorithm(algorithm: Algorithm) -> bytes:
    """Return ``struct xfrm_algo``: XFRMA_ALG_CRYPT."""
    return _pack_name(algorithm) + _U32.pack(len(algorithm.key) * 8) + algorithm.key


def pack_algorithm_bits(algorithm: Algorithm) -> bytes:
    """Return ``struct xfrm_algo_auth`` or ``xfrm_algo_aead``, which have the same layout."""
    lengths = _BITS.pack(len(algorithm.key) * 8, algorithm.bits)
    return _pack_name(algorithm) + lengths + algorithm.key


def _pack_name(algorithm: Algorithm) -> bytes:
    return algorithm.name.encode("ascii").ljust(ALG_NAME_LENGTH, b"\0")


def read_algorithm(name: str, found: tuple[int, bytes]) -> Algorithm:
    """Read ``struct xfrm_algo``."""
    offset, payload = found
    if len(payload) < ALG_NAME_LENGTH + _U32.size:
        raise DecodeError(name, offset, "shorter than its structure")
    (key_bits,) = _U32.unpack_from(payload, ALG_NAME_LENGTH)
    start = ALG_NAME_LENGTH + _U32.size
    return Algorithm(_read_name(name, found), _read_key(name, found, start, key_bits))


def read_algorithm_bits(name: str, found: tuple[int, bytes]) -> Algorithm:
    """Read ``struct xfrm_algo_auth`` or ``xfrm_algo_aead``."""
    offset, payload = found
    if len(payload) < ALG_NAME_LENGTH + _BITS.size:
        raise DecodeError(name, offset, "shorter than its structure")
    key_bits, bits = _BITS.unpack_from(payload, ALG_NAME_LENGTH)
    start = ALG_NAME_LENGTH + _BITS.size
    return Algorithm(_read_name(name, found), _read_key(name, found, start, key_bits), bits)


def _read_name(name: str, found: tuple[int, bytes]) -> str:
    offset, payload = found
    raw, terminator, _ = payload[:ALG_NAME_LENGTH].partition(b"\0")
    if not terminator or not raw.isascii():
        raise DecodeError(name, offset, "alg_name is not a terminated ASCII string")
    return raw.decode("ascii")


def _read_key(name: str, found: tuple[int, bytes], start: int, key_bits: int) -> bytes:
    offset, payload = found
    if key_bits % 8 or len(payload) - start != key_bits // 8:
        raise DecodeError(name, offset + ALG_NAME_LENGTH, "alg_key_len is not the key's length")
    return payload[start:]


def pack_replay_esn(state: ReplayEsn) -> bytes:
    """Return ``struct xfrm_replay_state_esn`` with an empty bitmap: XFRMA_REPLAY_ESN_VAL."""
    words = (state.replay_window + 31) // 32
    head = (words, state.oseq, state.seq, state.oseq_hi, state.seq_hi, state.replay_window)
    return _ESN.pack(*head) + bytes(4 * words)


def read_replay_esn(found: tuple[int, bytes]) -> ReplayEsn:
    """Read ``struct xfrm_replay_state_esn``; the bitmap is checked for length only."""
    offset, payload = found
    if len(payload) < _ESN.size:
        raise DecodeError("xfrm_replay_state_esn", offset, f"needs {_ESN.size} bytes")
    words, oseq, seq, oseq_hi, seq_hi, window = _ESN.unpack_from(payload)
    # iproute2 leaves the empty bitmap out, which verify_replay (net/xfrm/xfrm_user.c) allows.
    bitmap_fits = len(payload) in (_ESN.size, _ESN.size + 4 * words)
    if not bitmap_fits or window > 32 * words:
        raise DecodeError("xfrm_replay_state_esn", offset, "bmp_len does not fit the bitmap")
    return ReplayEsn(oseq, seq, oseq_hi, seq_hi, window)
