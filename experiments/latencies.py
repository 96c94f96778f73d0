"""From trace events of one repetition to one row per device and step: every phase in ms.

All stamps are first put on the reference clock by subtracting the device's measured offset; so is
the trigger of a join, which the joiner's own clock released. Pure functions: the runner feeds them
trace events, a test feeds them synthetic ones, and they can be fed again from events.csv.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments.schema import PHASES

NS_PER_MS = 1e6
_CORE = frozenset({"epoch", "peer", "kind", "serial", "trigger_wall_ns"})
_SLACK_NS = 1_000_000
"""A stamp this much before the trigger still belongs to the step: error of the offsets."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """One event on the device's own clock.

    Attributes:
        wall_ns: UTC ns, not corrected.
        mono_ns: monotonic ns of the machine.
        device: name.
        daemon: ``idpd``, ``miked`` or ``kernel``.
        point: measurement point or event name.
        fields: everything else.
    """

    wall_ns: int
    mono_ns: int
    device: str
    daemon: str
    point: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Return the event's columns of events.csv."""
        rest = {key: value for key, value in self.fields.items() if key not in _CORE}
        return {
            "device": self.device,
            "daemon": self.daemon,
            "point": self.point,
            "wall_ns": self.wall_ns,
            "mono_ns": self.mono_ns,
            **{key: self.fields[key] for key in sorted(_CORE & set(self.fields))},
            "detail": json.dumps(rest, sort_keys=True, default=str) if rest else None,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> Stamp:
        """Read one row of events.csv back."""
        fields: dict[str, Any] = {key: row[key] for key in _CORE if row.get(key)}
        if row.get("detail"):
            fields.update(json.loads(row["detail"]))
        return cls(
            int(row["wall_ns"]),
            int(row["mono_ns"] or 0),
            row["device"],
            row["daemon"],
            row["point"],
            fields,
        )


@dataclass(frozen=True, slots=True)
class ClockError:
    """A device's clock against the reference clock over one repetition."""

    offset_ns: int = 0
    bound_ns: float = 0.0


def combine_offsets(before: Any, after: Any) -> ClockError:
    """Join the exchanges before and after a repetition; either may be None.

    The offset is their mean. Each exchange is at most ``bound_ns`` off, and between them the clock
    may have been anywhere between the two.
    """
    known = [exchange for exchange in (before, after) if exchange is not None]
    if not known:
        return ClockError(0, float("inf"))
    offsets = [int(exchange.offset_ns) for exchange in known]
    drift = (max(offsets) - min(offsets)) / 2
    bound = max(float(exchange.bound_ns) for exchange in known)
    return ClockError(sum(offsets) // len(offsets), bound + drift)


@dataclass(slots=True)
class StepRecord:
    """What the runner knows of a step; the columns of steps.csv (experiments/schema.py)."""

    campaign: str
    variant: str
    repetition: int
    step: int
    group_size: int
    subject: str
    method: str
    expected: tuple[str, ...]
    status: str = "not-run"
    reason: str = ""
    epoch: str | None = None
    trigger_wall_ns: int | None = None
    begin_wall_ns: int | None = None
    end_wall_ns: int | None = None
    sad_ok: bool | None = None
    packet_ok: bool | None = None
    packet_sender: str | None = None
    packet_sendings: int | None = None
    sad_wait_ms: float | None = None
    packet_ms: float | None = None
    tm: str | None = None
    handover: bool = False
    idle_percent: float | None = None
    starved: bool = False
    spis: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Return the columns of steps.csv."""
        names = [name for name in self.__slots__ if name != "spis"]
        return {name: getattr(self, name) for name in names} | {"expected": " ".join(self.expected)}


@dataclass(frozen=True, slots=True)
class Bench:
    """What one repetition's extraction needs to know besides stamps and steps.

    Attributes:
        monitor: name of the monitor device.
        addresses: black address of each device, as text.
        clocks: offset and bound of each device.
        paper_mode: whether the old SA is deleted before the new one is written.
        clock_bound_ms: larger bounds are flagged.
    """

    monitor: str
    addresses: Mapping[str, str]
    clocks: Mapping[str, ClockError]
    paper_mode: bool
    clock_bound_ms: float = 1.0

    def clock(self, device: str) -> ClockError:
        """Return a device's clock error; unknown is an infinite bound."""
        return self.clocks.get(device, ClockError(0, float("inf")))

    def on_reference_clock(self, stamp: Stamp) -> int:
        """Return when it was; the observer of the kernels reads the orchestrator's own clock."""
        if stamp.daemon == "kernel":
            return stamp.wall_ns
        return stamp.wall_ns - self.clock(stamp.device).offset_ns


class _Index:
    """The stamps of one step on the reference clock, found by device and point."""

    def __init__(self, bench: Bench, stamps: Iterable[Stamp], begin_ns: int, end_ns: float):
        self._found: dict[tuple[str, str, str], list[tuple[int, Mapping[str, Any]]]] = {}
        for stamp in stamps:
            at = bench.on_reference_clock(stamp)
            if begin_ns - _SLACK_NS <= at < end_ns:
                key = (stamp.device, stamp.daemon, stamp.point)
                self._found.setdefault(key, []).append((at, stamp.fields))
        for found in self._found.values():
            found.sort(key=lambda item: item[0])

    def all(self, device: str, daemon: str, point: str) -> list[tuple[int, Mapping[str, Any]]]:
        return self._found.get((device, daemon, point), [])

    def first(self, device: str, daemon: str, point: str, **wanted: str | None) -> int | None:
        for at, fields in self.all(device, daemon, point):
            if all(
                value is None or str(fields.get(name, "")).lower() == value.lower()
                for name, value in wanted.items()
            ):
                return at
        return None


def _ms(later: int | None, earlier: int | None) -> float | None:
    return None if later is None or earlier is None else (later - earlier) / NS_PER_MS


def step_rows(
    step: StepRecord, bench: Bench, stamps: Sequence[Stamp], end_ns: float, tm: str
) -> list[dict[str, Any]]:
    """Return one row of latencies.csv per expected device.

    Args:
        step: what the runner recorded.
        bench: names, addresses and clocks.
        stamps: the repetition's events.
        end_ns: when the next step began: later stamps are not this step's.
        tm: the device whose IDP's LEAVE counts as the detection.
    """
    if step.trigger_wall_ns is None:
        return [_base(step, bench, device) | {"flags": "not-run"} for device in step.expected]
    joining = step.campaign == "join"
    trigger = step.trigger_wall_ns
    if joining:
        trigger -= bench.clock(step.subject).offset_ns
    index = _Index(bench, stamps, trigger, end_ns)
    rows = []
    for device in step.expected:
        row = _base(step, bench, device)
        if joining:
            values, missing = _join_values(step, bench, index, device, trigger)
        else:
            values, missing = _leave_values(step, bench, index, (device, tm), trigger)
        row.update(values)
        row["kernel_written_difference_ms"] = _kernel_difference(step, index, device)
        row["ok"] = step.status == "ok" and row["total_ms"] is not None
        row["flags"] = " ".join(_flags(step, bench, index, row, missing))
        rows.append(row)
    return rows


def _base(step: StepRecord, bench: Bench, device: str) -> dict[str, Any]:
    """Return the columns that do not depend on stamps."""
    clock = bench.clock(device)
    role = "monitor" if device == bench.monitor else "member"
    if step.campaign == "join" and device == step.subject:
        role, bound = "joiner", 0.0
    else:
        bound = clock.bound_ns + (
            bench.clock(step.subject).bound_ns if step.campaign == "join" else 0.0
        )
    return {
        "campaign": step.campaign,
        "variant": step.variant,
        "repetition": step.repetition,
        "step": step.step,
        "group_size": step.group_size,
        "subject": step.subject,
        "method": step.method,
        "device": device,
        "role": role,
        "epoch": step.epoch,
        "offset_ms": clock.offset_ns / NS_PER_MS,
        "clock_bound_ms": bound / NS_PER_MS,
        "sad_ok": step.sad_ok,
        "packet_ok": step.packet_ok,
        "ok": False,
    }


def _tail(
    step: StepRecord, bench: Bench, index: _Index, device: str, started: int | None
) -> tuple[dict[str, float | None], int | None, list[str]]:
    """Return the phases from MIKE's start to the SAs written, t_written, and what is missing."""
    epoch = step.epoch
    if epoch is None:
        names = ("mike_ms", "mike_to_idp_ms", "delete_ms", "write_ms")
        return dict.fromkeys(names), None, ["epoch"]
    key = index.first(device, "miked", "t_key", epoch=epoch)
    status = index.first(device, "idpd", "t_status", epoch=epoch)
    written = index.first(device, "idpd", "t_written", epoch=epoch)
    deleted = index.first(device, "idpd", "t_deleted", epoch=epoch) if bench.paper_mode else None
    values: dict[str, float | None] = {
        "mike_ms": _ms(key, started),
        "mike_to_idp_ms": _ms(status, key),
        "delete_ms": _ms(deleted, status) if deleted is not None else 0.0,
        "write_ms": _ms(written, deleted if deleted is not None else status),
    }
    points = {"t_key": key, "t_status": status, "t_written": written}
    return values, written, [name for name, at in points.items() if at is None]


def _join_values(
    step: StepRecord, bench: Bench, index: _Index, device: str, trigger: int
) -> tuple[dict[str, float | None], list[str]]:
    joiner = step.subject
    address = bench.addresses.get(joiner)
    handed = index.first(joiner, "idpd", "t_signal", kind="join", peer=address)
    signalled = index.first(joiner, "miked", "t_mike_in", kind="join", peer=address)
    sent = index.first(joiner, "miked", "t_join_sent")
    seen = index.first(device, "idpd", "t_detect", peer=None if device == joiner else address)
    phases, written, missing = _tail(step, bench, index, device, signalled)
    key = index.first(device, "miked", "t_key", epoch=step.epoch) if step.epoch else None
    early = {"t_signal": handed, "t_mike_in": signalled}
    missing = [name for name, at in early.items() if at is None] + missing
    return {
        "idp_startup_ms": _ms(handed, trigger),
        "idp_to_mike_ms": _ms(signalled, handed),
        **phases,
        "total_ms": _ms(written, trigger),
        "detect_ms": _ms(seen, trigger),
        "join_to_key_ms": _ms(key, sent),
    }, missing


def _leave_values(
    step: StepRecord, bench: Bench, index: _Index, devices: tuple[str, str], trigger: int
) -> tuple[dict[str, float | None], list[str]]:
    device, tm = devices
    address = bench.addresses.get(step.subject)
    detected = index.first(tm, "idpd", "t_signal", kind="leave", peer=address)
    signalled = index.first(tm, "miked", "t_mike_in", kind="leave", peer=address)
    phases, written, missing = _tail(step, bench, index, device, signalled)
    early = {"t_signal": detected, "t_mike_in": signalled}
    missing = [name for name, at in early.items() if at is None] + missing
    return {
        "idp_startup_ms": None,
        "idp_to_mike_ms": _ms(signalled, detected),
        **phases,
        "total_ms": _ms(written, trigger),
        "detect_ms": _ms(detected, trigger),
        "from_detection_ms": _ms(written, detected),
    }, missing


def _kernel_difference(step: StepRecord, index: _Index, device: str) -> float | None:
    """Return t_written minus the observer's last notification of an SA of the epoch."""
    wanted = {int(spi) for spi in step.spis.get(device, ())}
    if not wanted or step.epoch is None:
        return None
    written = index.first(device, "idpd", "t_written", epoch=step.epoch)
    seen = [
        at
        for at, fields in index.all(device, "kernel", "xfrm.new")
        if int(fields.get("spi", -1)) in wanted
    ]
    return _ms(written, max(seen)) if seen else None


def _flags(
    step: StepRecord, bench: Bench, index: _Index, row: Mapping[str, Any], missing: Sequence[str]
) -> list[str]:
    flags = [f"missing:{name}" for name in missing]
    if row["clock_bound_ms"] > bench.clock_bound_ms:
        flags.append("clock-bound")
    if step.starved:
        flags.append("starved")
    if step.handover:
        flags.append("handover")
    device = row["device"]
    epochs = {str(f.get("epoch")) for _, f in index.all(device, "idpd", "t_written")}
    if device != step.subject and epochs - {str(step.epoch)}:
        flags.append("more-epochs")
    return flags


def repetition_rows(
    steps: Sequence[StepRecord], bench: Bench, stamps: Sequence[Stamp], tm: str
) -> list[dict[str, Any]]:
    """Return the rows of latencies.csv of one repetition."""
    rows: list[dict[str, Any]] = []
    for number, step in enumerate(steps):
        begins = [s.begin_wall_ns for s in steps[number + 1 :] if s.begin_wall_ns is not None]
        rows += step_rows(step, bench, stamps, float(begins[0]) if begins else float("inf"), tm)
    return rows


def event_rows(
    steps: Sequence[StepRecord], bench: Bench, stamps: Iterable[Stamp], about: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the rows of events.csv: every stamp with the number of the step it falls in."""
    begins = [(s.begin_wall_ns, s.step) for s in steps if s.begin_wall_ns is not None]
    rows = []
    for stamp in sorted(stamps, key=lambda s: (s.wall_ns, s.device, s.daemon)):
        at = bench.on_reference_clock(stamp)
        number = max((step for begin, step in begins if begin <= at), default=0)
        rows.append({**about, "step": number, **stamp.row()})
    return rows


PHASE_NAMES = tuple(PHASES)
