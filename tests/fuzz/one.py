"""One target in a process of its own: ``python -m tests.fuzz.one TARGET --seconds S --corpus D``.

With atheris the process never returns from its loop, and a finding ends it; so every target gets
its own. The plain driver knows nothing of coverage: it damages what is in the corpus, and says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import sys
import time
import traceback
from pathlib import Path

INPUT_BYTES_MAX = 4096


def has_atheris() -> bool:
    """Return whether inputs can be guided by coverage here."""
    return importlib.util.find_spec("atheris") is not None


def main() -> int:
    """Fuzz until the time is over; return 1 on a finding."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--findings", type=Path, default=Path())
    parser.add_argument("--replay", type=Path, help="run one input, with its traceback")
    parser.add_argument("--plain", action="store_true")
    options = parser.parse_args()
    if options.replay:
        from tests.fuzz.catalog import target

        target(options.target).run(options.replay.read_bytes())
        return 0
    if options.plain or not has_atheris():
        return _plain(options)
    return _guided(options)


def _guided(options: argparse.Namespace) -> int:
    import atheris

    with atheris.instrument_imports(include=["protocol", "testbed"]):
        from tests.fuzz.catalog import target
    run = target(options.target).run
    arguments = [
        sys.argv[0],
        str(options.corpus),
        f"-max_total_time={options.seconds}",
        f"-max_len={INPUT_BYTES_MAX}",
        f"-artifact_prefix={options.findings}/{options.target}-",
        "-rss_limit_mb=1024",
        "-timeout=30",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    atheris.Setup(arguments, run)
    atheris.Fuzz()
    return 0


def _plain(options: argparse.Namespace) -> int:
    from tests.fuzz.catalog import target

    run = target(options.target).run
    pool = [path.read_bytes() for path in sorted(options.corpus.iterdir())] or [b""]
    chance = random.Random(time.time_ns())
    end_s = time.monotonic() + options.seconds
    runs = 0
    while time.monotonic() < end_s:
        data = damaged(chance, pool)
        runs += 1
        try:
            run(data)
        except Exception:
            path = options.findings / f"{options.target}-plain-{runs}"
            path.write_bytes(data)
            traceback.print_exc()
            sys.stderr.write(f"Test unit written to {path}\n")
            return 1
    sys.stderr.write(f"stat::number_of_executed_units: {runs}\n")
    return 0


def damaged(chance: random.Random, pool: list[bytes]) -> bytes:
    """Return an input of the pool with some random wounds."""
    data = bytearray(chance.choice(pool))
    for _ in range(chance.choice((0, 1, 1, 2, 4, 8))):
        place = chance.randrange(len(data) + 1)
        match chance.randrange(5):
            case 0:
                data[place : place + 1] = chance.randbytes(1)
            case 1:
                del data[place : place + chance.randrange(1, 9)]
            case 2:
                data[place:place] = chance.randbytes(chance.randrange(1, 9))
            case 3:
                other = chance.choice(pool)
                at = chance.randrange(len(other) + 1)
                data[place:] = other[at:]
            case _:
                data[place : place + 2] = chance.choice((b"\0\0", b"\xff\xff", b"\x7f\xff"))
    return bytes(data[:INPUT_BYTES_MAX])


if __name__ == "__main__":
    sys.exit(main())
