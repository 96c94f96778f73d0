"""The daemons with the kernel's own SAD and SPD: written alike, and nothing left behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from protocol.daemon import launch
from protocol.ipsec.backend import AddSa, IpsecBackend
from protocol.ipsec.model import KeyMaterial, SecurityAssociation, Suite
from protocol.ipsec.snapshot import SadSnapshot
from protocol.xfrm.backends import make_backend
from tests.support.devices import Device, Lan, ip
from tests.support.netns import require_esp
from tests.support.waiting import wait_until

pytestmark = pytest.mark.kernel

WITHIN_S = 90.0
KERNEL = {"ipsec": {"backend": "netlink", "sa_directions": True}}
FOREIGN_SPI = 0x7777


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[Lan]:
    require_esp()
    with Lan(tmp_path, 2) as made:
        for device in made.devices:
            device.write_config(made.coalition, KERNEL)
            inside = ("-n", device.namespace, "link")
            ip(*inside, "add", "xfrm0", "type", "xfrm", "dev", "black0", "if_id", "66")
            ip(*inside, "set", "xfrm0", "up")
        yield made


@pytest.fixture
def sads(lan: Lan) -> Iterator[list[IpsecBackend]]:
    """Each device's SAD, read from outside; each holds one SA that is not ours."""
    backends = [make_backend("netlink", f"/run/netns/{d.namespace}") for d in lan.devices]
    here, there = IPv6Address("2001:db8:f::1"), IPv6Address("2001:db8:f::2")
    foreign = SecurityAssociation(
        here, there, FOREIGN_SPI, Suite.AES_GCM_128, KeyMaterial(bytes(range(20))), reqid=99
    )
    for backend in backends:
        assert all(outcome.ok for outcome in backend.apply([AddSa(foreign)]))
    yield backends
    for backend in backends:
        backend.close()


def ours(backend: IpsecBackend) -> list[SecurityAssociation]:
    return [sa for sa in backend.dump_sas() if sa.spi != FOREIGN_SPI]


def clean(backend: IpsecBackend) -> bool:
    """Return whether only the foreign SA is left."""
    spis = [sa.spi for sa in backend.dump_sas()]
    return spis == [FOREIGN_SPI] and not backend.dump_policies()


def start_both(devices: list[Device]) -> None:
    for device in devices:
        device.launch_both()
    for device in devices:
        device.start()


def of_group(backend: IpsecBackend) -> list[SecurityAssociation]:
    return [sa for sa in ours(backend) if sa.destination.is_multicast]


def of_pair(backend: IpsecBackend) -> dict[IPv6Address, str]:
    """Return the digest of each unicast SA's key, by the SA's destination."""
    return {
        sa.destination: sa.key.digest for sa in ours(backend) if not sa.destination.is_multicast
    }


def wait_for_equal_sads(sads: list[IpsecBackend]) -> None:
    """Wait for an SA of each sender, and one in each direction between the two devices."""

    def digests() -> list[str]:
        return [SadSnapshot.of(of_group(sad)).digest for sad in sads if len(of_group(sad)) == 2]

    wait_until(
        digests,
        WITHIN_S,
        "the SADs hold the same two group SAs",
        accept=lambda seen: len(seen) == len(sads) and len(set(seen)) == 1,
    )
    wait_until(
        lambda: [of_pair(sad) for sad in sads],
        WITHIN_S,
        "both hold the same two unicast SAs",
        accept=lambda seen: all(len(each) == 2 for each in seen) and seen[0] == seen[1],
    )


def test_the_sads_are_equal_and_stop_leaves_nothing(lan: Lan, sads: list[IpsecBackend]) -> None:
    second = lan.devices[1]
    start_both(lan.devices)
    wait_for_equal_sads(sads)
    for device in lan.devices:
        assert device.ask("idpd", "status")["backend"] == "netlink"
        assert "t_written" in {line["point"] for line in device.trace("idpd")}
    assert sads[1].dump_policies()
    second.stop()
    assert clean(sads[1])
    second.start()
    wait_for_equal_sads(sads)
    for device in lan.devices:
        assert device.end() == {"idpd": 0, "miked": 0}
    assert all(clean(sad) for sad in sads)


def test_what_a_killed_daemon_left_is_removed_at_the_next_start(
    lan: Lan, sads: list[IpsecBackend]
) -> None:
    first = lan.devices[0]
    start_both(lan.devices)
    wait_for_equal_sads(sads)
    for daemon in launch.DAEMONS:
        first.processes[daemon].send_signal(signal.SIGKILL)
        first.processes[daemon].wait(10)
    assert ours(sads[0])
    assert sads[0].dump_policies()
    first.launch_both()
    assert clean(sads[0])
    first.ask("idpd", "flush")
    assert "SAs and policies of a killed daemon" in first.log("idpd")
    first.start()
    wait_for_equal_sads(sads)
