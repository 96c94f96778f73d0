"""The README's table of reliability: what it says is what the committed runs say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.errors import ExperimentError
from experiments.reliability import BEGIN, END, rewritten, section

ROOT = Path(__file__).parents[3]


def test_the_readme_is_what_the_committed_runs_say() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert rewritten(readme, section(ROOT)) == readme, "run 'testbed reliability'"


def entry(method: str, **medians_ms: float) -> dict[str, Any]:
    return {
        "method": method,
        "hello_interval_ms": 1000,
        "measures": {
            f"{name}_ms": {"median": value, "min": value, "max": 2 * value, "n": 15}
            for name, value in medians_ms.items()
        },
    }


def summary(**parts: Any) -> dict[str, Any]:
    return {"complete": True, "environment": "VM", "kernel_sas": True, **parts}


def faults(ok: int = 525, new_key_ms: float = 2000.0) -> dict[str, Any]:
    entries = [entry("cut", recovered=900.0), entry("kill-tm", recovered=5, new_key=new_key_ms)]
    checks = {"faults": {"netlink": {"planned": 525, "ok": ok}}}
    return summary(idp={"faults": entries}, checks=checks)


def attacks(**changed: Any) -> dict[str, Any]:
    found = {
        "successes": 0, "tried": 20, "not_run": [], "join_ratio_max": 1.2, "join_ratio_limit": 2.0,
        "growth_mib_max": 3.0, "growth_mib_limit": 16.0,
        "attacks": {
            "join-flood": {"join_ratio": 2.5, "busy_ratio": 1.2},
            "replay": {"join_ratio": 9.0, "busy_ratio": None},
        },
    }  # fmt: skip
    return summary(attacks={**found, **changed})


def rekey(lost: int = 0, events: int = 100) -> dict[str, Any]:
    counts = {"events": events, "sent": 1000, "lost": lost, "duplicated": 0}
    found = {"rate_pps": [200], "senders": 5, "methods": {"start": counts}}
    return summary(rekey_loss={"per-sender": found, "paper": found})


def table(tmp_path: Path, **runs: dict[str, Any]) -> list[str]:
    for name, found in runs.items():
        folder = tmp_path / "results/reference" / name.replace("_", "-")
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps(found))
    return [line for line in section(tmp_path).splitlines() if line.startswith("| ")][1:]


def test_a_join_under_a_flood_is_compared_with_both(tmp_path: Path) -> None:
    (line,) = [line for line in table(tmp_path, attacks=attacks()) if "flood" in line]
    assert "at worst 1.20 (beside no frames at all: 2.50)" in line


def test_a_campaign_without_a_run_says_so(tmp_path: Path) -> None:
    lines = table(tmp_path, rekey_loss=rekey())
    assert lines[-2:] == [
        "| `testbed run faults` | not run | | |",
        "| `testbed run attacks` | not run | | |",
    ]
    assert lines[0].endswith("| 0 lost, 0 doubled of 1000 | 0 and 0 over 100 | yes |")
    assert lines[1].endswith("| for comparison |  |"), "nothing is required of mode paper"


def test_good_runs_keep_what_is_required(tmp_path: Path) -> None:
    lines = table(tmp_path, rekey_loss=rekey(), faults=faults(), attacks=attacks())
    assert [line.split("|")[-2].strip() for line in lines] == ["yes", "", *["yes"] * 5]
    assert "525 of 525" in lines[2]
    assert "at worst 1.8 s (`cut`)" in lines[2]
    assert "at worst 4000 ms | 5100 ms" in lines[3]


@pytest.mark.parametrize(
    ("runs", "broken"),
    [
        ({"rekey_loss": rekey(lost=1)}, 0),
        ({"rekey_loss": rekey(events=50)}, 0),
        ({"rekey_loss": {**rekey(), "complete": False}}, 0),
        ({"faults": faults(ok=524)}, 1),
        ({"faults": {**faults(), "kernel_sas": False}}, 1),
        ({"faults": faults(new_key_ms=2600.0)}, 2),
        ({"attacks": attacks(successes=1)}, 2),
        ({"attacks": attacks(not_run=["x"])}, 2),
        ({"attacks": attacks(join_ratio_max=2.1)}, 3),
        ({"attacks": attacks(growth_mib_max=None)}, 4),
    ],
)
def test_what_was_not_kept_is_said(
    tmp_path: Path, runs: dict[str, dict[str, Any]], broken: int
) -> None:
    lines = table(tmp_path, **runs)
    assert lines[broken].endswith("| **NO** |")


def test_a_summary_of_another_version_is_an_error_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="unreadable"):
        table(tmp_path, faults=summary(idp={}))


def test_a_readme_without_markers_is_refused() -> None:
    for text in ("nothing", f"{END}\n{BEGIN}", f"{BEGIN}{BEGIN}{END}"):
        with pytest.raises(ExperimentError, match="lacks the lines"):
            rewritten(text, "table\n")
    assert rewritten(f"a\n{BEGIN}\nold\n{END}\nb\n", "new\n") == f"a\n{BEGIN}\nnew\n{END}\nb\n"
