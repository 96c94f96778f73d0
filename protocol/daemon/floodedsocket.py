"""A socket in which much comes that is thrown away: many datagrams are read by one call.

What a forged datagram costs is mostly its way through the interpreter, one call after the other; a
flood of them keeps a daemon from its work for as long. Here the kernel fills a row of buffers at
once (``recvmmsg``), and what is one of too many is looked at there and goes no further.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address
from struct import Struct
from typing import Final

from protocol.daemon.sockets import (
    SO_TIMESTAMPNS,
    STAMP_SPACE_BYTES,
    DatagramSocket,
    Received,
    errno_name,
    stamp_wall_ns,
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


class FloodedSocket(DatagramSocket):
    """As `DatagramSocket`, for sources in whose names much is forged."""

    def __init__(
        self, sock: socket.socket, name: str, sheds: Callable[[bytes, int], bool] | None = None
    ) -> None:
        super().__init__(sock, name)
        self.sheds = sheds
        size = self._size = self._largest + 1
        self._buffers = ctypes.create_string_buffer(READ_AT_ONCE * size)
        self._names = ctypes.create_string_buffer(READ_AT_ONCE * _NAME_BYTES)
        self._controls = ctypes.create_string_buffer(READ_AT_ONCE * STAMP_SPACE_BYTES)
        self._vectors = (_Vector * READ_AT_ONCE)()
        self._headers = (_Header * READ_AT_ONCE)()
        for number, (header, vector) in enumerate(zip(self._headers, self._vectors, strict=True)):
            vector.base = ctypes.addressof(self._buffers) + number * size
            vector.length = size
            message = header.message
            message.name = ctypes.addressof(self._names) + number * _NAME_BYTES
            message.name_length = _NAME_BYTES
            message.vectors = ctypes.pointer(vector)
            message.vector_count = 1
            message.control = ctypes.addressof(self._controls) + number * STAMP_SPACE_BYTES
            message.control_length = STAMP_SPACE_BYTES
        # The kernel writes into the headers what it has found: each call begins with these.
        self._fresh = bytes(self._headers)
        words = memoryview(self._headers).cast("B").cast("I")
        self._lengths = words[_Header.length.offset // 4 :: ctypes.sizeof(_Header) // 4]
        self._view = memoryview(self._buffers).cast("B")

    def receive_many(self, mono_ns: int) -> Iterator[Received]:
        """Read what is there, up to `READ_AT_ONCE`; yield what is not thrown away.

        The last of so many is always handed on, and tells how long it had waited.

        Args:
            mono_ns: monotonic time, for `sheds`.
        """
        ctypes.memmove(self._headers, self._fresh, len(self._fresh))
        count = _recvmmsg(
            self.fileno(), self._headers, READ_AT_ONCE, int(socket.MSG_DONTWAIT), None
        )
        if count < 0:
            number = ctypes.get_errno()
            if number not in (errno.EAGAIN, errno.EINTR):
                name = errno_name(OSError(number, os.strerror(number)))
                self.counters[f"{self._name}.receive_failed.{name}"] += 1
            return
        size, view, sheds = self._size, self._view, self.sheds
        for number in range(count):
            place = number * size
            payload = bytes(view[place : place + self._lengths[number]])
            if sheds is not None and sheds(payload, mono_ns) and number < READ_AT_ONCE - 1:
                continue
            if len(payload) > self._largest:
                self.counters[f"{self._name}.oversized"] += 1
                continue
            source = self._names.raw[number * _NAME_BYTES : (number + 1) * _NAME_BYTES][_ADDRESS]
            yield self._received(payload, IPv6Address(source), self._stamp(number))

    def _stamp(self, number: int) -> int | None:
        """Return the kernel's stamp of a datagram of the last call, None without one."""
        place = number * STAMP_SPACE_BYTES
        control = self._controls.raw[place : place + STAMP_SPACE_BYTES]
        if self._headers[number].message.control_length < _CMSG.size:
            return None
        length, level, kind = _CMSG.unpack_from(control)
        if (level, kind) != (socket.SOL_SOCKET, SO_TIMESTAMPNS):
            return None
        return stamp_wall_ns(control[_CMSG.size : length])
