"""The kernel sorts datagrams by source: devices and strangers have a socket each (AUTH-18)."""

from __future__ import annotations

import select
import socket
import struct
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from ipaddress import IPv6Address

import pytest

from protocol.daemon import sourcefilter
from protocol.daemon.idpservice import IdpService
from protocol.daemon.mikeeffects import kind_filter
from protocol.daemon.mikeservice import MikeService
from protocol.daemon.sourcefilter import EVERYTHING, KNOWN_MAX, PROGRAM_MAX
from protocol.identity.envelope import MARK_LENGTH, Envelope
from protocol.idp.messages import MessageKind
from protocol.mike.messages import Kind

SO_ATTACH_FILTER = 26
SO_ATTACH_REUSEPORT_CBPF = 51
HERE = IPv6Address("::1")
OTHERS = tuple(IPv6Address("2001:db8:b::") + number for number in range(1, KNOWN_MAX))
ALIKE = (IPv6Address("2001:db8:b::1"), IPv6Address("1::1"), IPv6Address("0:1::1"))
"""Addresses that differ from ::1 in their first words only."""

JOIN = bytes((1, 2, Kind.JOIN, 0)) + bytes(200)
TREE = bytes((1, 2, Kind.TREE, 0)) + bytes(200)


def udp() -> socket.socket:
    return socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)


def attach(sock: socket.socket, option: int, code: array[int]) -> None:
    program = struct.pack("@HP", len(code), code.buffer_info()[0])
    sock.setsockopt(socket.SOL_SOCKET, option, program)


def passed(code: array[int], sent: Sequence[bytes] = (JOIN, TREE)) -> list[bytes]:
    """Return what of some datagrams from ::1 passes a filter."""
    with udp() as receiver, udp() as sender:
        receiver.bind((str(HERE), 0))
        attach(receiver, SO_ATTACH_FILTER, code)
        for payload in sent:
            sender.sendto(payload, receiver.getsockname())
        found = []
        while select.select([receiver], [], [], 0.1)[0]:
            found.append(receiver.recv(2048))
        return found


@pytest.mark.parametrize("known", [(HERE,), (*OTHERS, HERE), (HERE, *OTHERS), (*ALIKE, HERE)])
def test_a_known_source_passes_one_filter_and_not_the_other(known: tuple[IPv6Address, ...]) -> None:
    assert passed(sourcefilter.of_known(known, EVERYTHING)) == [JOIN, TREE]
    assert passed(sourcefilter.of_strangers(known, EVERYTHING)) == []


@pytest.mark.parametrize("known", [(), OTHERS, ALIKE])
def test_a_stranger_passes_the_other_filter_only(known: tuple[IPv6Address, ...]) -> None:
    assert passed(sourcefilter.of_known(known, EVERYTHING)) == []
    assert passed(sourcefilter.of_strangers(known, EVERYTHING)) == [JOIN, TREE]


def test_both_ask_a_second_filter_about_what_they_let_through() -> None:
    trees = kind_filter((Kind.TREE,))
    assert passed(sourcefilter.of_known((HERE,), trees)) == [TREE]
    assert passed(sourcefilter.of_strangers(OTHERS, trees)) == [TREE]
    assert passed(sourcefilter.of_strangers((HERE,), trees)) == []


def test_what_suspects_ask_is_told_from_what_they_say() -> None:
    path = bytes((1, 2, Kind.PATH, 0)) + bytes(200)
    sent = (JOIN, TREE, path)
    kinds = (Kind.JOIN, Kind.PATH)
    assert passed(sourcefilter.of_kinds(kinds, EVERYTHING), sent) == [JOIN, path]
    assert passed(sourcefilter.of_kinds(kinds, EVERYTHING, others=True), sent) == [TREE]
    asked = sourcefilter.of_kinds(kinds, kind_filter((Kind.PATH, Kind.TREE)))
    assert passed(sourcefilter.of_known((HERE,), asked), sent) == [path]
    assert passed(sourcefilter.of_known(OTHERS, asked), sent) == []


@pytest.mark.parametrize("asking", [(), (Kind.JOIN,)])
@pytest.mark.parametrize(
    ("known", "suspects"), [((HERE,), OTHERS[:2]), (OTHERS[:3], ()), (OTHERS[:2], (HERE,))]
)
def test_what_is_sent_to_the_group_passes_the_filter_of_one_socket(
    known: tuple[IPv6Address, ...], suspects: tuple[IPv6Address, ...], asking: tuple[int, ...]
) -> None:
    programs = sourcefilter.of_each(known, suspects, asking, EVERYTHING)
    chosen = sourcefilter.choice(known, suspects, asking)
    for payload in (JOIN, TREE):
        passing = [number for number, code in enumerate(programs) if passed(code, [payload])]
        assert passing == [reached(chosen, payload)]


def test_more_devices_than_a_program_has_room_for_are_all_known() -> None:
    many = (*OTHERS, IPv6Address("::2"), IPv6Address("::3"))
    assert len(many) > KNOWN_MAX
    assert passed(sourcefilter.of_known(many, EVERYTHING)) == [JOIN, TREE]
    assert passed(sourcefilter.of_strangers(many, EVERYTHING)) == []
    largest = (*OTHERS, HERE)
    assert len(sourcefilter.of_known(largest, kind_filter(()))) <= PROGRAM_MAX


@pytest.mark.parametrize(
    ("known", "suspects", "chosen"),
    [
        ((HERE,), (), 0),
        (OTHERS, (), 1),
        ((), (), 1),
        ((HERE, *OTHERS[:9]), OTHERS[9:12], 0),
        (OTHERS[:9], (OTHERS[9], HERE, OTHERS[10]), 2),
        (OTHERS[:9], OTHERS[9:12], 1),
    ],
)
def test_unicast_reaches_the_socket_of_its_source(
    known: tuple[IPv6Address, ...], suspects: tuple[IPv6Address, ...], chosen: int
) -> None:
    assert reached(sourcefilter.choice(known, suspects), b"x") == chosen
    asking = sourcefilter.choice(known, suspects, (Kind.REPAIR, Kind.JOIN))
    assert reached(asking, TREE) == chosen
    assert reached(asking, JOIN) == (3 if chosen == 2 else chosen)


def reached(code: array[int], payload: bytes) -> int:
    """Return the number of the socket that gets a datagram by a program."""
    with ExitStack() as stack:
        each = [stack.enter_context(udp()) for _ in range(4)]
        port = 0
        for sock in each:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((str(HERE), port))
            port = sock.getsockname()[1]
        attach(each[0], SO_ATTACH_REUSEPORT_CBPF, code)
        stack.enter_context(udp()).sendto(payload, (str(HERE), port))
        (ready,) = select.select(each, [], [], 2.0)[0]
        return each.index(ready)


def message(protocol: int, kind: int, body: int, marks: int) -> bytes:
    """Return an envelope, well formed, with so many bytes of a body and so many marks."""
    return Envelope(
        protocol,
        kind,
        sender=OTHERS[0],
        fingerprint=bytes(16),
        startup_wall_ns=1,
        sequence=2,
        sent_wall_ns=3,
        body=bytes(body),
        marks=bytes(marks * MARK_LENGTH),
        mark_count=marks,
    ).encode()


WELL_FORMED = [
    message(2, Kind.JOIN, 0, 0),
    message(2, Kind.TREE, 1, 64),
    message(2, Kind.FRAGMENT, 1200, 0),
    message(2, Kind.PATH, 700, 9),
]


@pytest.mark.parametrize("marks", [0, 9])
def test_what_has_not_the_length_that_it_says_is_dropped(marks: int) -> None:
    whole = message(2, Kind.JOIN, 100, marks)
    damaged = [whole[:cut] for cut in (0, 1, 3, 4, 61, 62, 63, len(whole) - 1)]
    damaged += [whole + b"x", b"\2" + whole[1:], whole[:1] + b"\1" + whole[2:], bytes(len(whole))]
    form = MikeService.form + EVERYTHING
    assert passed(form, [*damaged, whole]) == [whole]
    assert passed(form, WELL_FORMED) == WELL_FORMED


def test_idps_messages_without_envelope_pass() -> None:
    bare = [bytes((1, 1, kind, 0, 7)) for kind in (2, 8, 9)]
    signed = message(1, MessageKind.HELLO, 60, 3)
    form = IdpService.form + EVERYTHING
    assert passed(form, [*bare, signed[:-1], signed, bytes((1, 1, 1, 0, 7))]) == [*bare, signed]


def test_form_and_kind_and_source_are_looked_at_together() -> None:
    join, tree = message(2, Kind.JOIN, 100, 0), message(2, Kind.TREE, 100, 2)
    both = MikeService.form + kind_filter((Kind.TREE,))
    known = (*OTHERS[: KNOWN_MAX - 1], HERE)
    code = sourcefilter.of_known(known, both)
    assert len(code) <= PROGRAM_MAX
    assert passed(code, [join, tree[:-1], tree]) == [tree]
    assert passed(sourcefilter.of_strangers(known, both), [join, tree]) == []
