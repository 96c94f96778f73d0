"""Topology files with random damage: a network that keeps the rules, or one line with the cause."""

from __future__ import annotations

import random
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

import topologies
from testbed.layout import lay_out
from testbed.listing import listing
from testbed.routing.plan import router_plans
from testbed.spec import Topology
from testbed.speccheck import first_problem
from testbed.specreader import read_topology
from testbed.tomllines import SpecError, TomlDocument
from testbed.wiring import Wiring

GOOD = {
    name: (topologies.FOLDER / name / "topology.toml").read_text().splitlines()
    for name in ("coalition", "coalition-wan")
}
PIECES = [
    *("r0", "r1", "d1", "d2", "l1", "w1", "c1a", "s1", "x9", "", '"', "[", "]", "=", ".", "#"),
    *("router", "device", "switch", "client", "lan_router", "red", "black", "true", "[[node]]"),
    *("::1", "fd00:1::1/64", "fd00::/8", "10.1.1.1/24", "/0", "/128", "ff0e::1/64", "-1", "1e9"),
    *("[[link]]", "towards.w1 = 5", "towards = 1", "ends = []", "nan", "inf", "red4", "mtu = 1300"),
]


def damaged(name: str, seed: int, wounds: int) -> str:
    chance = random.Random(seed)
    lines = list(GOOD[name])
    for _ in range(wounds):
        at = chance.randrange(len(lines))
        match chance.randrange(4):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, chance.choice(lines))
            case 2:
                lines[at] = lines[at].replace(
                    chance.choice(lines[at].split() or [""]), chance.choice(PIECES), 1
                )
            case _:
                other = chance.randrange(len(lines))
                lines[at], lines[other] = lines[other], lines[at]
    return "\n".join(lines)


def derive_everything(topology: Topology) -> None:
    wiring = Wiring(topology)
    router_plans(topology)
    lay_out(wiring)
    assert listing(topology)
    assert topology.as_json()
    for count in range(1, len(topology.devices) + 1):
        assert first_problem(topology.limited_to(count)) is None


@given(st.sampled_from(sorted(GOOD)), st.integers(0, 2**32), st.integers(1, 4))
def test_a_damaged_file_is_a_network_or_one_line(name: str, seed: int, wounds: int) -> None:
    text = damaged(name, seed, wounds)
    complaint = None
    try:
        topology = read_topology(TomlDocument(Path("damaged.toml"), text))
    except SpecError as error:
        complaint = error
    else:
        derive_everything(topology)
    if complaint is not None:
        assert "\n" not in str(complaint)
        assert 0 <= complaint.line <= text.count("\n") + 1
