"""The vectors of docs/mike.md: a second implementation's bodies and keys are this one's."""

from __future__ import annotations

import json
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest

from protocol.core.errors import DecodeError
from protocol.idpmike import EpochId
from protocol.mike.agreement import Agreement
from protocol.mike.change import Change, changed, difference
from protocol.mike.fragments import Incomplete
from protocol.mike.keytree import KeyTree
from protocol.mike.messages import DECODERS, Fragment, Kind, Repair, Tree
from protocol.mike.messages import Path as PathMessage
from protocol.mike.schedule import NodeSecret, epoch_keys
from protocol.mike.treemath import NodeName
from tests.vectors.make_mike import vectors

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "vectors" / "mike.json").read_text()
)
BODIES = {entry["name"]: (Kind(entry["kind"]), entry["body"]) for entry in VECTORS["bodies"]}
MEMBERS = {name: IPv6Address(f"2001:db8:b::{n}") for n, name in enumerate("ABC", 1)}


def decoded(name: str) -> Any:
    kind, body = BODIES[name]
    return DECODERS[kind](bytes.fromhex(body))


def test_the_file_is_what_the_generator_makes() -> None:
    assert vectors() == VECTORS


def test_every_kind_of_message_is_there() -> None:
    assert {kind for kind, _ in BODIES.values()} == set(Kind) - {Kind.REKEY, Kind.PAGE}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_is_read_and_written_to_the_byte(name: str) -> None:
    assert decoded(name).encode().hex() == BODIES[name][1]


@pytest.mark.parametrize("entry", VECTORS["malformed"], ids=lambda entry: entry["name"])
def test_a_malformed_body_is_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        DECODERS[Kind(entry["kind"])](bytes.fromhex(entry["body"]))


def test_repair_asks_for_an_epoch_or_for_fragments() -> None:
    epoch: Repair = decoded("REPAIR, an epoch is missing")
    assert (epoch.wanted.number, epoch.held.number) == (9, 8)
    assert (epoch.message, epoch.missing) == (bytes(8), 0)
    parts: Repair = decoded("REPAIR, fragments 0 and 2 are missing")
    assert (parts.wanted.number, parts.held.number, parts.missing) == (0, 8, 0b101)
    assert parts.message == decoded("FRAGMENT 0 of the repeated TREE").message


def test_fragments_are_the_tree() -> None:
    """Also in another order, and one twice."""
    fragments: list[Fragment] = [decoded(name) for name in BODIES if name.startswith("FRAGMENT")]
    first = fragments[0]
    assert len(fragments) == first.count > 2
    whole = Incomplete(first.message, first.kind, first.count, 0, 0)
    for fragment in (*reversed(fragments), first):
        whole.add(fragment)
    assert whole.missing == 0
    body = b"".join(whole.parts[index] for index in range(first.count))
    assert body.hex() == BODIES["TREE, repeated with what was published"][1]


@pytest.mark.parametrize(
    ("who", "leaf", "number", "name"),
    [
        ("A", "A", "8", "TREE, complete"),
        ("B", "B", "8", "TREE, complete"),
        ("C", "C", "8", "TREE, complete"),
        ("A", "A", "9", "TREE, repeated with what was published"),
        ("B", "B renewed", "9", "TREE, node 2 open"),
        ("C", "C", "9", "TREE, repeated with what was published"),
    ],
)
def test_every_member_computes_the_epoch_s_keys(
    who: str, leaf: str, number: str, name: str
) -> None:
    message: Tree = decoded(name)
    expected = VECTORS["epochs"][number]
    content = message.announcement
    assert content.digest.hex() == expected["digest"]
    tag = bytes.fromhex(expected["epoch"])[8:]
    assert content.epoch == EpochId(int(number), tag)
    own = NodeSecret(bytes.fromhex(VECTORS["leaf_secrets"][leaf]))
    assert own.blinded.hex() == VECTORS["blinded_keys"][leaf]
    filled = content.tree.filled(message.keys)
    agreement = Agreement(MEMBERS[who], filled, content.sponsors, own, {})
    agreement.climb()
    assert agreement.root is not None
    assert agreement.root.reveal().hex() == expected["root"]
    keys = epoch_keys(content.digest, agreement.root.reveal())
    assert keys.group_key.hex() == expected["group_key"]
    for member, address in MEMBERS.items():
        assert keys.confirmation(address).hex() == expected["confirmations"][member]


def the_two() -> KeyTree:
    """Return the tree of A and B before C came."""
    keys = VECTORS["blinded_keys"]
    leaves = {NodeName(2): MEMBERS["A"], NodeName(3): MEMBERS["B"]}
    return KeyTree(
        leaves, {NodeName(n): bytes.fromhex(keys[name]) for n, name in ((2, "A"), (3, "B"))}
    )


@pytest.mark.parametrize("name", ["complete", "node 2 open"])
def test_a_change_makes_the_announcement_of_the_tree(name: str) -> None:
    """MIKE-39."""
    first: Tree = decoded("TREE, complete")
    before = the_two() if name == "complete" else first.announcement.tree
    message: Change = decoded(f"CHANGE, {name}")
    content = decoded(f"TREE, {name}").announcement
    assert changed(before, message.pieces) == content.tree
    assert difference(before, content.tree) == message.pieces
    assert (message.digest, message.epoch) == (content.digest, content.epoch)
    assert (message.sponsors, message.nonces) == (content.sponsors, content.nonces)
    assert (message.previous, message.tm) == (content.previous, content.tm)


def test_the_path_carries_what_b_computes() -> None:
    path: PathMessage = decoded("PATH of B")
    node = NodeSecret(bytes.fromhex(VECTORS["node_2"]["epoch 9"]))
    assert path.keys == {2: node.blinded}
    assert path.confirmation is not None
    assert path.confirmation.hex() == VECTORS["epochs"]["9"]["confirmations"]["B"]
