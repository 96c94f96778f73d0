"""What changes from boot to boot: the project's code, compiled, and the job; one tar archive.

The guest lays it over its root file system, so that the project has the same paths as on the host.
"""

import hashlib
import io
import os
import py_compile
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from testbed.vm import layout

# Never of use in the guest: history, caches, other runs' results.
_UNWANTED: Final = frozenset({".git", ".venv", ".cache", "build", "results", "__pycache__"})
_UNWANTED_SUFFIXES: Final = ("_cache", ".egg-info")


@dataclass(frozen=True)
class Job:
    """What the guest runs, and where."""

    argv: Sequence[str]
    cwd: str
    environment: Mapping[str, str]
    shares: Mapping[str, str]


def project_files(project: Path) -> Iterator[Path]:
    """Yield the project's files that the guest may need, in a fixed order."""
    for parent, folders, names in os.walk(project):
        folders[:] = sorted(
            name
            for name in folders
            if name not in _UNWANTED and not name.endswith(_UNWANTED_SUFFIXES)
        )
        yield from (Path(parent, name) for name in sorted(names))


def write_shipment(target: Path, job: Job, project: Path, cache: Path) -> None:
    """Write the archive for one boot.

    Args:
        target: The archive to write.
        job: What the guest runs.
        project: The root of the project's tree.
        cache: Where compiled code is kept between boots.
    """
    cache.mkdir(parents=True, exist_ok=True)
    used = set()
    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as archive:
        for path in project_files(project):
            source = _regular_content(path)
            if source is None:
                continue
            _add(archive, str(path), source, path.stat().st_mode)
            if path.suffix == ".py":
                key = _cache_key(path, source)
                used.add(key)
                compiled = _compiled(path, cache / key)
                if compiled is not None:
                    name = f"{path.stem}.{sys.implementation.cache_tag}.pyc"
                    _add(archive, str(path.parent / "__pycache__" / name), compiled)
        for name, content in job_files(job).items():
            _add(archive, f"/etc/testbed/{name}", content)
        _add(archive, "/etc/testbed/python", f"{Path(sys.executable).resolve()}\n".encode())
        _add(
            archive, "/etc/testbed/agent.py", (layout.GUEST_FILES.parent / "agent.py").read_bytes()
        )
        init = (layout.GUEST_FILES / "init.sh").read_bytes()
        _add(archive, "/usr/sbin/testbed-init", init, 0o755)
    for old in cache.iterdir():
        if old.name not in used and not old.name.startswith("."):
            old.unlink(missing_ok=True)


def job_files(job: Job) -> dict[str, bytes]:
    """Return the files by which the guest's agent learns what to do; see `agent.py`."""
    shares = "".join(f"{tag} {path}\n" for tag, path in job.shares.items())
    environment = [f"{name}={value}" for name, value in job.environment.items()]
    return {
        "command": _fields([job.cwd, *job.argv]),
        "environment": _fields(environment),
        "shares": os.fsencode(shares),
    }


def _fields(fields: Sequence[str]) -> bytes:
    return b"".join(os.fsencode(field) + b"\0" for field in fields)


def _regular_content(path: Path) -> bytes | None:
    """Return a file's content; None for what is removed meanwhile, or a dangling link."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name.lstrip("/"))
    entry.size = len(content)
    entry.mode = mode & 0o777
    archive.addfile(entry, io.BytesIO(content))


def _cache_key(path: Path, source: bytes) -> str:
    return hashlib.sha256(f"{sys.version}\0{path}\0".encode() + source).hexdigest()


def _compiled(path: Path, kept: Path) -> bytes | None:
    """Return the compiled form of a source, from the cache if there; None if it is no Python."""
    try:
        return kept.read_bytes()
    except FileNotFoundError:
        pass
    partial = kept.with_name(f".{kept.name}.{os.getpid()}")
    try:
        # The guest's tree is a copy that nobody edits: it need not compare sources.
        py_compile.compile(
            str(path),
            cfile=str(partial),
            doraise=True,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
    except (py_compile.PyCompileError, OSError):
        return None
    compiled = partial.read_bytes()
    partial.rename(kept)
    return compiled
