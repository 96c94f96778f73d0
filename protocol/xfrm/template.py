"""SAs that differ in addresses, SPI and keys only are packed once and filled in afterwards.

An epoch of a group is ten or fifty such SAs, written by every device at the same moment: the time
to put them into bytes is part of the join latency. The slow way, `sa_to_kernel`, stays the one
description of the layout; a template is what it gave for the first SA of a kind.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.core.errors import LocalError
from protocol.ipsec.model import SPI_MIN, SecurityAssociation
from protocol.ipsec.validation import sa_defect
from protocol.xfrm.structs import XFRM_USERSA_INFO_SIZE, XfrmLifetimeCfg, XfrmSelector
from protocol.xfrm.translate import sa_to_kernel

_DESTINATION = len(XfrmSelector().pack())
"""struct xfrm_usersa_info: ``id.daddr`` comes right after ``sel``; then ``id.spi``, ``id.proto``
with padding, ``saddr``."""

_SPI = _DESTINATION + 16
_SOURCE = _SPI + 8
_SHAPES_MAX = 64

_SHAPES_MAX = 8


@dataclass(frozen=True, slots=True)
class _Template:
    """What SAs of one shape have in common.

    Attributes:
        shape: every value that is not filled in.
        body: the bytes, zeros where something is filled in.
        encryption: where the cipher key stands.
        authentication: where the MAC key stands; empty without one.
    """

    shape: tuple[object, ...]
    body: bytes
    encryption: slice
    authentication: slice


_templates: list[_Template] = []


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
        len(sa.key.encryption),
        len(sa.key.authentication),
        lifetime,
    )
    for template in _templates:
        # Compared, not hashed: the values are the very objects of the SA before, mostly.
        if template.shape == shape:
            break
    else:
        return _first_of(shape, sa, lifetime)
    # Of what `sa_defect` looks at, the SPI alone is not part of the shape.
    if not SPI_MIN <= sa.spi <= 0xFFFFFFFF:
        raise LocalError(sa_defect(sa))
    body = bytearray(template.body)
    body[_DESTINATION:_SPI] = sa.destination.packed
    body[_SPI : _SPI + 4] = sa.spi.to_bytes(4, "big")
    body[_SOURCE : _SOURCE + 16] = sa.source.packed
    body[template.encryption] = sa.key.encryption
    body[template.authentication] = sa.key.authentication
    return bytes(body)


def _first_of(
    shape: tuple[object, ...], sa: SecurityAssociation, lifetime: XfrmLifetimeCfg
) -> bytes:
    """Pack an SA the slow way; keep the result without its keys as a template."""
    info, attributes = sa_to_kernel(sa, lifetime)
    body = b"".join((info.pack(), *attributes))
    blank = bytearray(body)
    places = []
    for key in (sa.key.encryption, sa.key.authentication):
        start = body.find(key, XFRM_USERSA_INFO_SIZE) if key else 0
        if key and body.count(key) != 1:
            return body  # a key like the zeros around it: no telling where it stands
        places.append(slice(start, start + len(key)))
        blank[places[-1]] = bytes(len(key))
    if len(_templates) >= _SHAPES_MAX:
        _templates.clear()
    _templates.append(_Template(shape, bytes(blank), *places))
    return body
