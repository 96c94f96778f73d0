"""The policies of one group on the xfrm-interface data path.

IPv6 multicast forwarding in Linux never consults the SPD: ``ip6mr_forward2`` (net/ipv6/ip6mr.c)
calls ``ip6_route_output`` and ``dst_output`` without ``xfrm_lookup``, so red multicast would
leave in clear. The multicast interface is therefore an xfrm interface, whose transmit function
does its own policy look-up by ``if_id``; the selector covers all multicast and the if_id
restricts it to that interface.

The SPD is written once at start-up. Until an SA exists, nothing leaves: the outbound policy finds
no state and the packet is dropped (``XfrmOutNoStates``).

SA mode ``per-sender`` pins the SPI of our own SA in the outbound template and moves to the next
epoch by replacing that one policy (`GroupPath.switch`), because which of two fitting SAs Linux
prefers differs by version. Pin only an SPI whose SA is already there, and delete the SA after
switching away. In SA mode ``paper`` the SPD is never touched again and the template's SPI stays
0.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network

from protocol.ipsec.backend import DeletePolicy, PutPolicy
from protocol.ipsec.model import ANY_ADDRESS, Mode, Policy, PolicyDirection, Selector

ALL_MULTICAST = IPv6Network("ff00::/8")
"""All IPv6 multicast addresses (RFC 4291 section 2.7)."""


@dataclass(frozen=True, slots=True)
class GroupPath:
    """One group's data path through one xfrm interface.

    Attributes:
        own: our black address, the outer source of what we send.
        group: black multicast group, the outer destination.
        if_id: the xfrm interface; None for the policy-based path, which protects only traffic the
            device itself sends.
        reqid: ties the policies to the group's SAs.
        destinations: red destinations concerned.
        mode: tunnel or transport.
        priority: lower wins.
    """

    own: IPv6Address
    group: IPv6Address
    if_id: int | None
    reqid: int
    destinations: IPv6Network = ALL_MULTICAST
    mode: Mode = Mode.TUNNEL
    priority: int = 1000

    def outbound(self, spi: int = 0) -> Policy:
        """Return the outbound policy; ``spi`` 0 leaves the choice of the SA to the kernel."""
        return self._policy(PolicyDirection.OUT, self.own, spi)

    def inbound(self) -> Policy:
        """Return the policy for packets to the device itself; any sender of the group is fine."""
        return self._policy(PolicyDirection.IN, ANY_ADDRESS, 0)

    def forward(self) -> Policy:
        """Return the policy for packets forwarded to the red network."""
        return self._policy(PolicyDirection.FORWARD, ANY_ADDRESS, 0)

    def start_up(self) -> list[PutPolicy]:
        """Return what is written once, before the first SA exists."""
        return [PutPolicy(self.outbound()), PutPolicy(self.inbound()), PutPolicy(self.forward())]

    def switch(self, spi: int) -> PutPolicy:
        """Return the one step that moves the sender to the SA with this SPI."""
        return PutPolicy(self.outbound(spi))

    def removal(self) -> list[DeletePolicy]:
        """Return what undoes `start_up`."""
        policies = (self.outbound(), self.inbound(), self.forward())
        return [DeletePolicy(policy.id) for policy in policies]

    def _policy(self, direction: PolicyDirection, source: IPv6Address, spi: int) -> Policy:
        return Policy(
            selector=Selector(destination=self.destinations),
            direction=direction,
            template_source=source,
            template_destination=self.group,
            template_spi=spi,
            template_mode=self.mode,
            reqid=self.reqid,
            if_id=self.if_id,
            priority=self.priority,
        )
