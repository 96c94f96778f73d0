"""An epoch of key distribution mode at a member: by vectors, and with all that a TM may send."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from protocol.core.errors import PeerError
from protocol.mike.distribution import LEAVES_MAX, Distribution, KeyPath
from protocol.mike.rekeying import LEAF, ROOT_KEY, Page, Rekey, Wrap
from protocol.mike.roster import Roster
from protocol.mike.rules import PATH_MAX
from protocol.mike.schedule import NodeSecret, pairwise_key, wrapped
from tests.vectors.make_distribution import vector

FILE = Path(__file__).parents[2] / "vectors" / "distribution.json"
VECTOR = json.loads(FILE.read_text())
MEMBERS = [IPv6Address(text) for text in VECTOR["members"]]
LEAVES = [NodeSecret(bytes.fromhex(text)) for text in VECTOR["leaf_secrets"]]
REKEY = Rekey.decode(bytes.fromhex(VECTOR["rekey"]))
PAGE = Page.decode(bytes.fromhex(VECTOR["page"]))
ROSTER = Roster(PAGE.entries)


def at(place: int, *, path: KeyPath | None = None) -> Distribution:
    """The vector's epoch at one member that has the roster."""
    made = Distribution(MEMBERS[place], REKEY.announcement, [LEAVES[place]], path or KeyPath())
    assert made.enter(ROSTER)
    return made


def test_the_vectors_are_what_the_generator_makes() -> None:
    assert vector() == VECTOR


def test_messages_are_written_as_the_vectors_say() -> None:
    assert REKEY.encode().hex() == VECTOR["rekey"]
    assert PAGE.encode().hex() == VECTOR["page"]
    assert REKEY.announcement.encoded.hex() == VECTOR["announcement"]
    assert str(REKEY.announcement.epoch) == VECTOR["epoch"]
    assert ROSTER.digest.hex() == VECTOR["roster_digest"] == REKEY.announcement.roster.hex()
    assert REKEY.key.hex() == VECTOR["distribution_key"]


@pytest.mark.parametrize("place", [1, 2, 3])
def test_pairwise_keys_are_those_of_the_vectors_from_either_side(place: int) -> None:
    tm = NodeSecret(bytes.fromhex(VECTOR["distribution_secret"]))
    leaf = LEAVES[place]
    names = (tm.blinded, leaf.blinded, MEMBERS[place])
    wanted = bytes.fromhex(VECTOR["pairwise_keys"][place])
    assert pairwise_key(tm, leaf.blinded, *names) == wanted
    assert pairwise_key(leaf, tm.blinded, *names) == wanted


@pytest.mark.parametrize(("place", "numbers"), [(1, [5]), (2, [4, 5]), (3, [4, 5])])
def test_a_member_unwraps_the_vector(place: int, numbers: list[int]) -> None:
    epoch = at(place)
    epoch.take_wraps(REKEY)
    epoch.offer(MEMBERS[0], REKEY.confirmation)
    assert epoch.climb() is False
    epoch.check_tags()
    assert epoch.confirmed
    assert epoch.root == bytes.fromhex(VECTOR["root"])
    assert epoch.keys is not None
    assert epoch.keys.group_key.hex() == VECTOR["group_key"]
    assert epoch.keys.confirmation(MEMBERS[0]).hex() == VECTOR["confirmation_of_tm"]
    assert [number for number, _ in epoch.path.steps] == numbers
    assert [key.hex() for _, key in epoch.path.steps] == [
        VECTOR["hierarchy"][str(number)] for number in numbers
    ]
    assert epoch.unwrapped == len(numbers) + 1


def test_a_member_goes_on_from_the_keys_that_stayed() -> None:
    """Key 4 is known already; only what is above it is unwrapped."""
    known = KeyPath(REKEY.key, ((4, bytes.fromhex(VECTOR["hierarchy"]["4"])), (1, bytes(32))))
    epoch = at(2, path=known)
    epoch.take_wraps(replace(REKEY, wraps={n: w for n, w in REKEY.wraps.items() if n < LEAF}))
    epoch.climb()
    assert epoch.root == bytes.fromhex(VECTOR["root"])
    assert epoch.unwrapped == 2


@pytest.mark.parametrize("missing", [4, 5, LEAF | 2])
def test_a_chain_with_a_gap_waits(missing: int) -> None:
    epoch = at(2)
    rest = {under: wrap for under, wrap in REKEY.wraps.items() if under != missing}
    epoch.take_wraps(replace(REKEY, wraps=rest))
    epoch.climb()
    assert epoch.keys is None
    epoch.take_wraps(REKEY)
    epoch.climb()
    assert epoch.keys is not None


def test_keys_of_another_hierarchy_are_no_use() -> None:
    """Its numbers count anew."""
    known = KeyPath(bytes(32), ((4, bytes(32)), (5, bytes(32))))
    epoch = at(2, path=known)
    epoch.take_wraps(replace(REKEY, wraps={5: REKEY.wraps[5]}))
    epoch.climb()
    assert epoch.keys is None


def test_a_wrap_of_another_epoch_does_not_unwrap() -> None:
    """MIKE-31: keys of the hierarchy serve many epochs, a wrapping key only one."""
    pair = bytes.fromhex(VECTOR["pairwise_keys"][2])
    old = Wrap(ROOT_KEY, wrapped(pair, bytes(32), bytes.fromhex(VECTOR["root"])))
    epoch = at(2)
    epoch.take_wraps(replace(REKEY, wraps={LEAF | 2: old}))
    with pytest.raises(PeerError, match="unwrapped") as refused:
        epoch.climb()
    assert refused.value.rule == "MIKE-31"
    # What the TM says when asked is used.
    epoch.take_wraps(REKEY)
    epoch.climb()
    assert epoch.keys is not None


def test_a_chain_without_an_end_is_refused() -> None:
    """MIKE-31."""
    digest = REKEY.announcement.digest
    key = bytes.fromhex(VECTOR["pairwise_keys"][2])
    wraps = {}
    under = LEAF | 2
    for number in range(1, PATH_MAX + 3):
        wraps[under] = Wrap(number, wrapped(key, digest, bytes([number]) * 32))
        under, key = number, bytes([number]) * 32
    epoch = at(2)
    epoch.take_wraps(replace(REKEY, wraps=wraps))
    with pytest.raises(PeerError) as refused:
        epoch.climb()
    assert refused.value.rule == "MIKE-31"
    assert epoch.unwrapped == PATH_MAX + 1


def test_a_chain_that_goes_round_is_refused() -> None:
    digest = REKEY.announcement.digest
    one, two = bytes([1]) * 32, bytes([2]) * 32
    pair = bytes.fromhex(VECTOR["pairwise_keys"][2])
    wraps = {
        LEAF | 2: Wrap(1, wrapped(pair, digest, one)),
        1: Wrap(2, wrapped(one, digest, two)),
        2: Wrap(1, wrapped(two, digest, one)),
    }
    epoch = at(2)
    epoch.take_wraps(replace(REKEY, wraps=wraps))
    with pytest.raises(PeerError):
        epoch.climb()


def test_another_roster_than_the_announced_one_is_refused() -> None:
    """MIKE-30."""
    epoch = Distribution(MEMBERS[2], REKEY.announcement, [LEAVES[2]], KeyPath())
    other = ROSTER.changed([], [(MEMBERS[1], bytes(32))])
    with pytest.raises(PeerError) as refused:
        epoch.enter(other)
    assert refused.value.rule == "MIKE-30"
    without_tm = ROSTER.changed([MEMBERS[0]], [])
    decided = replace(REKEY.announcement, roster=without_tm.digest, members=3)
    with pytest.raises(PeerError) as refused:
        Distribution(MEMBERS[2], decided, [LEAVES[2]], KeyPath()).enter(without_tm)
    assert refused.value.rule == "MIKE-30"


def test_pages_are_put_together_in_order_and_judged_as_a_whole() -> None:
    """MIKE-30."""
    epoch = Distribution(MEMBERS[2], REKEY.announcement, [LEAVES[2]], KeyPath())
    first, last = (Page(PAGE.roster, at, PAGE.entries[at : at + 2]) for at in (0, 2))
    assert epoch.add_page(last) is None
    assert epoch.known_entries == 0
    assert epoch.add_page(first) is None
    assert epoch.add_page(first) is None
    assert epoch.known_entries == 2
    assert epoch.add_page(last) is not None
    wrong = Page(PAGE.roster, 0, (*PAGE.entries[:3], (MEMBERS[3], bytes(32))))
    with pytest.raises(PeerError) as refused:
        epoch.add_page(wrong)
    assert refused.value.rule == "MIKE-30"
    assert epoch.known_entries == 0


def test_a_bounded_number_of_leaf_secrets_is_kept_for_a_roster_that_is_not_there_yet() -> None:
    many = [NodeSecret(bytes([n]) * 32) for n in range(9)]
    epoch = Distribution(MEMBERS[2], REKEY.announcement, many, KeyPath())
    assert len(epoch.leaves) == LEAVES_MAX


def test_no_secret_is_shown() -> None:
    epoch = at(2)
    epoch.take_wraps(REKEY)
    epoch.climb()
    shown = repr(epoch.path) + repr(REKEY) + repr(epoch.keys) + repr(epoch)
    assert VECTOR["root"] not in shown
    assert str(bytes.fromhex(VECTOR["hierarchy"]["4"])) not in shown


def test_nobody_publishes_blinded_keys() -> None:
    """MIKE-7."""
    with pytest.raises(PeerError) as refused:
        at(2).take({}, MEMBERS[1])
    assert refused.value.rule == "MIKE-7"
