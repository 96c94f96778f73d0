"""Reads and joins tcpdump's files (the classic pcap format, draft-ietf-opsawg-pcap)."""

from __future__ import annotations

import heapq
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from testbed.errors import TestbedError

ETHERNET: Final = 1

_HEADER: Final = struct.Struct("<IHHiIII")
_RECORD: Final = struct.Struct("<IIII")
_MAGIC_MICROSECONDS: Final = 0xA1B2C3D4
_FRAME_BYTES_MAX: Final = 1 << 18
_COPY_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class CapturedFrame:
    """One frame.

    Attributes:
        wall_ns: when it was captured, UTC; microseconds are the unit of the file.
        data: from the Ethernet header on.
    """

    wall_ns: int
    data: bytes


def read_frames(path: Path) -> Iterator[CapturedFrame]:
    """Yield the frames of a file.

    Raises:
        TestbedError: it is no such file, or it is torn, or frames were cut when they were recorded.
    """
    with path.open("rb") as file:
        _read_header(path, file)
        while head := file.read(_RECORD.size):
            if len(head) < _RECORD.size:
                raise TestbedError(f"{path.name} is torn: it ends inside a record's header")
            seconds, micros, kept, whole = _RECORD.unpack(head)
            if kept != whole or kept > _FRAME_BYTES_MAX:
                raise TestbedError(f"{path.name}: {kept} of a frame's {whole} octets are there")
            data = file.read(kept)
            if len(data) < kept:
                raise TestbedError(f"{path.name} is torn: it ends inside a frame")
            yield CapturedFrame(seconds * 10**9 + micros * 1000, data)


def write_frames(path: Path, frames: Iterable[CapturedFrame]) -> None:
    """Write a file of Ethernet frames."""
    with path.open("wb") as file:
        file.write(_HEADER.pack(_MAGIC_MICROSECONDS, 2, 4, 0, 0, _FRAME_BYTES_MAX, ETHERNET))
        for frame in frames:
            seconds, rest_ns = divmod(frame.wall_ns, 10**9)
            length = len(frame.data)
            file.write(_RECORD.pack(seconds, rest_ns // 1000, length, length) + frame.data)


def merge(paths: Sequence[Path], target: Path) -> None:
    """Write all files into one, in order of time.

    Raises:
        TestbedError: one of them is no such file.
    """
    streams = [read_frames(path) for path in paths]
    write_frames(target, heapq.merge(*streams, key=lambda frame: frame.wall_ns))


def concatenate(paths: Sequence[Path], target: Path) -> None:
    """Write all files behind one another into one, each file's frames in their order.

    Raises:
        TestbedError: one of them is no such file.
    """
    write_frames(target, ())
    with target.open("ab") as out:
        for path in paths:
            with path.open("rb") as file:
                _read_header(path, file)
                while data := file.read(_COPY_BYTES):
                    out.write(data)


def _read_header(path: Path, file: BinaryIO) -> None:
    head = file.read(_HEADER.size)
    if len(head) < _HEADER.size:
        raise TestbedError(f"{path.name} is no capture: it has {len(head)} octets")
    magic, *_, link_type = _HEADER.unpack(head)
    if magic != _MAGIC_MICROSECONDS or link_type != ETHERNET:
        raise TestbedError(
            f"{path.name} is no capture of Ethernet by tcpdump on this kind of machine "
            f"(magic {magic:#x}, link type {link_type})"
        )
