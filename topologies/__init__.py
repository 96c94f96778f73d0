"""The networks of the testbed by name: folders with a ``topology.toml``, and computed families."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from testbed.spec import Topology, TopologyError
from testbed.specreader import load_topology

FOLDER: Final = Path(__file__).resolve().parent
_FAMILY: Final = re.compile(r"^([a-z]+)(?:\((\d{1,6}(?:,\s*\d{1,6})*)\)|((?:-\d{1,6})+))$")


def names() -> list[str]:
    """Return the topologies that have a folder."""
    return sorted(path.parent.name for path in FOLDER.glob("*/topology.toml"))


def find(name: str) -> Topology:
    """Return a topology: a folder's name, ``star(12)`` or ``star-12``, or a path to a file.

    Raises:
        TopologyError: unknown name, or a mistake in the file (with its line and field).
    """
    from topologies.families import FAMILIES, make, usage

    if (family := _FAMILY.match(name)) and family.group(1) in FAMILIES:
        numbers = re.findall(r"\d+", family.group(2) or family.group(3))
        return make(family.group(1), [int(number) for number in numbers])
    if name in names():
        return load_topology(FOLDER / name / "topology.toml")
    if name.endswith(".toml"):
        return load_topology(Path(name))
    families = ", ".join(usage(family) for family in FAMILIES)
    raise TopologyError(
        f"unknown topology {name!r}; known: {', '.join(names())}, {families}, or the path of a "
        "topology.toml"
    )
