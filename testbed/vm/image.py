"""The guest's root file system as a cached image, rebuilt when what it is made of changes.

Inputs are the versions of the Debian packages, the kernel, the virtual environment, the routing
programs and the code that builds. The project's own code is no part of it: it travels at each boot
(`shipment.py`).
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from testbed.routing.programs import program_files
from testbed.vm import layout, modules, packages
from testbed.vm.initrd import ensure_initrd
from testbed.vm.layout import TestbedEnvironmentError
from testbed.vm.tools import cause_of, locked, require_tool, run_tool

_NEEDED_MIB: Final = 3072
_KEPT_IMAGES: Final = 2
_TOOLS: Final = {
    "cpio": "cpio",
    "mke2fs": "e2fsprogs",
    "depmod": "kmod",
}
_SKELETON: Final = (
    *("dev", "etc", "home", "mnt", "opt", "proc", "root", "run", "srv", "sys", "tmp"),
    *("usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "var/lib", "var/log", "var/tmp"),
)
# Development tools that no guest runs.
_VENV_UNWANTED: Final = re.compile(
    r"bin/ruff$|lib/[^/]+/site-packages/(mypy|mypyc|pip|ruff|[0-9a-f]{20}__mypyc[^/]*)(/|$)"
)


@dataclass(frozen=True)
class Image:
    """What a guest boots from."""

    root: Path
    initrd: Path


def image_key(
    packages_: Iterable[packages.Package], release: str, venv: Path, programs: Iterable[Path] = ()
) -> str:
    """Return a digest of everything the image is made of."""
    digest = hashlib.sha256()
    digest.update(json.dumps([[p.name, p.version] for p in packages_]).encode())
    digest.update(json.dumps([release, str(venv), sys.version]).encode())
    site = sorted(venv.glob("lib/python*/site-packages/*"))
    for path in site:
        digest.update(f"{path.name}\n".encode())
        record = path / "RECORD"
        if record.is_file():
            digest.update(record.read_bytes())
    for path in programs:
        digest.update(f"{path}\n".encode())
        if path.is_file():
            digest.update(path.read_bytes())
    builders = ("image.py", "packages.py", "modules.py", "tools.py")
    for name in builders:
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()[:20]


def ensure_image() -> Image:
    """Return the image for the present inputs, building it where the cache has none.

    Raises:
        TestbedEnvironmentError: When something that the build needs is missing.
    """
    release = layout.guest_kernel_release()
    wanted = packages.read_package_list(layout.GUEST_PACKAGES)
    closure = packages.closure(wanted, packages.installed_packages())
    images = layout.VM_CACHE / "images"
    folder = images / image_key(closure, release, layout.VENV, program_files())
    if not folder.is_dir():
        images.mkdir(parents=True, exist_ok=True)
        with locked(images / "lock"):
            if not folder.is_dir():
                _forget_old(images)
                _build(folder, closure, release)
    with suppress(PermissionError):  # another user's: it is as good, only its age stays
        os.utime(folder)
    return Image(root=folder / "root.ext4", initrd=ensure_initrd())


def _forget_old(images: Path) -> None:
    """Remove what broken builds left, and images that newer ones have replaced."""
    for leftover in images.glob("build-*"):
        shutil.rmtree(leftover)
    finished = sorted(
        (path for path in images.iterdir() if path.is_dir()),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    for old in finished[_KEPT_IMAGES - 1 :]:
        shutil.rmtree(old)


def _build(folder: Path, closure: Sequence[packages.Package], release: str) -> None:
    _check_means(folder.parent)
    print("building the guest's image (once; about half a minute) ...", file=sys.stderr, flush=True)
    work = Path(tempfile.mkdtemp(prefix="build-", dir=folder.parent))
    try:
        stage, result = work / "stage", work / "result"
        result.mkdir()
        _stage_root(stage, closure, release)
        _make_file_system(stage, result / "root.ext4")
        result.rename(folder)
    except (OSError, subprocess.CalledProcessError) as error:
        raise TestbedEnvironmentError(
            f"the guest's image cannot be built: {cause_of(error)}; cure that, or remove .cache/vm"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_means(images: Path) -> None:
    for tool, package in _TOOLS.items():
        require_tool(tool, package)
    free = shutil.disk_usage(images).free >> 20
    if free < _NEEDED_MIB:
        raise TestbedEnvironmentError(
            f"disk is short: {free} MiB free, the guest's image needs {_NEEDED_MIB} MiB to build; "
            "free some space"
        )


def _stage_root(stage: Path, closure: Sequence[packages.Package], release: str) -> None:
    for name in _SKELETON:
        (stage / name).mkdir(parents=True)
    for path, target in packages.merged_directories().items():
        (stage / path.lstrip("/")).symlink_to(target)
    files = packages.package_files(closure)
    python = [*_compiled(files), *_interpreter(layout.VENV), *_venv_files(layout.VENV)]
    _copy([*files, *python, *map(str, program_files())], stage)
    (stage / "etc" / "hosts").write_text("127.0.0.1 localhost\n::1 localhost ip6-localhost\n")
    _compile_python(stage)
    index_folder = layout.KERNEL / "lib" / "modules" / release
    module_folder = stage / "usr" / "lib" / "modules" / release
    for path in modules.ModuleIndex.read(index_folder).wanted():
        modules.copy_uncompressed(index_folder / path, module_folder / modules.plain_path(path))
    for table in index_folder.glob("modules.builtin*"):
        shutil.copy(table, module_folder)
    (module_folder / "modules.order").touch()
    run_tool(["depmod", "-b", str(stage), release])


def _copy(paths: Iterable[str], stage: Path) -> None:
    names = b"".join(os.fsencode(path) + b"\0" for path in paths)
    run_tool(["cpio", "--null", "-pdm", "--quiet", str(stage)], stdin=names)


def _compiled(files: Iterable[str]) -> Iterator[str]:
    """Yield the host's compiled forms of the packages' Python files: no package lists those."""
    for path in files:
        if path.startswith("/usr/lib/python3") and path.endswith(".py"):
            source = Path(path)
            for compiled in (source.parent / "__pycache__").glob(f"{source.stem}.cpython-*.pyc"):
                yield str(compiled)


def _interpreter(venv: Path) -> Iterator[str]:
    """Yield the files of an interpreter that is not Debian's own."""
    base = (venv / "bin" / "python").resolve().parents[1]
    if str(base) != "/usr":
        yield from _walk(base)


def _venv_files(venv: Path) -> Iterator[str]:
    for path in _walk(venv):
        if not _VENV_UNWANTED.match(str(Path(path).relative_to(venv))):
            yield path


def _walk(folder: Path) -> Iterator[str]:
    for parent, folders, names in os.walk(folder):
        yield parent
        links = (name for name in folders if Path(parent, name).is_symlink())
        yield from (f"{parent}/{name}" for name in (*names, *links))


def _compile_python(stage: Path) -> None:
    """Compile what the host has not: in the guest every compilation takes ten times as long."""
    folders = [str(path) for path in sorted(stage.glob("usr/lib/python3*"))]
    compiler = ["/usr/bin/python3", "-m", "compileall", "-q", "-j", "2"]
    run_tool([*compiler, "-s", str(stage), "-p", "/", *folders])


def _make_file_system(stage: Path, image: Path) -> None:
    entries, size = 0, 0
    for parent, folders, names in os.walk(stage):
        entries += len(folders) + len(names)
        size += sum(Path(parent, name).lstat().st_size + 4096 for name in names)
    argv = ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0"]
    argv += ["-N", str(entries + 4096), "-d", str(stage), str(image)]
    argv += [f"{(size >> 20) * 11 // 10 + 128 + len(str(entries))}M"]
    # In a user namespace of one's own an ordinary user's files are root's, as the guest wants.
    as_root = ["unshare", "--map-root-user"]
    if os.geteuid() != 0 and subprocess.run([*as_root, "true"], check=False).returncode == 0:
        argv = [*as_root, *argv]
    run_tool(argv)
