"""The rehearsal is a join: were it to stop half way, it would warm up half of what it is for."""

from __future__ import annotations

from protocol.daemon.rehearsal import DEVICES, rehearse


def test_all_devices_of_the_rehearsal_use_one_epoch() -> None:
    assert rehearse() == DEVICES


def test_it_can_be_repeated() -> None:
    assert [rehearse() for _ in range(2)] == [DEVICES, DEVICES]
