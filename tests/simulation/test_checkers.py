"""Each checker objects to a broken history, and does not to a sound one."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address

import pytest

from testbed.sim import checkers
from testbed.sim.checkers import Checker
from testbed.sim.history import (
    Detected,
    Injected,
    KeyPublished,
    MikeStarted,
    Record,
    Sampled,
    Signalled,
    View,
)
from testbed.sim.pairview import PairsView
from testbed.sim.people import address, red_prefix

KEY, OTHER = b"k" * 32, b"o" * 32
EVERYBODY = frozenset(address(index) for index in range(3))


def objections(checker: Checker, *records: Record) -> list[str]:
    return [text for text in map(checker.record, records) if text is not None]


def view(device: int, **changes: object) -> View:
    sound = View(
        device=device,
        address=address(device),
        peers_up=EVERYBODY - {address(device)},
        epoch="7-aa",
        unfinished=False,
        key=KEY,
        members=EVERYBODY,
        tm=address(1),
        is_tm=device == 1,
        active_epoch="7-aa",
        sources=EVERYBODY,
        pairs=PairsView(),
        routes=frozenset(),
        announced=frozenset(),
        sad="digest",
    )
    return replace(sound, **changes)  # type: ignore[arg-type]


def views(**changes: object) -> list[View]:
    """Three devices that agree, but for what the second one says."""
    return [view(0), view(1, **changes), view(2)]


def key(device: int, pointer: str, value: bytes = KEY, at_ms: float = 1.0) -> KeyPublished:
    return KeyPublished(at_ms, device, pointer, value)


# While it runs.


def test_two_keys_for_one_epoch_also_under_two_tms() -> None:
    sound = (key(0, "7-aa"), key(1, "7-aa"), key(0, "8-bb", OTHER))
    assert not objections(checkers.OneKeyPerEpoch(), *sound)
    assert objections(checkers.OneKeyPerEpoch(), *sound, key(2, "7-aa", OTHER))
    assert objections(checkers.OneKeyPerEpoch(), *sound, key(2, "8-cc", OTHER))


def test_an_epoch_that_goes_back_or_stands_still() -> None:
    grown = (key(0, "7-aa"), key(0, "8-bb"), key(1, "3-cc"))
    assert not objections(checkers.EpochsGrow(), *grown)
    assert not objections(checkers.EpochsGrow(), *grown, MikeStarted(2.0, 0), key(0, "1-dd"))
    assert objections(checkers.EpochsGrow(), *grown, key(0, "8-dd"))
    assert objections(checkers.EpochsGrow(), *grown, key(0, "7-aa"))


def test_a_stranger_that_causes_or_changes_anything() -> None:
    quiet = Injected(1.0, 0, "noise", ("Log",), ())
    assert not objections(checkers.StrangersChangeNothing(), quiet)
    sends = replace(quiet, effects=("Log", "SendDatagram"))
    assert objections(checkers.StrangersChangeNothing(), sends)
    assert objections(checkers.StrangersChangeNothing(), replace(quiet, changed=("peers",)))


@pytest.mark.parametrize(
    "field", ["timers", "outstanding", "keys", "sas", "refusals", "entries", "sent"]
)
def test_anything_that_grows(field: str) -> None:
    small = Sampled(5_000.0, 0, 9, 0, 2, 6, 3, 300, 40, 5_000.0)
    assert not objections(checkers.StateIsBounded(3), small)
    assert objections(checkers.StateIsBounded(3), replace(small, **{field: 100_000}))


def test_a_flap_that_costs_a_key_or_is_noticed() -> None:
    early, late = key(0, "7-aa", at_ms=900.0), key(0, "8-bb", at_ms=1_100.0)
    assert not objections(checkers.NoRekey(1_000.0), early)
    assert objections(checkers.NoRekey(1_000.0), late)
    assert objections(checkers.NoRekey(1_000.0), Detected(1_100.0, 0, "leave", address(1)))


# When it is judged.

LEFT = ("in", address(9), red_prefix(9))


def forgotten(dead: int, *, sas: bool) -> checkers.DeadIsForgotten:
    return checkers.DeadIsForgotten(address(dead), [red_prefix(dead)], sas=sas)


@pytest.mark.parametrize(
    ("checker", "changes"),
    [
        (checkers.TablesAgree(), {"peers_up": frozenset({address(0)})}),
        (checkers.TablesAgree(), {"peers_up": EVERYBODY | {address(9)}}),
        (checkers.GroupAgrees(), {"epoch": None, "key": None}),
        (checkers.GroupAgrees(), {"unfinished": True}),
        (checkers.GroupAgrees(), {"key": None}),
        (checkers.GroupAgrees(), {"key": OTHER}),
        (checkers.GroupAgrees(), {"epoch": "7-bb"}),
        (checkers.GroupAgrees(), {"members": EVERYBODY | {address(9)}}),
        (checkers.GroupAgrees(), {"members": frozenset({address(1), address(2)})}),
        (checkers.GroupAgrees(), {"tm": address(0)}),
        (checkers.GroupAgrees(), {"is_tm": False}),
        (checkers.GroupAgrees(), {"active_epoch": "6-aa"}),
        (checkers.SasAgree(), {"sources": EVERYBODY | {address(9)}}),
        (checkers.SasAgree(), {"sources": frozenset({address(1)})}),
        (checkers.SasAgree(), {"sad": "another"}),
        (forgotten(2, sas=False), {}),
        (forgotten(9, sas=True), {"sources": frozenset({address(9)})}),
        (forgotten(9, sas=True), {"pairs": PairsView(policies=frozenset({LEFT}))}),
        (forgotten(9, sas=True), {"routes": frozenset({red_prefix(9)})}),
    ],
    ids=lambda value: value.name if isinstance(value, Checker) else "-".join(value),
)
def test_devices_that_do_not_agree(checker: Checker, changes: dict[str, object]) -> None:
    if not isinstance(checker, checkers.DeadIsForgotten):
        assert checker.judge(views()) is None
    assert checker.judge(views(**changes)) is not None


def test_one_that_is_forgotten() -> None:
    assert forgotten(9, sas=True).judge(views()) is None


def test_with_a_shared_sa_each_device_has_its_own_source_only() -> None:
    own = [view(n, sources=frozenset({address(n)})) for n in range(3)]
    assert checkers.SasAgree(shared=True).judge(own) is None
    assert checkers.SasAgree(shared=True).judge(views()) is not None


def signal(kind: str, peer: IPv6Address, *, own: bool, matters: bool) -> Signalled:
    return Signalled(1.0, 1, kind, peer, own, matters)


def test_a_signal_that_no_key_follows() -> None:
    restored = signal("restore", address(1), own=True, matters=True)
    lost = signal("leave", address(2), own=False, matters=True)
    news = signal("join", address(2), own=False, matters=False)
    leaves = signal("leave", address(1), own=True, matters=False)
    for due in (restored, lost):
        for after, fine in (
            ((), False),
            ((news,), False),
            ((key(0, "8-bb"),), False),
            ((key(1, "8-bb"),), True),
            ((leaves,), True),
            ((MikeStarted(2.0, 1),), True),
        ):
            checker = checkers.SignalsLeadToKeys()
            assert not objections(checker, due, *after)
            assert (checker.judge(views()) is None) is fine, (due, after)
