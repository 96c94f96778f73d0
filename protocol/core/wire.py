"""Cursors over bytes: the only way messages are read and written.

A Python slice past the end of its input returns fewer bytes and never raises, so every pull here
checks the bound first, names the field it reads, and raises `DecodeError` and nothing else.
A decoder ends with `Reader.finish`, which refuses trailing bytes. Integers are big-endian
(network byte order).
"""

from __future__ import annotations

import struct
from enum import IntEnum
from ipaddress import IPv6Address
from struct import Struct
from typing import Any, NoReturn, TypeVar

from protocol.core.addresses import address_of
from protocol.core.errors import DecodeError, LocalError

ADDRESS_LENGTH = 16
"""Bytes of an IPv6 address."""

E = TypeVar("E", bound=IntEnum)


class Reader:
    """Reads fields from the front of a byte string, within its bounds.

    Attributes:
        offset: bytes read so far.
    """

    __slots__ = ("_data", "_end", "_rule", "offset")

    def __init__(self, data: bytes, rule: str = "WIRE-1") -> None:
        self._data = data
        self._end = len(data)
        self._rule = rule
        self.offset = 0

    @property
    def remaining(self) -> int:
        """Bytes not read yet."""
        return self._end - self.offset

    def fail(self, field: str, reason: str) -> NoReturn:
        """Refuse the input at the present position."""
        raise DecodeError(field, self.offset, reason, self._rule)

    def _pull(self, length: int, field: str) -> bytes:
        """Return the next ``length`` bytes, or refuse."""
        start = self.offset
        end = start + length
        if end > self._end:
            self.fail(field, f"needs {length} bytes, {self._end - start} left")
        self.offset = end
        return self._data[start:end]

    def pull_fields(self, layout: Struct, fields: str) -> tuple[Any, ...]:
        """Read several integers at once, which is faster than one by one."""
        return layout.unpack(self._pull(layout.size, fields))

    def pull_u8(self, field: str) -> int:
        """Read an unsigned 8-bit integer."""
        return self._pull(1, field)[0]

    def pull_u16(self, field: str) -> int:
        """Read an unsigned 16-bit integer."""
        return int.from_bytes(self._pull(2, field), "big")

    def pull_u32(self, field: str) -> int:
        """Read an unsigned 32-bit integer."""
        return int.from_bytes(self._pull(4, field), "big")

    def pull_u64(self, field: str) -> int:
        """Read an unsigned 64-bit integer."""
        return int.from_bytes(self._pull(8, field), "big")

    def pull_bytes(self, length: int, field: str) -> bytes:
        """Read exactly ``length`` bytes (a fixed-size field)."""
        if length < 0:
            raise LocalError(f"{field}: negative length {length}")
        return self._pull(length, field)

    def pull_vector(self, maximum: int, field: str) -> bytes:
        """Read a 16-bit length and that many bytes, at most ``maximum``."""
        length = self.pull_u16(field)
        if length > maximum:
            self.fail(field, f"length {length} above the maximum of {maximum}")
        return self._pull(length, field)

    def pull_count(self, maximum: int, field: str, *, minimum: int = 0) -> int:
        """Read a 16-bit number of elements between ``minimum`` and ``maximum``."""
        count = self.pull_u16(field)
        if not minimum <= count <= maximum:
            self.fail(field, f"{count} elements, not {minimum} to {maximum}")
        return count

    def pull_address(self, field: str) -> IPv6Address:
        """Read an IPv6 address."""
        return address_of(self._pull(ADDRESS_LENGTH, field))

    def pull_enum(self, kind: type[E], field: str) -> E:
        """Read one byte that must be a member of ``kind``."""
        value = self.pull_u8(field)
        try:
            return kind(value)
        except ValueError:
            self.fail(field, f"unknown value {value}")

    def pull_zero(self, length: int, field: str) -> None:
        """Read ``length`` reserved bytes, which must be zero."""
        if any(self._pull(length, field)):
            self.fail(field, "reserved bytes are not zero")

    def pull_rest(self, field: str) -> bytes:
        """Read all that is left (may be empty)."""
        return self._pull(self.remaining, field)

    def finish(self) -> None:
        """Refuse trailing bytes."""
        if self.offset != self._end:
            self.fail("end", f"{self._end - self.offset} trailing bytes")


class Writer:
    """Appends fields to a message; a value that does not fit is our own fault (`LocalError`)."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts = bytearray()

    def __len__(self) -> int:
        return len(self._parts)

    def push_u8(self, value: int, field: str = "u8") -> None:
        """Append an unsigned 8-bit integer."""
        try:
            self._parts.append(value)
        except ValueError:
            raise _misfit(value, 8, field) from None

    def push_u16(self, value: int, field: str = "u16") -> None:
        """Append an unsigned 16-bit integer."""
        try:
            self._parts += value.to_bytes(2, "big")
        except OverflowError:
            raise _misfit(value, 16, field) from None

    def push_u32(self, value: int, field: str = "u32") -> None:
        """Append an unsigned 32-bit integer."""
        try:
            self._parts += value.to_bytes(4, "big")
        except OverflowError:
            raise _misfit(value, 32, field) from None

    def push_u64(self, value: int, field: str = "u64") -> None:
        """Append an unsigned 64-bit integer."""
        try:
            self._parts += value.to_bytes(8, "big")
        except OverflowError:
            raise _misfit(value, 64, field) from None

    def push_fields(self, layout: Struct, fields: str, *values: Any) -> None:
        """Append several integers at once, which is faster than one by one."""
        try:
            self._parts += layout.pack(*values)
        except struct.error as error:
            raise LocalError(f"{fields}: {error}") from None

    def push_bytes(self, value: bytes, length: int | None = None, field: str = "bytes") -> None:
        """Append bytes as they are; with ``length`` they must have exactly that many."""
        if length is not None and len(value) != length:
            raise LocalError(f"{field}: {len(value)} bytes, not {length}")
        self._parts += value

    def push_vector(self, value: bytes, maximum: int, field: str = "vector") -> None:
        """Append a 16-bit length and the bytes, at most ``maximum``."""
        if len(value) > maximum:
            raise LocalError(f"{field}: {len(value)} bytes, above the maximum of {maximum}")
        self.push_u16(len(value), field)
        self._parts += value

    def push_count(self, value: int, maximum: int, field: str = "count") -> None:
        """Append a 16-bit number of elements, at most ``maximum``."""
        if value > maximum:
            raise LocalError(f"{field}: {value} elements, above the maximum of {maximum}")
        self.push_u16(value, field)

    def push_address(self, value: IPv6Address) -> None:
        """Append an IPv6 address."""
        self._parts += value.packed

    def push_zero(self, length: int) -> None:
        """Append reserved zero bytes."""
        self._parts += bytes(length)

    def finish(self) -> bytes:
        """Return the message."""
        return bytes(self._parts)


def _misfit(value: int, bits: int, field: str) -> LocalError:
    return LocalError(f"{field}: {value} does not fit in {bits} bits")
