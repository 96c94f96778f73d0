"""A wide area network between the black border routers: delay and loss set while daemons run.

The delay of a variant is that between any two border routers, one way. A link between two routers
has it whole; where routers meet at a black switch, each of the two links on the way has half.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from experiments.campaign import Variant
from testbed.spec import Link, NodeKind, Side, Topology

if TYPE_CHECKING:
    from testbed.fleet import Fleet

PROBES = 6
"""Exchanges per device that measure the delay; some may be lost."""


def core_links(topology: Topology) -> dict[str, int]:
    """Return the links between routers, and how many of them are on a way between two routers."""
    kinds = {node.name: node.kind for node in topology.nodes}
    found = {}
    for link in topology.links:
        ends = {kinds[end] for end in link.ends}
        if ends == {NodeKind.ROUTER}:
            found[link.name] = 1
        elif ends == {NodeKind.ROUTER, NodeKind.SWITCH} and topology.side(link) is Side.BLACK:
            found[link.name] = 2
    return found


def share_of_loss(loss_percent: float, links: int) -> float:
    """Return the loss of each of so many links in a row that lose this much together."""
    return 100.0 * (1.0 - (1.0 - loss_percent / 100.0) ** (1.0 / links))


class Wan:
    """The core links of a loaded fleet.

    Args:
        fleet: its network.
        variant: with what it asks for; if that is nothing, nothing is ever changed.
    """

    def __init__(self, fleet: Fleet, variant: Variant) -> None:
        self._fleet = fleet
        self._variant = variant
        self._wanted = variant.wan_delay_ms is not None or variant.wan_loss_percent is not None
        self._links: dict[str, tuple[Link, int]] = {}
        if self._wanted:
            links = {link.name: link for link in fleet.topology.links}
            counts = core_links(fleet.topology)
            self._links = {name: (links[name], count) for name, count in counts.items()}

    @property
    def asked_for(self) -> bool:
        """Return whether the variant sets delay or loss."""
        return self._wanted

    def impair(self) -> None:
        """Give the links what the variant asks for, and what the topology says besides.

        Raises:
            TestbedError: the kernel cannot.
        """
        delay_ms, loss_percent = self._variant.wan_delay_ms, self._variant.wan_loss_percent
        for name, (link, count) in self._links.items():
            own_delay = delay_ms is None
            self._fleet.network.set_link(
                name,
                delay_ms=link.delay_ms if delay_ms is None else delay_ms / count,
                jitter_ms=link.jitter_ms if own_delay else 0.0,
                loss_percent=link.loss_percent
                if loss_percent is None
                else share_of_loss(loss_percent, count),
            )

    def clear(self) -> None:
        """Take all delay and loss away: clocks are compared over undisturbed links.

        Raises:
            TestbedError: the kernel cannot.
        """
        for name in self._links:
            self._fleet.network.set_link(name, delay_ms=0.0, jitter_ms=0.0, loss_percent=0.0)

    def probe(self) -> dict[str, Any]:
        """Return exchanges with each device over the impaired links; half their delay is one way.

        Raises:
            TestbedError: a device does not answer.
        """
        return dict(self._fleet.clock_offsets(PROBES)) if self._wanted else {}
