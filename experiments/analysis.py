"""Statistics of a run, from its CSV files alone.

A failed step is censored, not dropped: it counts as slower than every measured one, so a median
over failures is larger, or infinite (given as None: "beyond the deadline") if half of them failed.
Intervals are 95 % percentile bootstraps from a seeded generator. For slopes whole repetitions are
resampled, because the steps of one repetition share their daemons and their minute.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.errors import RecordError
from experiments.schema import FILES, PHASES

RESAMPLES = 2000
CONFIDENCE = 0.95
_TEXT = ("run", "campaign", "variant", "subject", "method", "device", "daemon", "point", "epoch")
_TEXT_MORE = ("role", "flags", "status", "reason", "expected", "tm", "packet_sender", "backend")
_TEXT_RED = ("direction", "sender", "sender_device", "receiver", "protection")
_TEXT_REST = ("operation", "suite", "when", "detail", "measure")
_TEXT_LANS = ("phase", "sender_lan", "sender_kind", "receiver_lan", "receiver_kind", "lan")
_TEXT_WIRE = ("stage", "since", "node", "source", "counter", "link", "traffic")
_TEXTS = (*_TEXT, *_TEXT_MORE, *_TEXT_RED, *_TEXT_REST, *_TEXT_LANS, *_TEXT_WIRE)
_TEXT_ALL = dict.fromkeys(_TEXTS, str)


@dataclass(frozen=True, slots=True)
class Run:
    """The tables of one run as data frames; empty ones where a campaign was not part of it."""

    path: Path
    manifest: dict[str, Any]
    latencies: pd.DataFrame
    steps: pd.DataFrame
    clocks: pd.DataFrame
    sa_writes: pd.DataFrame

    def table(self, name: str) -> pd.DataFrame:
        """Return any table of the run by its file name; empty if the run has none."""
        return read_table(self.path, name)

    @property
    def seed(self) -> int:
        """The plan's seed: it also seeds the bootstrap."""
        return int(self.manifest["plan"]["seed"])

    @property
    def memory(self) -> bool:
        """Whether the run had no kernel SAs."""
        return bool(self.manifest.get("memory"))


def read_table(path: Path, name: str) -> pd.DataFrame:
    """Read one CSV file; a missing one is an empty frame with all documented columns."""
    columns = list(FILES[name])
    file = path / name
    if not file.exists():
        return pd.DataFrame({c: pd.Series(dtype=str if c in _TEXT_ALL else float) for c in columns})
    frame = pd.read_csv(file, dtype={c: str for c in columns if c in _TEXT_ALL})
    texts = [c for c in columns if c in _TEXT_ALL]
    frame[texts] = frame[texts].fillna("")
    return frame


def read_run(path: Path) -> Run:
    """Read a run directory (merged tables).

    Raises:
        RecordError: it is not a run.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise RecordError(f"{path} is not a run: {error}") from error
    tables = ("latencies.csv", "steps.csv", "clocks.csv", "sa_writes.csv")
    return Run(path, manifest, *(read_table(path, name) for name in tables))


# --- estimates -----------------------------------------------------------------------------------


def censored(values: pd.Series, ok: pd.Series) -> np.ndarray:
    """Return the values with infinity where the step failed or nothing was measured."""
    numbers = values.to_numpy(dtype=float, copy=True)
    numbers[~ok.to_numpy(dtype=bool) | np.isnan(numbers)] = np.inf
    return numbers


def plain(value: float) -> float | None:
    """Return a number fit for JSON: None for what is infinite or unknown."""
    return round(float(value), 6) if np.isfinite(value) else None


def median_interval(values: np.ndarray, seed: int) -> dict[str, Any]:
    """Return median with its interval, how many values there are and how many are censored."""
    values = np.asarray(values, dtype=float)
    if values.size == 0:
        return {"median_ms": None, "low_ms": None, "high_ms": None, "n": 0, "failed": 0}
    draw = np.random.default_rng(seed)
    picks = draw.integers(0, values.size, size=(RESAMPLES, values.size))
    medians = np.median(values[picks], axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(medians, [tail, 1 - tail], method="nearest")
    return {
        "median_ms": plain(np.median(values)),
        "low_ms": plain(low),
        "high_ms": plain(high),
        "n": int(values.size),
        "failed": int(np.isinf(values).sum()),
    }


def slope_interval(frame: pd.DataFrame, value: str, seed: int) -> dict[str, Any]:
    """Return the least-squares slope of a latency over the group size, in ms per member.

    Only measured rows can enter; ``left_out`` says how many failed ones do not.
    """
    measured = frame[_ok(frame) & frame[value].notna()]
    left_out = len(frame) - len(measured)
    empty = {"slope": None, "low": None, "high": None, "n": len(measured), "left_out": left_out}
    if measured["group_size"].nunique() < 2:
        return empty
    size = measured["group_size"].to_numpy(dtype=float)
    latency = measured[value].to_numpy(dtype=float)
    groups = list(measured.groupby("repetition").indices.values())
    draw = np.random.default_rng(seed)
    slopes = []
    for _ in range(RESAMPLES):
        chosen = np.concatenate([groups[i] for i in draw.integers(0, len(groups), len(groups))])
        if np.ptp(size[chosen]) > 0:
            slopes.append(_slope(size[chosen], latency[chosen]))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(slopes, [tail, 1 - tail])
    return {
        **empty,
        "slope": plain(_slope(size, latency)),
        "low": plain(low),
        "high": plain(high),
    }


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    x0 = x - x.mean()
    return float((x0 @ (y - y.mean())) / (x0 @ x0))


def _ok(frame: pd.DataFrame) -> pd.Series:
    return frame["ok"].fillna(0).astype(float) == 1


def by_size(frame: pd.DataFrame, value: str, seed: int) -> dict[str, dict[str, Any]]:
    """Return median and interval per group size."""
    return {
        str(int(size)): median_interval(censored(group[value], _ok(group)), seed)
        for size, group in frame.groupby("group_size")
    }


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """Return the quotient, None if either is unknown."""
    if numerator is None or not denominator:
        return None
    return round(numerator / denominator, 6)


# --- selections ----------------------------------------------------------------------------------


def variants(frame: pd.DataFrame, campaign: str) -> list[str]:
    """Return the variants of a campaign in order of appearance."""
    return list(dict.fromkeys(frame.loc[frame["campaign"] == campaign, "variant"]))


def select(frame: pd.DataFrame, campaign: str, variant: str, **equal: Any) -> pd.DataFrame:
    """Return the rows of a variant with these values."""
    keep = (frame["campaign"] == campaign) & (frame["variant"] == variant)
    for name, value in equal.items():
        keep &= frame[name] == value
    return frame[keep]


def slowest_keys(everyone: pd.DataFrame) -> pd.DataFrame:
    """Return per step of one variant the time from the join sent to the last member's key."""
    return everyone.groupby(["repetition", "step", "group_size"], as_index=False).agg(
        join_to_key_ms=("join_to_key_ms", "max"), ok=("ok", "min")
    )


def key_dispersal(everyone: pd.DataFrame) -> pd.DataFrame:
    """Return per step of one variant how long after the first member the last one has its key."""
    return everyone.groupby(["repetition", "step", "group_size"], as_index=False).agg(
        spread_ms=("join_to_key_ms", lambda values: values.max() - values.min()), ok=("ok", "min")
    )


def dispersal(frame: pd.DataFrame) -> pd.DataFrame:
    """Return max - min of t_written over all devices, one row per step.

    All totals of a step count from the same trigger, so their spread is that of t_written.
    A step in which any device is missing is not ok.
    """
    keys = ["campaign", "variant", "repetition", "step", "group_size"]
    if frame.empty:
        return pd.DataFrame(columns=[*keys, "dispersal_ms", "ok"])
    marked = frame.assign(good=_ok(frame))
    grouped = marked.groupby(keys, sort=False)
    result = grouped["total_ms"].agg(lambda values: values.max() - values.min())
    return pd.DataFrame(
        {"dispersal_ms": result, "ok": grouped["good"].all().astype(int)}
    ).reset_index()


def phases(frame: pd.DataFrame, seed: int) -> dict[str, dict[str, Any]]:
    """Return the median of each phase per group size, over measured steps."""
    result: dict[str, dict[str, Any]] = {}
    for size, group in frame.groupby("group_size"):
        good = group[_ok(group)]
        result[str(int(size))] = {
            **{name: plain(good[name].median()) for name in PHASES},
            "total_ms": plain(good["total_ms"].median()),
            "n": len(good),
            "failed": len(group) - len(good),
        }
    return result


def sa_writes(frame: pd.DataFrame, seed: int) -> dict[str, dict[str, Any]]:
    """Return the time per SA per backend and operation."""
    result: dict[str, dict[str, Any]] = {}
    for (backend, operation), group in frame.groupby(["backend", "operation"], sort=False):
        estimate = median_interval(censored(group["ms_per_sa"], _ok(group)), seed)
        reasons = [text for text in group.loc[~_ok(group), "reason"] if text]
        if reasons:
            estimate["reason"] = reasons[0]
        result.setdefault(str(backend), {})[str(operation)] = estimate
    return result


def growth(estimates: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return how much the median grows from the smallest (3) to the largest group."""
    sizes: Sequence[int] = sorted(int(size) for size in estimates)
    if len(sizes) < 2:
        return {"ratio": None, "from": None, "to": None}
    first, last = str(sizes[0]), str(sizes[-1])
    quotient = ratio(estimates[last]["median_ms"], estimates[first]["median_ms"])
    return {"ratio": quotient, "from": sizes[0], "to": sizes[-1]}
