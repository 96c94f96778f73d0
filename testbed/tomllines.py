"""Line numbers for TOML values: ``tomllib`` has none, and a good error message needs them.

`TomlDocument` pairs the parsed values with a map from key path to line. The map is built by a
scan that understands what topology files use: table headers, arrays of tables, one key per line
(dotted ones too), arrays over several lines. Where it cannot tell (several keys in an inline
table), it answers with the line of the nearest parent.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from testbed.errors import TestbedError

KeyPath = tuple[str | int, ...]

_HEADER: Final = re.compile(r"^\s*(\[\[?)\s*([A-Za-z0-9_.\"' -]+?)\s*\]\]?\s*(#.*)?$")
_PART: Final = r"(?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')"
_KEY: Final = re.compile(rf"^\s*({_PART}(?:\s*\.\s*{_PART})*)\s*=(.*)$")
_SYNTAX_LINE: Final = re.compile(r"\(at line (\d+)")


class SpecError(TestbedError):
    """A mistake in a TOML file.

    Attributes:
        path: the file.
        line: 1-based line, 0 if it concerns the whole file.
        field: the field as a user would call it, e.g. ``node d3: black``.
    """

    def __init__(self, path: Path, line: int, field: str, problem: str) -> None:
        where = f"{path}:{line}" if line else str(path)
        super().__init__(f"{where}: {field}: {problem}" if field else f"{where}: {problem}")
        self.path = path
        self.line = line
        self.field = field


class TomlDocument:
    """A parsed TOML file that knows where its values are.

    Attributes:
        path: the file, for messages.
        values: what ``tomllib`` returned.
    """

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        try:
            self.values: Mapping[str, Any] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            found = _SYNTAX_LINE.search(str(error))
            line = int(found.group(1)) if found else text.count("\n") + 1
            raise SpecError(path, line, "", f"not TOML: {error}") from None
        self._lines = _scan(text)

    @classmethod
    def read(cls, path: Path) -> TomlDocument:
        """Read a file.

        Raises:
            SpecError: it cannot be read or is not TOML.
        """
        try:
            return cls(path, path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SpecError(path, 0, "", f"cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise SpecError(path, 0, "", f"is not UTF-8 text (byte {error.start})") from None

    def line(self, key: KeyPath) -> int:
        """Return the line of a value, or of its nearest parent that has one."""
        while key:
            if key in self._lines:
                return self._lines[key]
            key = key[:-1]
        return 1

    def error(self, key: KeyPath, field: str, problem: str) -> SpecError:
        """Return the error about a value, ready to raise."""
        return SpecError(self.path, self.line(key), field, problem)


def _scan(text: str) -> dict[KeyPath, int]:
    """Return the line of every table header and key."""
    lines: dict[KeyPath, int] = {}
    counts: dict[KeyPath, int] = {}
    table: KeyPath = ()
    depth = 0
    for number, line in enumerate(text.splitlines(), 1):
        if depth > 0:
            depth += _depth(line)
            continue
        if header := _HEADER.match(line):
            names = tuple(part.strip(" \"'") for part in header.group(2).split("."))
            table = _resolve(names, counts, is_array=header.group(1) == "[[")
            lines.setdefault(table, number)
        elif key := _KEY.match(line):
            parts = tuple(part.strip("\"'") for part in re.findall(_PART, key.group(1)))
            for end in range(1, len(parts)):
                lines.setdefault((*table, *parts[:end]), number)
            lines[(*table, *parts)] = number
            depth = max(0, _depth(key.group(2)))
    return lines


def _resolve(names: tuple[str, ...], counts: dict[KeyPath, int], *, is_array: bool) -> KeyPath:
    """Turn a header's names into a path with the index of every array of tables in it."""
    path: KeyPath = ()
    for position, name in enumerate(names):
        path = (*path, name)
        if is_array and position == len(names) - 1:
            counts[path] = counts.get(path, 0) + 1
        if path in counts:
            path = (*path, counts[path] - 1)
    return path


def _depth(text: str) -> int:
    """Return how many brackets a line leaves open, outside of strings and comments."""
    bare = re.sub(r"\"(\\.|[^\"\\])*\"|'[^']*'", "", text).partition("#")[0]
    return sum(bare.count(mark) for mark in "[{") - sum(bare.count(mark) for mark in "]}")
