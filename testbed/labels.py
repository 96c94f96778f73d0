"""Where the labels of links stand in a drawing: beside no node, and upon no other label.

A label is estimated from its letters, so that places can be chosen, and tested, without drawing.
Lengths are those of `testbed.layout`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from testbed.layout import Cable, Layout
from testbed.spec import Side

LETTER: Final = (0.05, 0.105)
"""Width of a letter and height of a line, of the small type in a drawing."""

NODE_HALF: Final = 0.3
_PAD: Final = 0.02
_BELOW: Final = 0.05
_SHARES: Final = (0.66, 0.6, 0.72, 0.54, 0.78, 0.48, 0.42, 0.84, 0.36, 0.3, 0.24)
"""How far towards its lower end a slanted or upright link may have its label, the best first: links
part there."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle."""

    left: float
    bottom: float
    right: float
    top: float

    @property
    def centre(self) -> tuple[float, float]:
        """Its middle."""
        return (self.left + self.right) / 2, (self.bottom + self.top) / 2

    def common(self, other: Box) -> float:
        """Return the area that two have in common."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)


def place_labels(layout: Layout, texts: Mapping[str, str]) -> dict[str, Box]:
    """Return where the label of each link goes.

    Args:
        layout: nodes and links.
        texts: of each link that has a label, by the link's name; lines end with a line feed.
    """
    taken = [
        _around((x, y), NODE_HALF * 2, NODE_HALF * 2) for x, y in layout.places.values() if y > 0
    ]
    found: dict[str, Box] = {}
    # Those that have only one place come first.
    labelled = [cable for cable in layout.cables if texts.get(cable.link.name)]
    for cable in sorted(labelled, key=lambda cable: len(list(_spots(cable, 0.0)))):
        lines = texts[cable.link.name].split("\n")
        width = max(map(len, lines)) * LETTER[0] + 2 * _PAD
        height = len(lines) * LETTER[1] + 2 * _PAD
        boxes = [_around(spot, width, height) for spot in _spots(cable, height)]
        box = min(boxes, key=lambda box: _overlap(box, taken))  # of equals, the first
        found[cable.link.name] = box
        taken.append(box)
    return found


def _overlap(box: Box, others: Iterable[Box]) -> float:
    return round(sum(box.common(other) for other in others), 6)


def _around(centre: tuple[float, float], width: float, height: float) -> Box:
    x, y = centre
    return Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _spots(cable: Cable, height: float) -> Iterator[tuple[float, float]]:
    """Yield where the middle of a label of that height may be."""
    (x1, y1), (x0, y0) = sorted((cable.start, cable.end), key=lambda spot: spot[1])
    if y0 == y1 and not cable.bend:  # below the line, which is short
        yield (x0 + x1) / 2, y0 - _BELOW - height / 2
    elif y0 == y1 or cable.side is Side.RED:
        yield (x0 + x1) / 2, (y0 + y1) / 2 + cable.bend
    else:
        for share in _SHARES:
            yield x0 + share * (x1 - x0), y0 + share * (y1 - y0)
