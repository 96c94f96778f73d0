"""The file of seeds that were run: rows grow together, and what it has is not run again."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from testbed import cli
from testbed.errors import TestbedError
from testbed.sim.ledger import Ledger, Row, engines_commit
from testbed.sim.rest import Violation
from testbed.sim.run import Verdict
from testbed.sim.scenario import draw

KIND = Row("0" * 40, "ka", "modelled", "3", "drawn")


def verdict(seed: int, *, failed: bool = False) -> Verdict:
    violation = Violation("rest", 1.0, "no rest") if failed else None
    return Verdict(draw(seed, members=3), violation, "", 2_000.0, None, 5, 70, cpu_s=0.25)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def run(path: Path, *seeds: int, kind: Row = KIND, failed: int | None = None) -> None:
    ledger = Ledger(path, kind)
    given = [verdict(seed, failed=seed == failed) for seed in ledger.missing(seeds)]
    assert list(ledger.noting(given)) == given


def test_a_range_without_a_gap_is_one_row_with_its_sums(tmp_path: Path) -> None:
    path = tmp_path / "made" / "seeds.csv"
    run(path, 1, 2, 3, failed=2)
    (row,) = rows(path)
    assert (row["first"], row["last"], row["runs"]) == ("1", "3", "3")
    assert (row["violations"], row["failed"]) == ("1", "2")
    assert (row["virtual_s"], row["cpu_s"], row["keys"]) == ("6.0", "0.75", "15")


def test_what_the_file_has_is_not_run_again_and_gaps_close(tmp_path: Path) -> None:
    path = tmp_path / "seeds.csv"
    run(path, 1, 2)
    run(path, 4, 5)
    assert [(row["first"], row["last"]) for row in rows(path)] == [("1", "2"), ("4", "5")]
    assert Ledger(path, KIND).missing(range(1, 7)) == [3, 6]
    run(path, 1, 2, 3, 4)
    (row,) = rows(path)
    assert (row["first"], row["last"], row["runs"]) == ("1", "5", "5")


def test_other_engines_or_options_have_rows_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "seeds.csv"
    run(path, 1)
    for kind in (replace(KIND, commit="1" * 40), replace(KIND, crypto="real")):
        assert Ledger(path, kind).missing([1]) == [1]
        run(path, 1, kind=kind)
    assert len(rows(path)) == 3


def test_a_run_that_is_ended_leaves_what_it_did(tmp_path: Path) -> None:
    path = tmp_path / "seeds.csv"
    noted = Ledger(path, KIND).noting(verdict(seed) for seed in range(1, 10))
    for _ in range(3):
        next(noted)
    noted.close()
    (row,) = rows(path)
    assert row["last"] == "3"


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "seeds.csv"
    path.write_text("commit,first\nabc,x\n")
    with pytest.raises(TestbedError, match="no summary of seeds"):
        Ledger(path, KIND)


def test_the_command_writes_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "seeds.csv"
    for _ in range(2):
        with pytest.raises(SystemExit) as caught:
            cli.main(["sim", "--seeds", "1..2", "--members", "2", "--summary", str(path)])
        assert not caught.value.code
    (row,) = rows(path)
    assert (row["commit"], row["members"], row["runs"]) == (engines_commit(), "2", "2")
    assert "0 runs" in capsys.readouterr().out


def test_a_summary_is_of_ranges(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["sim", "--seed", "1", "--summary", str(tmp_path / "seeds.csv")])
    assert caught.value.code == 2
