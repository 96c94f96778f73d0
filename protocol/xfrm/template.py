"""SAs that differ in addresses, SPI and keys only are packed once and filled in afterwards.

An epoch of a group is ten or fifty such SAs, written by every device at the same moment: the time
to put them into bytes is part of the join latency. The slow way, `sa_to_kernel`, stays the one
description of the layout; a template is what it gave for the first SA of a kind.
"""

from __future__ import annotations

from protocol.core.errors import LocalError
from protocol.ipsec.model import SecurityAssociation
from protocol.ipsec.validation import sa_defect
from protocol.xfrm.structs import XFRM_USERSA_INFO_SIZE, XfrmLifetimeCfg, XfrmSelector
from protocol.xfrm.translate import sa_to_kernel

_DESTINATION = len(XfrmSelector().pack())
"""struct xfrm_usersa_info: ``id.daddr`` comes right after ``sel``; then ``id.spi``, ``id.proto``
with padding, ``saddr``."""

_SPI = _DESTINATION + 16
_SOURCE = _SPI + 8
_SHAPES_MAX = 64

_Places = tuple[tuple[int, int], ...]

_templates: dict[object, tuple[bytes, _Places]] = {}


def sa_body(sa: SecurityAssociation, lifetime: XfrmLifetimeCfg) -> bytes:
    """Return struct xfrm_usersa_info and the attributes of an SA.

    Raises:
        LocalError: the SA breaks a rule of `sa_defect`.
    """
    shape = (
        sa.suite,
        sa.mode,
        sa.reqid,
        sa.if_id,
        sa.direction,
        sa.replay_window,
        sa.esn,
        lifetime,
    )
    found = _templates.get(shape)
    if found is None:
        return _first_of(shape, sa, lifetime)
    defect = sa_defect(sa)
    if defect:
        raise LocalError(defect)
    template, places = found
    body = bytearray(template)
    body[_DESTINATION:_SPI] = sa.destination.packed
    body[_SPI : _SPI + 4] = sa.spi.to_bytes(4, "big")
    body[_SOURCE : _SOURCE + 16] = sa.source.packed
    for (start, end), key in zip(places, (sa.key.encryption, sa.key.authentication), strict=False):
        body[start:end] = key
    return bytes(body)


def _first_of(shape: object, sa: SecurityAssociation, lifetime: XfrmLifetimeCfg) -> bytes:
    """Pack an SA the slow way; keep the result without its keys as a template."""
    info, attributes = sa_to_kernel(sa, lifetime)
    body = b"".join((info.pack(), *attributes))
    template, places = bytearray(body), []
    for key in (sa.key.encryption, sa.key.authentication):
        if not key:
            continue
        start = body.find(key, XFRM_USERSA_INFO_SIZE)
        if body.count(key) != 1:  # a key like the zeros around it: no telling where it stands
            return body
        places.append((start, start + len(key)))
        template[start : start + len(key)] = bytes(len(key))
    if len(_templates) >= _SHAPES_MAX:
        _templates.clear()
    _templates[shape] = (bytes(template), tuple(places))
    return body
