"""The policies of one group on the xfrm-interface data path.

IPv6 multicast forwarding in Linux never consults the SPD: ``ip6mr_forward2`` (net/ipv6/ip6mr.c)
calls ``ip6_route_output`` and ``dst_output`` without ``xfrm_lookup``, so red multicast would
leave in clear. The multicast interface is therefore an xfrm interface, whose transmit function
does its own policy look-up by ``if_id``; the selector covers all multicast and the if_id
restricts it to that interface.

The SPD is written once at start-up. Until an SA exists, nothing leaves: the outbound policy finds
no state and the packet is dropped (``XfrmOutNoStates``).

SA mode ``per-sender`` pins the SPI of our own SA in the outbound template and moves to the next
epoch by replacing that policy (`GroupPath.switch`), because which of two fitting SAs Linux
prefers differs by version. Pin only an SPI whose SA is already there, and delete the SA after
switching away. In SA mode ``paper`` the SPD is never touched again and the template's SPI stays
0.

IPv4 red multicast travels in the same SAs over the IPv6 black network: the kernel looks policies up
by the inner family, so it has policies of its own, with the same templates and the same if_id. A
second outbound policy makes the switch two steps; a packet of the other family may in between use
the older SA, which is still there.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network

from protocol.ipsec.backend import DeletePolicy, PutPolicy
from protocol.ipsec.model import (
    ANY_ADDRESS,
    ANY_IPV4_NETWORK,
    ANY_NETWORK,
    Mode,
    Policy,
    PolicyDirection,
    Prefix,
    Selector,
)

ALL_MULTICAST = IPv6Network("ff00::/8")
"""All IPv6 multicast addresses (RFC 4291 section 2.7)."""

ALL_IPV4_MULTICAST = IPv4Network("224.0.0.0/4")
"""All IPv4 multicast addresses (RFC 5771)."""


@dataclass(frozen=True, slots=True)
class GroupPath:
    """One group's data path through one xfrm interface.

    Attributes:
        own: our black address, the outer source of what we send.
        group: black multicast group, the outer destination.
        if_id: the xfrm interface; None for the policy-based path, which protects only traffic the
            device itself sends.
        reqid: ties the policies to the group's SAs.
        destinations: red destinations concerned, a set of policies for each.
        mode: tunnel or transport.
        priority: lower wins.
    """

    own: IPv6Address
    group: IPv6Address
    if_id: int | None
    reqid: int
    destinations: tuple[Prefix, ...] = (ALL_MULTICAST,)
    mode: Mode = Mode.TUNNEL
    priority: int = 1000

    def outbound(self, spi: int = 0) -> list[Policy]:
        """Return the outbound policies; ``spi`` 0 leaves the choice of the SA to the kernel."""
        return self._policies(PolicyDirection.OUT, self.own, spi)

    def inbound(self) -> list[Policy]:
        """Return the policies for packets to the device itself; any sender of the group is fine."""
        return self._policies(PolicyDirection.IN, ANY_ADDRESS, 0)

    def forward(self) -> list[Policy]:
        """Return the policies for packets forwarded to the red network."""
        return self._policies(PolicyDirection.FORWARD, ANY_ADDRESS, 0)

    def start_up(self) -> list[PutPolicy]:
        """Return what is written once, before the first SA exists."""
        return [PutPolicy(policy) for policy in self._all()]

    def switch(self, spi: int) -> list[PutPolicy]:
        """Return the steps that move the sender to the SA with this SPI, one per destination."""
        return [PutPolicy(policy) for policy in self.outbound(spi)]

    def removal(self) -> list[DeletePolicy]:
        """Return what undoes `start_up`."""
        return [DeletePolicy(policy.id) for policy in self._all()]

    def _all(self) -> list[Policy]:
        return [*self.outbound(), *self.inbound(), *self.forward()]

    def _policies(self, direction: PolicyDirection, source: IPv6Address, spi: int) -> list[Policy]:
        return [
            Policy(
                selector=Selector(
                    ANY_NETWORK if destination.version == 6 else ANY_IPV4_NETWORK, destination
                ),
                direction=direction,
                template_source=source,
                template_destination=self.group,
                template_spi=spi,
                template_mode=self.mode,
                reqid=self.reqid,
                if_id=self.if_id,
                priority=self.priority,
            )
            for destination in self.destinations
        ]
