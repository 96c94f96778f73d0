"""Documents that devices hand each other: certificates, revocation lists, the domain policy.

The request (kind 4) and the parts in which a document travels (kinds 5 to 7); field tables in
docs/idp.md section 3. Decoding here is syntax only (rule IDP-50). A document of several parts is
named by its hash, so parts of two documents never mix and no part can be exchanged on the way.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv6Address

from protocol.core.errors import PeerError
from protocol.core.wire import Reader, Writer
from protocol.identity import CrlEntry
from protocol.idp.messages import MessageKind

RULE_SYNTAX = "IDP-50"

FINGERPRINT_LENGTH = 16
COOKIE_LENGTH = 16
ISSUER_LENGTH = 8
NO_COOKIE = bytes(COOKIE_LENGTH)
NO_SUBJECT = bytes(FINGERPRINT_LENGTH)

ENTRIES_MAX = 32
"""Revocation lists named in one request: nations of a coalition."""

PIECE_LENGTH = 1024
"""Bytes of every part but the last: with our headers below any path's MTU (1280)."""

PARTS_MAX = 25
"""Parts of one document: 24 KiB of revocation list and some room."""

LENGTH_MAX = PIECE_LENGTH * PARTS_MAX
"""Bytes of the largest document that can travel."""

PART_OVERHEAD = 22
DOCUMENT_ID_LENGTH = 16

CHAIN_MAX = 8
"""Certificates that a chain may announce to be decoded at all; `protocol.identity.trust` refuses
more than two."""

CHAIN_CERTIFICATE_MAX = 4096

ASSEMBLIES_MAX = 16
"""Documents under way at once; the oldest gives way."""

ASSEMBLY_NS = 5_000_000_000
"""A document of which nothing came for so long is given up."""


class Subject(IntEnum):
    """What a request asks for."""

    CERTIFICATE = 1
    REVOCATIONS = 2
    POLICY = 3


KIND_OF = {
    Subject.CERTIFICATE: MessageKind.CERTIFICATE,
    Subject.REVOCATIONS: MessageKind.REVOCATIONS,
    Subject.POLICY: MessageKind.POLICY,
}
"""In which kind of message the answer travels."""

FLAG_RETURN = 0x01


@dataclass(frozen=True, slots=True)
class Request:
    """Give me your certificate, your newer revocation lists, or your policy.

    Attributes:
        subject: which.
        fingerprint: of the certificate; zeros with other subjects.
        cookie: zeros, or what the receiver returned to prove our address.
        returned: not a request: "ask again with this cookie"; as long as what it answers.
        entries: the revocation lists we have; none with other subjects.
    """

    subject: Subject
    fingerprint: bytes = NO_SUBJECT
    cookie: bytes = NO_COOKIE
    returned: bool = False
    entries: tuple[CrlEntry, ...] = ()

    def encode(self) -> bytes:
        """Return the body."""
        writer = Writer()
        writer.push_u8(self.subject, "subject")
        writer.push_u8(FLAG_RETURN if self.returned else 0, "flags")
        writer.push_bytes(self.fingerprint, FINGERPRINT_LENGTH, "fingerprint")
        writer.push_bytes(self.cookie, COOKIE_LENGTH, "cookie")
        writer.push_count(len(self.entries), ENTRIES_MAX, "entries")
        for entry in self.entries:
            writer.push_bytes(entry.issuer, ISSUER_LENGTH, "issuer")
            writer.push_u64(entry.number, "number")
            writer.push_u64(entry.issued_s, "issued_s")
        return writer.finish()

    @classmethod
    def decode(cls, body: bytes) -> Request:
        """Read a body.

        Raises:
            DecodeError: not a request (rule IDP-50).
        """
        reader = Reader(body, RULE_SYNTAX)
        subject = reader.pull_enum(Subject, "subject")
        flags = reader.pull_u8("flags")
        if flags & ~FLAG_RETURN:
            reader.fail("flags", f"reserved bits set in {flags:#04x}")
        fingerprint = reader.pull_bytes(FINGERPRINT_LENGTH, "fingerprint")
        cookie = reader.pull_bytes(COOKIE_LENGTH, "cookie")
        count = reader.pull_count(ENTRIES_MAX, "entries")
        entries = tuple(
            CrlEntry(
                reader.pull_bytes(ISSUER_LENGTH, "issuer"),
                reader.pull_u64("number"),
                reader.pull_u64("issued_s"),
            )
            for _ in range(count)
        )
        reader.finish()
        if subject is not Subject.CERTIFICATE and (any(fingerprint) or any(cookie) or flags):
            reader.fail(
                "fingerprint", f"a request for {subject.name} has neither this nor a cookie"
            )
        if subject is not Subject.REVOCATIONS and entries:
            reader.fail("entries", f"a request for {subject.name} names revocation lists")
        if [e.issuer for e in entries] != sorted({e.issuer for e in entries}):
            reader.fail("entries", "not in ascending order, or an issuer named twice")
        return cls(subject, fingerprint, cookie, bool(flags), entries)


REQUEST_LENGTH = len(Request(Subject.CERTIFICATE).encode())
"""Bytes of a request for a certificate, and of the cookie that answers it."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a document.

    Attributes:
        document: truncated hash of the whole document.
        index: from 0.
        count: how many parts there are.
        piece: `PIECE_LENGTH` bytes, in the last part 1 to that many.
    """

    document: bytes
    index: int
    count: int
    piece: bytes

    def encode(self) -> bytes:
        """Return the body."""
        writer = Writer()
        writer.push_bytes(self.document, DOCUMENT_ID_LENGTH, "document")
        writer.push_u16(self.index, "index")
        writer.push_u16(self.count, "count")
        writer.push_vector(self.piece, PIECE_LENGTH, "piece")
        return writer.finish()

    @classmethod
    def decode(cls, body: bytes) -> Part:
        """Read a body.

        Raises:
            DecodeError: not a part (rule IDP-50).
        """
        reader = Reader(body, RULE_SYNTAX)
        document = reader.pull_bytes(DOCUMENT_ID_LENGTH, "document")
        index = reader.pull_u16("index")
        count = reader.pull_count(PARTS_MAX, "count", minimum=1)
        piece = reader.pull_vector(PIECE_LENGTH, "piece")
        reader.finish()
        if index >= count:
            reader.fail("index", f"part {index} of {count}")
        if not piece or (index < count - 1 and len(piece) != PIECE_LENGTH):
            reader.fail("piece", f"{len(piece)} bytes in part {index} of {count}")
        return cls(document, index, count, piece)


def document_id(document: bytes) -> bytes:
    """Return what names a document in its parts."""
    return hashlib.sha256(document).digest()[:DOCUMENT_ID_LENGTH]


def split(document: bytes) -> list[Part]:
    """Return the parts of a document of 1 to `LENGTH_MAX` bytes."""
    pieces = [
        document[start : start + PIECE_LENGTH] for start in range(0, len(document), PIECE_LENGTH)
    ]
    name = document_id(document)
    return [Part(name, index, len(pieces), piece) for index, piece in enumerate(pieces)]


def fits(document: bytes) -> bool:
    """Return whether a document can travel."""
    return 1 <= len(document) <= LENGTH_MAX


def encode_chain(chain: Sequence[bytes]) -> bytes:
    """Return a chain of certificates as one document."""
    writer = Writer()
    writer.push_u8(len(chain), "certificates")
    for der in chain:
        writer.push_vector(der, CHAIN_CERTIFICATE_MAX, "certificate")
    return writer.finish()


def decode_chain(document: bytes) -> tuple[bytes, ...]:
    """Read a chain; no certificate in it is parsed.

    Raises:
        DecodeError: not a chain, or of an absurd length (rule IDP-50).
    """
    reader = Reader(document, RULE_SYNTAX)
    count = reader.pull_u8("certificates")
    if not 1 <= count <= CHAIN_MAX:
        reader.fail("certificates", f"chain of {count} certificates")
    chain = tuple(reader.pull_vector(CHAIN_CERTIFICATE_MAX, "certificate") for _ in range(count))
    reader.finish()
    return chain


@dataclass(slots=True)
class _Assembly:
    """Parts of one document that have come."""

    document: bytes
    count: int
    last_mono_ns: int
    pieces: dict[int, bytes]


class Assembler:
    """Puts documents together: at most one of each kind from each sender, bounded in all (IDP-54).

    Attributes:
        held_bytes: bytes of all parts that wait.
    """

    def __init__(self) -> None:
        self._assemblies: OrderedDict[tuple[IPv6Address, int], _Assembly] = OrderedDict()

    def __len__(self) -> int:
        return len(self._assemblies)

    @property
    def held_bytes(self) -> int:
        """Return how many bytes wait for their missing parts."""
        return sum(
            len(piece) for found in self._assemblies.values() for piece in found.pieces.values()
        )

    def add(self, sender: IPv6Address, kind: int, part: Part, now_mono_ns: int) -> bytes | None:
        """Take one part; return the document if it is complete.

        Raises:
            PeerError: the parts are not those of the document they name.
        """
        key = (sender, kind)
        found = self._assemblies.get(key)
        stale = found is not None and now_mono_ns - found.last_mono_ns > ASSEMBLY_NS
        if found is None or stale or found.document != part.document or found.count != part.count:
            found = _Assembly(part.document, part.count, now_mono_ns, {})
            self._assemblies[key] = found
            if len(self._assemblies) > ASSEMBLIES_MAX:
                self._assemblies.popitem(last=False)
        found.last_mono_ns = now_mono_ns
        self._assemblies.move_to_end(key)
        found.pieces[part.index] = part.piece
        if len(found.pieces) < found.count:
            return None
        del self._assemblies[key]
        document = b"".join(found.pieces[index] for index in range(found.count))
        if document_id(document) != part.document:
            raise PeerError("IDP-54", "the parts are not those of the document they name")
        return document
