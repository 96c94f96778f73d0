"""What only MIKE's engine asks for: the key files, and what the black socket lets through."""

from __future__ import annotations

from array import array
from functools import cache

from protocol.core.engine import Effect
from protocol.daemon.effects import Performer
from protocol.daemon.groupsocket import GroupSocket
from protocol.daemon.keys import KeyDirectory, KeyDirectoryError
from protocol.daemon.logfile import LogFile
from protocol.daemon.memory import Memory
from protocol.daemon.sourcefilter import (
    GIVE,
    JUMP_IF_AT_LEAST,
    JUMP_IF_EQUAL,
    LOAD_BYTE,
    LOAD_HALF,
    LOAD_LENGTH,
    UDP_HEADER,
    WHOLE,
    is_one_of,
    program,
)
from protocol.identity.envelope import HEADER_LENGTH, KIND_OFFSET, PROTOCOL_MIKE, VERSION
from protocol.mike.events import Attend, KeepEpochMark, PublishKey, RetireKey
from protocol.mike.messages import Kind


@cache
def kind_filter(kinds: tuple[int, ...]) -> array[int]:
    """Return a classic BPF program (linux/filter.h) that drops MIKE's messages of other kinds.

    It looks at the first bytes of the signed envelope, and passes whatever is too short for one,
    of another version or protocol, or of no kind that MIKE has: those that `sourcefilter.of_form`
    leaves are for the engine to count.
    """
    dropped = [int(kind) for kind in Kind if kind not in kinds]
    lines = [
        (LOAD_LENGTH, 0, 0, 0),
        (JUMP_IF_AT_LEAST, 0, len(dropped) + 3, UDP_HEADER + HEADER_LENGTH),
        (LOAD_HALF, 0, 0, UDP_HEADER),
        (JUMP_IF_EQUAL, 0, len(dropped) + 1, VERSION << 8 | PROTOCOL_MIKE),
        (LOAD_BYTE, 0, 0, UDP_HEADER + KIND_OFFSET),
        *is_one_of(dropped, found=1),
        (GIVE, 0, 0, WHOLE),
        (GIVE, 0, 0, 0),
    ]
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
