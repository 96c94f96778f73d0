"""Frozen data classes cost less to make while nobody checks that they stay as they are.

The constructor of a frozen class stores each field by a call, one of a plain class by a single
instruction: an eighth of a simulation went into that. mypy sees to it that nobody changes a field,
and every other test runs the same engines with the classes frozen.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

PACKAGES = ("protocol.", "testbed.sim.")
"""Whose classes these are."""

_GUARDS = ("__setattr__", "__delattr__")


@contextmanager
def thawed() -> Iterator[None]:
    """Let frozen data classes of engines and simulator be plain ones, as long as this lasts."""
    kept = [(kind, _thaw(kind)) for kind in frozen_classes()]
    try:
        yield
    finally:
        for kind, attributes in kept:
            for name, value in attributes.items():
                setattr(kind, name, value)


def frozen_classes() -> list[type]:
    """Return the loaded frozen data classes with a constructor that `dataclass` made."""
    found: dict[type, None] = {}
    for name, module in list(sys.modules.items()):
        if name.startswith(PACKAGES):
            for kind in vars(module).values():
                if isinstance(kind, type) and kind.__module__ == name and _is_plain(kind):
                    found[kind] = None
    return [kind for kind in found if "__setattr__" in kind.__dict__]


@cache
def _is_plain(kind: type) -> bool:
    parameters = kind.__dict__.get("__dataclass_params__")
    made = getattr(kind.__dict__.get("__init__"), "__code__", None)
    if parameters is None or not parameters.frozen or made is None:
        return False
    # Fields that are no parameters, and parameters that are no fields, are not worth the trouble.
    names = [field.name for field in dataclasses.fields(kind)]
    arguments = made.co_varnames[1 : made.co_argcount + made.co_kwonlyargcount]
    return made.co_filename == "<string>" and list(arguments) == names


def _thaw(kind: type) -> dict[str, Any]:
    """Make a class plain; return what it was."""
    kept = {name: kind.__dict__[name] for name in (*_GUARDS, "__init__")}
    kind.__init__ = constructor(kind)  # type: ignore[misc]
    for name in _GUARDS:
        delattr(kind, name)
    return kept


@cache
def constructor(kind: type) -> Callable[..., None]:
    """Return a constructor that does what `dataclass` had its own do."""
    absent = object()
    scope: dict[str, Any] = {"absent": absent}
    parameters, body = [], []
    for field in dataclasses.fields(kind):
        name = field.name
        if field.kw_only and "*" not in parameters:
            parameters.append("*")
        value = name
        if field.default_factory is not dataclasses.MISSING:
            scope[f"make_{name}"] = field.default_factory
            parameters.append(f"{name}=absent")
            value = f"make_{name}() if {name} is absent else {name}"
        elif field.default is not dataclasses.MISSING:
            scope[f"default_{name}"] = field.default
            parameters.append(f"{name}=default_{name}")
        else:
            parameters.append(name)
        body.append(f"self.{name} = {value}")
    if hasattr(kind, "__post_init__"):
        body.append("self.__post_init__()")
    lines = "".join(f"    {line}\n" for line in body or ["pass"])
    exec(f"def __init__(self, {', '.join(parameters)}):\n{lines}", scope)  # noqa: S102 - as `dataclass` does
    made: Callable[..., None] = scope["__init__"]
    return made
