"""Named deadlines."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocol.core.timers import TimerTable


def test_fires_by_deadline_then_in_order_of_setting() -> None:
    table = TimerTable()
    table.set("late", 20)
    table.set("b", 10)
    table.set("a", 10)
    assert table.next_deadline() == 10
    assert table.pop_expired(9) is None
    assert [table.pop_expired(20) for _ in range(4)] == ["b", "a", "late", None]
    assert table.next_deadline() is None


def test_setting_again_replaces_and_cancel_stops() -> None:
    table = TimerTable()
    table.set("t", 10)
    table.set("t", 30)
    assert table.deadline("t") == 30
    assert table.pop_expired(20) is None
    assert table.pop_expired(30) == "t"
    table.set("t", 40)
    table.cancel("t")
    table.cancel("never set")
    assert "t" not in table
    assert table.pop_expired(100) is None
    table.set("x", 1)
    table.clear()
    assert len(table) == 0
    assert table.next_deadline() is None


def test_restarting_for_ever_keeps_memory_bounded() -> None:
    table = TimerTable()
    table.set("far", 10**9)
    for at in range(10_000):
        table.set("hello", at)
    assert len(table._heap) <= 32
    assert table.next_deadline() == 9_999


actions = st.lists(
    st.tuples(
        st.sampled_from(["set", "cancel", "pop"]), st.sampled_from("abcd"), st.integers(0, 9)
    ),
    max_size=60,
)


@given(actions)
def test_agrees_with_a_plain_dictionary(steps) -> None:
    table, plain, serial = TimerTable(), {}, 0
    for action, name, at in steps:
        if action == "set":
            serial += 1
            table.set(name, at)
            plain[name] = (at, serial)
        elif action == "cancel":
            table.cancel(name)
            plain.pop(name, None)
        else:
            due = sorted((v, k) for k, v in plain.items() if v[0] <= at)
            expected = due[0][1] if due else None
            assert table.pop_expired(at) == expected
            plain.pop(expected, None)
        assert table.next_deadline() == min((v[0] for v in plain.values()), default=None)
        assert len(table) == len(plain)
