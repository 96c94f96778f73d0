"""Codecs of kinds 4 to 7, of chains, and the putting together of parts: one error and no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.core.errors import DecodeError, PeerError
from protocol.identity import CrlEntry
from protocol.idp.documents import (
    ASSEMBLY_NS,
    PART_OVERHEAD,
    PIECE_LENGTH,
    Assembler,
    Part,
    Request,
    Subject,
    decode_chain,
    document_id,
    encode_chain,
    fits,
    split,
)
from tests.support.identities import address
from tests.vectors import make_documents

sixteen = st.binary(min_size=16, max_size=16)
u64 = st.integers(0, 2**64 - 1)
entries = st.dictionaries(st.binary(min_size=8, max_size=8), st.tuples(u64, u64), max_size=32).map(
    lambda found: tuple(CrlEntry(key, *found[key]) for key in sorted(found))
)
requests = st.one_of(
    st.builds(Request, st.just(Subject.CERTIFICATE), sixteen, sixteen, st.booleans()),
    st.builds(Request, st.just(Subject.REVOCATIONS), entries=entries),
    st.just(Request(Subject.POLICY)),
)
documents = st.binary(min_size=1, max_size=4000)
chains = st.lists(st.binary(max_size=200), min_size=1, max_size=8).map(tuple)


@given(requests)
def test_request_round_trip(request: Request) -> None:
    body = request.encode()
    assert Request.decode(body) == request
    for wrong in (body[:-1], body + b"\0"):
        with pytest.raises(DecodeError, match="IDP-50"):
            Request.decode(wrong)


@settings(max_examples=300)
@given(st.binary(max_size=120) | requests.map(Request.encode), st.integers(0, 2**16))
def test_one_string_stands_for_each_request(body: bytes, flip: int) -> None:
    if body:
        place = flip % (8 * len(body))
        changed = bytearray(body)
        changed[place // 8] ^= 1 << place % 8
        body = bytes(changed)
    try:
        request = Request.decode(body)
    except DecodeError:
        return
    assert request.encode() == body


@given(documents, st.randoms(use_true_random=False))
def test_parts_in_any_order_and_twice_make_the_document(document: bytes, random: object) -> None:
    parts = split(document)
    assert fits(document)
    assert all(len(part.encode()) <= PART_OVERHEAD + PIECE_LENGTH for part in parts)
    for part in parts:
        assert Part.decode(part.encode()) == part
    assembler = Assembler()
    order = parts[1:] * 2
    random.shuffle(order)  # type: ignore[attr-defined]
    for part in order:
        assert assembler.add(address(0), 6, part, 0) is None
    assert assembler.add(address(0), 6, parts[0], 0) == document
    assert len(assembler) == 0


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_one_string_stands_for_each_part(body: bytes) -> None:
    try:
        part = Part.decode(body)
    except DecodeError:
        return
    assert part.encode() == body


@pytest.mark.parametrize(
    ("index", "count", "piece"),
    [(0, 0, b"x"), (1, 1, b"x"), (0, 26, b"x" * 1024), (0, 1, b""), (0, 2, b"x" * 1023)],
)
def test_absurd_parts(index: int, count: int, piece: bytes) -> None:
    body = bytes(16) + bytes([0, index, 0, count]) + len(piece).to_bytes(2, "big") + piece
    with pytest.raises(DecodeError, match="IDP-50"):
        Part.decode(body)


def test_parts_of_two_documents_do_not_mix_and_grow_old() -> None:
    one, other = bytes(2000), bytes(1999) + b"1"
    assembler = Assembler()
    assert assembler.add(address(0), 6, split(one)[0], 0) is None
    assert assembler.add(address(0), 6, split(other)[1], 1) is None
    assert assembler.add(address(0), 6, split(one)[1], 2) is None, "the first part was given up"
    assert assembler.add(address(0), 6, split(one)[0], 3 + ASSEMBLY_NS) is None, "too late"
    assert assembler.add(address(0), 6, split(one)[1], 4 + ASSEMBLY_NS) == one
    forged = Part(document_id(one), 0, 1, b"x")
    with pytest.raises(PeerError, match="IDP-54"):
        assembler.add(address(0), 6, forged, 0)


@given(chains)
def test_chain_round_trip(chain: tuple[bytes, ...]) -> None:
    document = encode_chain(chain)
    assert decode_chain(document) == chain
    for wrong in (document[:-1], document + b"\0", b""):
        with pytest.raises(DecodeError, match="IDP-50"):
            decode_chain(wrong)


def test_chains_of_an_absurd_length_are_refused_by_the_first_byte() -> None:
    for count in (0, 9, 100, 255):
        with pytest.raises(DecodeError, match=f"chain of {count} certificates"):
            decode_chain(bytes([count]) + b"\0\1x" * count)


def test_vectors() -> None:
    path = Path(__file__).parents[1] / "vectors" / "documents.json"
    assert json.loads(path.read_text()) == make_documents.vectors()
    written = json.loads(path.read_text())
    for name, text in written["requests"].items():
        assert Request.decode(bytes.fromhex(text)) == make_documents.REQUESTS[name]
    assert decode_chain(bytes.fromhex(written["chain"]["document"])) == make_documents.CHAIN
