"""gatewayd's file, what it reads in an idpd's status, how it asks, its command line."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from ipaddress import IPv6Address, ip_network
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from protocol.core.errors import LocalError
from protocol.daemon import gatewayconfig
from protocol.daemon.cli import command_line, status_lines
from protocol.daemon.control import ControlServer
from protocol.daemon.controlclient import ControlClient
from protocol.daemon.gatewayconfig import GatewayFile
from protocol.daemon.gatewayidp import LegIdpd, read_view
from protocol.daemon.gatewayservice import kind_filter
from protocol.daemon.loop import Loop
from protocol.daemon.tables import ConfigFileError
from protocol.gateway.messages import Member

LEG = """
[device]
name = "g1-{partition}"
nation = "alpha"
address = "2001:db8:{partition}::f1"
run_directory = "g1-{partition}"
[black]
interface = "black{leg}"
[identity]
certificate = "device.pem"
key = "device.key"
anchors = "."
peers = "."
[local]
secret = "secret"
idp_port = 4750{leg}
mike_port = 4760{leg}
[ipsec]
group = "ff0e::1"
interface = "xfrm{leg}"
if_id = 6{leg}
reqid = {reqid}
route_metric = 102{leg}
"""

GATEWAY = """
[device]
name = "g1"
run_directory = "g1"
[gateway]
refresh_ms = 700
never = ["ff0e::9/128"]
[[gateway.leg]]
partition = "a"
config = "g1-a.toml"
[[gateway.leg]]
partition = "b"
config = "g1-b.toml"
"""

SO_ATTACH_FILTER = 26

Write = Callable[..., GatewayFile]


@pytest.fixture
def read(tmp_path: Path) -> Write:
    """Return what writes a gateway's file and its legs', with replacements, and reads them."""
    secret = tmp_path / "secret"
    secret.write_text("00" * 32 + "\n")
    secret.chmod(0o600)
    for name in ("g1", "g1-a", "g1-b"):
        (tmp_path / name).mkdir()

    def write(gateway: tuple[str, str] = ("", ""), leg_b: tuple[str, str] = ("", "")) -> Any:
        for leg, partition in enumerate("ab"):
            text = LEG.format(partition=partition, leg=leg, reqid=7 + 10 * leg)
            if partition == "b":
                assert leg_b[0] in text
                text = text.replace(*leg_b)
            (tmp_path / f"g1-{partition}.toml").write_text(text)
        assert gateway[0] in GATEWAY
        path = tmp_path / "g1.toml"
        path.write_text(GATEWAY.replace(*gateway))
        return gatewayconfig.load(path)

    return write


def test_a_gateway_is_read_with_its_legs(read: Write) -> None:
    found = read()
    assert [leg.partition for leg in found.config.legs] == ["a", "b"]
    assert [leg.tunnel for leg in found.config.legs] == ["xfrm0", "xfrm1"]
    assert found.config.legs[1].address == IPv6Address("2001:db8:b::f1")
    assert found.config.refresh_ms == 700
    assert found.tunnels
    never = {str(net) for net in found.config.never}
    assert never == {"ff0e::9/128", "ff0e::1/128", "ff0e::1d0/128", "ff0e::319e/128"}


@pytest.mark.parametrize(
    ("gateway", "leg_b", "words"),
    [
        (("refresh_ms = 700", "refresh_ms = 7"), ("", ""), r"\[gateway\] refresh_ms must be"),
        (("refresh_ms", "refreshing"), ("", ""), r"\[gateway\] refreshing is not a setting"),
        (('partition = "b"', 'partition = "a"'), ("", ""), "partition is 'a' in two legs"),
        (('partition = "b"', 'partition = "B!"'), ("", ""), "must be lower-case letters"),
        (("g1-b.toml", "g9.toml"), ("", ""), "g9.toml"),
        (("ff0e::9/128", "fd00::/8"), ("", ""), "never: fd00::/8 is not multicast"),
        (("[gateway]", "[gateways]"), ("", ""), "unknown section"),
        (("", ""), ('"black1"', '"black0"'), r"same \[black\] interface twice"),
        (("", ""), ("if_id = 61", "if_id = 60"), r"same \[ipsec\] if_id twice"),
        (("", ""), ("reqid = 17", "reqid = 8"), "reqid at least 2 apart, not 7, 8"),
        (("", ""), ('peers = "."', 'peers = "."\ncache = "x"'), r"the same \[identity\] cache"),
        (("", ""), ("metric = 1021", "metric = 1020"), "route_metric twice"),
        (("", ""), ("metric = 1021", "metric = 12"), "route_metric above 512 for b"),
        (("", ""), ("idp_port = 47501", "idp_port = 47500"), r"same \[local\] idp_port twice"),
        (("", ""), ('interface = "xfrm1"', 'interface = "xfrm0"'), "tunnel is the same twice"),
        (("", ""), ('nation = "alpha"\n', ""), r"g1-b.toml: \[device\] nation is missing"),
    ],
)
def test_a_mistake_is_one_line(
    read: Write, gateway: tuple[str, str], leg_b: tuple[str, str], words: str
) -> None:
    with pytest.raises(ConfigFileError, match=words) as caught:
        read(gateway, leg_b)
    assert "\n" not in str(caught.value)


def test_one_leg_is_no_gateway(read: Write) -> None:
    start = GATEWAY.index('[[gateway.leg]]\npartition = "b"')
    with pytest.raises(ConfigFileError, match="a gateway has from 2 to 8"):
        read((GATEWAY[start:], ""))


STATUS = {
    "ok": True,
    "state": "running",
    "startup_wall_ns": 5,
    "key_epoch": "7-0a1b2c3d4e5f6071",
    "peers": [
        {"address": "2001:db8:a::1", "name": "d1", "state": "up"},
        {"address": "2001:db8:a::2", "name": "d2", "state": "lost"},
    ],
    "prefixes": [{"prefix": "fd00:1::/64", "peer": "2001:db8:a::1"}],
    "own_prefixes": ["fd00:2::/64"],
}


def test_a_status_is_read() -> None:
    view = read_view(STATUS)
    assert view is not None
    assert view.up == (Member(IPv6Address("2001:db8:a::1"), "d1"),)
    assert view.prefixes == ((ip_network("fd00:1::/64"), IPv6Address("2001:db8:a::1")),)
    assert view.announced == {ip_network("fd00:2::/64")}
    assert str(view.epoch) == "7-0a1b2c3d4e5f6071"
    assert read_view(STATUS | {"state": "parked"}) is None
    assert read_view(None) is None


@pytest.mark.parametrize("wrong", [{"peers": 3}, {"key_epoch": "x"}, {"prefixes": [{}]}])
def test_a_status_that_cannot_be_read_is_one_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(LocalError, match="cannot be read"):
        read_view(STATUS | wrong)


def run_until(loop: Loop, done: Callable[[], bool]) -> None:
    """Serve until something has happened, for ten seconds at most."""
    import time

    end_ns = time.monotonic_ns() + 10_000_000_000

    def look(_: str) -> None:
        if done() or time.monotonic_ns() > end_ns:
            loop.stop()
        else:
            loop.set_timer("look", time.monotonic_ns() + 5_000_000, look)

    loop.set_timer("look", time.monotonic_ns(), look)
    loop.run()
    assert done()


def test_a_leg_s_idpd_is_asked_told_and_found_gone(tmp_path: Path) -> None:
    loop, told, views, log = Loop(), [], [], []
    client = ControlClient(tmp_path / "idpd.sock", loop, "ask", 2000)
    idpd = LegIdpd(client, views.append, lambda level, text: log.append(text))
    idpd.poll()
    assert views == [None]  # nobody listens yet

    def refuse(request: dict[str, Any]) -> dict[str, Any]:
        raise LocalError(f"{request['prefix']} is not announced")

    handlers = {
        "status": lambda _: dict(STATUS),
        "prefix_add": lambda request: told.append(request["prefix"]) or {},
        "prefix_remove": refuse,
    }
    server = ControlServer(tmp_path / "idpd.sock", loop, handlers)  # type: ignore[arg-type]
    idpd.poll()
    idpd.poll()  # still owes an answer: not asked twice
    idpd.announce(ip_network("fd00:3::/64"))
    idpd.withdraw(ip_network("fd00:4::/64"))
    run_until(loop, lambda: bool(idpd.counters) and len(views) == 2)
    assert views[1] is not None
    assert told == ["fd00:3::/64"]
    assert idpd.counters == {"gateway.prefix_remove_failed": 1}
    assert log == ["prefix_remove fd00:4::/64: fd00:4::/64 is not announced"]
    server.close()
    idpd.poll()
    run_until(loop, lambda: len(views) == 3)
    assert views[2] is None
    idpd.close()


def test_a_daemon_that_never_answers_does_not_hold_us_up(tmp_path: Path) -> None:
    loop, answers = Loop(), []
    path = tmp_path / "idpd.sock"
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(path))
        mute.listen(1)
        client = ControlClient(path, loop, "ask", 50)
        client.ask({"cmd": "status"}, answers.append)
        assert answers == []
        run_until(loop, lambda: bool(answers))
        assert answers == [None]
        client.close()


def test_an_answer_that_is_no_json_ends_the_connection(tmp_path: Path) -> None:
    loop, answers = Loop(), []
    path = tmp_path / "idpd.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(1)

        def answer() -> None:
            with server.accept()[0] as sock:
                sock.recv(1000)
                sock.sendall(b"what?\n")

        thread = threading.Thread(target=answer)
        thread.start()
        client = ControlClient(path, loop, "ask", 5000)
        client.ask({"cmd": "status"}, answers.append)
        run_until(loop, lambda: bool(answers))
        thread.join()
        assert answers == [None]
        client.close()


def test_the_filter_passes_gateways_messages_only() -> None:
    with (
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("::1", 0))
        receiver.settimeout(5)
        code = kind_filter()
        program = struct.pack("@HP", len(code), code.buffer_info()[0])
        receiver.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        table = bytes([1, 1, 16]) + bytes(200)
        for payload in (
            b"",
            bytes([1, 1, 1]) + bytes(200),  # a hello
            bytes([1, 2, 16]) + bytes(200),  # MIKE's
            bytes([2, 1, 16]) + bytes(200),  # another version
            table,
        ):
            sender.sendto(payload, receiver.getsockname())
        assert receiver.recv(1000) == table


def test_help_and_status_say_what_a_gateway_is() -> None:
    shown = CliRunner().invoke(command_line("gatewayd"), ["--help"])
    assert shown.exit_code == 0
    assert "gatewayd run g1.toml" in shown.output
    assert "start" not in command_line("gatewayd").commands
    answer = {
        "daemon": "gatewayd",
        "device": "g1",
        "state": "running",
        "pid": 1,
        "legs": [
            {
                "partition": "a",
                "address": "2001:db8:a::f1",
                "counts": True,
                "epoch": "1-00",
                "speaks_for": ["b"],
                "gateways": [{"name": "g2-a", "address": "2001:db8:a::f2"}],
            }
        ],
        "partitions": [
            {
                "partition": "c",
                "hops": 1,
                "gateway": "g3-b",
                "prefixes": ["fd00:c::/64"],
                "members": [{"address": "2001:db8:c::1", "name": "d3"}],
            }
        ],
        "flows": [{"source": "fd00:a::1", "group": "ff0e::7", "in": "xfrm0", "outs": ["xfrm1"]}],
    }
    text = "\n".join(status_lines(answer))
    for words in (
        "leg a 2001:db8:a::f1: epoch 1-00, speaks for b",
        "gateway g2-a 2001:db8:a::f2",
        "partition c: 1 gateways away through g3-b",
        "2001:db8:c::1 d3",
        "flow fd00:a::1 ff0e::7: xfrm0 to xfrm1",
    ):
        assert words in text
