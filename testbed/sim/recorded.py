"""What a real daemon recorded (``--record-datagrams``), handed to the same engine once more.

Every event of the recording goes to a new engine at its recorded time; the SAD, the SPD and the
routes are in memory. The measurement points that the engine reports must be those of the recording,
in the same order and with the same fields.

A recording holds no secrets, but what engines decide depends on them (a TREE is followed with a
leaf whose secret one holds, an announcement has the pair's MAC). So a daemon writes what it draws
and which group keys it gets to a file of its own, if it is told to (``--record-secrets``), and the
replay has the same.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_network
from pathlib import Path
from typing import Any

from protocol.core.engine import (
    DatagramReceived,
    Effect,
    Engine,
    Event,
    Instant,
    Report,
    Started,
    Stopped,
    TimerExpired,
)
from protocol.core.errors import LocalError
from protocol.daemon.config import DeviceConfig, load
from protocol.daemon.routes import MemoryRoutes
from protocol.identity.certificates import IdentityFiles, load_identity
from protocol.idp.engine import IdpEngine
from protocol.idp.events import (
    ApplyRoutes,
    ApplySas,
    KernelChanged,
    KeyFetched,
    LinkChanged,
    PrefixAdded,
    PrefixRemoved,
    RoutesApplied,
    SasApplied,
)
from protocol.ipsec.backend import Outcome
from protocol.ipsec.memory import MemoryBackend
from protocol.mike.engine import MikeEngine
from protocol.mike.events import EpochMarkFound, HandoverRequested, RekeyRequested
from testbed.errors import TestbedError

IDP_POINTS = frozenset(
    {"t_start", "t_hello", "t_detect", "t_signal", "t_status", "t_written", "t_active"}
    | {"t_deleted", "t_prefixes", "idp.link", "idp.key_failed"}
)
MIKE_POINTS = frozenset(
    {"t_mike_in", "t_join_sent", "t_key", "mike.state", "mike.founded", "mike.tm", "mike.elected"}
    | {"mike.excluded", "mike.dissolve", "mike.rekey", "mike.sponsor_silent"}
)
POINTS_OF = {"idpd": IDP_POINTS, "miked": MIKE_POINTS}
"""What is compared: whatever follows from the events and the secrets."""

_STAMPS = ("wall_ns", "mono_ns", "device", "daemon", "point")

Said = tuple[str, dict[str, Any]]
"""A measurement point and its fields."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of a recording.

    Attributes:
        device: whose it is.
        events: how many were handed in.
        points: how many were compared.
        difference: the first one, or None.
        skipped: events that a recording does not hold in full, by type.
    """

    device: str
    events: int
    points: int
    difference: str | None
    skipped: tuple[str, ...]


def replay(config_path: Path, trace_path: Path) -> Replayed:
    """Play a recording.

    Args:
        config_path: the device's configuration; its certificates and keys must be in their places.
        trace_path: the trace of one process, started with ``--record-datagrams`` and
            ``--record-secrets``; the secrets lie beside it.

    Raises:
        TestbedError: the files are not what they should be.
    """
    lines = _lines(trace_path)
    events = [line for line in lines if line["point"] == "event"]
    if not events:
        raise TestbedError(f"{trace_path} holds no events: record with --record-datagrams")
    daemon = events[0]["daemon"]
    if daemon not in POINTS_OF or any(line["daemon"] != daemon for line in events):
        raise TestbedError(f"{trace_path} is not of one process of idpd or miked")
    points = POINTS_OF[daemon]
    secrets = _Secrets(trace_path.with_name(f"{daemon}.secrets"))
    engine = _engine(daemon, config_path, events[0]["wall_ns"], secrets)
    player = _Player(engine, points, secrets.keys)
    for line in events:
        player.play(line)
    recorded = [_said(line["point"], line) for line in lines if line["point"] in points]
    return Replayed(
        device=events[0]["device"],
        events=len(events),
        points=len(recorded),
        difference=_difference(recorded, player.said),
        skipped=tuple(sorted(player.skipped)),
    )


class _Player:
    """Feeds one engine, and answers what it asks for."""

    def __init__(self, engine: Engine, points: frozenset[str], keys: Mapping[str, bytes]) -> None:
        self.said: list[Said] = []
        self.skipped: set[str] = set()
        self._engine = engine
        self._points = points
        self._keys = keys
        self._backend = MemoryBackend()
        self._routes = MemoryRoutes()
        self._outcomes: dict[tuple[str, str], Sequence[Outcome]] = {}

    def play(self, line: dict[str, Any]) -> None:
        """Hand in one recorded event at its time."""
        event = self._event(line)
        if event is None:
            self.skipped.add(line["type"])
            return
        for effect in self._engine.handle(event, Instant(line["mono_ns"], line["wall_ns"])):
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case ApplySas(label, operations):
                self._outcomes["SasApplied", label] = self._backend.apply(operations)
            case ApplyRoutes(label, routes):
                self._outcomes["RoutesApplied", label] = self._routes.apply(routes)
            case Report(point, fields) if point in self._points:
                self.said.append(_said(point, json.loads(json.dumps(dict(fields), default=str))))

    def _event(self, line: dict[str, Any]) -> Event | None:
        """Return a recorded event; None if the recording does not hold it in full."""
        match line["type"]:
            case "DatagramReceived":
                payload = bytes.fromhex(line["payload"])
                source, waited_ns = IPv6Address(line["source"]), line.get("waited_ns", 0)
                return DatagramReceived(line["channel"], source, payload, waited_ns)
            case "TimerExpired":
                return TimerExpired(line["name"])
            case "Started":
                return Started(line["trigger_wall_ns"])
            case "Stopped":
                return Stopped()
            case "LinkChanged":
                return LinkChanged(line["up"])
            case "KernelChanged":
                return KernelChanged()
            case "KeyFetched":
                return KeyFetched(line["pointer"], self._keys.get(line["pointer"]))
            case "PrefixAdded":
                return PrefixAdded(ip_network(line["prefix"]))
            case "PrefixRemoved":
                return PrefixRemoved(ip_network(line["prefix"]))
            case "HandoverRequested":
                return HandoverRequested(IPv6Address(line["to"]))
            case "RekeyRequested":
                return RekeyRequested()
            case "EpochMarkFound":
                return EpochMarkFound(line["number"])
            case "SasApplied":
                return SasApplied(line["label"], self._outcome(line))
            case "RoutesApplied":
                return RoutesApplied(line["label"], self._outcome(line))
        return None

    def _outcome(self, line: dict[str, Any]) -> Sequence[Outcome]:
        """Return the outcome of our own batch of this name; none if we made no such batch."""
        return self._outcomes.pop((line["type"], line["label"]), ())


class _Secrets:
    """A key source that gives once more what a daemon drew, in the same order; its group keys."""

    def __init__(self, path: Path) -> None:
        self.keys: dict[str, bytes] = {}
        self._left: deque[bytes] = deque()
        try:
            for line in path.read_text().splitlines():
                match line.split():
                    case ["draw", drawn]:
                        self._left.append(bytes.fromhex(drawn))
                    case ["key", pointer, key]:
                        self.keys[pointer] = bytes.fromhex(key)
                    case _:
                        raise TestbedError(f"{path} holds something else than secrets")
        except OSError as error:
            text = f"{path}: {error.strerror}: record with --record-secrets too"
            raise TestbedError(text) from error
        except ValueError as error:
            raise TestbedError(f"{path} holds something else than secrets") from error

    def random_bytes(self, length: int) -> bytes:
        """Return the next bytes; zeros if another number is asked for: the replay has parted."""
        drawn = self._left.popleft() if self._left else b""
        return drawn if len(drawn) == length else bytes(length)


def _engine(daemon: str, config_path: Path, wall_ns: int, secrets: _Secrets) -> Engine:
    try:
        config: DeviceConfig = load(config_path)
        section = config.identity
        files = IdentityFiles(
            section.certificate,
            section.key,
            section.anchors,
            section.peers,
            section.revocations,
            section.freshness_ms,
            section.cache,
        )
        identity, _ = load_identity(files, config.device.address, wall_ns)
    except LocalError as error:
        raise TestbedError(str(error)) from error
    if daemon == "idpd":
        return IdpEngine(config.idp, identity, config.local.secret, secrets)
    return MikeEngine(config.mike, identity, config.local.secret, secrets)


def _lines(path: Path) -> list[dict[str, Any]]:
    """Read a trace."""
    found = []
    for number, text in enumerate(path.read_text().splitlines(), 1):
        try:
            line = json.loads(text)
            found.append({**line, "point": str(line["point"]), "daemon": str(line["daemon"])})
        except (ValueError, KeyError, TypeError) as error:
            raise TestbedError(f"{path}:{number}: no line of a trace: {error!r}") from error
    return found


def _said(point: str, fields: dict[str, Any]) -> Said:
    return point, {name: value for name, value in fields.items() if name not in _STAMPS}


def _difference(recorded: Sequence[Said], replayed: Sequence[Said]) -> str | None:
    """Name the first point at which the two part."""
    for number, (then, now) in enumerate(zip(recorded, replayed, strict=False), 1):
        if then != now:
            return f"point {number} was {_words(then)} and is {_words(now)}"
    if len(recorded) != len(replayed):
        longer = recorded if len(recorded) > len(replayed) else replayed
        whose = "recording" if longer is recorded else "replay"
        return f"only the {whose} goes on with {_words(longer[min(len(recorded), len(replayed))])}"
    return None


def _words(said: Said) -> str:
    return " ".join([said[0], *(f"{name}={value}" for name, value in said[1].items())])
