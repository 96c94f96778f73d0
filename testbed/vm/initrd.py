"""The guest's initial RAM disk: busybox, the modules for the root file system, and a script."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from testbed.vm import layout, modules
from testbed.vm.layout import TestbedEnvironmentError
from testbed.vm.tools import cause_of, locked, require_tool, run_tool

_INIT = layout.GUEST_FILES / "initramfs.sh"


def ensure_initrd() -> Path:
    """Return the RAM disk for the present kernel and script, building it if need be.

    Raises:
        TestbedEnvironmentError: When something that the build needs is missing.
    """
    release = layout.guest_kernel_release()
    digest = hashlib.sha256(release.encode())
    for source in (_INIT, Path(__file__), Path(modules.__file__)):
        digest.update(source.read_bytes())
    initrd = layout.VM_CACHE / f"initrd-{digest.hexdigest()[:20]}"
    if not initrd.exists():
        layout.VM_CACHE.mkdir(parents=True, exist_ok=True)
        with locked(layout.VM_CACHE / "initrd.lock"):
            if not initrd.exists():
                _build(initrd, release)
    return initrd


def _build(initrd: Path, release: str) -> None:
    busybox = require_tool("busybox", "busybox-static")
    require_tool("cpio", "cpio")
    old = list(layout.VM_CACHE.glob("initrd-*"))
    try:
        with tempfile.TemporaryDirectory(dir=layout.VM_CACHE) as work:
            stage, result = Path(work, "stage"), Path(work, "initrd")
            _stage(stage, Path(busybox), release)
            paths = sorted(stage.rglob("*"))
            names = b"".join(os.fsencode(path.relative_to(stage)) + b"\0" for path in paths)
            archiver = ["cpio", "--null", "-o", "-H", "newc", "--quiet", "--owner=0:0"]
            result.write_bytes(run_tool(archiver, stdin=names, cwd=stage))
            result.rename(initrd)
    except (OSError, subprocess.CalledProcessError) as error:
        raise TestbedEnvironmentError(
            f"the guest's RAM disk cannot be built: {cause_of(error)}; "
            "cure that, or remove .cache/vm"
        ) from error
    for path in old:
        path.unlink(missing_ok=True)


def _stage(stage: Path, busybox: Path, release: str) -> None:
    for name in ("bin", "dev", "proc", "sys", "modules"):
        (stage / name).mkdir(parents=True)
    shutil.copy(busybox, stage / "bin" / "busybox")
    shutil.copy(_INIT, stage / "init")
    (stage / "init").chmod(0o755)
    source = layout.KERNEL / "lib" / "modules" / release
    order = modules.ModuleIndex.read(source).load_order(modules.BOOT_MODULES)
    names = [Path(modules.plain_path(path)).name for path in order]
    for path, name in zip(order, names, strict=True):
        modules.copy_uncompressed(source / path, stage / "modules" / name)
    (stage / "modules" / "order").write_text("".join(f"{name}\n" for name in names))
