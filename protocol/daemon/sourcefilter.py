"""Socket filters: devices we know and strangers by the source address (AUTH-18), and what is none.

A source address proves nothing, but it is all that the kernel can look at for the price of a few
comparisons. With it, whoever is not a known device has a socket buffer of its own: a flood of
strangers fills that, and what known devices send is read all the same.

What has not the length that its own header says is no envelope (AUTH-1), whoever sent it. The
kernel throws it away for the price of ten instructions; in a socket it would take the place of a
hello, and in a process a thousand times as long.

Classic BPF (Documentation/networking/filter.rst): a line is (code, jump if true, jump if false,
operand); a program of a socket begins to read at the UDP header, and finds the network header at a
large negative offset.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Sequence
from ipaddress import IPv6Address
from typing import Final

from protocol.identity import envelope

Line = tuple[int, int, int, int]

LOAD: Final = 0x20
LOAD_HALF: Final = 0x28
LOAD_BYTE: Final = 0x30
LOAD_LENGTH: Final = 0x80
COPY_TO_X: Final = 0x07
ADD: Final = 0x04
ADD_X: Final = 0x0C
MULTIPLY: Final = 0x24
JUMP: Final = 0x05
JUMP_IF_EQUAL: Final = 0x15
JUMP_IF_AT_LEAST: Final = 0x35
JUMP_IF_X: Final = 0x1D
GIVE: Final = 0x06

WHOLE: Final = 0xFFFFFFFF
_NETWORK_HEADER: Final = 0xFFF00000
"""SKF_NET_OFF of linux/filter.h, as the unsigned number that it is in a program."""

_SOURCE: Final = _NETWORK_HEADER + 8
"""Where an IPv6 header has its source address (RFC 8200 section 3)."""

UDP_HEADER: Final = 8
"""Bytes before what a datagram carries (RFC 768)."""

LINES_PER_ADDRESS: Final = 9
PROGRAM_MAX: Final = 4096
"""BPF_MAXINSNS of linux/bpf_common.h."""

KNOWN_MAX: Final = 400
"""Addresses that a program has room for beside what else it looks at; above, all are known."""


def program(lines: Iterable[Line]) -> array[int]:
    """Pack lines as the kernel wants them."""
    return array("Q", b"".join(struct.pack("@HBBI", *line) for line in lines))


EVERYTHING: Final = program([(GIVE, 0, 0, WHOLE)])
NOTHING: Final = program([(GIVE, 0, 0, 0)])


def of_form(protocol: int, bare: Sequence[int] = ()) -> array[int]:
    """Return a filter that drops what is no envelope by its length, to be followed by another one.

    Args:
        protocol: number of the protocol whose messages these are.
        bare: kinds of messages without envelope; they pass.
    """
    lines: list[Line] = [
        (LOAD_HALF, 0, 0, UDP_HEADER),
        (JUMP_IF_EQUAL, 0, len(bare) + 10, envelope.VERSION << 8 | protocol),
        (LOAD_BYTE, 0, 0, UDP_HEADER + envelope.KIND_OFFSET),
    ]
    lines += is_one_of(bare, found=10)
    lines += [
        (LOAD_BYTE, 0, 0, UDP_HEADER + envelope.COUNT_OFFSET),
        (MULTIPLY, 0, 0, envelope.MARK_LENGTH),
        (COPY_TO_X, 0, 0, 0),
        (LOAD_HALF, 0, 0, UDP_HEADER + envelope.HEADER_LENGTH - 2),
        (ADD_X, 0, 0, 0),
        (ADD, 0, 0, UDP_HEADER + envelope.OVERHEAD),
        (COPY_TO_X, 0, 0, 0),
        (LOAD_LENGTH, 0, 0, 0),
        (JUMP_IF_X, 1, 0, 0),
        (GIVE, 0, 0, 0),
    ]
    return program(lines)


def of_known(known: Sequence[IPv6Address], then: array[int]) -> array[int]:
    """Return a filter that drops strangers and asks another one about known sources."""
    if len(known) > KNOWN_MAX:
        return then
    return program([*_sought(known, found=1), (GIVE, 0, 0, 0)]) + then


def of_kinds(kinds: Sequence[int], then: array[int], *, others: bool = False) -> array[int]:
    """Return a filter that asks another one about messages of these kinds, and drops the others.

    Args:
        kinds: message kinds of the envelope, at least one.
        then: the other filter.
        others: drop these kinds, and ask about all others.
    """
    lines: list[Line] = [(LOAD_BYTE, 0, 0, UDP_HEADER + envelope.KIND_OFFSET)]
    lines += is_one_of(kinds, found=1)
    lines += [(JUMP, 0, 0, 1), (GIVE, 0, 0, 0)] if others else [(GIVE, 0, 0, 0)]
    return program(lines) + then


def of_strangers(known: Sequence[IPv6Address], then: array[int]) -> array[int]:
    """Return a filter that drops known sources and asks another one about strangers."""
    if len(known) > KNOWN_MAX:
        return NOTHING
    return program(_sought(known, found=len(then))) + then + NOTHING


def of_each(
    known: Sequence[IPv6Address],
    suspects: Sequence[IPv6Address],
    asking: Sequence[int],
    then: array[int],
) -> list[array[int]]:
    """Return the filters of all sockets in the order of `choice`: each datagram passes just one.

    What is sent to the group comes to every socket that is a member of it.

    Args:
        known: addresses.
        suspects: others.
        asking: message kinds by which suspects ask.
        then: a filter that is asked about what the others let through.
    """
    programs = [of_known(known, then), of_strangers((*known, *suspects), then)]
    if not asking:
        return [*programs, of_known(suspects, then)]
    said, asked = of_kinds(asking, then, others=True), of_kinds(asking, then)
    return [*programs, of_known(suspects, said), of_known(suspects, asked)]


def choice(
    known: Sequence[IPv6Address],
    suspects: Sequence[IPv6Address] = (),
    asking: Sequence[int] = (),
) -> array[int]:
    """Return a program that says which socket gets a datagram.

    0 of known sources, 1 of strangers, 2 of suspects, 3 of what suspects ask. For
    SO_ATTACH_REUSEPORT_CBPF, which begins to read behind the UDP header; the sockets are numbered
    in the order in which they were bound.

    Args:
        known: addresses.
        suspects: others.
        asking: message kinds by which suspects ask; without any there is no socket 3.
    """
    if len(known) > KNOWN_MAX:
        return program([(GIVE, 0, 0, 0)])
    lines = [
        *_sought(known, found=len(suspects) * LINES_PER_ADDRESS + 1),
        *_sought(suspects, found=2),
        (GIVE, 0, 0, 1),
        (GIVE, 0, 0, 0),
    ]
    if asking:
        # What is too short for a kind goes to socket 0: such a program gives 0 by itself.
        lines += [(LOAD_BYTE, 0, 0, envelope.KIND_OFFSET), *is_one_of(asking, found=1)]
    return program([*lines, (GIVE, 0, 0, 2), *([(GIVE, 0, 0, 3)] if asking else [])])


def is_one_of(kinds: Sequence[int], found: int) -> list[Line]:
    """Return lines that fall through if the kind that was loaded is none of these.

    Args:
        kinds: message kinds.
        found: lines after these to be left out if it is one of them.
    """
    return [
        (JUMP_IF_EQUAL, len(kinds) - place + found, 0, kind)
        for place, kind in enumerate(kinds, start=1)
    ]


def _sought(known: Sequence[IPv6Address], found: int) -> list[Line]:
    """Return lines that fall through for a stranger.

    The last word of the address is compared first: it is what differs on one network.

    Args:
        known: addresses.
        found: lines after these to be left out for a known source.
    """
    lines: list[Line] = []
    for place, address in enumerate(known):
        words = struct.unpack("!IIII", address.packed)
        for number, word in enumerate((3, 0, 1, 2)):
            left = LINES_PER_ADDRESS - 2 * number - 2
            lines.append((LOAD, 0, 0, _SOURCE + 4 * word))
            lines.append((JUMP_IF_EQUAL, 0, left, words[word]))
        after = (len(known) - place - 1) * LINES_PER_ADDRESS
        lines.append((JUMP, 0, 0, after + found))
    return lines
