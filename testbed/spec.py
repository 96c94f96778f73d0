"""Topologies as validated data. SKELETON."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Interface
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a topology."""

    name: str
    kind: str
    nation: str | None = None
    black: IPv6Interface | None = None
    red: IPv6Interface | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """A cable between two nodes."""

    ends: tuple[str, str]
    bandwidth_mbit: float | None = None


@dataclass(frozen=True, slots=True)
class Topology:
    """Nodes and links; ``devices`` are the nodes of kind ``device`` in order."""

    name: str
    nodes: tuple[Node, ...]
    links: tuple[Link, ...]

    @property
    def devices(self) -> tuple[Node, ...]:
        """Return the IPsec devices in order."""
        return tuple(node for node in self.nodes if node.kind == "device")

    def limited_to(self, devices: int) -> Topology:
        """Return the topology with only its first devices and the links that remain."""
        raise NotImplementedError


def load_topology(path: Path) -> Topology:
    """Read and check ``topology.toml``; errors name file, line and field."""
    raise NotImplementedError
