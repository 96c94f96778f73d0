"""``python -m tests.fuzz``: all targets one after the other, each for its share of the time.

Exit status 1 if there is a finding; its input lies in the directory that is printed. What was
learned stays in the working corpus; ``--keep`` takes a small part of it into the tree.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.fuzz.catalog import CORPUS, targets, unpack
from tests.fuzz.one import has_atheris

KEPT_BYTES_MAX = 9000
"""Of a target's corpus in the tree, so that all of them stay below 300 KB in hex."""

GRACE_S = 600


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="in sum")
    parser.add_argument("--target", action="append", help="only these")
    parser.add_argument("--plain", action="store_true", help="without coverage")
    parser.add_argument("--work", type=Path, help="working corpus and findings stay here")
    parser.add_argument("--keep", action="store_true", help="take a small part into the tree")
    options = parser.parse_args()
    plain = options.plain or not has_atheris()
    if unknown := set(options.target or ()) - set(targets()):
        parser.error(f"no target {', '.join(sorted(unknown))} (known: {', '.join(targets())})")
    how = "by plain damage (atheris is not installed)" if plain else "guided by coverage (atheris)"
    print(f"fuzzing {how}", flush=True)
    with tempfile.TemporaryDirectory(prefix="fuzz") as scratch:
        work: Path = options.work or Path(scratch)
        work = work.absolute()
        findings = (
            Path(tempfile.mkdtemp(prefix="findings-")) if not options.work else work / "findings"
        )
        findings.mkdir(parents=True, exist_ok=True)
        chosen = {
            name: one for name, one in targets().items() if name in (options.target or targets())
        }
        shares = sum(target.weight for target in chosen.values())
        failed = []
        for name, target in chosen.items():
            seconds = max(1, round(options.seconds * target.weight / shares))
            outcome = fuzz(name, seconds, work / name, findings, plain=plain)
            print(
                f"{name:18} {outcome['seconds']:6.0f} s {outcome['runs']:>9} runs"
                f" {outcome['inputs']:5} inputs{'  FINDING' if outcome['failed'] else ''}",
                flush=True,
            )
            with (work / "ledger.jsonl").open("a") as ledger:
                ledger.write(json.dumps({"target": name, "plain": plain, **outcome}) + "\n")
            if outcome["failed"]:
                failed.append(name)
                sys.stderr.write(outcome["words"] + "\n")
            if options.keep:
                keep(name, work / name)
        if failed:
            print(f"findings in {findings}: {', '.join(failed)}")
        elif not options.work:
            findings.rmdir()
    return 1 if failed else 0


def fuzz(name: str, seconds: int, corpus: Path, findings: Path, *, plain: bool) -> dict[str, Any]:
    """Fuzz one target in a process; return what came of it."""
    unpack(name, corpus)
    command = [sys.executable, "-m", "tests.fuzz.one", name, "--seconds", str(seconds)]
    command += ["--corpus", str(corpus), "--findings", str(findings)]
    started_s = time.monotonic()
    try:
        done = subprocess.run(
            [*command, *(["--plain"] if plain else [])],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=seconds + GRACE_S,
            cwd=CORPUS.parents[2],
        )
        words, status = done.stdout.decode(errors="replace"), done.returncode
    except subprocess.TimeoutExpired:
        words, status = "it did not end", 1
    counted = re.search(r"number_of_executed_units:\s*(\d+)", words)
    return {
        "seconds": round(time.monotonic() - started_s, 1),
        "runs": int(counted.group(1)) if counted else 0,
        "inputs": sum(1 for _ in corpus.iterdir()),
        "failed": status != 0,
        "words": _trouble(words) if status else "",
    }


def _trouble(words: str) -> str:
    """Return what matters of a fuzzer's last words."""
    lines = [line for line in words.splitlines() if not line.startswith(("INFO:", "WARNING:"))]
    return "\n".join(lines)[-3000:]


def keep(name: str, corpus: Path) -> None:
    """Put the smallest inputs into the tree, beside those that are there."""
    found = sorted(
        {path.read_bytes() for path in corpus.iterdir()} - set(targets()[name].seeds),
        key=lambda data: (len(data), data),
    )
    room, kept = KEPT_BYTES_MAX, []
    for data in found:
        room -= 2 * len(data) + 1
        if room < 0:
            break
        kept.append(data)
    if kept:
        lines = "".join(f"{data.hex()}\n" for data in kept)
        (CORPUS / f"{name}.hex").write_text(lines)


if __name__ == "__main__":
    sys.exit(main())
