"""Tables of a file (TOML, JSON) as dataclasses: every key known, every type as declared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from experiments.errors import PlanError


def require(condition: bool, text: str) -> None:
    """Raise PlanError with this text unless the condition holds."""
    if not condition:
        raise PlanError(text)


def build(kind: type, data: Any, where: str) -> Any:
    """Build a dataclass from a mapping; unknown and missing keys and wrong types are errors."""
    if not isinstance(data, Mapping):
        raise PlanError(f"{where}: expected a table")
    names = {f.name: f for f in fields(kind)}
    unknown = sorted(set(data) - set(names))
    if unknown:
        raise PlanError(f"{where}: unknown key {unknown[0]!r} (known: {', '.join(names)})")
    types = get_type_hints(kind)
    values: dict[str, Any] = {}
    for name, value in data.items():
        values[name] = _value(types[name], value, f"{where}.{name}")
    try:
        return kind(**values)
    except TypeError as error:
        raise PlanError(f"{where}: {str(error).split(') ')[-1]}") from error


def _repeated(expected: Any) -> Any:
    """Return T of ``tuple[T, ...]``, None for every other type."""
    return get_args(expected)[0] if get_origin(expected) is tuple else None


def _value(expected: Any, value: Any, where: str) -> Any:
    item = _repeated(expected)
    if isinstance(item, type) and is_dataclass(item):
        return tuple(build(item, one, f"{where}[{i}]") for i, one in enumerate(value))
    if item is str:
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
            raise PlanError(f"{where}: expected a list of strings")
        return tuple(value)
    if item is int:
        if not isinstance(value, (list, tuple)) or not all(type(v) is int for v in value):
            raise PlanError(f"{where}: expected a list of whole numbers")
        return tuple(value)
    if get_origin(expected) is UnionType:  # T | None
        (inner,) = (one for one in get_args(expected) if one is not NoneType)
        return None if value is None else _value(inner, value, where)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise PlanError(f"{where}: expected {expected.__name__}, found {value!r}")
    return value
