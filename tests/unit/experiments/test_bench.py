from __future__ import annotations

import pytest

from experiments import bench


def test_every_item_runs_and_is_a_ratio_to_the_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "NETWORK_OF", (2, 1, 1))
    bench._network_us.cache_clear()
    results = bench.run(round_ns=1, rounds=1)
    assert results[0].ratio == 1.0
    timed = [result for result in results if result.us is not None]
    assert len(timed) >= 8
    assert all(result.ratio and result.ratio > 0 for result in timed)
    assert all(result.us is not None or result.note for result in results)
    built = next(result for result in results if "built, per node and link" in result.name)
    assert built.us is None or 100 < built.us < 1_000_000
    text = bench.table(results)
    assert all(result.name in text for result in results)


def test_what_cannot_be_timed_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_rounds: int) -> bench.Timed:
        raise bench.SkipError("no such kernel")

    monkeypatch.setattr(bench, "_ITEMS", [bench._ITEMS[0], ("x", never)])
    assert bench.run(1, 1)[1].note == "not here: no such kernel"
