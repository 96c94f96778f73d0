"""Who may have which red prefix: what others announce, and what we shall announce ourselves.

Pure state, owned and driven by `protocol.idp.unicast`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv6Address, IPv6Network

from protocol.core.errors import LocalError, PeerError
from protocol.identity import Identity, Peer
from protocol.idp import rules
from protocol.idp.prefixes import PrefixTable, link_of
from protocol.ipsec.model import Prefix


class PrefixJudge:
    """Accepts prefixes, each by the rules IDP-21, 22, 23 and 29.

    Args:
        identity: who we are, and whom we know.
        max_routes: accepted prefixes of all devices at most.
        own_prefixes: returns what we announce.

    Attributes:
        table: the accepted prefixes.
    """

    def __init__(
        self, identity: Identity, max_routes: int, own_prefixes: Callable[[], Sequence[Prefix]]
    ) -> None:
        self._identity = identity
        self._max_routes = max_routes
        self._own_prefixes = own_prefixes
        self.forget()

    def forget(self) -> None:
        """Begin anew with an instance: nobody has a prefix."""
        self.table = PrefixTable()
        self._black: set[IPv6Network] = set()

    def meet(self, address: IPv6Address) -> None:
        """A device is there: its link is black."""
        self._black_networks().add(link_of(address))

    def judge(self, peer: Peer, announced: Iterable[Prefix]) -> list[PeerError]:
        """Let a device have what it may of these prefixes; return why not the others."""
        address, table = peer.address, self.table
        black = self._black_networks()
        refused: list[PeerError] = []
        accepted: list[Prefix] = []
        elsewhere = len(table) - len(table.of(address))
        for prefix in announced:
            try:
                rules.check_authorised(prefix, peer.prefixes)
                rules.check_kind(prefix, black)
                rules.check_overlap(prefix, self._own_prefixes(), table.overlap(prefix, address))
                rules.check_room(elsewhere + len(accepted) + 1, self._max_routes)
            except PeerError as error:
                refused.append(error)
                continue
            accepted.append(prefix)
        table.assign(address, accepted)
        return refused

    def check_own(self, prefix: Prefix) -> None:
        """Say whether we may announce a prefix.

        Raises:
            LocalError: others would refuse it.
        """
        me = self._identity.me
        try:
            rules.check_authorised(prefix, me.prefixes)
            rules.check_kind(prefix, self._black_networks())
            rules.check_overlap(prefix, (), self.table.overlap(prefix, me.address))
        except PeerError as error:
            raise LocalError(f"cannot announce {prefix}: {error.reason} ({error.rule})") from None

    def _black_networks(self) -> set[IPv6Network]:
        """Return the links' networks of all devices' black addresses."""
        if not self._black:
            for peer in (self._identity.me, *self._identity.trusted_peers()):
                self._black.add(link_of(peer.address))
        return self._black
