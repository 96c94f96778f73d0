"""All targets, and the corpus that is committed: one file a target, one input a line, in hex."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from tests.fuzz.targets import Target, decoders

CORPUS = Path(__file__).resolve().parent / "corpus"


@cache
def targets() -> dict[str, Target]:
    """Return every target by name."""
    from tests.fuzz.engines import engines

    return dict(sorted({**decoders(), **engines()}.items()))


def target(name: str) -> Target:
    """Return one target; engines are imported only for a target that needs them."""
    return targets()[name] if name.startswith("engine-") else decoders()[name]


def committed(name: str) -> list[bytes]:
    """Return the inputs of a target that are in the tree."""
    path = CORPUS / f"{name}.hex"
    lines = path.read_text().splitlines() if path.exists() else []
    return [bytes.fromhex(line) for line in lines]


def unpack(name: str, directory: Path) -> None:
    """Write a target's seeds and committed inputs as files, as the fuzzer wants them."""
    directory.mkdir(parents=True, exist_ok=True)
    for data in (*target(name).seeds, *committed(name)):
        (directory / hashlib.sha256(data).hexdigest()[:24]).write_bytes(data)
