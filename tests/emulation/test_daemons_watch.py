"""What the kernel tells of others' changes: heard once, ours not at all, losses found."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from protocol.daemon.control import ControlError
from protocol.daemon.kernelwatch import KernelWatch, watch_routes, watch_xfrm
from protocol.daemon.link import LinkWatch
from protocol.daemon.routes import KernelRoutes
from protocol.daemon.sockets import interface_index
from protocol.idp.events import AddRoute
from protocol.xfrm.namespace import in_namespace
from protocol.xfrm.socket import XfrmSocket
from tests.support.devices import JOIN_S, Lan
from tests.support.netns import Namespace, namespace
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
]

YEARS_MS = 3 * 365 * 86_400_000


@pytest.fixture
def here() -> Iterator[Namespace]:
    with namespace() as made:
        made.ip("link add xfrm0 type veth peer name other")
        for interface in ("xfrm0", "other"):
            made.ip(f"link set {interface} up")
        with in_namespace(made.path):
            yield made


def heard(watch: KernelWatch | LinkWatch) -> bool:
    """Read what is there by now."""
    if not select.select([watch.fileno()], [], [], 0)[0]:
        return False
    watch.readable()
    return True


def many(here: Namespace, lines: list[str]) -> None:
    done = subprocess.run(
        ["ip", "-n", here.name, "-batch", "-"],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_routes_of_others_are_heard_and_ours_are_not(here: Namespace) -> None:
    routes = KernelRoutes(interface_index("xfrm0"))
    changes: list[None] = []
    watch = watch_routes(routes.port, lambda: changes.append(None))
    try:
        prefixes = [ip_network(f"fd00:{n:x}::/64") for n in range(1, 41)]
        assert all(one.ok for one in routes.apply([AddRoute(prefix) for prefix in prefixes]))
        heard(watch)
        noise = watch.counters["kernel.changes"]
        assert noise < 10, "the kernel's own, of interfaces that have just come up, at most"
        many(here, [f"route del {prefix} dev xfrm0" for prefix in prefixes])
        calls = len(changes)
        assert heard(watch)
        assert len(changes) == calls + 1, "one call however much there is"
        assert watch.counters["kernel.changes"] - noise >= 40
    finally:
        watch.close()
        routes.close()


def test_policies_of_others_are_heard_and_ours_are_not(here: Namespace) -> None:
    socket = XfrmSocket()
    watch = watch_xfrm(socket.port, lambda: None)
    try:
        here.ip("xfrm policy add dir out src fd00::/64 dst fd01::/64 action block")
        assert heard(watch)
        assert watch.counters["kernel.changes"] == 1
    finally:
        watch.close()
        socket.close()


def test_what_was_lost_is_counted_and_tells_as_much(here: Namespace) -> None:
    changes: list[None] = []
    watch = watch_routes(0, lambda: changes.append(None))
    try:
        many(here, [f"route add fd00:{n:x}::/64 dev xfrm0" for n in range(1, 1500)])
        assert heard(watch)
        assert watch.counters["kernel.overruns"] == 1
        assert len(changes) == 1
        here.ip("-6 route del fd00:1::/64 dev xfrm0")
        assert heard(watch), "it hears on"
    finally:
        watch.close()


def test_a_carrier_that_came_while_notifications_were_lost_is_known(here: Namespace) -> None:
    states: list[bool] = []
    here.ip("link set other down")
    watch = LinkWatch(interface_index("xfrm0"), states.append)
    try:
        here.ip("link set other up")
        here.ip("link set other down")
        while heard(watch):
            pass
        assert states[-1:] in ([], [False])
        many(here, [f"link set dev lo alias {n}" for n in range(1500)])
        here.ip("link set other up")
        while heard(watch):
            pass
        assert watch.counters["link.overruns"] >= 1
        assert states[-1] is True
    finally:
        watch.close()


def test_a_clock_that_is_wrong_by_years_and_corrected_costs_no_operator(tmp_path: Path) -> None:
    lan = Lan(tmp_path, 3)
    for device in lan.devices:
        settings = {"clock": {"emulated": True}, "idp": {"hello_interval_ms": 250}}
        device.write_config(lan.coalition, {**settings, "state": {"directory": "run/state"}})
    everybody = {str(device.address) for device in lan.devices}

    def members_everywhere(expected: set[str], of: list[int]) -> bool:
        return all(
            set(lan.devices[index].ask("miked", "status")["members"]) == expected for index in of
        )

    with lan:
        for device in lan.devices:
            device.launch_both()
            device.start()
        wait_until(lambda: members_everywhere(everybody, [0, 1, 2]), JOIN_S, "a group of three")
        wrong = lan.devices[2]
        for years_ms in (YEARS_MS, -YEARS_MS):
            for daemon in ("idpd", "miked"):
                wrong.ask(daemon, "clock", offset_ms=years_ms)
            two = everybody - {str(wrong.address)}
            wait_until(lambda two=two: members_everywhere(two, [0, 1]), JOIN_S, "it is left out")
            for daemon in ("idpd", "miked"):
                wrong.ask(daemon, "clock", offset_ms=0)
            wait_until(lambda: members_everywhere(everybody, [0, 1, 2]), JOIN_S, "it is back")
        startup_wall_ns = int(wrong.ask("idpd", "status")["startup_wall_ns"])
        assert abs(time.time_ns() - startup_wall_ns) < 60_000_000_000
        assert "the clock was set by" in wrong.log("idpd")
        # Seconds make no difference to anybody: the next epoch is made with it.
        said = wrong.log("miked").count("the clock was set by")
        for daemon in ("idpd", "miked"):
            wrong.ask(daemon, "clock", offset_ms=-20_000)
        before = lan.devices[0].ask("miked", "status")["epoch"]
        wait_until(
            lambda: wrong.ask("miked", "rekey"), JOIN_S, "it may renew", tolerate=(ControlError,)
        )

        def renewed() -> bool:
            epochs = {device.ask("idpd", "status")["active_epoch"] for device in lan.devices}
            return len(epochs) == 1 and before not in epochs

        wait_until(renewed, JOIN_S, "a new epoch everywhere")
        assert members_everywhere(everybody, [0, 1, 2])
        assert wrong.log("miked").count("the clock was set by") == said


def test_only_an_emulated_clock_can_be_set(tmp_path: Path) -> None:
    with Lan(tmp_path, 1) as lan:
        (device,) = lan.devices
        device.launch_both()
        with pytest.raises(ControlError, match=r"\[clock\] emulated"):
            device.ask("idpd", "clock", offset_ms=1)
