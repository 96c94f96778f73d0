"""A member's part in key distribution mode: the roster, and whether it names us."""

from __future__ import annotations

from ipaddress import IPv6Address

from protocol.core.errors import PeerError
from protocol.mike.agreement import Agreement
from protocol.mike.distribution import Distribution, KeyPath
from protocol.mike.epochs import Epoch
from protocol.mike.joining import Joiner
from protocol.mike.rekeying import Rekey, RekeyAnnouncement
from protocol.mike.roster import Roster
from protocol.mike.states import State


def roster_of(epoch: Epoch) -> Roster | None:
    """Return an epoch's members with their leaf keys; None if they are not all known.

    So an epoch of either mode can be followed by one of key distribution mode.
    """
    if isinstance(epoch, Distribution):
        return epoch.roster
    assert isinstance(epoch, Agreement)
    entries = []
    for leaf, who in epoch.tree.members.items():
        key = epoch.leaf.blinded if who == epoch.own else epoch.blinded.get(leaf)
        if key is None:
            return None
        entries.append((who, key))
    return Roster(entries)


class Receiver(Joiner):
    """From a REKEY to an epoch that we may get the keys of."""

    def distribution(self, message: Rekey, sender: IPv6Address) -> Distribution | None:
        """Return the epoch that a REKEY announces; None if it excludes us.

        Raises:
            PeerError: it names us with a leaf key that is not ours (MIKE-5); we join anew.
        """
        content = message.announcement
        if self.own in content.removed:
            self.excluded(content)
            return None
        made = Distribution(self.own, content, self.leaves(), self._path())
        made.take_wraps(message)
        roster = self._roster_after(content)
        if roster is not None and not self.settle(made, roster, sender):
            return None
        return made

    def settle(self, made: Distribution, roster: Roster, sender: IPv6Address) -> bool:
        """Give an epoch its roster. Say whether it names us; otherwise we are excluded.

        Raises:
            PeerError: as `distribution`.
        """
        content = made.content
        if not made.enter(roster):
            self.excluded(content, roster.addresses)
            return False
        if made.leaf is None:
            self.highest = max(self.highest, content.number)
            self.tm = self.tm or sender
            if self.pending is made:
                self.pending = None
                if self.state is State.JOINING:
                    self.listen_before_founding(group_heard=True)
            self.join()
            raise PeerError("MIKE-5", f"epoch {content.epoch} has a leaf key that is not ours")
        return True

    def _path(self) -> KeyPath:
        """Return the newest keys of a hierarchy that we have."""
        for epoch in (self.pending, self.current):
            if isinstance(epoch, Distribution) and epoch.root is not None:
                return epoch.path
        return KeyPath()

    def _roster_after(self, content: RekeyAnnouncement) -> Roster | None:
        """Return the announced roster if the changes lead to it from one that we have."""
        for epoch in (self.pending, self.current):
            if epoch is None or epoch.epoch != content.previous:
                continue
            before = roster_of(epoch)
            if before is not None:
                after = before.changed(content.removed, content.added)
                return after if after.digest == content.roster else None
        return None
