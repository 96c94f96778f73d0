"""A socket in which much comes that is thrown away: many datagrams are read by one call.

What a forged datagram costs is mostly its way through the interpreter, one call after the other; a
flood of them keeps a daemon from its work for as long. Here the kernel fills a row of buffers at
once (``recvmmsg``), and what is one of too many is looked at there and goes no further.
"""

from __future__ import annotations

import ctypes
import os
import socket
import time
from collections.abc import Iterator
from functools import cached_property
from ipaddress import IPv6Address
from struct import Struct
from typing import Final

from protocol.daemon.sockets import (
    STAMP_SPACE_BYTES,
    DatagramSocket,
    Received,
    arrival_wall_ns,
)

READ_AT_ONCE: Final = 32
"""Datagrams read by one call. Other sockets wait for so many; most of them are thrown away."""

_ADDRESS: Final = slice(8, 24)
"""Of a ``struct sockaddr_in6``: linux/in6.h."""

_NAME_BYTES: Final = 28
_CMSG: Final = Struct("@Nii")
"""``struct cmsghdr`` of linux/socket.h: length, level, type; the data begin where it ends."""


class _Vector(ctypes.Structure):
    """``struct iovec``."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """``struct msghdr``: recvmsg(2)."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("vectors", ctypes.POINTER(_Vector)),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Header(ctypes.Structure):
    """``struct mmsghdr``: recvmmsg(2)."""

    _fields_ = (("message", _Message), ("length", ctypes.c_uint))


_recvmmsg = ctypes.CDLL(None, use_errno=True).recvmmsg


class _Row:
    """The buffers that one call fills."""

    def __init__(self, size: int) -> None:
        self._size = size
        payloads = ctypes.create_string_buffer(READ_AT_ONCE * size)
        names = ctypes.create_string_buffer(READ_AT_ONCE * _NAME_BYTES)
        controls = ctypes.create_string_buffer(READ_AT_ONCE * STAMP_SPACE_BYTES)
        self._payloads = memoryview(payloads).cast("B")
        self._names = memoryview(names).cast("B")
        self._controls = memoryview(controls).cast("B")
        self._vectors = (_Vector * READ_AT_ONCE)()
        self._headers = (_Header * READ_AT_ONCE)()
        for number, (header, vector) in enumerate(zip(self._headers, self._vectors, strict=True)):
            vector.base = ctypes.addressof(payloads) + number * size
            vector.length = size
            message = header.message
            message.name = ctypes.addressof(names) + number * _NAME_BYTES
            message.name_length = _NAME_BYTES
            message.vectors = ctypes.pointer(vector)
            message.vector_count = 1
            message.control = ctypes.addressof(controls) + number * STAMP_SPACE_BYTES
            message.control_length = STAMP_SPACE_BYTES
        # The kernel writes into the headers what it has found: each call begins with these.
        self._fresh = bytes(self._headers)
        words = memoryview(self._headers).cast("B").cast("I")
        self._lengths = words[_Header.length.offset // 4 :: ctypes.sizeof(_Header) // 4]

    def read(self, fd: int) -> int:
        """Read what is there; return how many datagrams that were.

        Raises:
            OSError: none, and why; BlockingIOError if there was none.
        """
        ctypes.memmove(self._headers, self._fresh, len(self._fresh))
        flags = int(socket.MSG_DONTWAIT)
        count: int = _recvmmsg(fd, self._headers, READ_AT_ONCE, flags, None)
        if count < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return count

    def payload(self, number: int) -> bytes:
        """Return a datagram of the last call."""
        place = number * self._size
        return bytes(self._payloads[place : place + self._lengths[number]])

    def source(self, number: int) -> IPv6Address:
        """Return where it came from, without scope."""
        place = number * _NAME_BYTES
        return IPv6Address(bytes(self._names[place : place + _NAME_BYTES][_ADDRESS]))

    def stamp_ns(self, number: int) -> int | None:
        """Return the kernel's stamp of it, None without one."""
        if self._headers[number].message.control_length < _CMSG.size:
            return None
        place = number * STAMP_SPACE_BYTES
        control = self._controls[place : place + STAMP_SPACE_BYTES]
        length, level, kind = _CMSG.unpack_from(control)
        return arrival_wall_ns([(level, kind, bytes(control[_CMSG.size : length]))])


class FloodedSocket(DatagramSocket):
    """As `DatagramSocket`, for sources in whose names much is forged."""

    @cached_property
    def _row(self) -> _Row:
        """Made when it is needed: a quarter of a megabyte, and most devices are never attacked."""
        return _Row(self._largest + 1)

    def receive_many(self) -> Iterator[Received]:
        """Read what is there, up to `READ_AT_ONCE`; yield what is not thrown away.

        The last of so many is always handed on, and tells how long it had waited.
        """
        row, sheds, mono_ns = self._row, self.sheds, time.monotonic_ns()
        try:
            count = row.read(self.fileno())
        except OSError as error:
            self._not_received(error)
            return
        for number in range(count):
            payload = row.payload(number)
            if sheds is not None and sheds(payload, mono_ns) and number < READ_AT_ONCE - 1:
                continue
            if not self._is_oversized(payload):
                yield self._received(payload, row.source(number), row.stamp_ns(number))
