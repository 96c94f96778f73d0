"""The cache of what other devices sent us about trust: a file for each thing, written in one step.

Nothing in it is secret, and nothing in it is believed because it is there: at the start it is
checked like something that has just come (`protocol.identity.certificates`). So a certificate that
a power failure cut short does no harm: it is asked for again, and the daemon's loop need not wait
for the disk. A revocation list or a policy is on the disk when `keep` returns: a device whose power
is cut must not forget who was excluded.
"""

from __future__ import annotations

from pathlib import Path

from protocol.core.errors import LocalError
from protocol.daemon import atomicfile
from protocol.daemon.logfile import LogFile
from protocol.idp.events import DropTrust, KeepTrust

CERTIFICATE = "certificate"
"""The kind whose loss costs one question."""

FILES_MAX = 1024
"""Files the cache may hold: far above what a store of trust learns."""


class TrustCache:
    """Performs `KeepTrust` and `DropTrust`; without a directory both do nothing.

    A cache that cannot be written costs the next start some questions, nothing more: it is logged.
    """

    def __init__(self, directory: Path | None, log: LogFile) -> None:
        self._directory = directory
        self._log = log

    def keep(self, effect: KeepTrust) -> None:
        """Write one file; it appears under its name complete or not at all."""
        if self._directory is None:
            return
        path = self._path(self._directory, effect.kind, effect.name)
        try:
            if not path.exists() and len(list(self._directory.iterdir())) >= FILES_MAX:
                self._log.write("error", f"{self._directory}: more than {FILES_MAX} files")
                return
            durable = effect.kind != CERTIFICATE
            atomicfile.replace(path, effect.data, durable=durable, mode=0o644)  # miked reads it too
        except OSError as error:
            self._log.write("error", f"{path}: cannot be written: {error.strerror}")

    def drop(self, effect: DropTrust) -> None:
        """Remove one file."""
        if self._directory is None:
            return
        path = self._path(self._directory, effect.kind, effect.name)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self._log.write("error", f"{path}: cannot be removed: {error.strerror}")

    @staticmethod
    def _path(directory: Path, kind: str, name: bytes) -> Path:
        return directory / f"{kind}-{name.hex()}.der"


def prepare(directory: Path) -> None:
    """Make the directory if there is none.

    Raises:
        LocalError: it cannot be made, or is no directory.
    """
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise LocalError(f"{directory}: {error.strerror}") from error
