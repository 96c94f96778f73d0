"""The paper's values (paper_values.toml), each with its source in the paper."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

PATH = Path(__file__).parent / "paper_values.toml"


def values() -> dict[str, dict[str, Any]]:
    """Return every value as a table with `value`, `source` and `text`."""
    return tomllib.loads(PATH.read_text(encoding="utf-8"))


def value(name: str) -> float:
    """Return one value; its unit is the end of its name."""
    return float(values()[name]["value"])
