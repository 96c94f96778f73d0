"""Reads ``topologies/<name>/topology.toml``: every mistake is a `SpecError` with line and field.

This file knows how values are written; whether they fit together is `testbed.speccheck`'s business.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path
from typing import Any, Final, TypeVar

from testbed.spec import (
    BANDWIDTH_MBIT_MAX,
    DELAY_MS_MAX,
    MTU_MAX,
    MTU_MIN,
    Address,
    Link,
    Node,
    NodeKind,
    RendezvousPoint,
    SecureGroup,
    Side,
    Topology,
)
from testbed.speccheck import first_problem
from testbed.tomllines import KeyPath, TomlDocument

A = TypeVar("A", IPv4Interface, IPv6Interface)

_NODE_NAME: Final = re.compile(r"^[a-z][a-z0-9]*$")
_TOPOLOGY_NAME: Final = re.compile(r"^[a-z][a-z0-9-]*$")
_NATION: Final = re.compile(r"^[a-z][a-z0-9-]*$")

_FIELDS: Final = {
    NodeKind.DEVICE: {"nation", "black", "red", "red4"},
    NodeKind.GATEWAY: {"nation", "towards"},
    NodeKind.SWITCH: {"side", "multicast_snooping"},
    NodeKind.ROUTER: {"loopback", "rendezvous_point", "towards"},
    NodeKind.LAN_ROUTER: {"towards"},
    NodeKind.CLIENT: {"red", "red4"},
}
"""What may be said of a node beside its name and kind."""


def load_topology(path: Path) -> Topology:
    """Read and check a ``topology.toml``.

    Raises:
        SpecError: a mistake, with file, line and field.
    """
    return read_topology(TomlDocument.read(path))


def read_topology(document: TomlDocument) -> Topology:
    """Read and check a parsed file.

    Raises:
        SpecError: a mistake, with file, line and field.
    """
    topology = _Reader(document).topology()
    if (problem := first_problem(topology)) is not None:
        raise document.error(problem.at, problem.field, problem.text)
    return topology


class _Reader:
    """Reads one document; every complaint goes through `TomlDocument.error`."""

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
        switches = {node.name for node in nodes if node.kind is NodeKind.SWITCH}
        links = tuple(
            self._link(index, raw, switches) for index, raw in enumerate(self._array("link"))
        )
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
            self._integer(raw, ("group", "mtu"), "group: mtu", default.mtu, (MTU_MIN, MTU_MAX)),
        )

    # --- nodes ---------------------------------------------------------------------------------

    def _node(self, index: int, raw: Any) -> Node:
        at: KeyPath = ("node", index)
        if not isinstance(raw, Mapping):
            raise self._document.error(at, f"node {index + 1}", "must be a table: [[node]]")
        name = self._text(raw, (*at, "name"), f"node {index + 1}: name", _NODE_NAME)
        label = f"node {name}"
        kind_text = self._text(raw, (*at, "kind"), f"{label}: kind", None)
        try:
            kind = NodeKind(kind_text)
        except ValueError:
            known = ", ".join(kind.value for kind in NodeKind)
            raise self._document.error(
                (*at, "kind"), f"{label}: kind", f"{kind_text!r} is none of {known}"
            ) from None
        self._only(raw, at, label, {"name", "kind"} | _FIELDS[kind])
        match kind:
            case NodeKind.DEVICE:
                return Node(
                    name,
                    kind,
                    nation=self._text(raw, (*at, "nation"), f"{label}: nation", _NATION),
                    black=self._address(raw, (*at, "black"), f"{label}: black", IPv6Interface),
                    red=self._address(raw, (*at, "red"), f"{label}: red", IPv6Interface),
                    red4=self._optional(raw, (*at, "red4"), f"{label}: red4", IPv4Interface),
                )
            case NodeKind.CLIENT:
                return Node(
                    name,
                    kind,
                    red=self._address(raw, (*at, "red"), f"{label}: red", IPv6Interface),
                    red4=self._optional(raw, (*at, "red4"), f"{label}: red4", IPv4Interface),
                )
            case NodeKind.SWITCH:
                return Node(
                    name,
                    kind,
                    side=self._side(raw, (*at, "side"), f"{label}: side"),
                    multicast_snooping=self._boolean(raw, (*at, "multicast_snooping"), label),
                )
            case NodeKind.ROUTER:
                return Node(
                    name,
                    kind,
                    loopback=self._optional(
                        raw, (*at, "loopback"), f"{label}: loopback", IPv6Interface
                    ),
                    rendezvous_point=self._rendezvous_point(raw, at, label),
                    towards=self._towards(raw, at, label),
                )
            case NodeKind.GATEWAY:
                return Node(
                    name,
                    kind,
                    nation=self._text(raw, (*at, "nation"), f"{label}: nation", _NATION),
                    towards=self._towards(raw, at, label),
                )
            case NodeKind.LAN_ROUTER:
                return Node(name, kind, towards=self._towards(raw, at, label))

    def _towards(
        self, raw: Mapping[str, Any], at: KeyPath, label: str
    ) -> dict[str, tuple[Address, ...]]:
        table = raw.get("towards", {})
        if not isinstance(table, Mapping):
            raise self._document.error(
                (*at, "towards"),
                f"{label}: towards",
                'must name the neighbour: towards.s1 = "2001:db8::1/64"',
            )
        found: dict[str, tuple[Address, ...]] = {}
        for neighbour, value in table.items():
            path: KeyPath = (*at, "towards", neighbour)
            field = f"{label}: towards.{neighbour}"
            texts = value if isinstance(value, list) else [value]
            if not all(isinstance(text, str) for text in texts):
                raise self._document.error(
                    path, field, f"must be an address or a list of addresses, is {value!r}"
                )
            found[neighbour] = tuple(
                self._unicast(text, path, field, IPv4Interface)
                if "." in text and ":" not in text
                else self._unicast(text, path, field, IPv6Interface)
                for text in texts
            )
        return found

    # --- links ---------------------------------------------------------------------------------

    def _link(self, index: int, raw: Any, switches: set[str]) -> Link:
        at: KeyPath = ("link", index)
        label = f"link {index + 1}"
        if not isinstance(raw, Mapping):
            raise self._document.error(at, label, "must be a table: [[link]]")
        known = {"ends", "bandwidth_mbit", "delay_ms", "jitter_ms", "loss_percent", "mtu"}
        self._only(raw, at, label, known)
        ends = self._required(raw, (*at, "ends"), f"{label}: ends")
        if not (
            isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, str) for end in ends)
        ):
            raise self._document.error(
                (*at, "ends"), f"{label}: ends", f"must be two node names, is {ends!r}"
            )
        one, other = ends if ends[0] not in switches else reversed(ends)
        bandwidth = self._number(raw, (*at, "bandwidth_mbit"), label, BANDWIDTH_MBIT_MAX)
        if bandwidth == 0:
            raise self._document.error(
                (*at, "bandwidth_mbit"), f"{label}: bandwidth_mbit", "must be above 0"
            )
        return Link(
            (one, other),
            bandwidth,
            self._number(raw, (*at, "delay_ms"), label, DELAY_MS_MAX) or 0.0,
            self._number(raw, (*at, "jitter_ms"), label, DELAY_MS_MAX) or 0.0,
            self._number(raw, (*at, "loss_percent"), label, 100) or 0.0,
            self._integer(raw, (*at, "mtu"), f"{label}: mtu", 0, (MTU_MIN, MTU_MAX))
            if "mtu" in raw
            else None,
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

    def _number(
        self, raw: Mapping[str, Any], at: KeyPath, label: str, highest: int
    ) -> float | None:
        """Return a number from 0 to the highest, None if there is none."""
        key = str(at[-1])
        value = raw.get(key)
        if value is None:
            return None
        wrong = isinstance(value, bool) or not isinstance(value, int | float)
        if wrong or not 0 <= value <= highest:
            raise self._document.error(
                at, f"{label}: {key}", f"must be a number from 0 to {highest}, is {value!r}"
            )
        return float(value)

    def _boolean(self, raw: Mapping[str, Any], at: KeyPath, label: str) -> bool:
        key = str(at[-1])
        value = raw.get(key, False)
        if not isinstance(value, bool):
            raise self._document.error(
                at, f"{label}: {key}", f"must be true or false, is {value!r}"
            )
        return value

    def _rendezvous_point(
        self, raw: Mapping[str, Any], at: KeyPath, label: str
    ) -> RendezvousPoint | None:
        key = "rendezvous_point"
        match raw.get(key, False):
            case True:
                return RendezvousPoint.PRIMARY
            case False:
                return None
            case RendezvousPoint.BACKUP:
                return RendezvousPoint.BACKUP
            case other:
                raise self._document.error(
                    (*at, key), f"{label}: {key}", f'must be true, false or "backup", is {other!r}'
                )

    def _side(self, raw: Mapping[str, Any], at: KeyPath, label: str) -> Side:
        if "side" not in raw:
            return Side.BLACK
        text = self._text(raw, at, label, None)
        if text not in set(Side):
            raise self._document.error(at, label, f"must be black or red, is {text!r}")
        return Side(text)

    def _optional(
        self, raw: Mapping[str, Any], at: KeyPath, label: str, version: type[A]
    ) -> A | None:
        return self._address(raw, at, label, version) if str(at[-1]) in raw else None

    def _address(self, raw: Mapping[str, Any], at: KeyPath, label: str, version: type[A]) -> A:
        return self._unicast(self._text(raw, at, label, None), at, label, version)

    def _unicast(self, text: str, at: KeyPath, label: str, version: type[A]) -> A:
        try:
            interface = version(text)
        except ValueError:
            interface = None
        if interface is None or "/" not in text:
            named = (
                "an IPv6 address with prefix length, e.g. fd00::1/64"
                if version is IPv6Interface
                else "an IPv4 address with prefix length, e.g. 10.1.1.1/24"
            )
            raise self._document.error(at, label, f"{text!r} is not {named}")
        address = interface.ip
        if address.is_multicast or address.is_unspecified or address.is_loopback:
            raise self._document.error(at, label, f"{text!r} is not a unicast address")
        return interface
