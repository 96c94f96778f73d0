"""Our count of red packets beside tshark's: what agrees, and what does not."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.ledger import Counted, Ledger

GROUP = "ff0e::7e57"
SOURCE = "fd00:1::a"


def row(red: int, *, packets: int | None = None, decrypted: int | None = None) -> dict[str, Any]:
    ledger = Ledger(frozenset({GROUP}))
    ledger.enter("2-ab", {256})
    ledger.add("2-ab", SOURCE, 20)
    ledger.add("2-ab", SOURCE, 8, early=True)
    counted = Counted(256, packets or red, decrypted or red, {(SOURCE, GROUP): red})
    (found,) = (one for one in ledger.rows([counted], [SOURCE]) if one["epoch"] == "2-ab")
    return found


@pytest.mark.parametrize(("red", "equal"), [(19, False), (20, True), (28, True), (29, False)])
def test_only_what_was_sent_early_may_be_missing(red: int, equal: bool) -> None:
    assert row(red)["equal"] is equal


def test_a_packet_that_does_not_decrypt_is_never_equal() -> None:
    assert not row(20, packets=21)["equal"]


def test_what_else_was_decrypted_is_told_apart() -> None:
    found = row(20, packets=22, decrypted=22)
    assert (found["red"], found["other"], found["equal"]) == (20, 2, True)


def test_packets_of_unknown_sas_belong_to_no_epoch_and_agree_with_nothing() -> None:
    ledger = Ledger(frozenset({GROUP}))
    ledger.enter("2-ab", {256})
    rows = ledger.rows([Counted(300, 1, 1, {(SOURCE, GROUP): 1})], [SOURCE])
    assert [(one["epoch"], one["equal"]) for one in rows] == [("", False), ("2-ab", True)]
