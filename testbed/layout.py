"""Where the nodes of a topology stand in a drawing: black above, devices in the middle, red below.

A device's column is as wide as its red LAN. Routers stand above their devices; black routers that
have none stand above the others, and links that would run through a router bend around it.
Lengths are in units of about an inch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from testbed.spec import Link, NodeKind, Side
from testbed.wiring import BLACK, Port, Wire, Wiring

COLUMN_MIN: Final = 1.45
LEAF: Final = 0.68

_ROUTERS_Y: Final = 1.35
_BAR_ABOVE: Final = 0.75
_CORE_ABOVE: Final = 1.45
_MESH_ABOVE: Final = 2.9
"""Instead of _CORE_ABOVE where links cross between the rows: room for the label of each."""

_GATEWAY_ABOVE: Final = 0.85
_LEGS_APART: Final = 1.2
_RED_STEP: Final = 1.15
_BAR_BELOW: Final = 0.62
_BAR_MARGIN: Final = 0.3


@dataclass(frozen=True, slots=True)
class Bar:
    """A switch, drawn as the bar that its cables end on."""

    name: str
    side: Side
    left: float
    right: float
    y: float
    prefix: str


@dataclass(frozen=True, slots=True)
class Cable:
    """A link, drawn as a line; ``bend`` is the height of its bow above the straight line."""

    link: Link
    side: Side
    start: tuple[float, float]
    end: tuple[float, float]
    bend: float
    prefix: str


@dataclass(slots=True)
class Layout:
    """Where everything stands.

    Attributes:
        places: of each node that is no switch, its centre.
        bars: the switches.
        cables: the links.
    """

    places: dict[str, tuple[float, float]] = field(default_factory=dict)
    bars: dict[str, Bar] = field(default_factory=dict)
    cables: list[Cable] = field(default_factory=list)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Return left, right, bottom and top of all centres, bars and bows."""
        xs = [x for x, _ in self.places.values()] or [0.0]
        ys = [y for _, y in self.places.values()] or [0.0]
        for bar in self.bars.values():
            xs += [bar.left, bar.right]
            ys.append(bar.y)
        ys += [max(cable.start[1], cable.end[1]) + cable.bend for cable in self.cables]
        return min(xs), max(xs), min(ys), max(ys)


def lay_out(wiring: Wiring) -> Layout:
    """Return where the nodes of a topology stand."""
    layout = Layout()
    _place_devices(wiring, layout)
    _place_black(wiring, layout)
    _place_gateways(wiring, layout)
    for wire in wiring.wires:
        _draw_wire(wiring, layout, wire)
    return layout


def _place_devices(wiring: Wiring, layout: Layout) -> None:
    """Put the devices in a row in the order of their routers, each with its red LAN below."""
    order = {node.name: place for place, node in enumerate(wiring.topology.nodes)}

    def router(device: str) -> int:
        others = wiring.neighbours(wiring.black_port(device))
        return min((order[o.node] for o in others if wiring.kind(o) is NodeKind.ROUTER), default=-1)

    below: dict[str, list[str]] = {}
    for node in wiring.topology.nodes:
        if (gateway := wiring.gateway(node.name)) is not None:
            below.setdefault(gateway.node, []).append(node.name)
    edge = 0.0
    names = [device.name for device in wiring.topology.devices]
    for device in sorted(names, key=lambda name: (router(name), order[name])):
        width = max(COLUMN_MIN, _width(device, below) + LEAF / 2)
        _place_red(layout, device, below, (edge, width, 0.0))
        edge += width


def _width(node: str, below: dict[str, list[str]]) -> float:
    return max(LEAF, sum(_width(name, below) for name in below.get(node, ())))


def _place_red(
    layout: Layout, node: str, below: dict[str, list[str]], room: tuple[float, float, float]
) -> None:
    """Put a node and what is below it into a room: its left edge, width and height of the node."""
    left, width, y = room
    layout.places[node] = (left + width / 2, y)
    names = below.get(node, ())
    spare = (width - sum(_width(name, below) for name in names)) / 2
    left += spare
    for name in names:
        share = _width(name, below)
        _place_red(layout, name, below, (left, share, y - _RED_STEP))
        left += share


def _place_black(wiring: Wiring, layout: Layout) -> None:
    """Put routers above their devices, and those without above their neighbours."""
    alone: list[str] = []
    for router in wiring.topology.routers:
        xs = [
            layout.places[other.node][0]
            for port in wiring.ports[router.name]
            for other in wiring.neighbours(port)
            if other.interface == BLACK
        ]
        if xs:
            layout.places[router.name] = (sum(xs) / len(xs), _ROUTERS_Y)
        else:
            alone.append(router.name)
    width = max((x for x, _ in layout.places.values()), default=0.0)
    meshed = any(len(wiring.ports[name]) > 1 for name in alone)
    # Above a switch for routers stands one more row: the routers on it without devices.
    for number, name in enumerate(alone, 1):
        xs = [
            layout.places[other.node][0]
            for port in wiring.ports[name]
            for other in wiring.neighbours(port)
            if other.node in layout.places and other.node not in alone
        ]
        x = sum(xs) / len(xs) if xs and len(alone) == 1 else width * number / (len(alone) + 1)
        layout.places[name] = (x, _ROUTERS_Y + (_MESH_ABOVE if meshed else _CORE_ABOVE))


def _place_gateways(wiring: Wiring, layout: Layout) -> None:
    """Put gateways above the gap between their partitions, redundant ones above one another."""
    taken: Counter[float] = Counter()
    for gateway in wiring.topology.gateways:
        centres = []
        for port in wiring.ports[gateway.name]:
            near = [other.node for other in wiring.neighbours(port)]
            xs = [layout.places[name][0] for name in near if name in layout.places]
            centres.append(sum(xs) / len(xs) if xs else 0.0)
        x = round(sum(centres) / len(centres), 2)
        layout.places[gateway.name] = (x, _ROUTERS_Y + _GATEWAY_ABOVE * taken[x])
        taken[x] += 1


def _foot(wiring: Wiring, layout: Layout, port: Port) -> float:
    """Return where a node's cable meets the bar: those of a gateway's legs stand apart."""
    x = layout.places[port.node][0]
    if wiring.kind(port) is not NodeKind.GATEWAY:
        return x
    ports = wiring.ports[port.node]
    return x + (ports.index(port) - (len(ports) - 1) / 2) * _LEGS_APART


def _draw_wire(wiring: Wiring, layout: Layout, wire: Wire) -> None:
    prefix = next((str(at.network) for port in wire.ports for at in port.addresses), "")
    links = [wiring.topology.links[port.link] for port in wire.ports]
    if wiring.nodes.get(wire.name) is None:
        one, other = wire.ports
        start, end = layout.places[one.node], layout.places[other.node]
        bend = _bend(layout, (one, other)) if wire.side is Side.BLACK else 0.0
        layout.cables.append(Cable(links[0], wire.side, start, end, bend, prefix))
        return
    spots = [layout.places[port.node] for port in wire.ports]
    y = _bar_height(wiring, wire, [y for _, y in spots])
    xs = [_foot(wiring, layout, port) for port in wire.ports]
    bar = Bar(wire.name, wire.side, min(xs) - _BAR_MARGIN, max(xs) + _BAR_MARGIN, y, prefix)
    layout.bars[wire.name] = bar
    for link, spot, x in zip(links, spots, xs, strict=True):
        layout.cables.append(Cable(link, wire.side, spot, (x, y), 0.0, ""))


def _bar_height(wiring: Wiring, wire: Wire, ys: Iterable[float]) -> float:
    """Return where a switch's bar is: above the lowest black nodes, below the highest red one."""
    if wire.side is Side.RED:
        return max(ys) - _BAR_BELOW
    kinds = {wiring.kind(port) for port in wire.ports}
    routers = [y for y in ys if y > 0]
    if NodeKind.DEVICE in kinds or not routers:
        return _BAR_ABOVE
    return min(routers) + _BAR_ABOVE


def _bend(layout: Layout, ports: tuple[Port, Port]) -> float:
    """Return how high a link must bow so as not to run through routers between its ends."""
    (left, y), (right, other_y) = sorted(layout.places[port.node] for port in ports)
    if y != other_y:
        return 0.0
    names = {port.node for port in ports}
    between = [
        spot for name, spot in layout.places.items() if name not in names and left < spot[0] < right
    ]
    if not any(spot[1] == y for spot in between):
        return 0.0
    return max(spot[1] for spot in between) - y + 0.95
