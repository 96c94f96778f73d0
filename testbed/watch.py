"""Waiting for a group: on the daemons' traces, on their status, on the SADs of all devices."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from testbed.errors import DeadlineError, TestbedError
from testbed.observer import SadCheck, SadReader, compare
from testbed.trace import Event
from testbed.wait import wait_until

TRACE_PAUSE_S: Final = 0.02
STATUS_PAUSE_S: Final = 0.1
"""A status costs every daemon a few milliseconds in the guest: asked seldom."""


class TraceLog:
    """All events of all devices, read as they are written."""

    def __init__(self, readers: Mapping[str, Callable[[], list[Event]]]) -> None:
        self._readers = dict(readers)
        self._by_device: dict[str, list[Event]] = {device: [] for device in readers}
        self._unreported: list[Event] = []

    def poll(self) -> None:
        """Read what is new."""
        for device, read in self._readers.items():
            events = read()
            if events:
                self._by_device[device] += events
                self._unreported += events

    def new(self) -> list[Event]:
        """Return the events since the last call, sorted by time."""
        self.poll()
        events, self._unreported = self._unreported, []
        return sorted(events, key=lambda event: event.wall_ns)

    def all(self) -> list[Event]:
        """Return every event read so far, sorted by time."""
        events = [event for of_device in self._by_device.values() for event in of_device]
        return sorted(events, key=lambda event: event.wall_ns)

    def last(self, device: str) -> str:
        """Return the device's last points, for an error message."""
        tail = self._by_device[device][-3:]
        return ", ".join(f"{event.daemon} {event.point}" for event in tail) or "nothing at all"

    def await_each(
        self,
        devices: Sequence[str],
        wanted: Callable[[Event], bool],
        what: str,
        *,
        deadline_s: float,
        check: Callable[[], None],
    ) -> dict[str, Event]:
        """Wait until each device has such an event; return the last one of each.

        Raises:
            DeadlineError: names who lacks it and what they did instead.
        """
        found: dict[str, Event] = {}

        def complete() -> dict[str, Event] | None:
            self.poll()
            for device in devices:
                event = next((e for e in reversed(self._by_device[device]) if wanted(e)), None)
                if event is not None:
                    found[device] = event
            if len(found) == len(set(devices)):
                return found
            check()
            return None

        def describe() -> str:
            lacking = [device for device in devices if device not in found]
            seen = "; ".join(f"{device} last did: {self.last(device)}" for device in lacking[:3])
            return f"no {what} from {', '.join(lacking)}; {seen}"

        if not devices:
            return found
        return wait_until(complete, deadline_s, describe, pause_s=TRACE_PAUSE_S)


class GroupWatch:
    """What the daemons say of the group.

    Args:
        addresses: device -> black address.
        status: asks a daemon of a device.
        check: raises if a daemon has died.
    """

    def __init__(
        self,
        addresses: Mapping[str, str],
        status: Callable[[str, str], dict[str, Any]],
        check: Callable[[], None],
    ) -> None:
        self._addresses = addresses
        self._status = status
        self._check = check

    def epochs(self, devices: Sequence[str]) -> dict[str, str | None]:
        """Return the epoch that each device's idpd has written."""
        return {device: _text(self._status(device, "idpd").get("epoch")) for device in devices}

    def await_members(
        self, devices: Sequence[str], *, deadline_s: float, tm: str | None = None
    ) -> str:
        """Wait until miked and idpd of all devices agree on this group; return its epoch.

        Raises:
            DeadlineError: says who differs, and how.
        """
        wanted = sorted(self._addresses[device] for device in devices)
        problem = "no device was asked"

        def agreed() -> str | None:
            nonlocal problem
            self._check()
            epoch, problem = self._disagreement(devices, wanted, tm)
            return epoch if not problem else None

        return wait_until(
            agreed,
            deadline_s,
            lambda: (
                f"the group {', '.join(devices)} does not come about: {problem}; "
                + "; ".join(self._situation(device) for device in devices)
            ),
            pause_s=STATUS_PAUSE_S,
        )

    def _situation(self, device: str) -> str:
        """Say whom a device hears and whom it has a key with; that tells who is to blame."""
        names = {address: name for name, address in self._addresses.items()}
        try:
            mike, idp = (self._status(device, daemon) for daemon in ("miked", "idpd"))
        except TestbedError as error:
            return f"{device} does not answer: {error}"
        up = [names.get(p["address"]) for p in idp.get("peers") or () if p["state"] == "up"]
        members = [names.get(str(address)) for address in mike.get("members") or ()]
        return (
            f"{device} hears {_listed(up)}, is in epoch {mike.get('epoch')} of {_listed(members)}"
        )

    def _disagreement(
        self, devices: Sequence[str], wanted: list[str], tm: str | None
    ) -> tuple[str, str]:
        """Return the common epoch, and what is still wrong."""
        epoch = ""
        for device in devices:
            mike = self._status(device, "miked")
            members = sorted(str(member) for member in mike.get("members") or ())
            if members != wanted:
                return "", f"{device}/miked has {len(members)} members, not {len(wanted)}"
            if tm is not None and str(mike.get("tm")) != tm:
                return "", f"{device}/miked holds {mike.get('tm')} for the transaction manager"
            idp = self._status(device, "idpd")
            theirs = {_text(mike.get("epoch")), _text(idp.get("epoch"))}
            theirs.add(_text(idp.get("active_epoch")))
            epoch = epoch or str(mike.get("epoch"))
            if theirs != {epoch}:
                return "", (
                    f"{device} is at epoch {mike.get('epoch')} (miked), {idp.get('epoch')} "
                    f"(written), {idp.get('active_epoch')} (active); {devices[0]} is at {epoch}"
                )
        return epoch, ""


def _listed(names: Sequence[str | None]) -> str:
    return " ".join(sorted(str(name) for name in names)) or "nobody"


def check_sads(
    devices: Sequence[str],
    reader: SadReader | None,
    sa_mode: str,
    watch: GroupWatch,
    deadline_s: float,
) -> SadCheck:
    """Compare the SADs of devices until they agree or time is up."""
    start = time.monotonic()
    if reader is None:
        epochs = set(watch.epochs(devices).values())
        epoch = epochs.pop() if len(epochs) == 1 else None
        elapsed = (time.monotonic() - start) * 1e3
        reason = "not applicable: memory backend, no SA is in a kernel"
        return SadCheck(False, False, "memory", epoch, reason, {}, {}, round(elapsed, 1))
    problem = "no device was asked"
    snapshots = {}
    epoch = None

    def agreed() -> bool:
        nonlocal problem, snapshots, epoch
        snapshots = {device: reader.read(device) for device in devices}
        problem = compare(snapshots, sa_mode)
        if problem:
            return False
        epochs = watch.epochs(devices)
        epoch = next(iter(epochs.values()), None)
        if epoch is None or set(epochs.values()) != {epoch}:
            problem = "epochs differ: " + ", ".join(f"{d} {e}" for d, e in epochs.items())
            return False
        return True

    try:
        wait_until(agreed, deadline_s, lambda: problem, pause_s=STATUS_PAUSE_S)
    except DeadlineError as error:
        problem = str(error)
    shared = sa_mode == "paper"
    return SadCheck(
        ok=not problem,
        applicable=True,
        source="kernel",
        epoch=epoch if not problem else None,
        reason=problem,
        digests={
            device: snapshot.digest_without_source if shared else snapshot.digest
            for device, snapshot in snapshots.items()
        },
        spis={
            device: tuple(entry.spi for entry in snapshot.entries)
            for device, snapshot in snapshots.items()
        },
        elapsed_ms=round((time.monotonic() - start) * 1e3, 1),
    )


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
