"""mproxyd's file, the options it reads in packets, its command line."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path

import pytest
from click.testing import CliRunner

from protocol.daemon.cli import command_line, status_lines
from protocol.daemon.mproxyconfig import MproxyFile, load
from protocol.daemon.mproxylinks import link_local
from protocol.daemon.mproxysockets import has_router_alert4, has_router_alert6
from protocol.daemon.tables import ConfigFileError
from protocol.mproxy.messages import Family
from tests.support.proxy import FAR_SENDER, HOST, Proxy, join, router_config

LAN_ROUTER = """
[device]
name = "alpha-lan"
run_directory = "run"
[mproxy]
upstream = "eth0"
[[mproxy.downstream]]
interface = "eth1"
prefixes = ["fd00:1:1::/64", "10.1.1.0/24"]
[[mproxy.downstream]]
interface = "eth2"
prefixes = ["fd00:1:2::/64"]
"""

DEVICE = """
[device]
name = "d3"
nation = "beta"
address = "2001:db8:b::3"
run_directory = "run"
[ipsec]
group = "ff0e::1"
interface = "xfrm7"
[mike]
group = "ff0e::5"
[clock]
injected_offset_us = 7
[mproxy]
never = ["ff0e::9/128"]
[[mproxy.downstream]]
interface = "red0"
prefixes = ["fd00:2::/48"]
"""

Read = Callable[[str], MproxyFile]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    (tmp_path / "run").mkdir()

    def read_text(text: str) -> MproxyFile:
        path = tmp_path / "lan.toml"
        path.write_text(text)
        return load(path)

    return read_text


def test_a_lan_routers_file(read: Read, tmp_path: Path) -> None:
    file = read(LAN_ROUTER)
    config = file.config
    assert file.files.control_socket("mproxyd") == tmp_path / "run" / "mproxyd.sock"
    assert (config.upstream, config.signal_upstream) == ("eth0", True)
    assert [port.interface for port in config.downstreams] == ["eth1", "eth2"]
    assert config.downstreams[0].prefixes == (
        ip_network("fd00:1:1::/64"),
        ip_network("10.1.1.0/24"),
    )
    assert config.families == (Family.IPV6, Family.IPV4)
    assert (config.never, config.max_groups, config.max_groups_per_host) == ((), 256, 64)


def test_a_devices_file(read: Read) -> None:
    """The tunnel is upstream, told nothing; the black groups never pass."""
    file = read(DEVICE)
    config = file.config
    assert (config.upstream, config.signal_upstream) == ("xfrm7", False)
    never = {str(net.network_address) for net in config.never}
    assert never == {"ff0e::9", "ff0e::1", "ff0e::1d0", "ff0e::5"}
    assert file.injected_offset_us == 7
    assert (config.max_groups, config.max_groups_per_host) == (1024, 256)
    assert config.max_groups_per_host >= read(LAN_ROUTER).config.max_groups


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("[mproxy]\n", "[mproxy]\nspeed = 7\n", "[mproxy] speed is not a setting"),
        ("[mproxy]\n", "[mproxy]\nipv6 = 1\n", "[mproxy] ipv6 must be true or false"),
        ("[mproxy]\n", "[mproxy]\nipv6 = false\nipv4 = false\n", "[mproxy] families: neither"),
        ("[mproxy]\n", "[mproxy]\nrobustness = 9\n", "[mproxy] robustness must be a whole number"),
        ("[mproxy]\n", '[mproxy]\ngroups = ["ff0e"]\n', "[mproxy] groups has 'ff0e'"),
        ("[mproxy]\n", '[mproxy]\nnever = "ff0e::1"\n', "[mproxy] never must be a list"),
        ('upstream = "eth0"\n', "", "[mproxy] upstream is missing"),
        ('"eth0"', '"eth1"', "[mproxy] downstream: an interface is named twice"),
        ('"fd00:1:2::/64"', '"fd00:1:1::/80"', "[mproxy] prefixes: fd00:1:1::/80 on eth2 overlaps"),
        ('"fd00:1:2::/64"', '"fd00:1:2::1/64"', "[mproxy.downstream] prefixes has"),
        ('interface = "eth2"\n', "", "[mproxy.downstream] interface is missing"),
        ('interface = "eth2"\n', 'interface = "eth2"\nmtu = 5\n', "mtu is not a setting"),
        ("[[mproxy.downstream]]", "[[mproxy.lan]]", "[mproxy] lan is not a setting"),
        ("[mproxy]\n", "[mproxi]\n[mproxy]\n", "[mproxi] unknown section"),
        ('run_directory = "run"\n', "", "[device] run_directory is missing"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(read: Read, old: str, new: str, text: str) -> None:
    assert old in LAN_ROUTER
    with pytest.raises(ConfigFileError) as caught:
        read(LAN_ROUTER.replace(old, new))
    assert str(caught.value).startswith("lan.toml: ")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_without_the_section_is_not_for_mproxyd(read: Read) -> None:
    with pytest.raises(ConfigFileError, match=r"\[mproxy\] is missing"):
        read(LAN_ROUTER.partition("[mproxy]")[0])


@pytest.mark.parametrize(
    ("header", "has"),
    [
        ("3a00050200000100", True),
        ("3a00010005020000", True),
        ("3a00000005020000", True),
        ("3a00050200010100", False),
        ("3a00010400000000", False),
        ("3a0005", False),
        ("3a00010a", False),
        ("", False),
    ],
)
def test_router_alert_of_ipv6(header: str, has: bool) -> None:
    assert has_router_alert6(bytes.fromhex(header)) is has


@pytest.mark.parametrize(
    ("options", "has"),
    [
        ("94040000", True), ("0101019404000000", True), ("8203ff94040000", True),
        ("00940400", False), ("8200", False), ("82", False), ("", False),
    ],
)  # fmt: skip
def test_router_alert_of_ipv4(options: str, has: bool) -> None:
    assert has_router_alert4(bytes.fromhex(options)) is has


def test_link_local_address_that_can_be_used() -> None:
    table = (
        "fd000001000000000000000000000001 02 40 00 80     red0\n"
        "fe800000000000000000000000000009 02 40 20 c0     red0\n"
        "fe800000000000000000000000000005 03 40 20 80   black0\n"
        "fe800000000000000000000000000007 02 40 20 80     red0\n"
    )
    assert str(link_local(table, "red0")) == "fe80::7"
    assert link_local(table, "lo") is None


def test_help_shows_only_what_a_proxy_can_do() -> None:
    result = CliRunner().invoke(command_line("mproxyd"), ["--help"], prog_name="mproxyd")
    assert result.exit_code == 0
    for word in ("Examples:", "mproxyd run lan.toml", "status", "shutdown"):
        assert word in result.output
    assert "start " not in result.output
    result = CliRunner().invoke(command_line("mproxyd"), ["run", "--help"], prog_name="mproxyd")
    assert "section [mproxy] of CONFIG" in result.output


def test_status_for_people() -> None:
    proxy = Proxy(router_config())
    proxy.says(HOST, join())
    proxy.packet("eth0", FAR_SENDER)
    answer = {"daemon": "mproxyd", "device": "lan", "state": "running", "pid": 7, **proxy.status()}
    lines = status_lines(answer)
    assert lines[0] == "mproxyd of lan: running, process 7"
    for line in (
        "  upstream eth0: ff0e::77",
        "  downstream eth1 IPv6: querier",
        "    ff0e::77 from any",
        f"  flow {FAR_SENDER} ff0e::77: eth0 to eth1",
    ):
        assert line in lines
