"""The fuzz targets: their committed inputs, and a short run (`make fuzz` for a long one)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.catalog import CORPUS, committed, target, targets

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 30
CORPUS_BYTES_MAX = 300_000


@pytest.mark.parametrize("name", sorted(targets()))
def test_committed_inputs_find_nothing(name: str) -> None:
    """An input that once was a finding stays in the corpus: this is its regression test too."""
    inputs = [*committed(name), *target(name).seeds]
    assert inputs, f"{name} has no corpus"
    for data in inputs:
        target(name).run(data)


def test_the_corpus_is_small_and_belongs_to_targets() -> None:
    files = sorted(CORPUS.iterdir())
    assert sum(path.stat().st_size for path in files) < CORPUS_BYTES_MAX
    assert {path.stem for path in files} <= set(targets())


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_short_run_finds_nothing() -> None:
    """Guided by coverage where atheris is installed; else the same targets by plain damage."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--seconds", str(SECONDS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("fuzzing ")
    assert len(done.stdout.splitlines()) == 1 + len(targets())


def test_a_finding_is_reported_with_its_input(tmp_path: Path) -> None:
    """The machinery itself: a target that breaks on a byte is caught, by either driver's rules."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "bad").write_bytes(b"\x30\x00")
    broken = (
        "import sys; from tests.fuzz import targets\n"
        "from protocol.identity import addressblocks\n"
        "def decode(data): raise RuntimeError\n"
        "addressblocks.decode = decode\n"
        "from tests.fuzz.one import main\n"
        "sys.exit(main())\n"
    )
    arguments = ["address-blocks", "--plain", "--seconds", "20", "--corpus", str(corpus)]
    done = subprocess.run(
        [sys.executable, "-c", broken, *arguments, "--findings", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "RuntimeError" in done.stderr
    assert list(tmp_path.glob("address-blocks-plain-*"))
