"""Our Mininet classes: they create shells and namespaces; everything else is gathered.

Mininet configures each interface with a handful of processes of its own, and knows IPv4 only. Here
its classes only create nodes (a node is its shell and namespaces) and note the links;
`testbed.network` makes all cables in one batch and sets up each node in another. Nothing global is
touched: no limits raised, no ``mn -c``, no controller.
"""

from __future__ import annotations

from typing import Any

from mininet.link import Intf, Link
from mininet.log import setLogLevel
from mininet.net import Mininet
from mininet.node import Node


class NodeBase(Node):  # type: ignore[misc]
    """A node whose addresses are none of Mininet's business (its API knows IPv4 only)."""

    def config(self, **_parameters: Any) -> dict[str, Any]:
        """Configure nothing."""
        return {}


class Bridge(NodeBase):
    """A Linux bridge in the run's own namespace; made and removed by `testbed.network`.

    Not a Mininet ``Switch``: that one speaks OpenFlow, and has a shell and a control interface.
    """

    def startShell(self, mnopts: str | None = None) -> None:  # noqa: N802
        """Start none: nothing is ever run in a bridge, and fifty LANs would be fifty shells."""

    def start(self, _controllers: list[Any]) -> None:
        """Do nothing: the bridge is made in the batch of the run's namespace."""

    def stop(self, deleteIntfs: bool = True) -> None:  # noqa: N803
        """Do nothing: the bridge goes in the batch of the run's namespace."""


class GatheredInterface(Intf):  # type: ignore[misc]
    """An interface that somebody else configures."""

    def config(self, **_parameters: Any) -> dict[str, Any]:
        """Configure nothing."""
        return {}


class GatheredLink(Link):  # type: ignore[misc]
    """A cable that somebody else makes and removes."""

    def __init__(self, *nodes: Any, **parameters: Any) -> None:
        super().__init__(*nodes, cls1=GatheredInterface, cls2=GatheredInterface, **parameters)

    @classmethod
    def makeIntfPair(cls, *_ends: Any, **_parameters: Any) -> None:  # noqa: N802
        """Make nothing: all cables are made in one batch."""

    def delete(self) -> None:
        """Do nothing: the cables go with the namespaces, or in the batch of the run's."""

    def stop(self) -> None:
        """Do nothing, see `delete`."""


def new_mininet() -> Mininet:
    """Return an empty Mininet that changes no limit and looks for no controller."""
    setLogLevel("error")
    Mininet.inited = True  # its init() writes machine-wide sysctls
    return Mininet(
        controller=None, switch=Bridge, host=NodeBase, link=GatheredLink, build=False, cleanup=False
    )
