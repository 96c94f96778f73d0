"""A TOML file as checked values: every refusal is one line that names file, section and field.

All kinds of configuration files (`protocol.daemon.config`, `protocol.daemon.mproxyconfig`,
`protocol.daemon.gatewayconfig`) are read with the class here. Relative paths are relative to the
file.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from protocol.core.errors import LocalError

Config = TypeVar("Config")

CONFIG_BYTES_MAX = 256 * 1024

INTERFACE_NAME_MAX = 15
"""IFNAMSIZ of Linux, less the terminating zero."""


SECTIONS = (
    "device", "black", "identity", "policy", "local", "idp", "mike", "ipsec", "clock", "start",
    "state", "users", "mproxy", "gateway",
)  # fmt: skip
"""Every section that one of the daemons reads."""


class ConfigFileError(LocalError):
    """The file cannot be read, or a setting in it is wrong; the text is one line."""


@dataclass(frozen=True, slots=True)
class RunFiles:
    """Whose daemons these are, and where they keep their files.

    Attributes:
        name: the device's name.
        run_directory: an existing directory.
    """

    name: str
    run_directory: Path

    def control_socket(self, daemon: str) -> Path:
        """Return the path of a daemon's control socket."""
        return self.run_directory / f"{daemon}.sock"

    def trace_file(self, daemon: str) -> Path:
        """Return the path of a daemon's trace."""
        return self.run_directory / f"{daemon}.trace.jsonl"

    def secrets_file(self, daemon: str) -> Path:
        """Return the path of what a daemon's key source gave, if that is recorded."""
        return self.run_directory / f"{daemon}.secrets"

    def log_file(self, daemon: str) -> Path:
        """Return the path of a daemon's log."""
        return self.run_directory / f"{daemon}.log"

    def check(self) -> None:
        """Refuse a run directory in which we cannot make files."""
        if not os.access(self.run_directory, os.W_OK | os.X_OK):
            raise ConfigFileError(f"{self.run_directory}: no right to write in the run directory")


def read_tables(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigFileError: it cannot be read, is too large, or is not TOML.
    """
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigFileError(f"{path}: cannot read: {error.strerror}") from error
    if len(data) > CONFIG_BYTES_MAX:
        raise ConfigFileError(f"{path}: larger than {CONFIG_BYTES_MAX} bytes")
    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigFileError(f"{path.name}: not TOML: {error}") from error


def load_run_files(path: Path) -> RunFiles:
    """Read only name and run directory: for a client that looks for a control socket.

    Raises:
        ConfigFileError: the file cannot be read, or these two are wrong.
    """
    return TableReader(path, read_tables(path)).run_files()


class TableReader:
    """Takes tables apart; every method names section and field when it refuses."""

    def __init__(self, path: Path, tables: Mapping[str, Any]) -> None:
        self._path = path
        self._tables: dict[str, dict[str, Any]] = {}
        for name, table in tables.items():
            if name not in SECTIONS:
                self.fail(name, "", f"unknown section (known: {', '.join(SECTIONS)})")
            if not isinstance(table, dict):
                self.fail(name, "", "must be a table")
            self._tables[name] = dict(table)

    def fail(self, section: str, key: str, problem: str) -> NoReturn:
        """Refuse a setting."""
        place = f"[{section}] {key}" if key else f"[{section}]"
        raise ConfigFileError(f"{self._path.name}: {place} {problem}")

    def refuse_leftovers(self, *sections: str) -> None:
        """Refuse what nobody has taken, in these sections or in all."""
        for section in sections or self._tables:
            for key in self._tables.get(section, ()):
                self.fail(section, key, "is not a setting")

    def take(self, section: str, key: str, default: Any = None) -> Any:
        """Remove one value from its table; without a default it must be there."""
        value = self._tables.get(section, {}).pop(key, default)
        if value is None:
            self.fail(section, key, "is missing")
        return value

    def text(self, section: str, key: str, default: str | None = None) -> str:
        """Take a printable text."""
        value = self.take(section, key, default)
        if not isinstance(value, str) or not value or not value.isprintable():
            self.fail(section, key, f"must be a text, not {value!r}")
        return value

    def integer(self, section: str, key: str, low: int, high: int, default: int | None) -> int:
        """Take a whole number between two bounds."""
        value = self.take(section, key, default)
        if type(value) is not int or not low <= value <= high:
            self.fail(section, key, f"must be a whole number from {low} to {high}, not {value!r}")
        return int(value)

    def boolean(self, section: str, key: str, *, default: bool) -> bool:
        """Take a truth value."""
        value = self.take(section, key, default)
        if not isinstance(value, bool):
            self.fail(section, key, f"must be true or false, not {value!r}")
        return value

    def choice(self, section: str, key: str, choices: tuple[str, ...], default: str) -> str:
        """Take one of some words."""
        value = self.take(section, key, default)
        if value not in choices:
            self.fail(section, key, f"must be one of {', '.join(choices)}, not {value!r}")
        return str(value)

    def interface(self, section: str, key: str, default: str | None) -> str:
        """Take the name of an interface."""
        value = self.text(section, key, default)
        if len(value) > INTERFACE_NAME_MAX or "/" in value or " " in value:
            self.fail(section, key, f"must be an interface name, not {value!r}")
        return value

    def address(
        self, section: str, key: str, *, multicast: bool, default: str | None = None
    ) -> IPv6Address:
        """Take an IPv6 address without scope."""
        value = self.take(section, key, default)
        kind = "IPv6 multicast address" if multicast else "IPv6 unicast address"
        try:
            address = IPv6Address(value if isinstance(value, str) else "")
        except ValueError:
            self.fail(section, key, f"must be an {kind}, not {value!r}")
        if address.is_multicast != multicast or address.is_unspecified or address.scope_id:
            self.fail(section, key, f"must be an {kind}, not {value!r}")
        return address

    def path(self, section: str, key: str) -> Path:
        """Take a path; what begins with ``~`` or ``~user`` is in that home directory."""
        text = self.text(section, key)
        try:
            return self._path.parent / Path(text).expanduser()
        except RuntimeError:
            self.fail(section, key, f"names a user who has no home directory here: {text!r}")

    def directory(self, section: str, key: str) -> Path:
        """Take the path of an existing directory."""
        path = self.path(section, key)
        if not path.is_dir():
            self.fail(section, key, f"must be an existing directory, not {str(path)!r}")
        return path

    # What several daemons' files have alike.

    def run_files(self, section: str = "", daemon: str = "") -> RunFiles:
        """Take name and run directory; refuse a file without the section that a daemon needs."""
        if section and section not in self._tables:
            self.fail(section, "", f"is missing: {daemon} has nothing to do here")
        return RunFiles(self.text("device", "name"), self.directory("device", "run_directory"))

    def prefixes(
        self, section: str, key: str, default: list[str] | None = None
    ) -> tuple[IPv4Network | IPv6Network, ...]:
        """Take a list of prefixes of either family."""
        value = self.take(section, key, default)
        if not isinstance(value, list):
            self.fail(section, key, f"must be a list of prefixes, not {value!r}")
        found = []
        for item in value:
            try:
                found.append(ip_network(item if isinstance(item, str) else ""))
            except ValueError:
                self.fail(section, key, f"has {item!r}, which is no prefix")
        return tuple(found)

    def each(self, section: str, key: str) -> Iterator[str]:
        """Take an array of tables: one after the other is the section whose name is yielded."""
        name = f"{section}.{key}"
        tables = self.take(section, key, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self.fail(section, key, f"must be [[{name}]] tables")
        for table in tables:
            self._tables[name] = dict(table)
            yield name
            self.refuse_leftovers(name)

    def settings(
        self,
        section: str,
        make: Callable[..., Config],
        ranges: Iterable[tuple[str, int, int]],
        **values: Any,
    ) -> Config:
        """Take the whole numbers of an engine's settings, and make these.

        Args:
            section: where they are, and of which nothing may be left.
            make: the settings' class, whose defaults count.
            ranges: name and bounds of each number.
            values: the other fields, or defaults of numbers that differ from the class's.
        """
        defaults = {item.name: item.default for item in fields(make)}  # type: ignore[arg-type]
        for name, low, high in ranges:
            default = values.get(name, defaults[name])
            values[name] = self.integer(section, name, low, high, default)
        self.refuse_leftovers(section)
        try:
            return make(**values)
        except LocalError as error:
            raise ConfigFileError(f"{self._path.name}: [{section}] {error}") from error
