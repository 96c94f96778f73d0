"""The thief of `testbed.sim.secrecy`: what it can compute, and what the checker makes of that."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest

from protocol.identity import PROTOCOL_MIKE, envelope
from protocol.mike.agreement import Agreement
from protocol.mike.keytree import KeyTree
from protocol.mike.messages import NO_EPOCH, Announcement, Kind, Path, Tree
from protocol.mike.schedule import NodeSecret
from protocol.mike.treemath import NodeName
from testbed.sim.history import Evidence
from testbed.sim.modelled import ModelledSecret
from testbed.sim.people import address
from testbed.sim.secrecy import Secrecy

KINDS: list[type[NodeSecret]] = [ModelledSecret, NodeSecret]


def drawn(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def sent(kind: Kind, body: bytes) -> bytes:
    return envelope.Envelope(
        PROTOCOL_MIKE, int(kind), address(0), bytes(16), 0, 0, 0, body
    ).encode()


class Story:
    """A and B (devices 0 and 1) agree; C (device 2) is no member. A's leaf key is open at first."""

    def __init__(self, kind: type[NodeSecret]) -> None:
        self.kind = kind
        self.leaves = {who: kind(drawn(who)) for who in "ab"}
        blinded = {NodeName(3): self.leaves["b"].blinded}
        tree = KeyTree({NodeName(2): address(0), NodeName(3): address(1)}, blinded)
        self.content = Announcement(5, NO_EPOCH, address(1), tree, (address(0),))
        own = Agreement(address(0), tree, (address(0),), self.leaves["a"], {})
        own.bind(self.content)
        own.climb()
        assert own.keys is not None
        self.keys = {str(self.content.epoch): own.keys.group_key}
        self.wire = [
            sent(Kind.TREE, Tree(self.content).encode()),
            sent(Kind.PATH, Path(self.content.epoch, own.published).encode()),
        ]

    def judge(self, *draws: Sequence[str]) -> str | None:
        """Judge it with these draws of A, B and C."""
        owners = [(address(n), [drawn(text) for text in of]) for n, of in enumerate(draws)]
        return Secrecy().conclude(Evidence(self.kind, owners, self.wire, [], self.keys))


@pytest.mark.parametrize("kind", KINDS)
def test_members_have_the_key_by_their_own_leaf_and_that_is_fine(kind: type[NodeSecret]) -> None:
    assert Story(kind).judge(["earlier", "a"], ["b", "later"], ["c"]) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("leaf", ["a", "b"])
def test_who_is_no_member_and_knows_a_leaf_is_found(kind: type[NodeSecret], leaf: str) -> None:
    text = Story(kind).judge(["a"], ["b"], ["c", leaf])
    assert text is not None
    assert "d3, no member" in text


def test_a_member_that_had_the_key_before_its_own_leaf_is_found() -> None:
    text = Story(ModelledSecret).judge(["b", "a"], ["b"], ["c"])
    assert text is not None
    assert "d1" in text
    assert "without its leaf" in text


def test_what_nobody_published_is_computed_all_the_same() -> None:
    """C once was a member beside A, below what is now a node that no datagram has the key of."""
    kind = ModelledSecret
    leaves = {who: kind(drawn(who)) for who in "acb"}
    pair = {NodeName(4): leaves["a"].blinded, NodeName(5): leaves["c"].blinded}
    blinded = {**pair, NodeName(3): leaves["b"].blinded}
    places = {NodeName(4): address(0), NodeName(5): address(2), NodeName(3): address(1)}
    before = Announcement(4, NO_EPOCH, address(0), KeyTree(places, blinded), (address(0),))
    # The mistake: C's place is given to somebody else, its leaf key stays.
    places = {**places, NodeName(5): address(3)}
    after = Announcement(5, before.epoch, address(0), KeyTree(places, blinded), (address(0),))
    own = Agreement(address(0), after.tree, after.sponsors, leaves["a"], {})
    own.bind(after)
    own.climb()
    assert own.keys is not None
    wire = [sent(Kind.TREE, Tree(content).encode()) for content in (before, after)]
    draws = [(address(n), [drawn(who)]) for n, who in enumerate("abcx")]
    text = Secrecy().conclude(
        Evidence(kind, draws, wire, [], {str(after.epoch): own.keys.group_key})
    )
    assert text is not None
    assert text.startswith("d3, no member of epoch 5-")


def test_a_key_that_the_tree_does_not_give_is_nobodys() -> None:
    story = Story(ModelledSecret)
    story.keys = dict.fromkeys(story.keys, drawn("another"))
    assert story.judge(["a"], ["b"], ["a", "b"]) is None
