"""What only MIKE's engine asks for: the key files, and what the black socket lets through."""

from __future__ import annotations

from array import array
from functools import cache
from typing import Final

from protocol.core.engine import Effect
from protocol.daemon.effects import Performer
from protocol.daemon.groupsocket import GroupSocket
from protocol.daemon.keys import KeyDirectory, KeyDirectoryError
from protocol.daemon.logfile import LogFile
from protocol.daemon.memory import Memory
from protocol.daemon.sourcefilter import program
from protocol.identity.envelope import HEADER_LENGTH, KIND_OFFSET, PROTOCOL_MIKE, VERSION
from protocol.mike.events import Attend, KeepEpochMark, PublishKey, RetireKey
from protocol.mike.messages import Kind

_UDP_HEADER_BYTES: Final = 8


@cache
def kind_filter(kinds: tuple[int, ...]) -> array[int]:
    """Return a classic BPF program (linux/filter.h) that drops MIKE's messages of other kinds.

    It looks at the first bytes of the signed envelope, and passes whatever is too short for one,
    of another version or protocol, or of no kind that MIKE has: those that `sourcefilter.of_form`
    leaves are for the engine to count.
    """
    load_length, load_half, load_byte = 0x80, 0x28, 0x30
    jump_if_equal, jump_if_at_least, give = 0x15, 0x35, 0x06
    dropped = [int(kind) for kind in Kind if kind not in kinds]
    lines = [
        (load_length, 0, 0, 0),
        (jump_if_at_least, 0, len(dropped) + 3, _UDP_HEADER_BYTES + HEADER_LENGTH),
        (load_half, 0, 0, _UDP_HEADER_BYTES),
        (jump_if_equal, 0, len(dropped) + 1, VERSION << 8 | PROTOCOL_MIKE),
        (load_byte, 0, 0, _UDP_HEADER_BYTES + KIND_OFFSET),
    ]
    # Each comparison jumps over those after it and over "pass" to "drop".
    lines += [
        (jump_if_equal, len(dropped) - position, 0, kind) for position, kind in enumerate(dropped)
    ]
    lines += [(give, 0, 0, 0xFFFFFFFF), (give, 0, 0, 0)]
    return program(lines)


class MikeEffects:
    """The key files that idpd fetches, and what the black socket lets through."""

    def __init__(
        self, keys: KeyDirectory, log: LogFile, group: GroupSocket, memory: Memory
    ) -> None:
        self._keys = keys
        self._memory = memory
        self._group = group
        self._log = log

    def table(self) -> dict[type[Effect], Performer]:
        """Return the function for each effect."""
        return {
            Attend: self.attend,
            PublishKey: self.publish_key,
            RetireKey: self.retire_key,
            KeepEpochMark: self.keep_epoch_mark,
        }

    def attend(self, effect: Attend) -> None:
        """Have the kernel drop what the engine would."""
        self._group.attach_filter(kind_filter(effect.kinds))

    def keep_epoch_mark(self, effect: KeepEpochMark) -> None:
        """Make sure that this number is not used again, whatever happens."""
        self._memory.keep_epoch(effect.number)

    def publish_key(self, effect: PublishKey) -> None:
        """Write the key file; if the disk refuses, idpd finds none and says so."""
        try:
            self._keys.publish(effect.pointer, effect.group_key)
        except KeyDirectoryError as error:
            self._log.write("error", str(error))

    def retire_key(self, effect: RetireKey) -> None:
        """Remove the key file."""
        try:
            self._keys.retire(effect.pointer)
        except KeyDirectoryError as error:
            self._log.write("error", str(error))
