"""Draws a topology as a picture: the black side dark, the red side red, devices in both colours."""

from __future__ import annotations

import textwrap
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from testbed.errors import TestbedError
from testbed.labels import place_labels
from testbed.layout import Bar, Cable, Layout, lay_out
from testbed.listing import limits
from testbed.spec import Node, NodeKind, RendezvousPoint, Side, Topology
from testbed.wiring import Wiring

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK: Final = {Side.BLACK: "#2B2F36", Side.RED: "#B3261E"}
PALE: Final = {Side.BLACK: "#ECEEF1", Side.RED: "#FBEAE8"}
RENDEZVOUS: Final = "#E69F00"

_DPI: Final = 140
_WIDTH_MAX_IN: Final = 60.0
_SMALL: Final = 6.5
_NORMAL: Final = 8.5
_MARGINS: Final = (1.25, 0.85, 0.6, 0.6)
"""Beyond the outermost centres: left, with room for the sides' names, right, below and above."""

_TITLE_IN: Final = 0.55
_LETTERS_PER_IN: Final = 13


def draw(topology: Topology, path: Path) -> None:
    """Write a picture of a topology; the file's suffix says the format (png, pdf, svg).

    Raises:
        TestbedError: the file cannot be written in that format.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    wiring = Wiring(topology)
    layout = lay_out(wiring)
    left, right, bottom, top = layout.box
    left, right = left - _MARGINS[0], right + _MARGINS[1]
    bottom, top = bottom - _MARGINS[2], top + _MARGINS[3]
    width, height = max(right - left, 5.5), top - bottom
    right = left + width
    scale = min(1.0, _WIDTH_MAX_IN / width)
    figure = pyplot.figure(figsize=(width * scale, (height + _TITLE_IN) * scale))
    try:
        axes = figure.add_axes((0, 0, 1, height / (height + _TITLE_IN)))
        axes.set_xlim(left, right)
        axes.set_ylim(bottom, top)
        axes.set_axis_off()
        head = (height + _TITLE_IN / 2) / (height + _TITLE_IN)
        title = _title(topology, round(width * _LETTERS_PER_IN))
        figure.text(0.1 / width, head, title, fontsize=_NORMAL, va="center")
        _draw_sides(axes, left, right, bottom, top)
        for cable in layout.cables:
            _draw_cable(axes, cable)
        _draw_labels(axes, layout, _common_limit(topology))
        for bar in layout.bars.values():
            _draw_bar(axes, bar)
        _draw_nodes(axes, wiring, layout)
        figure.savefig(path, dpi=_DPI)
    except (OSError, ValueError) as error:
        raise TestbedError(f"{path}: the drawing cannot be written: {error}") from None
    finally:
        pyplot.close(figure)


def _common_limit(topology: Topology) -> float | None:
    counts = Counter(link.bandwidth_mbit for link in topology.links)
    return counts.most_common(1)[0][0] if counts else None


def _title(topology: Topology, letters: int) -> str:
    common = _common_limit(topology)
    said = f"\nlinks {common:g} Mbit/s unless marked" if common is not None else ""
    return textwrap.fill(f"{topology.name}: {topology.title}", letters) + said


def _draw_sides(axes: Axes, left: float, right: float, bottom: float, top: float) -> None:
    for side, low, high in ((Side.BLACK, 0.0, top), (Side.RED, bottom, 0.0)):
        axes.axhspan(low, high, color=PALE[side], zorder=0)
        axes.text(
            left + 0.08,
            0.08 if side is Side.BLACK else -0.08,
            side.upper(),
            color=INK[side],
            fontsize=_NORMAL,
            weight="bold",
            va="bottom" if side is Side.BLACK else "top",
        )
    axes.plot([left, right], [0, 0], color="#9AA0A6", linewidth=0.8, linestyle=(0, (4, 3)))


def _draw_cable(axes: Axes, cable: Cable) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    (x1, y1), (x0, y0) = sorted((cable.start, cable.end), key=lambda spot: spot[1])
    middle = ((x0 + x1) / 2, (y0 + y1) / 2)
    control = (middle[0], middle[1] + 2 * cable.bend)  # a curve rises half as high as its control
    curve = Curve([cable.start, control, cable.end], [Curve.MOVETO, Curve.CURVE3, Curve.CURVE3])
    axes.add_patch(
        PathPatch(curve, facecolor="none", edgecolor=INK[cable.side], linewidth=1.3, zorder=2)
    )


def _draw_labels(axes: Axes, layout: Layout, common: float | None) -> None:
    texts = {}
    for cable in layout.cables:
        said = limits(cable.link, common).replace(", ", "\n")
        texts[cable.link.name] = "\n".join(part for part in (said, cable.prefix) if part)
    boxes = place_labels(layout, texts)
    for cable in layout.cables:
        if (box := boxes.get(cable.link.name)) is None:
            continue
        axes.text(
            *box.centre,
            texts[cable.link.name],
            fontsize=_SMALL,
            color=INK[cable.side],
            ha="center",
            va="center",
            linespacing=1.1,
            zorder=3,
            bbox={"facecolor": PALE[cable.side], "edgecolor": "none", "pad": 1.0},
        )


def _draw_bar(axes: Axes, bar: Bar) -> None:
    axes.plot(
        [bar.left, bar.right],
        [bar.y, bar.y],
        color=INK[bar.side],
        linewidth=4.5,
        solid_capstyle="round",
        zorder=3,
    )
    beside = bar.side is Side.BLACK  # there is no room left of a red one, and nothing above it
    axes.text(
        bar.left - (0.08 if beside else 0.15),
        bar.y + (0 if beside else 0.07),
        f"{bar.name}\n{bar.prefix}",
        fontsize=_SMALL,
        color=INK[bar.side],
        ha="right" if beside else "left",
        va="center" if beside else "bottom",
        linespacing=1.1,
        zorder=4,
    )


def _draw_nodes(axes: Axes, wiring: Wiring, layout: Layout) -> None:
    for name, (x, y) in layout.places.items():
        node = wiring.nodes[name]
        match node.kind:
            case NodeKind.DEVICE:
                _draw_device(axes, node, x, y, stub=len(wiring.ports[name]) == 1)
            case NodeKind.CLIENT:
                _box(axes, (x, y), (0.56, 0.3), "white", INK[Side.RED])
                _label(axes, x, y, name, INK[Side.RED], size=_SMALL + 0.5)
            case _:
                side = Side.RED if node.kind is NodeKind.LAN_ROUTER else Side.BLACK
                edge = RENDEZVOUS if node.rendezvous_point else INK[side]
                _disc(axes, (x, y), INK[side], edge)
                _label(axes, x, y, name, "white")
                if node.kind is NodeKind.GATEWAY:
                    _label(axes, x, y + 0.37, "gateway", INK[side], size=_SMALL)
                if node.rendezvous_point:
                    backup = node.rendezvous_point is RendezvousPoint.BACKUP
                    what = "backup" if backup else "rendezvous point"
                    _label(axes, x, y + 0.37, what, INK[side], size=_SMALL)


def _draw_device(axes: Axes, node: Node, x: float, y: float, *, stub: bool) -> None:
    """Draw the paper's two-parted rectangle: black above, red below."""
    for side, centre in ((Side.BLACK, y + 0.15), (Side.RED, y - 0.15)):
        _box(axes, (x, centre), (0.9, 0.3), INK[side], INK[side])
    _label(axes, x, y + 0.15, node.name, "white", weight="bold")
    _label(axes, x, y - 0.15, node.nation or "", "white", size=_SMALL + 0.5)
    if stub and node.red is not None:
        axes.text(
            x, y - 0.38, str(node.red.network), fontsize=_SMALL, color=INK[Side.RED], ha="center",
            va="top",
        )  # fmt: skip


def _box(
    axes: Axes, centre: tuple[float, float], size: tuple[float, float], face: str, edge: str
) -> None:
    from matplotlib.patches import Rectangle

    corner = (centre[0] - size[0] / 2, centre[1] - size[1] / 2)
    axes.add_patch(
        Rectangle(corner, *size, facecolor=face, edgecolor=edge, linewidth=1.0, zorder=5)
    )


def _disc(axes: Axes, centre: tuple[float, float], face: str, edge: str) -> None:
    from matplotlib.patches import Circle

    axes.add_patch(Circle(centre, 0.26, facecolor=face, edgecolor=edge, linewidth=2.2, zorder=5))


def _label(
    axes: Axes, x: float, y: float, text: str, colour: str, *, size: float = _NORMAL, **more: Any
) -> None:
    axes.text(x, y, text, color=colour, fontsize=size, ha="center", va="center", zorder=6, **more)
