"""The guest's file system as the closure of Debian packages installed on the host."""

import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from testbed.vm.layout import TestbedEnvironmentError

_FORMAT: Final = (
    "${Package}\t${Version}\t${db:Status-Status}\t${Essential}\t"
    "${Pre-Depends}, ${Depends}\t${Provides}\n"
)
# Documentation, translations and pictures: nobody reads them in the guest.
_UNWANTED: Final = re.compile(
    r"/usr/share/(doc|man|info|locale|lintian|bug|icons|fonts|help|pixmaps|applications)/."
)
_MERGED: Final = tuple(f"/{name}" for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"))
# What maintainer scripts make and no package lists.
_GENERATED: Final = (
    "/etc/alternatives",
    "/etc/group",
    "/etc/ld.so.cache",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/protocols",
    "/etc/services",
)


@dataclass(frozen=True)
class Package:
    """One installed Debian package."""

    name: str
    version: str
    essential: bool
    depends: tuple[tuple[str, ...], ...]
    provides: tuple[str, ...]


def read_package_list(path: Path) -> list[str]:
    """Return the package names of a list file: one a line, `#` starts a comment."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


def parse_status(text: str) -> dict[str, Package]:
    """Parse dpkg-query's answer into the installed packages by name."""
    packages = {}
    for line in text.splitlines():
        name, version, status, essential, depends, provides = line.split("\t")
        if status == "installed":
            packages[name] = Package(
                name=name,
                version=version,
                essential=essential == "yes",
                depends=tuple(
                    alternatives
                    for clause in depends.split(",")
                    if (alternatives := _names(clause.split("|")))
                ),
                provides=_names(provides.split(",")),
            )
    return packages


def _names(fields: Iterable[str]) -> tuple[str, ...]:
    """Strip versions and architectures: `python3:any (>= 3.9)` names `python3`."""
    names = (re.sub(r"[(:\[].*", "", field).strip() for field in fields)
    return tuple(name for name in names if name)


def closure(wanted: Sequence[str], installed: Mapping[str, Package]) -> list[Package]:
    """Return the wanted and the essential packages with all that they depend on, by name.

    Raises:
        TestbedEnvironmentError: When a wanted package is not installed.
    """
    missing = sorted(set(wanted) - set(installed))
    if missing:
        raise TestbedEnvironmentError(
            f"Debian packages missing for the virtual machine: {' '.join(missing)}; "
            "run 'make setup'"
        )
    providers: dict[str, str] = {}
    for package in sorted(installed.values(), key=lambda package: package.name):
        for virtual in package.provides:
            providers.setdefault(virtual, package.name)
    pending = [*wanted, *(package.name for package in installed.values() if package.essential)]
    found: dict[str, Package] = {}
    while pending:
        name = pending.pop()
        if name in found:
            continue
        found[name] = installed[name]
        for alternatives in installed[name].depends:
            resolved = (
                candidate if candidate in installed else providers.get(candidate)
                for candidate in alternatives
            )
            pending.extend([next(filter(None, resolved), name)])
    return [found[name] for name in sorted(found)]


def installed_packages() -> dict[str, Package]:
    """Ask dpkg for the packages installed on this machine.

    Raises:
        TestbedEnvironmentError: When this is no Debian.
    """
    try:
        answer = subprocess.run(
            ["dpkg-query", "-W", "-f", _FORMAT], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise TestbedEnvironmentError(
            f"dpkg-query cannot list the installed packages ({error}); "
            "the virtual machine is built from Debian packages"
        ) from error
    return parse_status(answer.stdout)


def package_files(packages: Sequence[Package]) -> list[str]:
    """Return the paths of the packages' files, with those their installation generates."""
    answer = subprocess.run(
        ["dpkg-query", "-L", *(package.name for package in packages)],
        capture_output=True,
        text=True,
        check=True,
    )
    listed = {line for line in answer.stdout.splitlines() if line.startswith("/")}
    listed.update(_GENERATED)
    listed.update(f"/etc/alternatives/{name}" for name in _entries("/etc/alternatives"))
    for folder in ("/usr/bin", "/usr/sbin"):
        listed.update(_alternative_links(folder))
    canonical = {_canonical(path) for path in listed if not _UNWANTED.match(path)}
    return sorted(
        path for path in canonical if path not in _MERGED and path != "/." and _readable(path)
    )


def merged_directories() -> dict[str, str]:
    """Return the top-level links of a merged /usr: their names and targets."""
    return {path: str(Path(path).readlink()) for path in _MERGED if Path(path).is_symlink()}


def _canonical(path: str) -> str:
    """Move /bin and its like to /usr, where they are on the disk."""
    top = f"/{path.split('/')[1]}"
    if top in _MERGED and path != top and Path(top).is_symlink():
        return f"/usr{path}"
    return path


def _alternative_links(folder: str) -> Iterable[str]:
    for entry in os.scandir(folder):
        if entry.is_symlink() and str(Path(entry.path).readlink()).startswith("/etc/alternatives/"):
            yield entry.path


def _entries(folder: str) -> list[str]:
    path = Path(folder)
    return [entry.name for entry in path.iterdir()] if path.is_dir() else []


def _readable(path: str) -> bool:
    """Tell whether the builder may copy the path; what only root may read stays behind."""
    entry = Path(path)
    return entry.is_symlink() or os.access(path, os.R_OK)
