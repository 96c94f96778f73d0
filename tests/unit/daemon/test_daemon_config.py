from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from protocol.daemon.config import DeviceConfig, load
from protocol.daemon.tables import ConfigFileError

GOOD = """
[device]
name = "d3"
nation = "beta"
address = "2001:db8:b::3"
run_directory = "run"
[black]
interface = "black0"
[identity]
certificate = "device.pem"
key = "device.key"
anchors = "anchors"
peers = "peers"
[local]
secret = "local.secret"
[ipsec]
group = "ff0e::1"
"""

Load = Callable[[str], DeviceConfig]


@pytest.fixture
def read(tmp_path: Path) -> Load:
    for name in ("run", "anchors", "peers", "crl"):
        (tmp_path / name).mkdir()
    secret = tmp_path / "local.secret"
    secret.write_text("ab" * 32 + "\n")
    secret.chmod(0o600)

    def read_text(text: str) -> DeviceConfig:
        path = tmp_path / "d3.toml"
        path.write_text(text)
        return load(path)

    return read_text


def changed(section: str, line: str) -> str:
    """Return the good file with a line more (or another) in a section."""
    key = line.partition("=")[0].strip()
    lines: list[str] = []
    current = ""
    for item in GOOD.splitlines():
        current = item if item.startswith("[") else current
        if current != f"[{section}]" or item.partition("=")[0].strip() != key:
            lines.append(item)
    if f"[{section}]" not in lines:
        lines.append(f"[{section}]")
    lines.insert(lines.index(f"[{section}]") + 1, line)
    return "\n".join(lines) + "\n"


def test_defaults_and_paths_relative_to_the_file(read: Load, tmp_path: Path) -> None:
    config = read(GOOD)
    assert config.device.address == IPv6Address("2001:db8:b::3")
    assert config.device.control_socket("idpd") == tmp_path / "run" / "idpd.sock"
    assert config.key_directory == tmp_path / "run" / "keys"
    assert config.identity.revocations is None
    assert config.idp_channel.port == 47500
    assert config.mike_channel.group == IPv6Address("ff0e::319e")
    assert config.backend == "netlink"
    assert config.park
    assert config.local.secret == bytes([0xAB]) * 32


@pytest.mark.parametrize(
    ("section", "line", "expected"),
    [
        ("idp", "hello_interval_ms = 'x'", "[idp] hello_interval_ms"),
        ("idp", "hello_interval_ms = 70000", "[idp] hello_interval_ms"),
        ("idp", "hello_interval_ms = true", "[idp] hello_interval_ms"),
        ("idp", "helo = 3", "[idp] helo"),
        ("idp", "group = '2001:db8::1'", "[idp] group must be an IPv6 multicast address"),
        ("mike", "port = 0", "[mike] port must be a whole number from 1 to 65535, not 0"),
        ("mike", "join_retry_ms = 'soon'", "[mike] join_retry_ms"),
        ("mike", "colour = 'red'", "[mike] colour is not a setting"),
        ("ipsec", "backend = 'netlnik'", "[ipsec] backend must be one of netlink, command, pfkey"),
        ("ipsec", "sa_mode = 'shared'", "[ipsec] sa_mode"),
        ("ipsec", "reqid = 0", "[ipsec] reqid"),
        ("ipsec", "interface = 'much-too-long-name'", "[ipsec] interface must be an interface"),
        ("device", "name = 3", "[device] name must be a text, not 3"),
        ("device", "address = 'ff02::1'", "[device] address must be an IPv6 unicast address"),
        ("device", "address = 'fe80::1%eth0'", "[device] address must be an IPv6 unicast address"),
        ("ipsec", "backend = 'pfkey'\nipv4 = true", "[ipsec] ipv4 needs SAs for both families"),
        ("ipsec", "ipv4 = 1", "[ipsec] ipv4: 1 is not true or false"),
        ("device", "run_directory = 'gone'", "[device] run_directory must be an existing"),
        ("device", "colour = 'red'", "[device] colour is not a setting"),
        ("identity", "freshness_ms = 1", "[identity] freshness_ms must be a whole number"),
        ("identity", "anchors = 'gone'", "[identity] anchors must be an existing directory"),
        ("identity", "key = '~nobody-here/d3.key'", "[identity] key names a user who has no home"),
        ("local", "secret = 'gone'", "[local] secret is not usable"),
        ("local", "mike_port = 47501", "[local] mike_port must differ from idp_port"),
        ("clock", "responder_port = -1", "[clock] responder_port must be a whole number"),
        ("clock", "injected_offset_us = 1.5", "[clock] injected_offset_us must be a whole"),
        ("start", "park = 'no'", "[start] park must be true or false, not 'no'"),
        ("colours", "red = 1", "[colours] unknown section"),
    ],
)
def test_a_mistake_names_file_section_and_field_in_one_line(
    read: Load, section: str, line: str, expected: str
) -> None:
    with pytest.raises(ConfigFileError) as caught:
        read(changed(section, line))
    text = str(caught.value)
    assert text.startswith("d3.toml: ")
    assert expected in text
    assert "\n" not in text


@pytest.mark.parametrize("key", ["name", "address", "interface", "certificate", "secret", "group"])
def test_a_missing_setting_is_named(read: Load, key: str) -> None:
    lines = [line for line in GOOD.splitlines() if line.partition("=")[0].strip() != key]
    with pytest.raises(ConfigFileError, match=rf"d3.toml: \[\w+\] {key}:? ?(is )?missing"):
        read("\n".join(lines))


@pytest.mark.parametrize("text", ["[device", "\x00", "a = 1", "[[device]]\nname = 'x'"])
def test_what_is_not_such_a_file_is_refused_in_one_line(read: Load, text: str) -> None:
    with pytest.raises(ConfigFileError) as caught:
        read(text)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigFileError, match="No such file"):
        load(tmp_path / "none.toml")


def test_a_secret_that_others_may_read_is_refused(read: Load, tmp_path: Path) -> None:
    (tmp_path / "local.secret").chmod(0o644)
    with pytest.raises(ConfigFileError, match=r"\[local\] secret .*0600"):
        read(GOOD)


def test_the_secret_is_never_shown(read: Load) -> None:
    assert "abab" not in repr(read(GOOD))
