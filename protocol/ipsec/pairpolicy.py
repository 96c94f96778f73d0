"""The policies of one pair of devices: unicast through the xfrm interface, tunnel mode.

What leaves for a peer is selected by destination: the peer's link-local address on the xfrm
interface (the control path) and each of its red prefixes. What arrives must have come through that
peer's SA: the policies in and forward select by the same networks as *source*, and their template
names the peer, so no device can use another's prefix as its source (`XfrmInTmplMismatch`), and a
source that is nobody's finds no policy (`XfrmInNoPols`).

The outbound policies pin the SPI, as the group's do (make before break). Their priority is below
the group's: multicast from a red prefix stays the group's affair.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network

from protocol.ipsec.model import (
    ANY_IPV4_NETWORK,
    ANY_NETWORK,
    Policy,
    PolicyDirection,
    Prefix,
    Selector,
)

PRIORITY = 2000
"""Lower wins: the group's policies have 1000."""

PEERS_KEPT = 1024
"""Addresses on the xfrm interface that are remembered: batches name the same ones again and again.
"""

_LINK_LOCAL = IPv6Network("fe80::/64")


@lru_cache(PEERS_KEPT)
def link_local(black: IPv6Address) -> IPv6Address:
    """Return a device's address on the xfrm interface: fe80::/64 and 64 bits of SHA-256."""
    digest = hashlib.sha256(b"idpmike link-local" + black.packed).digest()
    return IPv6Address(_LINK_LOCAL.network_address.packed[:8] + digest[:8])


@lru_cache(PEERS_KEPT)
def control_network(black: IPv6Address) -> IPv6Network:
    """Return the network of a device's address on the xfrm interface, and nothing else."""
    return IPv6Network(link_local(black))


@dataclass(frozen=True, slots=True)
class PairPath:
    """The data path between us and one peer.

    Attributes:
        own: our black address.
        peer: the peer's.
        if_id: of the xfrm interface.
        reqid: ties the policies to the pair's SAs; not the group's.
    """

    own: IPv6Address
    peer: IPv6Address
    if_id: int
    reqid: int

    def policies(self, spi: int, prefixes: tuple[Prefix, ...]) -> Iterator[Policy]:
        """Yield all policies; ``spi`` is the SA that we send with."""
        for network in (control_network(self.peer), *prefixes):
            yield self._policy(PolicyDirection.OUT, network, spi)
            yield self._policy(PolicyDirection.IN, network, 0)
        for network in prefixes:
            yield self._policy(PolicyDirection.FORWARD, network, 0)

    def _policy(self, direction: PolicyDirection, network: Prefix, spi: int) -> Policy:
        anywhere = ANY_NETWORK if network.version == 6 else ANY_IPV4_NETWORK
        outbound = direction is PolicyDirection.OUT
        return Policy(
            selector=Selector(anywhere, network) if outbound else Selector(network, anywhere),
            direction=direction,
            template_source=self.own if outbound else self.peer,
            template_destination=self.peer if outbound else self.own,
            template_spi=spi,
            reqid=self.reqid,
            if_id=self.if_id,
            priority=PRIORITY,
        )
