"""Topology files: every mistake is told with its line and field."""

from __future__ import annotations

from pathlib import Path

import pytest

import topologies
from testbed.errors import TestbedError
from testbed.spec import NodeKind
from testbed.specreader import load_topology
from testbed.tomllines import SpecError, TomlDocument
from topologies.families import star

GOOD = """\
[topology]
name = "small"
title = "Two devices"

[group]
if_id = 7

[[node]]
name = "s1"
kind = "switch"

[[node]]
name = "d1"
kind = "device"
nation = "alpha"
black = "2001:db8::1/64"
red = "fd00:1::1/64"

[[node]]
name = "d2"
kind = "device"
nation = "bravo"
black = "2001:db8::2/64"
red = "fd00:2::1/64"

[[link]]
ends = ["d1", "s1"]
bandwidth_mbit = 100

[[link]]
ends = [
  "s1",   # the order does not matter
  "d2",
]
"""


def load(tmp_path: Path, text: str) -> None:
    path = tmp_path / "topology.toml"
    path.write_text(text)
    load_topology(path)


def test_a_good_file_becomes_data(tmp_path: Path) -> None:
    path = tmp_path / "topology.toml"
    path.write_text(GOOD)
    topology = load_topology(path)
    assert [node.name for node in topology.devices] == ["d1", "d2"]
    assert topology.switches[0].multicast_snooping is False
    assert topology.links[0].bandwidth_mbit == 100
    assert topology.links[1].ends == ("d2", "s1")
    assert topology.group.if_id == 7
    assert topology.as_json()["nodes"][1]["black"] == "2001:db8::1/64"


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "words"),
    [
        ('kind = "switch"', 'kind = "swich"', 10, "node s1: kind", "none of device, switch"),
        ('nation = "alpha"\n', "", 12, "node d1: nation", "is missing"),
        ('nation = "alpha"', "nation = 5", 15, "node d1: nation", "non-empty string"),
        ("2001:db8::1/64", "2001:db8::1", 16, "node d1: black", "prefix length"),
        ("2001:db8::1/64", "10.0.0.1/8", 16, "node d1: black", "IPv6"),
        ("2001:db8::1/64", "ff0e::1/64", 16, "node d1: black", "unicast"),
        ("2001:db8::2/64", "2001:db8::1/64", 23, "node d2: black", "belongs to node d1"),
        ("fd00:2::1/64", "2001:db8::1/64", 24, "node d2: red", "belongs to node d1 (black)"),
        ('name = "d2"', 'name = "d1"', 20, "node d1: name", "node 2 already"),
        ('name = "d2"', 'name = "D2"', 20, "node 3: name", "lower-case"),
        ('name = "d2"', 'name = "device9"', 20, "node device9: name", "longer than"),
        ('["d1", "s1"]', '["d9", "s1"]', 27, "link 1: ends", "no node 'd9'"),
        ('["d1", "s1"]', '["d1", "d2"]', 27, "link 1: ends", "neither black nor red"),
        ('["d1", "s1"]', '["d1"]', 27, "link 1: ends", "two node names"),
        ('["d1", "s1"]', '["d2", "s1"]', 31, "link 2: ends", "link 1 joins d2 and s1"),
        ("bandwidth_mbit = 100", 'bandwidth_mbit = "fast"', 28, "link 1: bandwidth_mbit", "number"),
        ("bandwidth_mbit = 100", "bandwidth_mbit = 2000", 28, "link 1: bandwidth_mbit", "1000"),
        ("bandwidth_mbit = 100", "speed = 100", 28, "link 1: speed", "unknown"),
        ("if_id = 7", "if_id = 0", 6, "group: if_id", "from 1 to"),
        ("if_id = 7", "if_id = true", 6, "group: if_id", "whole number"),
        ("if_id = 7", 'black_group = "2001:db8::5"', 6, "group: black_group", "multicast"),
        ('title = "Two devices"\n', "", 1, "topology: title", "is missing"),
        ("[group]", "[grupp]", 5, "grupp", "unknown"),
    ],
)
def test_a_mistake_names_line_and_field(
    tmp_path: Path, old: str, new: str, line: int, field: str, words: str
) -> None:
    assert old in GOOD
    with pytest.raises(SpecError) as caught:
        load(tmp_path, GOOD.replace(old, new, 1))
    error = caught.value
    assert (error.line, error.field) == (line, field)
    assert words in str(error)
    assert str(error).startswith(f"{tmp_path / 'topology.toml'}:{line}: ")
    assert "\n" not in str(error)


def test_a_device_without_a_cable_is_refused(tmp_path: Path) -> None:
    cut = GOOD[: GOOD.rindex("[[link]]")]
    with pytest.raises(SpecError, match=r"topology.toml:19: node d2: has no"):
        load(tmp_path, cut)


def test_what_is_not_toml_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load(tmp_path, GOOD.replace('name = "s1"', 'name = "s1'))
    assert caught.value.line == 9


def test_unreadable_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="No such file"):
        load_topology(tmp_path / "absent.toml")
    (tmp_path / "latin.toml").write_bytes(b"# \xff")
    with pytest.raises(SpecError, match="UTF-8"):
        load_topology(tmp_path / "latin.toml")


def test_lines_of_nested_arrays_and_tables() -> None:
    document = TomlDocument(
        Path("x"),
        'a = 1\n[[t]]\nb = [\n  "k = 3",\n]\nc = 2\n[[t]]\n[t.u]\nd = 4\n"e f" = 5\n',
    )
    assert document.line(("a",)) == 1
    assert document.line(("t", 0, "b")) == 3
    assert document.line(("t", 0, "c")) == 6
    assert document.line(("t", 1, "u", "d")) == 9
    assert document.line(("t", 1, "u", "e f")) == 10
    assert document.line(("t", 1, "nothing")) == 7


def test_the_measurement_topology_is_the_family_of_ten() -> None:
    found, family = topologies.find("measurement"), star(10)
    assert (found.nodes, found.links, found.group) == (family.nodes, family.links, family.group)
    assert len({node.nation for node in found.devices}) == 10
    assert all(link.bandwidth_mbit == 100 for link in found.links)


def test_topologies_are_found_by_name_family_and_path(tmp_path: Path) -> None:
    assert "measurement" in topologies.names()
    assert len(topologies.find("star(12)").devices) == 12
    assert len(topologies.find("star-3").devices) == 3
    path = tmp_path / "my.toml"
    path.write_text(GOOD)
    assert topologies.find(str(path)).name == "small"
    with pytest.raises(TestbedError, match=r"known: .*measurement, partitions, star"):
        topologies.find("mesurement")


@pytest.mark.parametrize("devices", [0, 300])
def test_a_family_has_limits(devices: int) -> None:
    with pytest.raises(TestbedError, match="are possible"):
        star(devices)


def test_a_part_of_a_topology() -> None:
    part = star(10).limited_to(3)
    assert [node.name for node in part.devices] == ["d1", "d2", "d3"]
    assert len(part.links) == 3
    assert part.node("s1").kind is NodeKind.SWITCH
    with pytest.raises(TestbedError, match="star\\(11\\)"):
        star(10).limited_to(11)
    with pytest.raises(TestbedError, match="no node 'd4'"):
        part.node("d4")
