"""The keys of a pair's SAs: HKDF as RFC 5869 has it, and who lacks what."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from protocol.core.errors import LocalError
from protocol.ipsec.model import SecurityAssociation, Suite
from protocol.ipsec.pairschedule import PairEnd, epoch_context, pair_sas, psk_context

DOCUMENT = (Path(__file__).resolve().parents[3] / "docs/idp.md").read_text()

A = PairEnd(IPv6Address("2001:db8:b::1"), bytes(range(32)), 4)
B = PairEnd(IPv6Address("2001:db8:b::2"), bytes(range(32, 64)), 9)
SECRET, GROUP_KEY, TAG = b"s" * 32, b"g" * 32, b"tagtagta"


def sas(
    own: PairEnd = A, peer: PairEnd = B, secret: bytes = SECRET, **changes: Any
) -> tuple[SecurityAssociation, SecurityAssociation]:
    context = {"group_key": GROUP_KEY, "epoch_number": 7, "epoch_tag": TAG, "taken": frozenset()}
    made = epoch_context(**{**context, **changes})
    return pair_sas(secret, made, own, peer, suite=Suite.AES_GCM_128, reqid=8, if_id=66)


def encoded(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(2, "big") + part for part in parts)


def test_written_a_second_time_with_another_librarys_hkdf() -> None:
    epoch = encoded((7).to_bytes(8, "big"), TAG)
    root = HKDFExpand(SHA256(), 32, encoded(b"idpmike v1 pair root") + epoch).derive(GROUP_KEY)
    about = encoded(b"aes-gcm-128", A.address.packed, B.address.packed, A.instance, B.instance)
    info = encoded(b"idpmike v1 pair sa key") + epoch + about
    outbound, _ = sas()
    assert outbound.key.encryption == HKDF(SHA256(), 20, root, info).derive(SECRET)
    info = encoded(b"idpmike v1 pair sa spi") + epoch + about + encoded(bytes(4))
    drawn = int.from_bytes(HKDF(SHA256(), 4, root, info).derive(SECRET), "big")
    assert outbound.spi == drawn & ~0x7FFF | A.place << 2 | 7 & 3


def test_vectors_of_the_document() -> None:
    rows = re.findall(r"\| (group|psk) \| ::(\d) \| `(0x\w{8})` \| `(\w{40})` \|", DOCUMENT)
    group = epoch_context(b"\x07" * 32, 5, bytes.fromhex("0102030405060708"), frozenset())
    one, two = (IPv6Address(f"2001:db8:b::{n}") for n in (1, 2))
    keyed = PairEnd(one, b"\x01" * 32, 0), PairEnd(two, b"\x02" * 32, 1)
    stamped = PairEnd(one, (9).to_bytes(8, "big")), PairEnd(two, (10).to_bytes(8, "big"))
    words = {"suite": Suite.AES_GCM_128, "reqid": 8, "if_id": 66}
    found = [
        (mode, str(sa.source)[-1], f"{sa.spi:#010x}", sa.key.encryption.hex())
        for mode, context, ends in (("group", group, keyed), ("psk", psk_context(), stamped))
        for sa in pair_sas(b"\x05" * 32, context, *ends, **words)  # type: ignore[arg-type]
    ]
    assert rows == found


def test_both_ends_make_the_same_two_sas() -> None:
    (mine_out, mine_in), (theirs_out, theirs_in) = sas(), sas(B, A)
    for sent, received in ((mine_out, theirs_in), (theirs_out, mine_in)):
        assert (sent.id, sent.key, sent.source) == (received.id, received.key, received.source)
        assert (sent.direction, received.direction) == ("out", "in")
        assert (sent.replay_window, received.replay_window) == (0, 64)
    assert mine_out.key != mine_in.key


@pytest.mark.parametrize(
    "changes",
    [
        {"group_key": b"h" * 32},  # a former member
        {"secret": b"t" * 32},  # another member
        {"epoch_number": 8},
        {"epoch_tag": b"gattagta"},
        {"own": replace(A, instance=bytes(32))},
        {"peer": replace(B, instance=bytes(32))},
        {"peer": replace(B, address=IPv6Address("2001:db8:b::3"))},
    ],
)
def test_whoever_lacks_one_input_has_other_keys(changes: dict[str, Any]) -> None:
    keys = {sa.key for sa in sas()}
    assert not keys & {sa.key for sa in sas(**changes)}


def test_spis_of_all_senders_and_of_four_epochs_are_apart_at_a_receiver() -> None:
    found = set()
    for number in range(4):
        for place in range(60):
            sender = PairEnd(IPv6Address(place + 1000), bytes([place]) * 32, place)
            found.add(sas(B, sender, secret=bytes([place]) * 32, epoch_number=number)[1].spi)
    assert len(found) == 240


def test_an_spi_of_the_group_is_passed_over_at_both_ends() -> None:
    taken = frozenset({sas()[0].spi})
    mine, theirs = sas(taken=taken)[0], sas(B, A, taken=taken)[1]
    assert mine.spi == theirs.spi
    assert mine.spi not in taken
    assert mine.spi & 0x7FFF == A.place << 2 | 3


def test_the_pre_shared_key_is_bound_to_both_start_up_time_stamps() -> None:
    def made(ours: int, theirs: int, psk: bytes = SECRET) -> set[Any]:
        own, peer = (
            PairEnd(end.address, stamp.to_bytes(8, "big"))
            for end, stamp in ((A, ours), (B, theirs))
        )
        found = pair_sas(psk, psk_context(), own, peer, suite=Suite.AES_GCM_128, reqid=8, if_id=1)
        return {sa.key for sa in found}

    assert made(1, 2) == made(1, 2)
    for other in (made(3, 2), made(1, 3), made(2, 1), made(1, 2, b"t" * 32)):
        assert not made(1, 2) & other


def test_mistakes_of_the_caller() -> None:
    with pytest.raises(LocalError, match="group key has 3 bytes"):
        sas(group_key=b"abc")
    with pytest.raises(LocalError, match="8192 members"):
        sas(replace(A, place=8192))
