"""Our Mininet classes: IPv6 only, and configuration gathered into one command per namespace.

Mininet configures each interface with a handful of processes of its own; here its classes only
create (a node is its shell and namespaces, a link is one ``ip link add``) and say what traffic
control they want; `testbed.network` carries all of it out in one batch per node and checks the
result. Nothing global is touched: no limits raised, no ``mn -c``, no controller.
"""

from __future__ import annotations

from typing import Any

from mininet.link import TCIntf, TCLink
from mininet.log import setLogLevel
from mininet.net import Mininet
from mininet.node import Node, Switch


class NodeBase(Node):  # type: ignore[misc]
    """A node whose addresses are none of Mininet's business (its API knows IPv4 only)."""

    def config(self, **_parameters: Any) -> dict[str, Any]:
        """Configure nothing."""
        return {}


class Device(NodeBase):
    """An IPsec device."""


class Bridge(Switch):  # type: ignore[misc]
    """A Linux bridge in the run's own namespace; made and removed by `testbed.network`."""

    @classmethod
    def setup(cls) -> None:
        """Need nothing: neither brctl nor a controller."""

    def start(self, _controllers: list[Any]) -> None:
        """Do nothing: the bridge is made in the batch of the run's namespace."""

    def stop(self, deleteIntfs: bool = True) -> None:  # noqa: N803
        """Do nothing: the bridge goes in the batch of the run's namespace."""


class GatheredInterface(TCIntf):  # type: ignore[misc]
    """An interface that notes the traffic control commands that TCIntf would have run.

    Attributes:
        traffic_control: lines for ``tc -batch``.
    """

    traffic_control: list[str]

    def config(self, bw: float | None = None, **_parameters: Any) -> dict[str, Any]:
        """Note Mininet's own HTB recipe for this bandwidth."""
        commands = self.bwCmds(bw=bw)[0] if bw is not None else []
        self.traffic_control = [(command % ("", self.name)).strip() for command in commands]
        return {}


class GatheredLink(TCLink):  # type: ignore[misc]
    """A veth pair with `GatheredInterface` ends."""

    def __init__(self, *nodes: Any, **parameters: Any) -> None:
        super().__init__(*nodes, cls1=GatheredInterface, cls2=GatheredInterface, **parameters)

    def delete(self) -> None:
        """Do nothing: the cables go in the batch of the run's namespace."""

    def stop(self) -> None:
        """Do nothing, see `delete`."""


def new_mininet() -> Mininet:
    """Return an empty Mininet that changes no limit and looks for no controller."""
    setLogLevel("error")
    Mininet.inited = True  # its init() writes machine-wide sysctls
    return Mininet(
        controller=None, switch=Bridge, host=Device, link=GatheredLink, build=False, cleanup=False
    )
