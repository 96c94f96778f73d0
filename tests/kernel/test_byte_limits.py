"""SAs that may carry so many bytes only: what the kernel says, what the daemons do (IDP-63)."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest

from protocol.ipsec.backend import AddSa, ByteLimit
from protocol.ipsec.model import Suite
from protocol.xfrm.backends import make_backend
from protocol.xfrm.messages import DumpSas, NewSa
from protocol.xfrm.observer import XfrmObserver
from protocol.xfrm.socket import XfrmSocket
from tests.support.devices import Device, Lan, ip
from tests.support.netns import namespace, require_esp
from tests.support.waiting import wait_until
from tests.support.xfrm import make_sa

pytestmark = pytest.mark.kernel

WITHIN_S = 90.0
LIMIT_BYTES = 60_000
PAYLOAD = bytes(1000)
RED_GROUP, PORT = "ff05::77", 7007
EPOCHS = 3


@pytest.mark.parametrize("name", ["netlink", "command", "pfkey"])
def test_every_backend_hands_the_limits_to_the_kernel(name: str) -> None:
    require_esp()
    with namespace() as space:
        backend = make_backend(name, space.path, Suite.TDES_SHA1)
        limited, free = (make_sa(spi, Suite.TDES_SHA1) for spi in (0x1001, 0x1002))
        outcomes = backend.apply([AddSa(limited, ByteLimit(800, 1000)), AddSa(free)])
        assert all(outcome.ok for outcome in outcomes)
        reader = XfrmSocket(space.path)
        found = {m.sa.spi: m.lifetime for m in reader.dump(DumpSas()) if isinstance(m, NewSa)}
        reader.close()
        backend.close()
    assert found[0x1001][:2] == (800, 1000)
    assert found[0x1002][0] == found[0x1002][1] > 1 << 62


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[Lan]:
    require_esp()
    settings: dict[str, dict[str, Any]] = {
        "idp": {"hello_interval_ms": 500},
        "ipsec": {
            "backend": "netlink",
            "sa_lifetime_bytes": LIMIT_BYTES,
            "activation_delay_ms": 300,
            "deactivation_delay_ms": 600,
        },
    }
    with Lan(tmp_path, 3) as made:
        for device in made.devices:
            device.write_config(made.coalition, settings)
            inside = ("-n", device.namespace)
            ip(*inside, "link", "add", "xfrm0", "type", "xfrm", "dev", "black0", "if_id", "66")
            ip(*inside, "link", "set", "xfrm0", "mtu", "1380", "multicast", "on", "up")
            address = f"fd00:66::{device.number:x}/64"
            ip(*inside, "addr", "add", address, "dev", "xfrm0", "nodad")
            route = ("-6", "route", "add", "multicast", "ff0e::1/128", "dev", "black0")
            ip(*inside, *route, "table", "local", "metric", "1")
        yield made


def red_socket(device: Device, *, receives: bool) -> socket.socket:
    """A UDP socket behind the device's xfrm interface."""
    made: socket.socket = device.inside(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    index = device.inside(lambda: socket.if_nametoindex("xfrm0"))
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
    if receives:
        made.bind((RED_GROUP, PORT))
        request = IPv6Address(RED_GROUP).packed + struct.pack("@I", index)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
        made.setblocking(False)
    return made


def drained(sock: socket.socket) -> list[int]:
    """Return the numbers of the packets that have come."""
    numbers = []
    while True:
        try:
            numbers.append(int.from_bytes(sock.recv(2000)[:4], "big"))
        except BlockingIOError:
            return numbers


def test_who_sends_much_renews_the_key_and_nothing_is_lost(lan: Lan) -> None:
    """One device sends without end: epoch after epoch, no hard limit, every packet arrives."""
    devices = lan.devices
    for device in devices:
        device.launch_both()
    for device in devices:
        device.start()

    def states() -> list[dict[str, Any]]:
        return [device.ask("idpd", "status") for device in devices]

    def agreed(seen: list[dict[str, Any]]) -> bool:
        epochs = {(one["epoch"], one["active_epoch"]) for one in seen}
        members = {len(device.ask("miked", "status")["members"]) for device in devices}
        (first, *more) = epochs
        return not more and first[0] == first[1] is not None and members == {len(devices)}

    first = wait_until(states, WITHIN_S, "all use one epoch", accept=agreed)[0]["epoch"]
    sender = red_socket(devices[1], receives=False)
    receivers = [red_socket(device, receives=True) for device in (devices[0], devices[2])]
    got: list[list[int]] = [[], []]
    sent = 0

    def number(epoch: str) -> int:
        return int(epoch.partition("-")[0])

    with XfrmObserver(f"/run/netns/{devices[1].namespace}") as observer:
        expired = []
        epoch = first
        deadline = time.monotonic() + WITHIN_S
        while number(epoch) < number(first) + EPOCHS:
            assert time.monotonic() < deadline, f"epoch {epoch} after {sent} packets"
            # Slow enough that an epoch is made while the last fifth of a limit is sent.
            sender.sendto(sent.to_bytes(4, "big") + PAYLOAD, (RED_GROUP, PORT))
            sent += 1
            time.sleep(0.1)  # poll: paces the traffic
            epoch = devices[1].ask("idpd", "status")["active_epoch"]
            expired += [e.message for e in observer.events() if e.kind == "sa-expired"]
            for numbers, receiver in zip(got, receivers, strict=True):
                numbers.extend(drained(receiver))
        wait_until(states, WITHIN_S, "all use one epoch again", accept=agreed)

    def arrived() -> list[int]:
        for numbers, receiver in zip(got, receivers, strict=True):
            numbers.extend(drained(receiver))
        return [len(numbers) for numbers in got]

    wait_until(arrived, WITHIN_S, "all packets arrive", accept=lambda n: n == [sent, sent])
    assert got == [list(range(sent))] * 2
    assert [message.hard for message in expired] == [False] * EPOCHS
    # Each epoch carries 80 % of the limit and a little more, not a second rekey.
    assert number(epoch) == number(first) + EPOCHS
    assert sent * len(PAYLOAD) > EPOCHS * LIMIT_BYTES // 2
    asked = [device.ask("idpd", "status")["counters"].get("IDP-63", 0) for device in devices]
    assert asked == [0, EPOCHS, 0]
    for sock in (sender, *receivers):
        sock.close()
