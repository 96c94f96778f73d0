"""The two messages of key distribution (KD) mode: REKEY and PAGE; syntax only.

As in `protocol.mike.messages`: one encoding of every message, another one is refused (MIKE-1).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from ipaddress import IPv6Address

from protocol.core.wire import Reader, Writer
from protocol.idpmike import EpochId
from protocol.mike.fields import (
    GROUP_MAX,
    MESSAGE_MAX,
    NONCE_LENGTH,
    RULE_SYNTAX,
    pull_confirmation,
    pull_head,
    push_confirmation,
    push_head,
)
from protocol.mike.roster import Entry
from protocol.mike.schedule import (
    BLINDED_LENGTH,
    DIGEST_LENGTH,
    EPOCH_TAG_LENGTH,
    LABEL_DISTRIBUTION,
    WRAPPED_LENGTH,
    announcement_digest,
)

LEAF = 1 << 31
"""Bit of a wrap's ``under``: the rest is a position in the roster; its pairwise key is meant."""

ROOT_KEY = 0
"""Number of the key that an epoch's wraps lead to: the root secret, new in every epoch."""

ENTRY_LENGTH = 16 + BLINDED_LENGTH
WRAP_LENGTH = 4 + 4 + WRAPPED_LENGTH
WRAPS_MAX = MESSAGE_MAX // WRAP_LENGTH
CHANGES_MAX = MESSAGE_MAX // 16
REKEY_OVERHEAD = 2 + 81 + 4 + BLINDED_LENGTH + 2 + 17
"""Bytes of a REKEY without changes, nonces and wraps."""

PAGE_OVERHEAD = DIGEST_LENGTH + 2 + 2


@dataclass(frozen=True, slots=True)
class Wrap:
    """A key of the hierarchy, wrapped under the key below it.

    Attributes:
        key: number of the wrapped key in the TM's hierarchy, or `ROOT_KEY`.
        wrapped: RFC 3394.
    """

    key: int
    wrapped: bytes = field(repr=False)


@dataclass(frozen=True)
class RekeyAnnouncement:
    """What a TM decides about one epoch in key distribution mode; hashed like `Announcement`.

    Attributes:
        number: of the epoch.
        previous: the epoch it follows; its roster is what the changes apply to.
        tm: who announced it, a member.
        members: size of the group.
        roster: digest of the roster after the changes.
        removed: members excluded, ascending.
        added: new members in the order in which they are appended, and members with a new leaf key.
        nonces: (member, nonce) of the JOINs granted, ascending, as in `Announcement`.
    """

    number: int
    previous: EpochId
    tm: IPv6Address
    members: int
    roster: bytes
    removed: tuple[IPv6Address, ...] = ()
    added: tuple[Entry, ...] = ()
    nonces: tuple[tuple[IPv6Address, bytes], ...] = ()

    @property
    def sponsors(self) -> tuple[IPv6Address, ...]:
        """Nobody: no member has to publish anything."""
        return ()

    @cached_property
    def encoded(self) -> bytes:
        """The canonical bytes."""
        writer = Writer()
        push_head(writer, self.number, self.previous, self.tm)
        writer.push_count(self.members, GROUP_MAX, "members")
        writer.push_bytes(self.roster, DIGEST_LENGTH, "roster")
        writer.push_count(len(self.removed), CHANGES_MAX, "removed")
        for address in self.removed:
            writer.push_address(address)
        _push_entries(writer, self.added, "added")
        writer.push_count(len(self.nonces), CHANGES_MAX, "nonces")
        for address, nonce in self.nonces:
            writer.push_address(address)
            writer.push_bytes(nonce, NONCE_LENGTH, "nonce")
        return writer.finish()

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the canonical bytes, labelled."""
        return announcement_digest(self.encoded, LABEL_DISTRIBUTION)

    @cached_property
    def epoch(self) -> EpochId:
        """The epoch's id."""
        return EpochId(self.number, self.digest[:EPOCH_TAG_LENGTH])

    @classmethod
    def decode(cls, encoded: bytes) -> RekeyAnnouncement:
        """Read the canonical bytes."""
        reader = Reader(encoded, RULE_SYNTAX)
        number, previous, tm = pull_head(reader)
        members = reader.pull_count(GROUP_MAX, "members", minimum=1)
        roster = reader.pull_bytes(DIGEST_LENGTH, "roster")
        removed: list[IPv6Address] = []
        for _ in range(reader.pull_count(CHANGES_MAX, "removed")):
            address = reader.pull_address("removed")
            if removed and address <= removed[-1]:
                reader.fail("removed", "not in ascending order")
            removed.append(address)
        added = _pull_entries(reader, "added")
        if tm in removed or {who for who, _ in added} & set(removed):
            reader.fail("removed", "a member that is removed is the TM, or added")
        nonces: list[tuple[IPv6Address, bytes]] = []
        for _ in range(reader.pull_count(CHANGES_MAX, "nonces")):
            address = reader.pull_address("nonce")
            if nonces and address <= nonces[-1][0]:
                reader.fail("nonce", "not in ascending order")
            nonces.append((address, reader.pull_bytes(NONCE_LENGTH, "nonce")))
        reader.finish()
        made = cls(number, previous, tm, members, roster, tuple(removed), added, tuple(nonces))
        made.__dict__["encoded"] = encoded
        return made


@dataclass(frozen=True, slots=True)
class Rekey:
    """The TM's word about an epoch, and keys for (some of) its members.

    Attributes:
        announcement: what was decided.
        term: number of hand-overs since; the sender is the announcing TM at 0.
        key: the sender's distribution key: pairwise keys are made with it, and the numbers of
            the hierarchy's keys count in it.
        wraps: by the number of the key that wraps, or `LEAF` and a position.
        confirmation: the sender's tag if it has the root, else None.
    """

    announcement: RekeyAnnouncement
    term: int
    key: bytes
    wraps: dict[int, Wrap] = field(default_factory=dict)
    confirmation: bytes | None = None

    def encode(self) -> bytes:
        """Return the body."""
        writer = Writer()
        writer.push_vector(self.announcement.encoded, MESSAGE_MAX, "announcement")
        writer.push_u32(self.term, "term")
        writer.push_bytes(self.key, BLINDED_LENGTH, "key")
        writer.push_count(len(self.wraps), WRAPS_MAX, "wraps")
        for under in sorted(self.wraps):
            wrap = self.wraps[under]
            writer.push_u32(under, "under")
            writer.push_u32(wrap.key, "wrapped key")
            writer.push_bytes(wrap.wrapped, WRAPPED_LENGTH, "wrap")
        push_confirmation(writer, self.confirmation)
        return writer.finish()

    def in_parts(self, body_max: int) -> tuple[Rekey, ...]:
        """Return it in messages of at most so many bytes, each with some of the wraps.

        Members add up the wraps of one epoch, so it does not matter which part has which.
        """
        bare = replace(self, wraps={})
        step = (body_max - len(bare.encode())) // WRAP_LENGTH
        unders = list(self.wraps)
        return tuple(
            replace(
                self, wraps={under: self.wraps[under] for under in unders[start : start + step]}
            )
            for start in range(0, max(1, len(unders)), step)
        )

    @classmethod
    def decode(cls, body: bytes) -> Rekey:
        """Read a body."""
        reader = Reader(body, RULE_SYNTAX)
        announcement = RekeyAnnouncement.decode(reader.pull_vector(MESSAGE_MAX, "announcement"))
        term = reader.pull_u32("term")
        key = reader.pull_bytes(BLINDED_LENGTH, "key")
        wraps: dict[int, Wrap] = {}
        last = ROOT_KEY
        for _ in range(reader.pull_count(WRAPS_MAX, "wraps")):
            under = reader.pull_u32("under")
            if under <= last:
                reader.fail("under", "the root, or not in ascending order")
            number = reader.pull_u32("wrapped key")
            if number >= LEAF or number == under:
                reader.fail("wrapped key", "no key of a hierarchy, or itself")
            wraps[under] = Wrap(number, reader.pull_bytes(WRAPPED_LENGTH, "wrap"))
            last = under
        confirmation = pull_confirmation(reader)
        reader.finish()
        return cls(announcement, term, key, wraps, confirmation)


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a roster.

    Attributes:
        roster: digest of the whole.
        start: position of the first entry.
        entries: in position order, at least one.
    """

    roster: bytes
    start: int
    entries: tuple[Entry, ...]

    def encode(self) -> bytes:
        """Return the body."""
        writer = Writer()
        writer.push_bytes(self.roster, DIGEST_LENGTH, "roster")
        writer.push_count(self.start, GROUP_MAX, "start")
        _push_entries(writer, self.entries, "entries")
        return writer.finish()

    @classmethod
    def decode(cls, body: bytes) -> Page:
        """Read a body."""
        reader = Reader(body, RULE_SYNTAX)
        roster = reader.pull_bytes(DIGEST_LENGTH, "roster")
        start = reader.pull_count(GROUP_MAX, "start")
        entries = _pull_entries(reader, "entries")
        reader.finish()
        if not entries or start + len(entries) > GROUP_MAX:
            reader.fail("entries", "none, or beyond the largest group")
        return cls(roster, start, entries)


def _push_entries(writer: Writer, entries: tuple[Entry, ...], name: str) -> None:
    """Append addresses and leaf keys."""
    writer.push_count(len(entries), CHANGES_MAX, name)
    for address, key in entries:
        writer.push_address(address)
        writer.push_bytes(key, BLINDED_LENGTH, name)


def _pull_entries(reader: Reader, name: str) -> tuple[Entry, ...]:
    """Read addresses and leaf keys; no address occurs twice."""
    entries: dict[IPv6Address, bytes] = {}
    for _ in range(reader.pull_count(CHANGES_MAX, name)):
        address = reader.pull_address(name)
        if address in entries:
            reader.fail(name, "a member is named twice")
        entries[address] = reader.pull_bytes(BLINDED_LENGTH, name)
    return tuple(entries.items())
