"""The networks of the testbed by name: folders with a ``topology.toml``, and computed families."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from testbed.spec import Topology, TopologyError, load_topology

FOLDER: Final = Path(__file__).resolve().parent
_FAMILY: Final = re.compile(r"^star\((\d{1,6})\)$|^star-(\d{1,6})$")


def names() -> list[str]:
    """Return the topologies that have a folder."""
    return sorted(path.parent.name for path in FOLDER.glob("*/topology.toml"))


def find(name: str) -> Topology:
    """Return a topology: a folder's name, ``star(12)`` or ``star-12``, or a path to a file.

    Raises:
        TopologyError: unknown name, or a mistake in the file (with its line and field).
    """
    if family := _FAMILY.match(name):
        from topologies.families import star

        return star(int(family.group(1) or family.group(2)))
    if name in names():
        return load_topology(FOLDER / name / "topology.toml")
    if name.endswith(".toml"):
        return load_topology(Path(name))
    raise TopologyError(
        f"unknown topology {name!r}; known: {', '.join(names())}, star(N), or the path of a "
        "topology.toml"
    )
