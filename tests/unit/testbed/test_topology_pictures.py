"""Topologies as text and as drawings."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import combinations
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

import topologies
from testbed import cli
from testbed.labels import Box, place_labels
from testbed.layout import lay_out
from testbed.listing import limits
from testbed.spec import Node, NodeKind, Topology
from testbed.wiring import Wiring

NAMES = [
    "measurement",
    "coalition",
    "coalition-wan",
    "line(5)",
    "coalition(5,2)",
    "star(1)",
    "partitions",
]


@pytest.mark.parametrize("name", NAMES)
def test_black_is_above_and_red_below_the_devices(name: str) -> None:
    wiring = Wiring(topologies.find(name))
    layout = lay_out(wiring)
    assert set(layout.places) == set(wiring.ports)
    for node, (_, y) in layout.places.items():
        kind = wiring.nodes[node].kind
        assert (y > 0) == (kind in (NodeKind.ROUTER, NodeKind.GATEWAY)), node
        assert (y == 0) == (kind is NodeKind.DEVICE), node
    for bar in layout.bars.values():
        assert (bar.y > 0) == (bar.side == "black")


@pytest.mark.parametrize("name", [*NAMES, "coalition(50,1,1)"])
def test_no_two_nodes_stand_in_one_place_and_every_link_is_drawn_once(name: str) -> None:
    topology = topologies.find(name)
    layout = lay_out(Wiring(topology))
    for one, other in combinations(layout.places.items(), 2):
        assert math.dist(one[1], other[1]) > 0.55, (one, other)
    drawn = Counter(cable.link.name for cable in layout.cables)
    assert drawn == Counter(link.name for link in topology.links)


def test_a_link_bows_around_the_router_between_its_ends() -> None:
    layout = lay_out(Wiring(topologies.find("coalition-wan")))
    bows = {cable.link.name: cable.bend for cable in layout.cables if cable.bend}
    assert list(bows) == ["r1-r3"]
    highest = max(y for _, y in layout.places.values())
    assert layout.places["r1"][1] + bows["r1-r3"] > highest


@pytest.mark.parametrize("name", NAMES)
def test_no_label_stands_on_another_or_on_a_node(name: str) -> None:
    layout = lay_out(Wiring(topologies.find(name)))
    texts = {
        cable.link.name: f"{limits(cable.link, None)}, {cable.prefix}".replace(", ", "\n")
        for cable in layout.cables
        if cable.prefix
    }
    boxes = place_labels(layout, texts)
    assert set(boxes) == set(texts)
    for (one, box), (other, with_box) in combinations(boxes.items(), 2):
        assert box.common(with_box) == 0, (one, other)
    for node, (x, y) in layout.places.items():
        if y > 0:
            disc = Box(x - 0.26, y - 0.26, x + 0.26, y + 0.26)
            assert not [link for link, box in boxes.items() if box.common(disc)], node


def test_a_network_without_devices_can_be_laid_out() -> None:
    topology = Topology("bare", "", (Node("s1", NodeKind.SWITCH),), ())
    assert lay_out(Wiring(topology)).box == (0.0, 0.0, 0.0, 0.0)


def shares(path: Path) -> tuple[float, float]:
    """Return how much of a picture is dark ink and how much is red ink."""
    pixels = matplotlib.image.imread(path)[:, :, :3]
    red, green = pixels[:, :, 0], pixels[:, :, 1]
    return float(np.mean(red < 0.25)), float(np.mean((red > 0.6) & (green < 0.25)))


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main(["topology", *words])
    said = capsys.readouterr()
    return int(caught.value.code or 0), said.out, said.err


def test_a_drawing_has_both_colours(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "show", "coalition(3,2)", "--plot")[:2] == (0, "coalition-3-2.png\n")
    dark, red = shares(tmp_path / "coalition-3-2.png")
    assert dark > 0.01
    assert red > 0.01
    code, out, _ = run(capsys, "show", "star(2)", "--plot", "small.pdf")
    assert (code, out) == (0, "small.pdf\n")
    assert (tmp_path / "small.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("target", ["absent/picture.png", "picture.nonsense"])
def test_a_drawing_that_cannot_be_written_is_one_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "show", "star(2)", "--plot", target)
    assert (code, out) == (1, "")
    assert err.startswith(f"testbed: error: {target}: the drawing cannot be written: ")
    assert err.count("\n") == 1


def test_text_has_every_wire_with_its_ports_and_limits(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "show", "coalition-wan")
    assert code == 0
    lines = out.splitlines()
    at = lines.index("r1-r3 (black link, 10 Mbit/s, 40 ± 3 ms, 0.5 % lost)")
    assert lines[at + 1].split() == ["├─", "r1", "router", "eth1", "2001:db8:a:13::1/64"]
    at = lines.index("w1 (red switch)")
    assert lines[at + 2].split()[:6] == [
        "├─", "c1a", "client", "eth0", "fd00:1:0:1::11/64", "10.1.1.11/24",
    ]  # fmt: skip
    assert "rendezvous point r0, 2001:db8:f::1" in lines
    assert "red LANs that nobody else is on" not in lines


def test_text_of_a_star_has_its_red_lans(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "show", "star(2)")
    lines = out.splitlines()
    at = lines.index("red LANs that nobody else is on")
    assert lines[at + 2].split() == ["└─", "d2", "bravo", "red0", "fd00:2::1/64"]


def test_json_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "show", "coalition", "--json")
    assert json.loads(out) == topologies.find("coalition").as_json()


def test_families_are_listed_with_their_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "list")
    assert code == 0
    for words in ("star(devices): ", "line(routers): ", "coalition(nations[,devices[,clients]]): "):
        assert words in out
