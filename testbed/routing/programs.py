"""Where the routing programs are that the set-up built or fetched (testbed/setup/routing.sh)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from testbed.vm import layout

FRR: Final = layout.CACHE / "frr" / "current"
SMCROUTE: Final = layout.CACHE / "smcroute"
FRR_DAEMONS: Final = ("zebra", "ospf6d", "pim6d")


@dataclass(frozen=True, slots=True)
class Programs:
    """A set of programs.

    Attributes:
        directory: that holds them.
        version: of the Debian package that they come from.
    """

    directory: Path
    version: str

    def path(self, name: str) -> str:
        """Return where a program is, by its path below the directory."""
        return str(self.directory / name)


def find_frr(directory: Path = FRR) -> Programs | None:
    """Return FRR's programs, None if they were not built."""
    return _find(directory, [f"sbin/{name}" for name in FRR_DAEMONS])


def find_smcroute(directory: Path = SMCROUTE) -> Programs | None:
    """Return smcroute's programs, None if they were not fetched."""
    return _find(directory, ["usr/sbin/smcrouted"])


def program_files() -> Iterator[Path]:
    """Yield all files and directories of the programs, parents first: the guest needs them too."""
    for entry in (FRR, SMCROUTE):
        if entry.is_symlink():
            yield entry
        if entry.is_dir():
            tree = entry.resolve()
            yield from (tree, *sorted(tree.rglob("*")))


def _find(directory: Path, needed: list[str]) -> Programs | None:
    version = directory / "version"
    if not all(path.is_file() for path in (version, *(directory / name for name in needed))):
        return None
    return Programs(directory.resolve(), version.read_text(encoding="ascii").strip())
