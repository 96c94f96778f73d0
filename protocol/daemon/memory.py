"""What idpd and miked remember over restarts: start-up time-stamp, and miked the epochs' numbers.

`protocol.daemon.statefile` puts it on the disk; here is what is kept, and when.
"""

from __future__ import annotations

from pathlib import Path

from protocol.daemon.logfile import LogFile
from protocol.daemon.statefile import StateFile
from protocol.identity.identity import Identity

STARTUP = "startup_wall_ns"
EPOCHS = "epoch_mark"
NAMES = {"idpd": (STARTUP,), "miked": (STARTUP, EPOCHS)}

RESERVE = 1000
"""The mark lies up to this far above the number in use, so that no join waits for the disk. A crash
leaves so many numbers out of 2^62; a device that was away for as many epochs waits once."""


class Memory:
    """The memory of one daemon; without a directory it ends with the process.

    Attributes:
        failed_total: how often the disk refused.

    Raises:
        StateError: both copies on the disk are spoiled.
    """

    def __init__(self, directory: Path | None, daemon: str, log: LogFile) -> None:
        self._log = log
        self._failed = False
        self.failed_total = 0
        self._file = None if directory is None else StateFile(directory, daemon, NAMES[daemon])
        self._in_use = 0
        if self._file is not None and EPOCHS in NAMES[daemon]:
            self._in_use = self._file[EPOCHS]
        if self._file is None:
            log.write("warning", "no [state] directory: what is known ends with this process")
            return
        for text in self._file.repaired:
            log.write("warning", f"{text}; its copy is whole")

    @property
    def pending(self) -> bool:
        """Whether an idle moment has something to write."""
        return self._file is not None and self._file.pending

    # Start-up time-stamps.

    def correct_startup(self, identity: Identity, now_wall_ns: int, freshness_ms: int) -> None:
        """Forget a start that lies so far ahead of the corrected clock that nobody believed it."""
        last_wall_ns = identity.startup_wall_ns or 0
        if last_wall_ns - now_wall_ns > freshness_ms * 1_000_000:
            identity.forget_instances()
            self.recall_startup(identity, now_wall_ns, freshness_ms)

    def recall_startup(self, identity: Identity, now_wall_ns: int, freshness_ms: int) -> None:
        """Tell an identity the last start-up time-stamp.

        One that lies far in the future was made by a wrong clock, and no device that could hear it
        believed it (AUTH-3). To go on above it would lock this device out until that time.
        """
        if self._file is None:
            return
        startup_wall_ns = self._file[STARTUP]
        ahead_ns = startup_wall_ns - now_wall_ns
        if ahead_ns <= freshness_ms * 1_000_000:
            identity.remember(startup_wall_ns)
        else:
            self._file.lower(STARTUP, 0)
            text = (
                f"the last start was {ahead_ns / 1e9:.0f} s ahead of the present clock: forgotten"
            )
            self._log.write("warning", text)

    def keep_startup(self, startup_wall_ns: int) -> None:
        """Put a start-up time-stamp on the disk, before anybody hears of it."""
        if self._file is not None:
            self._file.raise_to(**{STARTUP: startup_wall_ns})
            self.write()

    # Epoch numbers.

    def recall_epochs(self) -> int:
        """Return the number that the epochs of an earlier process did not exceed."""
        return self._in_use

    def reserve_epochs(self) -> None:
        """Move the mark up before it is needed."""
        if self._file is not None:
            self._file.raise_to(**{EPOCHS: self._in_use + RESERVE})
            self.write()

    def keep_epoch(self, number: int) -> None:
        """Take note of a number before it is used; on the disk at once if the mark is below it."""
        if self._file is None:
            return
        self._in_use = max(self._in_use, number)
        mark = self._file[EPOCHS]
        if number > mark:
            self._file.raise_to(**{EPOCHS: number + RESERVE})
            self.write()
        elif number > mark - RESERVE // 2:
            self._file.raise_to(**{EPOCHS: number + RESERVE})  # an idle moment writes it

    def settle(self) -> None:
        """Lower the mark to the number in use: an orderly stop leaves out none."""
        if self._file is not None:
            self._file.lower(EPOCHS, self._in_use)
            self.write()

    # The disk.

    def write(self) -> None:
        """Write what is new; say in the log when the disk begins to refuse, and when it ends."""
        if self._file is None:
            return
        done = self._file.write()
        if not done:
            self.failed_total += 1
        if not done and not self._failed:
            text = f"the state cannot be written, and is kept in memory: {self._file.error}"
            self._log.write("error", text)
        if done and self._failed:
            self._log.write("info", "the state is written again")
        self._failed = not done
