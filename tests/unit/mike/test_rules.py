"""Rules that are pure functions, and the table of rules against the document."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from protocol.core.errors import LocalError, PeerError
from protocol.idpmike import EpochId
from protocol.mike import rules
from protocol.mike.answers import ANSWERED_MAX, SUBJECTS_MAX, Answers, To
from protocol.mike.config import MikeConfig
from protocol.mike.fragments import body_size_max
from protocol.mike.keytree import KeyTree
from protocol.mike.membership import LEFT_MAX, GroupFigures, Liveness, absent, candidate
from protocol.mike.messages import NO_EPOCH, Announcement, Kind
from protocol.mike.rules import Authority, Standing, View, authority
from protocol.mike.states import MOVES, State, may_move
from protocol.mike.transaction import Request, Transaction
from protocol.mike.treemath import NodeName
from tests.support.identities import address

TESTS = Path(__file__).resolve().parents[2]
DOCUMENT = (Path(__file__).resolve().parents[3] / "docs" / "mike.md").read_text()
A = [address(index) for index in range(5)]


def test_the_document_has_the_table_of_rules() -> None:
    rows = dict(re.findall(r"^\| (MIKE-\d+) \| (.+?) \|", DOCUMENT, re.MULTILINE))
    assert rows == rules.RULES


def test_the_document_draws_the_table_of_moves() -> None:
    drawn = re.findall(r"^    (\w+) --> (\w+): (.+)$", DOCUMENT, re.MULTILINE)
    table = [
        (before.value, after.value, why)
        for before, moves in MOVES.items()
        for after, why in moves.items()
    ]
    assert drawn == table
    assert not may_move(State.PARKED, State.TM)


def test_the_document_names_every_message() -> None:
    for kind in Kind:
        assert re.search(rf"^### 3\.\d+ {kind.name} \({kind.value}\)", DOCUMENT, re.MULTILINE)


def test_the_document_names_tests_that_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", DOCUMENT))
    tests = "\n".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    assert len(named) > 20
    assert named <= set(re.findall(r"^def (test_\w+)\(", tests, re.MULTILINE))


def announcement(nonces: tuple[tuple[object, bytes], ...] = ()) -> Announcement:
    tree = KeyTree({NodeName(2): A[0], NodeName(3): A[1]}, {NodeName(2): b"a" * 32})
    return Announcement(7, EpochId(6, bytes(8)), A[1], tree, (A[1],), nonces)  # type: ignore[arg-type]


def view(**changes: object) -> View:
    base: dict[str, object] = {
        "own": A[2],
        "tm": A[0],
        "members": tuple(A),
        "gone": {},
        "passed": {},
        "nonce": None,
        "highest": 6,
    }
    return View(**{**base, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "sender", "verdict"),
    [
        ({}, 0, Authority.FOLLOW),
        ({}, 1, Authority.HOLD),
        ({"tm": None}, 0, Authority.REFUSE),
        ({"members": (A[0], A[2])}, 1, Authority.REFUSE),
        ({"gone": {A[0]: 1}}, 1, Authority.FOLLOW),
        ({"gone": {A[0]: 1}}, 3, Authority.HOLD),
        ({"gone": {A[0]: 1, A[1]: 1}}, 2, Authority.FOLLOW),
        ({"gone": {A[0]: 1}, "passed": {A[1]: None}}, 2, Authority.FOLLOW),
        ({"gone": {A[1]: 1}}, 2, Authority.HOLD),
    ],
)
def test_authority(changes: dict[str, object], sender: int, verdict: Authority) -> None:
    """MIKE-3, MIKE-13, MIKE-14."""
    assert authority(view(**changes), announcement(), A[sender]) is verdict


def test_a_group_that_was_founded_anew_succeeds_none() -> None:
    """MIKE-14: its epoch has none before it; a TM that began anew is none any more (MIKE-22)."""
    ours, founded = announcement(), replace(announcement(), previous=NO_EPOCH)
    dead = view(gone={A[0]})
    assert authority(dead, ours, A[1]) is Authority.FOLLOW
    assert authority(dead, founded, A[1]) is Authority.REFUSE
    assert authority(view(), ours, A[0]) is Authority.FOLLOW
    assert authority(view(tm_deposed=True), ours, A[0]) is Authority.REFUSE


def test_a_granted_nonce_gives_authority() -> None:
    """MIKE-3."""
    granted = announcement(((A[2], b"n" * 16),))
    assert authority(view(tm=None, nonce=b"n" * 16), granted, A[4]) is Authority.FOLLOW
    assert authority(view(tm=None, nonce=b"m" * 16), granted, A[4]) is Authority.REFUSE


def test_wanted_kinds() -> None:
    """MIKE-2."""
    wanted = partial(rules.wanted, handed_over=False, may_found=True)
    assert wanted(Standing.OUTSIDE) == frozenset()
    assert Kind.JOIN not in wanted(Standing.MEMBER)
    assert Kind.REPAIR in wanted(Standing.MEMBER, handed_over=True)
    assert Kind.REPAIR in wanted(Standing.TM)
    assert wanted(Standing.JOINING) == wanted(Standing.JOINING, may_found=False) | {Kind.JOIN}
    assert Kind.JOIN in wanted(Standing.TM, may_found=False)


def test_who_began_a_founding_delay_earlier_is_an_elder() -> None:
    """MIKE-17."""
    assert rules.is_elder(600, 1000, 400)
    assert not rules.is_elder(601, 1000, 400)
    assert not rules.is_elder(0, 1000, 400)


def test_numbers() -> None:
    """MIKE-4."""
    assert rules.next_number(5, []) == 6
    assert rules.next_number(5, [9, 3]) == 10
    assert rules.next_number(5, [1 << 60]) == 6
    rules.check_number(6, 5)
    rules.check_number(1 << 40, 0, entering=True)
    rules.check_number(1 << 61, 5, entering=True)
    with pytest.raises(PeerError):
        rules.check_number((1 << 61) + 1, 5, entering=True)
    with pytest.raises(PeerError):
        rules.check_number(5, 5, entering=True)
    for number in (5, 4, 5 + (1 << 32) + 1):
        with pytest.raises(PeerError):
            rules.check_number(number, 5)


def test_two_groups_have_a_total_order() -> None:
    """MIKE-16."""
    ordered = [
        GroupFigures(3, 9, A[0]),
        GroupFigures(2, 9, A[0]),
        GroupFigures(2, 9, A[1]),
        GroupFigures(2, 8, A[0]),
    ]
    for place, winner in enumerate(ordered):
        for loser in ordered[place + 1 :]:
            assert winner.outranks(loser)
            assert not loser.outranks(winner)


def test_succession() -> None:
    """MIKE-13."""
    assert candidate(A, {A[0]: 1}) == A[1]
    assert candidate(A, {A[0]: 1}, {A[1]: None}) == A[2]
    assert candidate(A[:1], {A[0]: 1}) is None
    assert absent(A, {A[3]: 1, A[1]: 1}) == [A[1], A[3]]


def test_liveness_is_bounded() -> None:
    liveness = Liveness()
    last = 4 * LEFT_MAX - 1
    for index in range(last + 1):
        liveness.lost(address(index), index)
    assert len(liveness.gone) == LEFT_MAX
    assert not liveness.outlived(address(last), last)
    assert liveness.outlived(address(last), last + 1)
    assert liveness.outlived(address(0), 0)
    liveness.turn_passed(address(1))
    liveness.settled()
    assert not liveness.passed
    assert len(liveness.gone) == LEFT_MAX


def test_a_join_counts_once_and_only_the_newest() -> None:
    """MIKE-12."""
    work = Transaction(2)
    request = Request(A[0], b"n" * 16, b"k" * 32, 0)
    assert work.ask(request, (1, 5))
    assert not work.ask(request, (1, 5))
    assert not work.ask(request, (1, 4))
    assert work.ask(request, (2, 0))
    assert work.ask(Request(A[1], b"n" * 16, b"k" * 32, 0), (1, 0))
    assert not work.ask(Request(A[2], b"n" * 16, b"k" * 32, 0), (1, 0))


def test_answers_are_rate_limited_and_their_table_bounded() -> None:
    """MIKE-18."""
    work = Answers()
    assert work.may_answer(A[0], 0, 50)
    assert not work.may_answer(A[0], 49, 50)
    assert work.may_answer(A[0], 50, 50)
    for index in range(ANSWERED_MAX + 50):
        work.may_answer(address(index), 100, 50)
    assert len(work._answered) == ANSWERED_MAX


def test_the_second_asker_is_answered_together_with_all_others() -> None:
    """MIKE-28."""
    answers = Answers()
    assert answers.to_whom(b"tree", A[0], 0b0101, 0, 200) == (To.ASKER, 0b0101)
    assert answers.to_whom(b"tree", A[1], 0b0010, 30, 200) == (To.ALL, 0b0111)
    assert answers.to_whom(b"tree", A[2], 0b0010, 31, 200) == (To.NOBODY, 0)
    # The answer to all was lost on its way to the second asker; a third one asks much later.
    assert answers.to_whom(b"tree", A[1], 0b0010, 60, 200) == (To.ASKER, 0b0010)
    assert answers.to_whom(b"tree", A[3], 0b1000, 1000, 200) == (To.ASKER, 0b1000)
    assert answers.to_whom(b"other", A[3], 0, 1001, 200) == (To.ASKER, 0)
    for number in range(100):
        answers.to_whom(b"%d" % number, A[0], 0, 2000, 200)
    assert len(answers._subjects) == SUBJECTS_MAX


@pytest.mark.parametrize(
    "wrong",
    [
        {"join_retry_ms": 0},
        {"join_retry_ms": 2000},
        {"members_max": 1025},
        {"change_parts_min": 0},
        {"tm_silence_ms": 1000},
        {"datagram_size_max": 511},
        {"datagram_size_max": 8193},
        {"rekey_interval_ms": -1},
        {"founding_delay_ms": 1.5},
        {"keys_kept": True},
        {"mode": "kx"},
        {"mode": 1},
        {"members_max": 1025, "mode": "kd"},
        {"kd_members_min": 48},
        {"kd_members_min": 513},
        {"kd_batch_ms": 0},
    ],
)
def test_a_wrong_setting_is_named(wrong: dict[str, object]) -> None:
    with pytest.raises(LocalError, match=rf"mike\.{next(iter(wrong))}"):
        MikeConfig(**wrong)


def test_sizes_of_key_distribution_mode() -> None:
    """MIKE-20, MIKE-35."""
    config = MikeConfig(mode="kd", members_max=1024)
    assert rules.may_grow(1024, config)
    assert not rules.may_grow(1025, config)
    assert not rules.may_grow(256, MikeConfig(members_max=255))
    assert rules.fits_agreement(128, MikeConfig())
    assert rules.fits_agreement(1024, config)
    assert not rules.fits_agreement(1025, replace(MikeConfig(), members_max=1024))
    small = MikeConfig(members_max=1024, datagram_size_max=512)
    assert rules.fits_agreement(256, small)
    assert not rules.fits_agreement(257, small), "a PATH would not fit"
    assert rules.changes_max(MikeConfig()) == 145
    assert rules.changes_max(MikeConfig(datagram_size_max=512)) == 52


def test_founding_order() -> None:
    """MIKE-17."""
    assert rules.founds_before((1, A[1]), (2, A[0]))
    assert rules.founds_before((1, A[0]), (1, A[1]))
    assert not rules.founds_before((1, A[1]), (1, A[0]))


def test_sizes() -> None:
    """MIKE-20."""
    assert rules.fits(64, 64, 8192)
    assert not rules.fits(65, 64, 8192)
    assert not rules.fits(64, 64, 4096)
    default = MikeConfig()
    assert rules.fits(128, default.members_max, body_size_max(default.datagram_size_max))
    assert rules.fits(255, 255, body_size_max(default.datagram_size_max))
    assert not rules.fits(1024, 1024, body_size_max(default.datagram_size_max))
    assert rules.fits(1024, 1024, body_size_max(default.datagram_size_max, Kind.TREE))
