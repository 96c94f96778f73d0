"""Topologies as validated data: what ``topologies/<name>/topology.toml`` may say and means.

A topology is nodes and links. An IPsec device has a black address (towards the other nations) and
a red LAN; a switch is a Linux bridge. Routers, LAN routers and clients are reserved words for the
coalition network. Every mistake becomes a `SpecError` that names file, line and field.

The families in ``topologies/families.py`` build the same data without a file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import IPv6Address, IPv6Interface
from pathlib import Path
from typing import Any, Final

from testbed.errors import TestbedError
from testbed.tomllines import KeyPath, TomlDocument

INTERFACE_NAME_MAX: Final = 15
"""Octets in an interface's name (IFNAMSIZ less the terminating zero, linux/if.h)."""

NODE_NAME_MAX: Final = 6
"""So that ``<switch>-<device>`` fits `INTERFACE_NAME_MAX`."""

BANDWIDTH_MBIT_MAX: Final = 1000
"""Mininet ignores anything larger with no more than a log line (mininet/link.py bwParamMax)."""

NODES_MAX: Final = 300
"""Refused beyond: a node costs a shell, a namespace and about 25 ms on a quiet machine."""

BLACK_GROUP: Final = IPv6Address("ff0e::1")
"""Default destination of the ESP packets."""

_NODE_NAME: Final = re.compile(r"^[a-z][a-z0-9]*$")
_TOPOLOGY_NAME: Final = re.compile(r"^[a-z][a-z0-9-]*$")
_NATION: Final = re.compile(r"^[a-z][a-z0-9-]*$")


class TopologyError(TestbedError):
    """There is no such topology, or it cannot be made as asked."""


class NodeKind(StrEnum):
    """What a node is."""

    DEVICE = "device"
    SWITCH = "switch"
    ROUTER = "router"
    LAN_ROUTER = "lan_router"
    CLIENT = "client"


RESERVED_KINDS: Final = frozenset({NodeKind.ROUTER, NodeKind.LAN_ROUTER, NodeKind.CLIENT})
"""Kinds that have a name but no implementation yet."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a topology.

    Attributes:
        name: short, unique; also names log directories.
        kind: what it is.
        nation: whose device it is (its certificate authority); devices only.
        black: address and prefix on the black side; devices only.
        red: address and prefix of the device in its red LAN; devices only.
        multicast_snooping: switches only. Off by default: a bridge with snooping and without a
            querier floods anyway, and without it a lost membership report cannot matter.
    """

    name: str
    kind: NodeKind
    nation: str | None = None
    black: IPv6Interface | None = None
    red: IPv6Interface | None = None
    multicast_snooping: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """A cable between a device's black interface and a switch.

    Attributes:
        ends: the two nodes' names.
        bandwidth_mbit: limit of each direction, None for none.
    """

    ends: tuple[str, str]
    bandwidth_mbit: float | None = None


@dataclass(frozen=True, slots=True)
class SecureGroup:
    """The multicast group that the devices protect, as far as the network must know of it.

    Attributes:
        black_group: destination of the ESP packets.
        if_id: ties xfrm interface, SAs and policies together.
        mtu: of the xfrm interface; leaves room for ESP and the outer header in 1500 octets.
    """

    black_group: IPv6Address = BLACK_GROUP
    if_id: int = 66
    mtu: int = 1380


@dataclass(frozen=True, slots=True)
class Topology:
    """A network that can be built; construct it by `load_topology` or a family.

    Attributes:
        name: of the folder or family.
        title: one line for people.
        nodes: in the order of the file.
        links: in the order of the file.
        group: the secure group.
    """

    name: str
    title: str
    nodes: tuple[Node, ...]
    links: tuple[Link, ...]
    group: SecureGroup = field(default_factory=SecureGroup)

    @property
    def devices(self) -> tuple[Node, ...]:
        """Return the IPsec devices in order."""
        return tuple(node for node in self.nodes if node.kind is NodeKind.DEVICE)

    @property
    def switches(self) -> tuple[Node, ...]:
        """Return the switches in order."""
        return tuple(node for node in self.nodes if node.kind is NodeKind.SWITCH)

    def node(self, name: str) -> Node:
        """Return the node of that name.

        Raises:
            TopologyError: there is none.
        """
        for node in self.nodes:
            if node.name == name:
                return node
        known = ", ".join(node.name for node in self.nodes)
        raise TopologyError(f"topology {self.name} has no node {name!r}; it has: {known}")

    def limited_to(self, devices: int) -> Topology:
        """Return the topology with only its first devices, and the links that remain.

        Raises:
            TopologyError: it has fewer.
        """
        have = len(self.devices)
        if not 1 <= devices <= have:
            raise TopologyError(
                f"topology {self.name} has {have} devices, {devices} are asked for; "
                f"'star({devices})' makes a network of any size"
            )
        gone = {node.name for node in self.devices[devices:]}
        return replace(
            self,
            nodes=tuple(node for node in self.nodes if node.name not in gone),
            links=tuple(link for link in self.links if not gone.intersection(link.ends)),
        )

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values for a manifest."""
        return {
            "name": self.name,
            "title": self.title,
            "group": {
                "black_group": str(self.group.black_group),
                "if_id": self.group.if_id,
                "mtu": self.group.mtu,
            },
            "nodes": [
                {
                    "name": node.name,
                    "kind": node.kind.value,
                    "nation": node.nation,
                    "black": str(node.black) if node.black else None,
                    "red": str(node.red) if node.red else None,
                }
                for node in self.nodes
            ],
            "links": [
                {"ends": list(link.ends), "bandwidth_mbit": link.bandwidth_mbit}
                for link in self.links
            ],
        }


def load_topology(path: Path) -> Topology:
    """Read and check a ``topology.toml``.

    Raises:
        SpecError: a mistake, with file, line and field.
    """
    return _Reader(TomlDocument.read(path)).topology()


class _Reader:
    """Checks one document; every complaint goes through `TomlDocument.error`."""

    def __init__(self, document: TomlDocument) -> None:
        self._document = document

    def topology(self) -> Topology:
        values = self._document.values
        self._only(values, (), "", {"topology", "group", "node", "link"})
        head = self._table(values, "topology")
        self._only(head, ("topology",), "topology", {"name", "title"})
        name = self._text(head, ("topology", "name"), "topology: name", _TOPOLOGY_NAME)
        title = self._text(head, ("topology", "title"), "topology: title", None)
        nodes = tuple(self._node(index, raw) for index, raw in enumerate(self._array("node")))
        if not nodes:
            raise self._document.error((), "node", "at least one [[node]] is needed")
        if len(nodes) > NODES_MAX:
            raise self._document.error(
                (), "node", f"{len(nodes)} nodes; more than {NODES_MAX} are refused"
            )
        self._unique(nodes)
        links = tuple(
            self._link(index, raw, {node.name: node for node in nodes})
            for index, raw in enumerate(self._array("link"))
        )
        self._connected(nodes, links)
        return Topology(name, title, nodes, links, self._group())

    def _group(self) -> SecureGroup:
        raw = self._document.values.get("group", {})
        default = SecureGroup()
        if not isinstance(raw, Mapping):
            raise self._document.error(("group",), "group", "must be a table: [group]")
        self._only(raw, ("group",), "group", {"black_group", "if_id", "mtu"})
        group = default.black_group
        if "black_group" in raw:
            text = self._text(raw, ("group", "black_group"), "group: black_group", None)
            try:
                group = IPv6Address(text)
            except ValueError:
                group = IPv6Address("::")
            if not group.is_multicast:
                raise self._document.error(
                    ("group", "black_group"),
                    "group: black_group",
                    f"{text!r} is not an IPv6 multicast address such as ff0e::1",
                )
        return SecureGroup(
            group,
            self._integer(raw, ("group", "if_id"), "group: if_id", default.if_id, (1, 2**32 - 1)),
            self._integer(raw, ("group", "mtu"), "group: mtu", default.mtu, (1280, 65535)),
        )

    def _node(self, index: int, raw: Any) -> Node:
        at: KeyPath = ("node", index)
        if not isinstance(raw, Mapping):
            raise self._document.error(at, f"node {index + 1}", "must be a table: [[node]]")
        name = self._text(raw, (*at, "name"), f"node {index + 1}: name", _NODE_NAME)
        if len(name) > NODE_NAME_MAX:
            raise self._document.error(
                (*at, "name"),
                f"node {name}: name",
                f"longer than {NODE_NAME_MAX} characters, which interface names cannot hold",
            )
        label = f"node {name}"
        kind_text = self._text(raw, (*at, "kind"), f"{label}: kind", None)
        try:
            kind = NodeKind(kind_text)
        except ValueError:
            known = ", ".join(kind.value for kind in NodeKind)
            raise self._document.error(
                (*at, "kind"), f"{label}: kind", f"{kind_text!r} is none of {known}"
            ) from None
        if kind in RESERVED_KINDS:
            raise self._document.error(
                (*at, "kind"), f"{label}: kind", f"{kind_text!r} is reserved and not built yet"
            )
        if kind is NodeKind.SWITCH:
            self._only(raw, at, label, {"name", "kind", "multicast_snooping"})
            snooping = raw.get("multicast_snooping", False)
            if not isinstance(snooping, bool):
                raise self._document.error(
                    (*at, "multicast_snooping"),
                    f"{label}: multicast_snooping",
                    f"must be true or false, is {snooping!r}",
                )
            return Node(name, kind, multicast_snooping=snooping)
        self._only(raw, at, label, {"name", "kind", "nation", "black", "red"})
        nation = self._text(raw, (*at, "nation"), f"{label}: nation", _NATION)
        black = self._interface(raw, (*at, "black"), f"{label}: black")
        red = self._interface(raw, (*at, "red"), f"{label}: red")
        return Node(name, kind, nation, black, red)

    def _link(self, index: int, raw: Any, nodes: Mapping[str, Node]) -> Link:
        at: KeyPath = ("link", index)
        label = f"link {index + 1}"
        if not isinstance(raw, Mapping):
            raise self._document.error(at, label, "must be a table: [[link]]")
        self._only(raw, at, label, {"ends", "bandwidth_mbit"})
        ends = self._required(raw, (*at, "ends"), f"{label}: ends")
        if not (
            isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, str) for end in ends)
        ):
            raise self._document.error(
                (*at, "ends"), f"{label}: ends", f"must be two node names, is {ends!r}"
            )
        for end in ends:
            if end not in nodes:
                raise self._document.error(
                    (*at, "ends"), f"{label}: ends", f"there is no node {end!r}"
                )
        kinds = sorted(nodes[end].kind.value for end in ends)
        if kinds != ["device", "switch"]:
            raise self._document.error(
                (*at, "ends"),
                f"{label}: ends",
                f"joins {kinds[0]} and {kinds[1]}; a link joins a device and a switch",
            )
        bandwidth = raw.get("bandwidth_mbit")
        if bandwidth is not None and (
            isinstance(bandwidth, bool)
            or not isinstance(bandwidth, int | float)
            or not 0 < bandwidth <= BANDWIDTH_MBIT_MAX
        ):
            raise self._document.error(
                (*at, "bandwidth_mbit"),
                f"{label}: bandwidth_mbit",
                f"must be a number above 0 and at most {BANDWIDTH_MBIT_MAX}, is {bandwidth!r}",
            )
        device, switch = sorted(ends, key=lambda end: nodes[end].kind is NodeKind.SWITCH)
        return Link((device, switch), float(bandwidth) if bandwidth is not None else None)

    def _unique(self, nodes: tuple[Node, ...]) -> None:
        names: dict[str, int] = {}
        addresses: dict[IPv6Address, str] = {}
        for index, node in enumerate(nodes):
            if node.name in names:
                raise self._document.error(
                    ("node", index, "name"),
                    f"node {node.name}: name",
                    f"is the name of node {names[node.name] + 1} already",
                )
            names[node.name] = index
            for side, interface in (("black", node.black), ("red", node.red)):
                if interface is None:
                    continue
                owner = addresses.get(interface.ip)
                if owner is not None:
                    raise self._document.error(
                        ("node", index, side),
                        f"node {node.name}: {side}",
                        f"address {interface.ip} belongs to {owner} already",
                    )
                addresses[interface.ip] = f"node {node.name} ({side})"

    def _connected(self, nodes: tuple[Node, ...], links: tuple[Link, ...]) -> None:
        used: dict[str, int] = {}
        for index, link in enumerate(links):
            device = link.ends[0]
            if device in used:
                raise self._document.error(
                    ("link", index, "ends"),
                    f"link {index + 1}: ends",
                    f"device {device} has its black cable in link {used[device] + 1} already",
                )
            used[device] = index
        for index, node in enumerate(nodes):
            if node.kind is NodeKind.DEVICE and node.name not in used:
                raise self._document.error(
                    ("node", index), f"node {node.name}", "has no [[link]] to a switch"
                )

    # --- single values -------------------------------------------------------------------------

    def _array(self, name: str) -> list[Any]:
        raw = self._document.values.get(name, [])
        if not isinstance(raw, list):
            raise self._document.error((name,), name, f"must be an array of tables: [[{name}]]")
        return raw

    def _table(self, values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        raw = self._required(values, (name,), name)
        if not isinstance(raw, Mapping):
            raise self._document.error((name,), name, f"must be a table: [{name}]")
        return raw

    def _only(self, raw: Mapping[str, Any], at: KeyPath, label: str, known: set[str]) -> None:
        for key in raw:
            if key not in known:
                field_name = f"{label}: {key}" if label else key
                allowed = ", ".join(sorted(known))
                raise self._document.error(
                    (*at, key), field_name, f"unknown; known here: {allowed}"
                )

    def _required(self, raw: Mapping[str, Any], at: KeyPath, label: str) -> Any:
        key = str(at[-1])
        if key not in raw:
            raise self._document.error(at[:-1], label, "is missing")
        return raw[key]

    def _text(
        self, raw: Mapping[str, Any], at: KeyPath, label: str, shape: re.Pattern[str] | None
    ) -> str:
        value = self._required(raw, at, label)
        if not isinstance(value, str) or not value:
            raise self._document.error(at, label, f"must be a non-empty string, is {value!r}")
        if shape is not None and not shape.match(value):
            raise self._document.error(
                at, label, f"{value!r} must be lower-case letters and digits, a letter first"
            )
        return value

    def _integer(
        self,
        raw: Mapping[str, Any],
        at: KeyPath,
        label: str,
        default: int,
        limits: tuple[int, int],
    ) -> int:
        low, high = limits
        value = raw.get(str(at[-1]), default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._document.error(
                at, label, f"must be a whole number from {low} to {high}, is {value!r}"
            )
        return value

    def _interface(self, raw: Mapping[str, Any], at: KeyPath, label: str) -> IPv6Interface:
        text = self._text(raw, at, label, None)
        try:
            interface = IPv6Interface(text)
        except ValueError:
            interface = None
        if interface is None or "/" not in text:
            raise self._document.error(
                at, label, f"{text!r} is not an IPv6 address with prefix length, e.g. fd00::1/64"
            )
        address = interface.ip
        if address.is_multicast or address.is_unspecified or address.is_loopback:
            raise self._document.error(at, label, f"{text!r} is not a unicast address")
        return interface
