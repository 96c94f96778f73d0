"""Black groups of RFC 4607's range in place of the usual ones.

Behind PIM routers a source of an any-source group is unknown at first: what it says is lost until
the rendezvous point has joined it. A source-specific group is joined for each known device before
its first word (docs/EXPERIMENTS.md).
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address
from typing import Final

from testbed.fleetoptions import FleetOptions
from testbed.spec import Topology

IDP_GROUP: Final = "ff3e::8000:1d0"
MIKE_GROUP: Final = "ff3e::8000:319e"
ESP_GROUP: Final = IPv6Address("ff3e::8000:1")


def source_specific(topology: Topology, options: FleetOptions) -> tuple[Topology, FleetOptions]:
    """Return a network and options with these groups."""
    return (
        replace(topology, group=replace(topology.group, black_group=ESP_GROUP)),
        replace(
            options,
            idp={**options.idp, "group": IDP_GROUP},
            mike={**options.mike, "group": MIKE_GROUP},
        ),
    )
