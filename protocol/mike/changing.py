"""A member's part when an epoch is told by what differs from the one before (CHANGE, MIKE-39).

A CHANGE becomes the TREE that it stands for, and is judged as that. Before anything is computed its
sender must be one whose TREE would be followed or held.
"""

from __future__ import annotations

from ipaddress import IPv6Address

from protocol.core.errors import PeerError
from protocol.mike.agreement import Agreement
from protocol.mike.change import Change, changed
from protocol.mike.member import Member
from protocol.mike.messages import Announcement, Tree
from protocol.mike.rules import (
    Authority,
    authority,
    check_change,
    check_number,
    check_sender,
    grants,
)


class Changer(Member):
    """From a CHANGE to a TREE."""

    def on_change(self, message: Change, sender: IPv6Address) -> None:
        """Follow an epoch, or take what the TM learnt of it; ask for the whole if we must."""
        for epoch in (self.pending, self.current):
            if isinstance(epoch, Agreement) and epoch.epoch == message.epoch:
                # To a newcomer the TM says it by a TREE, and the CHANGE for all right after it.
                again = epoch.epoch != self.entered
                known = _as_tree(message, epoch.content)
                self.on_known_tree(known, epoch, sender, again=again)
                return
        view = self.view()
        entering = grants(message, self.own, view.nonce)
        if self.tm is None:
            self.note_group()
            if not entering:
                return
        check_number(message.number, self.highest, entering=entering)
        check_sender(message, message.term, sender)
        verdict = authority(view, message, sender)
        if verdict is Authority.REFUSE:
            raise PeerError("MIKE-3", f"{sender} is not our TM")
        if verdict is Authority.HOLD and self.held is not None:
            self.counters.count("MIKE-14")
            return
        try:
            tree = self._tree_of(message)
        except PeerError:
            self._need_whole(message, sender, verdict)
            raise
        if tree is None:
            self._need_whole(message, sender, verdict)
        else:
            self.on_tree(tree, sender)

    def _tree_of(self, message: Change) -> Tree | None:
        """Return the TREE that a CHANGE stands for; None if we lack the epoch before.

        Raises:
            PeerError: it makes another announcement than it names, or none (MIKE-39, MIKE-1).
        """
        if message.epoch == self.useless:
            return None
        for epoch in (self.pending, self.current):
            if not isinstance(epoch, Agreement) or epoch.epoch != message.previous:
                continue
            if not epoch.is_complete:
                return None
            tree = changed(epoch.known_tree(), message.pieces)
            made = Announcement(
                message.number,
                message.previous,
                message.tm,
                tree,
                message.sponsors,
                message.nonces,
            )
            check_change(message, made)
            # What was put together is read as if it had come so: there is one way to judge it.
            return _as_tree(message, Announcement.decode(made.encoded))
        return None

    def _need_whole(self, message: Change, sender: IPv6Address, verdict: Authority) -> None:
        """Ask the TM for the whole: the CHANGE alone is of no use to us."""
        if verdict is Authority.FOLLOW:
            self.useless = message.epoch
            self.lack(message.epoch, sender)
        else:
            self.counters.count("MIKE-14")


def _as_tree(message: Change, announcement: Announcement) -> Tree:
    """Return the TREE with the same content.

    Raises:
        PeerError: it has a key of a node that is not open (MIKE-39).
    """
    tree = Tree(announcement, message.term, message.keys, message.confirmation)
    if not tree.keys.keys() <= set(announcement.tree.open_nodes()):
        raise PeerError("MIKE-39", "a key of a node that is not open")
    return tree
