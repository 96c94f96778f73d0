"""Which kernel modules the guest gets, and in which order they load."""

import lzma
from pathlib import Path

import pytest

from testbed.vm.layout import TestbedEnvironmentError
from testbed.vm.modules import ModuleIndex, copy_uncompressed, module_name, plain_path

DEPENDENCIES = {
    "kernel/fs/ext4/ext4.ko.xz": ["kernel/fs/mbcache.ko.xz", "kernel/lib/crc16.ko.xz"],
    "kernel/fs/mbcache.ko.xz": [],
    "kernel/lib/crc16.ko.xz": [],
    "kernel/net/ipv6/esp6.ko.xz": ["kernel/net/xfrm/xfrm_algo.ko.xz"],
    "kernel/net/xfrm/xfrm_algo.ko.xz": [],
    "kernel/net/sched/sch_netem.ko.xz": [],
    "kernel/net/bluetooth/bnep.ko.xz": [],
    "kernel/sound/soundcore.ko.xz": [],
    "kernel/drivers/net/veth.ko.xz": ["kernel/odd/helper.ko.xz"],
    "kernel/odd/helper.ko.xz": [],
}
INDEX = ModuleIndex(DEPENDENCIES, ["kernel/drivers/virtio/virtio_pci.ko"])


def test_dependencies_load_first_and_once() -> None:
    order = [module_name(path) for path in INDEX.load_order(["virtio_pci", "ext4", "crc16"])]
    assert order == ["crc16", "mbcache", "ext4"]


def test_an_absent_module_is_an_error_unless_optional() -> None:
    assert INDEX.load_order(["crc32c_intel"]) == []
    with pytest.raises(TestbedEnvironmentError, match="no module overlay"):
        INDEX.load_order(["overlay"])


def test_the_guest_gets_networking_with_dependencies_and_no_more() -> None:
    names = {module_name(path) for path in INDEX.wanted()}
    assert {"esp6", "xfrm_algo", "sch_netem", "veth", "helper", "ext4"} <= names
    assert not {"bnep", "soundcore"} & names


def test_modules_are_uncompressed(tmp_path: Path) -> None:
    packed = tmp_path / "a.ko.xz"
    packed.write_bytes(lzma.compress(b"module"))
    copy_uncompressed(packed, tmp_path / "out" / "a.ko")
    assert (tmp_path / "out" / "a.ko").read_bytes() == b"module"
    assert plain_path("kernel/a.ko.xz") == "kernel/a.ko"
