"""Fragments of several messages of one sender, in any order (MIKE-27)."""

from __future__ import annotations

from itertools import permutations

from protocol.mike.fragments import Assemblies, Incomplete, bit_of, split
from protocol.mike.messages import Kind
from tests.support.identities import address


def test_a_page_and_its_rekey_do_not_supersede_each_other() -> None:
    """Whatever the order of their four fragments, both messages are made, and nothing is asked."""
    bodies = {Kind.REKEY: bytes(700), Kind.PAGE: bytes(range(200)) * 3}
    fragments = [part for kind, body in bodies.items() for part in split(kind, body, 512)]
    assert len(fragments) == 4
    for order in permutations(fragments):
        assemblies = Assemblies()
        made = {}
        for at_ns, fragment in enumerate(order):
            whole = assemblies.take(fragment, address(0), at_ns, at_ns + 100)
            made.update([whole] if whole is not None else [])
        assert made == bodies, [(part.kind.name, part.index) for part in order]
        assert assemblies.pending() == []


def test_a_newer_tree_supersedes_an_incomplete_older_one() -> None:
    older, newer = (split(Kind.TREE, bytes([value]) * 700, 512) for value in (1, 2))
    assemblies = Assemblies()
    assert assemblies.take(older[0], address(0), 0, 100) is None
    assert assemblies.take(newer[0], address(0), 1, 100) is None
    assert assemblies.take(newer[1], address(0), 2, 100) is not None
    assert assemblies.pending() == []


def test_a_bit_of_the_bitmap_stands_for_several_fragments_of_a_long_tree() -> None:
    """MIKE-26: which is lost is known but for three others; a REPAIR has 32 bits."""
    body = bytes(range(256)) * 70
    parts = split(Kind.TREE, body, 512)
    assert len(parts) == 49
    assert not split(Kind.REKEY, body, 512), "only a TREE may have so many"
    whole = Incomplete(parts[0].message, Kind.TREE, len(parts), 0, 0)
    for part in parts:
        if part.index != 35:
            whole.add(part)
    assert whole.missing == 1 << 3
    again = [part for part in parts if whole.missing & bit_of(part.index)]
    assert [part.index for part in again] == [3, 35]
    for part in again:
        whole.add(part)
    assert whole.missing == 0
    assert whole.body() == body
