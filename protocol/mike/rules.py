"""Every rule of MIKE, by its id: a row in docs/mike.md section 5, a check here, a test.

A check on what a peer sent raises `PeerError`; the engine counts it under the rule and drops the
message. The other rules say when we act; their checks return the answer.

MIKE-1 (syntax) is checked while a body is read (`protocol.mike.messages`), MIKE-6 (low order) and
MIKE-31 (unwrapping) where the cryptography is (`protocol.mike.schedule`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from ipaddress import IPv6Address

from protocol.core.errors import PeerError
from protocol.identity.envelope import OVERHEAD
from protocol.idpmike import EpochId
from protocol.mike.change import Change
from protocol.mike.config import MikeConfig, Mode
from protocol.mike.duties import publisher
from protocol.mike.fields import MEMBERS_MAX, NUMBER_MAX, SHORT_POSITIONS_MAX
from protocol.mike.fragments import body_size_max
from protocol.mike.keytree import KeyTree, height_max
from protocol.mike.messages import FRAGMENTED, NO_EPOCH, Announcement, Handover, Join, Kind
from protocol.mike.rekeying import ENTRY_LENGTH, REKEY_OVERHEAD, RekeyAnnouncement
from protocol.mike.roster import Roster
from protocol.mike.schedule import EpochKeys
from protocol.mike.treemath import NodeName

RULES: dict[str, str] = {
    "MIKE-1": "A body is exactly one message of its kind, in its one encoding",
    "MIKE-2": "Only the kinds that a state needs are opened; a parked or idle instance opens none",
    "MIKE-3": "A TREE is followed only if its sender may act as TM",
    "MIKE-4": "Epoch numbers only grow at a member, and jump by at most 2^32",
    "MIKE-5": "A TREE that names us is followed only with a leaf whose secret we hold",
    "MIKE-6": "A blinded key of low order is refused",
    "MIKE-7": "A PATH adds only keys that its sender has to publish",
    "MIKE-8": "A key is reported only after another member's confirmation tag verified",
    "MIKE-9": "Every open node of an announcement has a sponsor below and no key above, every"
    " sponsor work",
    "MIKE-10": "A TM has one unfinished epoch; a later one of the same TM replaces it",
    "MIKE-11": "A sponsor that stays silent is excluded by the next epoch",
    "MIKE-12": "A JOIN is granted once; its repetition is answered by the same TREE",
    "MIKE-13": "The first live member in position order succeeds a lost TM, then the next in turn",
    "MIKE-14": "At most one TREE waits for our IDP's verdict on the old TM, for a bounded time",
    "MIKE-15": "A HANDOVER counts only from our TM, to a member, with a larger term",
    "MIKE-16": "Of two groups that meet, the smaller dissolves and its members join the other",
    "MIKE-17": "A joiner that hears no group founds one, unless an earlier started one is asking",
    "MIKE-18": "One device's questions are answered at a bounded rate",
    "MIKE-19": "After an exclusion every node that the excluded member knew is open",
    "MIKE-20": "No group and no datagram above the configured size is built",
    "MIKE-21": "An excluded device drops its keys and asks again after a random time",
    "MIKE-22": "A TM unheard for tm_silence_ms counts as lost",
    "MIKE-23": "What arrives too early is kept only for a known sender, and only the newest",
    "MIKE-24": "A TM renews the key at the latest rekey_interval_ms after the last epoch",
    "MIKE-25": "One member renews its share at a bounded rate",
    "MIKE-26": "A message above datagram_size_max goes in fragments, each signed by itself",
    "MIKE-27": "Fragments are kept only of who may act as TM, bounded in number, size and time",
    "MIKE-28": "What several devices lack is answered once, to all",
    "MIKE-29": "Epoch numbers of a device grow over restarts, whenever its power goes",
    "MIKE-30": "A roster counts only if it is the announced one, and names the TM",
    "MIKE-31": "A key is unwrapped for one epoch only, on a chain of bounded length",
    "MIKE-32": "An epoch of KD replaces every key above a leaf that came, went or changed, and the"
    " root",
    "MIKE-33": "A TM distributes only keys of a hierarchy that it drew itself in its present role",
    "MIKE-34": "The TM alone chooses the mode, by its configuration and the size of the group",
    "MIKE-35": "Epochs of KD follow each other at a bounded rate, with a bounded number of changes",
    "MIKE-36": "A TM unheard for half of tm_silence_ms is asked before it counts as lost",
    "MIKE-37": "A TM whose device began anew is asked at once, and lost if it does not answer",
    "MIKE-38": "A STATUS of the epoch that we have counts only with its sender's confirmation",
    "MIKE-39": "A CHANGE counts only if it makes the announcement that it names",
}
"""One line for each rule; the test compares it with the table of docs/mike.md."""

NUMBER_JUMP_MAX = 1 << 32
"""Largest step of the epoch number: one member's lie cannot exhaust the 2^62 numbers (MIKE-4)."""

NUMBER_ENTERED_MAX = NUMBER_MAX // 2
"""Largest number of a group that is entered: who remembers it (MIKE-29) has as many left."""

PATH_MAX = 32
"""Keys between a leaf and the root secret: log2 of the largest group, twice (MIKE-31)."""

CHANGE_LENGTH = ENTRY_LENGTH + 32 + 32
"""Bytes of an announcement for one member that comes: entry, nonce, nonce of the epoch before."""

EARLY_MAX = 64
"""PATHs kept for epochs whose TREE has not come yet (MIKE-23)."""


Announced = Announcement | RekeyAnnouncement | Change
"""What says who is TM, which epoch it follows, and which JOINs it grants."""


class Standing(Enum):
    """What a device is to its group, as far as rule MIKE-2 needs it."""

    OUTSIDE = auto()
    JOINING = auto()
    MEMBER = auto()
    TM = auto()


EPOCHS = FRAGMENTED | {Kind.FRAGMENT, Kind.PATH, Kind.STATUS}
"""Kinds that bring epochs, of either mode, or news of them."""

WANTED: dict[Standing, frozenset[Kind]] = {
    Standing.OUTSIDE: frozenset(),
    Standing.JOINING: EPOCHS,
    Standing.MEMBER: EPOCHS | {Kind.HANDOVER},
    Standing.TM: EPOCHS | {Kind.JOIN, Kind.REPAIR},
}
"""Kinds opened per standing (MIKE-2): members spend no signature check on a JOIN."""


FOUNDING = WANTED[Standing.JOINING] | {Kind.JOIN}
"""Kinds that a joiner opens which may have to found a group, and listens for rivals (MIKE-17)."""


def wanted(standing: Standing, *, handed_over: bool, may_found: bool) -> frozenset[Kind]:
    """MIKE-2: return the kinds to open.

    Args:
        standing: of this device.
        handed_over: it was TM: it still answers for its HANDOVER.
        may_found: it may have to found a group, and listens for rivals (MIKE-17).
    """
    kinds = WANTED[standing]
    if standing is Standing.JOINING and may_found:
        return FOUNDING
    return kinds | {Kind.REPAIR} if handed_over and standing is Standing.MEMBER else kinds


class Authority(Enum):
    """Answer of MIKE-3."""

    FOLLOW = auto()
    HOLD = auto()
    """Perhaps legitimate: wait for our own IDP's verdict on the old TM (MIKE-14)."""
    REFUSE = auto()


@dataclass(frozen=True, slots=True)
class View:
    """What a device knows when it judges a TREE.

    Attributes:
        own: our address.
        tm: whom we take for the TM, None outside a group.
        members: of our established epoch, in position order.
        gone: members that our IDP reported left, and the TM if it was silent too long.
        passed: candidates of an election whose time ran out.
        nonce: of our unanswered JOIN.
        highest: largest epoch number seen.
        tm_deposed: the TM began anew: what it says is of another group, if of any (MIKE-22).
    """

    own: IPv6Address
    tm: IPv6Address | None
    members: tuple[IPv6Address, ...]
    gone: Collection[IPv6Address]
    passed: Collection[IPv6Address]
    nonce: bytes | None
    highest: int
    tm_deposed: bool = False


def grants(announcement: Announced, own: IPv6Address, nonce: bytes | None) -> bool:
    """Say whether an announcement answers our JOIN: nobody could know the nonce before."""
    return nonce is not None and (own, nonce) in announcement.nonces


def authority(view: View, announcement: Announced, sender: IPv6Address) -> Authority:
    """MIKE-3: may this sender act as TM towards us?

    Yes: it answers our own JOIN (any authorised device may be TM of a group we enter); it is our
    TM, also by HANDOVER; our TM is gone and so is, or has let its turn pass, everybody ranked
    before the sender (MIKE-13). Another member may be right before we know: hold (MIKE-14). But no
    member that founds a group succeeds anybody: it has begun anew, and is in no group of ours.
    """
    if grants(announcement, view.own, view.nonce):
        return Authority.FOLLOW
    if view.tm is None:
        return Authority.REFUSE
    if sender == view.tm:
        return Authority.REFUSE if view.tm_deposed else Authority.FOLLOW
    if sender not in view.members or announcement.previous == NO_EPOCH:
        return Authority.REFUSE
    if view.tm in view.gone:
        before = view.members[: view.members.index(sender)]
        if all(who in view.gone or who in view.passed for who in before):
            return Authority.FOLLOW
    return Authority.HOLD


def leaves_out_too_many(
    announcement: Announcement | RekeyAnnouncement,
    sender: IPv6Address,
    members: Collection[IPv6Address],
    gone: Collection[IPv6Address],
) -> bool:
    """MIKE-14: whether a held epoch has fewer members than ours has live ones besides its sender.

    Then it is none of a successor, who would exclude those that are gone, but of a member that
    began anew and founded a group; between that and ours MIKE-16 decides.
    """
    if isinstance(announcement, RekeyAnnouncement):
        size = announcement.members
    else:
        size = len(announcement.tree)
    return sum(who not in gone and who != sender for who in members) > size


def check_number(number: int, highest: int, *, entering: bool = False) -> None:
    """MIKE-4: refuse an epoch that is not newer than all we have seen, or absurdly new.

    Args:
        number: of the epoch.
        highest: the largest number seen.
        entering: it answers our own JOIN: the group may have gone far while we were away.
    """
    if number <= highest:
        raise PeerError("MIKE-4", f"epoch {number} is not above {highest}")
    if number > (NUMBER_ENTERED_MAX if entering else highest + NUMBER_JUMP_MAX):
        raise PeerError("MIKE-4", f"epoch {number} is too far above {highest}")


def next_number(highest: int, claims: Sequence[int]) -> int:
    """MIKE-4: return a number above all that the members have seen, absurd claims left out."""
    honest = [claim for claim in claims if claim <= highest + NUMBER_JUMP_MAX - 1]
    return max([highest, *honest]) + 1


def check_published(
    announced: KeyTree,
    sponsors: Sequence[NodeName],
    leaf: NodeName | None,
    keys: Mapping[NodeName, bytes],
) -> None:
    """MIKE-7: refuse keys of nodes that are not open or not this sponsor's."""
    if leaf is None or leaf not in sponsors:
        raise PeerError("MIKE-7", "sender is no sponsor of this epoch")
    for name in keys:
        if name in announced.blinded:
            raise PeerError("MIKE-7", f"node {name} is not open")
        if publisher(name, sponsors) != leaf:
            raise PeerError("MIKE-7", f"node {name} is not the sender's to publish")


def check_confirmation(keys: EpochKeys, member: IPv6Address, tag: bytes) -> None:
    """MIKE-8: refuse a tag of another root than ours, in constant time."""
    if not keys.confirms(member, tag):
        raise PeerError("MIKE-8", f"confirmation of {member} does not verify")


def check_beacon(keys: EpochKeys, sender: IPv6Address, tag: bytes) -> None:
    """MIKE-38: refuse the word of who is no TM of the epoch that we have, for it lacks its key."""
    if not keys.confirms(sender, tag):
        raise PeerError("MIKE-38", f"{sender} does not confirm the epoch of its STATUS")


def check_announcement(announcement: Announcement) -> None:
    """MIKE-9: refuse an epoch that could never be completed."""
    tree = announcement.tree
    leaves = [tree.leaf_of(sponsor) for sponsor in announcement.sponsors]
    open_above: set[NodeName] = set()
    for leaf in leaves:
        name = leaf or 0
        work = 0
        while name > 1:
            if NodeName(name) not in tree.blinded:
                open_above.add(NodeName(name))
                work += 1
            name >>= 1
        if not work:
            raise PeerError("MIKE-9", "a sponsor without an open node")
    if len(open_above) + len(tree.blinded) != 2 * len(tree) - 2:
        raise PeerError("MIKE-9", "an open node without a sponsor")
    if tree.consistent() is not tree:
        raise PeerError("MIKE-9", "a key above an open node")


def check_sender(announcement: Announced, term: int, sender: IPv6Address) -> None:
    """MIKE-3: at term 0 only the TM that announced an epoch speaks for it."""
    if term == 0 and sender != announcement.tm:
        raise PeerError("MIKE-3", f"{sender} repeats an epoch of {announcement.tm}")


def check_handover(
    message: Handover,
    sender: IPv6Address,
    view: View,
    epoch: EpochId | None,
    term: int,
) -> None:
    """MIKE-15: refuse a change of the role that the holder of the role did not make for us."""
    if sender != view.tm:
        raise PeerError("MIKE-15", f"{sender} is not the TM")
    if message.successor == sender:
        raise PeerError("MIKE-15", "a hand-over to oneself")
    if message.epoch == epoch:
        if message.term <= term:
            raise PeerError("MIKE-15", f"term {message.term} is not above {term}")
        if message.successor not in view.members:
            raise PeerError("MIKE-15", f"{message.successor} is not a member")
        if message.highest > view.highest + NUMBER_JUMP_MAX:
            raise PeerError("MIKE-4", f"number {message.highest} is too far above {view.highest}")
    elif epoch is not None and message.epoch.number <= epoch.number:
        raise PeerError("MIKE-15", f"a hand-over in the past epoch {message.epoch}")


def is_newer_request(order: tuple[int, int], seen: tuple[int, int] | None) -> bool:
    """MIKE-12: say whether a JOIN was made after the last one handled of its device.

    Args:
        order: start-up time-stamp and sequence number of its envelope.
        seen: the same of the last one, or None.
    """
    return seen is None or order > seen


def tree_body_max(members: int) -> int:
    """Return an upper bound of a TREE's body: every node a key, every member just joined."""
    fixed = 6 + 51 + 4 + 2 + 17 + 4
    position = 1 if members <= SHORT_POSITIONS_MAX else 2
    return fixed + members * (17 + 36 + 36 + position + position + 16 + 1)


def path_size_max(members: int) -> int:
    """Return an upper bound of a PATH's datagram: it never comes in fragments."""
    return OVERHEAD + 16 + 2 + 17 + 36 * height_max(members)


def fits(members: int, members_max: int, body_max: int) -> bool:
    """MIKE-20: say whether a group and its TREE may be built.

    Args:
        members: of the group.
        members_max: as configured.
        body_max: largest body that can be sent, in fragments.
    """
    return members <= members_max and tree_body_max(members) <= body_max


def check_change(message: Change, made: Announcement) -> None:
    """MIKE-39: refuse a CHANGE that does not make what it names."""
    named = {message.tm, *message.sponsors, *(who for who, _ in message.nonces)}
    if not named <= set(made.tree.addresses):
        raise PeerError("MIKE-39", "somebody is named who is no member")
    if made.digest != message.digest:
        raise PeerError("MIKE-39", f"it does not make epoch {message.epoch}")


def check_fragment_sender(view: View, sender: IPv6Address, *, asks: bool) -> None:
    """MIKE-27: refuse fragments of a device whose TREE could not be followed.

    Args:
        view: what we know.
        sender: of the fragment.
        asks: our own JOIN is unanswered, so any device may be the TM that answers.
    """
    if not asks and sender != view.tm and sender not in view.members:
        raise PeerError("MIKE-27", f"{sender} cannot be our TM")


def founds_before(own: tuple[int, IPv6Address], other: tuple[int, IPv6Address]) -> bool:
    """MIKE-17: of two joiners, (start-up time-stamp, address) decides: the smaller founds."""
    return own < other


def is_elder(startup_wall_ns: int, own_wall_ns: int, founding_delay_ns: int) -> bool:
    """MIKE-17: say whether a device began so early that it is in a group or will found one first.

    Args:
        startup_wall_ns: of the other device, as its hellos say; 0 if it is not known.
        own_wall_ns: of this one.
        founding_delay_ns: how long a joiner listens before it founds.
    """
    return 0 < startup_wall_ns <= own_wall_ns - founding_delay_ns


def may_ask(*, member: bool, established: bool, unfinished: bool) -> bool:
    """MIKE-36: say whether a silent TM is asked: by who has its epoch and waits for nothing."""
    return member and established and not unfinished


def began_anew(startup_wall_ns: int, known_wall_ns: int | None) -> bool:
    """MIKE-37: say whether IDP told of a later instance of a device than before."""
    return known_wall_ns is not None and startup_wall_ns > known_wall_ns


def check_join(message: Join) -> None:
    """MIKE-6: refuse the neutral leaf keys at once; all other low-order keys fail at first use."""
    if not any(message.key):
        raise PeerError("MIKE-6", "a leaf key of zero")


def check_roster(announcement: RekeyAnnouncement, roster: Roster) -> None:
    """MIKE-30: refuse a roster that is not the announced one, or that lacks the TM."""
    if len(roster) != announcement.members or roster.digest != announcement.roster:
        raise PeerError("MIKE-30", f"not the roster of epoch {announcement.epoch}")
    if announcement.tm not in roster.keys:
        raise PeerError("MIKE-30", "the TM is not in its roster")


def check_path(steps: Sequence[tuple[int, bytes]]) -> None:
    """MIKE-31: refuse a chain of keys that is longer than any hierarchy is high."""
    if len(steps) > PATH_MAX:
        raise PeerError("MIKE-31", f"more than {PATH_MAX} keys between leaf and root")


def fits_agreement(members: int, config: MikeConfig) -> bool:
    """MIKE-20: say whether a group of this size may be built in key agreement mode."""
    size_max = config.datagram_size_max
    return (
        members <= MEMBERS_MAX
        and path_size_max(members) <= size_max
        and fits(members, config.members_max, body_size_max(size_max, Kind.TREE))
    )


def may_grow(members: int, config: MikeConfig) -> bool:
    """MIKE-20: say whether a group may get so many members, in whatever mode that takes."""
    if config.mode is Mode.KA:
        return fits_agreement(members, config)
    return members <= config.members_max


def next_mode(present: Mode, members: int, config: MikeConfig) -> Mode:
    """MIKE-34: return the mode of a TM's next epoch.

    Args:
        present: that of the epoch before; a founder's is that of its configuration.
        members: of the next epoch.
        config: the TM's; what the others are set to does not matter.
    """
    wanted_mode: Mode = present
    if config.mode is not Mode.AUTO:
        wanted_mode = config.mode
    elif members >= config.kd_members_min:
        wanted_mode = Mode.KD
    elif members <= config.ka_members_max:
        wanted_mode = Mode.KA
    if wanted_mode is Mode.KA and present is Mode.KD and not fits_agreement(members, config):
        return Mode.KD
    return wanted_mode


def changes_max(config: MikeConfig) -> int:
    """MIKE-35: return how many members may come and go in one epoch.

    What tells them takes half of a message, the nonces of the epoch before included.
    """
    body_max = body_size_max(config.datagram_size_max)
    return (body_max // 2 - REKEY_OVERHEAD) // CHANGE_LENGTH
