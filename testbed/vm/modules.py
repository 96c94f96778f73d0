"""The kernel modules that the guest needs, uncompressed and in the order of loading."""

import lzma
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from testbed.vm.layout import TestbedEnvironmentError

# Loaded before the guest's root is there.
BOOT_MODULES: Final = (
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "crc32c_generic",
    "crc32c_intel",
    "ext4",
    "overlay",
    "9p",
    "9pnet_virtio",
)
# Those that some kernels lack without harm: an accelerated twin, or built in without a name.
_OPTIONAL: Final = frozenset({"crc32c_generic", "crc32c_intel"})

# What may be asked for in the guest: networking, cryptography and what they lean on.
_WANTED: Final = re.compile(
    r"kernel/(arch/x86/crypto|crypto|lib|net|fs/(9p|ext4|jbd2|netfs|overlayfs|fuse)"
    r"|drivers/(virtio|block/virtio_blk|char/(virtio_console|hw_random/virtio)"
    r"|net/(bareudp|bonding/|dummy|geneve|gre|ifb|ipvlan/|macvlan|macvtap|macsec|netconsole"
    r"|netkit|nlmon|tap|team/|tun|veth|virtio_net|vrf|vxlan/|wireguard/)))"
)
_UNWANTED: Final = re.compile(
    r"kernel/(crypto/async_tx|net/(atm|ax25|batman-adv|bluetooth|caif|can|ceph|dccp|dsa|ieee802154"
    r"|mac80211|mac802154|netrom|nfc|phonet|qrtr|rds|rose|rxrpc|smc|sunrpc|tipc|wireless|x25))/"
    r"|rdma|_xen"
)


class ModuleIndex:
    """The modules of one kernel by name, with what each depends on."""

    def __init__(self, dependencies: Mapping[str, list[str]], builtin: Iterable[str]) -> None:
        self._dependencies = dict(dependencies)
        self._by_name = {module_name(path): path for path in dependencies}
        self._builtin = {module_name(path) for path in builtin}

    @classmethod
    def read(cls, folder: Path) -> "ModuleIndex":
        """Read depmod's tables in a kernel's module folder."""
        dependencies = {}
        for line in (folder / "modules.dep").read_text().splitlines():
            path, _, needs = line.partition(":")
            dependencies[path] = needs.split()
        return cls(dependencies, (folder / "modules.builtin").read_text().split())

    def load_order(self, names: Iterable[str]) -> list[str]:
        """Return paths such that every module follows what it depends on.

        Raises:
            TestbedEnvironmentError: When the kernel has no such module.
        """
        order: list[str] = []
        for name in names:
            path = self._by_name.get(name.replace("-", "_"))
            if path is None:
                if name not in self._builtin | _OPTIONAL:
                    raise TestbedEnvironmentError(
                        f"the guest's kernel has no module {name}; remove .cache/kernel and run "
                        "'make setup' on a Debian 12"
                    )
                continue
            # depmod lists the nearest first: the last is the one to load first.
            for needed in (*reversed(self._dependencies[path]), path):
                if needed not in order:
                    order.append(needed)
        return order

    def wanted(self) -> list[str]:
        """Return the paths of the modules for the guest, with all that they depend on."""
        chosen: set[str] = set()
        for path, needs in self._dependencies.items():
            if _WANTED.match(path) and not _UNWANTED.search(path):
                chosen.update((path, *needs))
        return sorted(chosen)


def module_name(path: str) -> str:
    """Return the name under which the kernel knows a module file."""
    return Path(path).name.partition(".")[0].replace("-", "_")


def plain_path(path: str) -> str:
    """Return a module's path without the suffix of its compression."""
    return re.sub(r"\.(xz|zst)$", "", path)


def copy_uncompressed(source: Path, target: Path) -> None:
    """Copy a module, uncompressed: loading is far quicker and busybox can load nothing else."""
    target.parent.mkdir(parents=True, exist_ok=True)
    match source.suffix:
        case ".xz":
            with lzma.open(source) as packed, target.open("wb") as plain:
                shutil.copyfileobj(packed, plain)
        case ".zst":
            subprocess.run(["zstd", "-dqf", str(source), "-o", str(target)], check=True)
        case _:
            shutil.copyfile(source, target)
