"""Counters and refusals stay bounded whatever arrives."""

from __future__ import annotations

from protocol.core.counters import LOG_INTERVAL_NS, OVERFLOW, RefusalLog, RuleCounters
from protocol.core.engine import Instant


def at(seconds: float) -> Instant:
    ns = int(seconds * 1e9)
    return Instant(ns, 10**18 + ns)


def test_counters_overflow_into_one() -> None:
    counters = RuleCounters(limit=2)
    for name in ("b", "a", "c", "d", "a"):
        counters.count(name)
    assert counters.as_dict() == {"a": 2, "b": 1, OVERFLOW: 2}
    assert counters["a"] == 2
    assert counters["nothing"] == 0


def test_one_line_per_peer_and_reason_and_minute() -> None:
    log = RefusalLog()
    lines = [log.note("d3", "AUTH-6", "expired", at(second)) for second in range(121)]
    assert [i for i, due in enumerate(lines) if due] == [0, 60, 120]
    assert log.note("d3", "AUTH-9", "signature", at(121))
    assert log.note("d4", "AUTH-6", "expired", at(121))
    newest, _, oldest = log.recent()
    assert newest.peer == "d4"
    assert oldest.as_dict() == {
        "peer": "d3",
        "rule": "AUTH-6",
        "reason": "expired",
        "last_wall_ns": at(120).wall_ns,
        "count": 121,
    }


def test_a_flood_of_invented_peers_is_bounded_in_memory_and_lines() -> None:
    log = RefusalLog(limit=8)
    lines = sum(log.note(f"s{i}", "AUTH-4", "unknown", at(i / 1000)) for i in range(100_000))
    assert len(log) == 8
    assert lines <= 8 + 100 * 10**9 // LOG_INTERVAL_NS + 1
