"""How each fault is begun, and what ends it.

A kind is a function of the fleet, the device and the exit stack that gets what ends each part of
the fault that has begun. A kind that is over once it is done, such as an SA that somebody deletes,
leaves nothing to end, and the time drawn for the fault is not waited for.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from testbed.moments import Moment, MomentWatch
from testbed.sabotage import Sabotage, fill_disk

if TYPE_CHECKING:
    from testbed.fleet import Fleet
    from testbed.processes import OwnedProcess

BOTH = ("idpd", "miked")
DAEMONS = {"idpd": ("idpd",), "miked": ("miked",), "both": BOTH, "tm": BOTH}

NETEM = {
    "loss": "loss 30%",
    "reorder": "delay 20ms 20ms",
    "duplicate": "duplicate 30%",
    "deaf": "loss 100%",
    "mute": "loss 100%",
}
"""What netem does; reorder: a packet waits for 0 to 40 ms, so those sent within that time overtake
one another."""

MTU = 1280
"""The least that IPv6 allows."""

CLOCK_MS = {"seconds": 25_000, "years": 3 * 365 * 86_400_000}
"""How far a clock is set: within what the others still accept (``freshness_ms``), and beyond."""

LEAD_NS = 500_000_000
"""Between the command to begin anew and its trigger: by then we watch."""

MOMENT_DEADLINE_S = 30.0

INSTANT = ("sa-removed", "sa-added", "policy-removed", "route-removed", "overrun")
"""Kinds that are over once they are done."""


class FaultKinds:
    """Brings faults about on one fleet.

    Args:
        fleet: whose group has formed.
        chance: what is left open by a kind's name: which SA, forwards or backwards.
        note: told of further numbers: name and value.
    """

    def __init__(self, fleet: Fleet, chance: Random, note: Callable[[str, float], None]) -> None:
        self._fleet = fleet
        self._chance = chance
        self._note = note
        self._sabotage = Sabotage(fleet.network, chance)
        self.died_ns: int | None = None

    def begin(self, method: str, subject: str, undo: ExitStack) -> None:
        """Begin a fault.

        Raises:
            TestbedError: it cannot be brought about.
        """
        kind, _, what = method.partition("-")
        fleet, cables = self._fleet, self._fleet.network.cables
        match kind:
            case "kill":
                self._kill(subject, DAEMONS[what], undo)
            case "tm":
                self._kill_at(Moment(what.removeprefix("at-")), subject, undo)
            case "pause":
                self._pause(subject, DAEMONS[what], undo)
            case "forget":
                self._kill(subject, BOTH, undo)
                for path in (fleet.device(subject).directory / "state").iterdir():
                    path.unlink()
            case "restart":
                fleet.stop(subject)
                undo.callback(fleet.start, subject)
            case "clock":
                self._set_clock(subject, CLOCK_MS[what], undo)
                if what == "years":
                    # As a device that boots with a dead clock battery: its start is wrong, too.
                    fleet.stop(subject)
                    fleet.start(subject)
            case "disk":
                self._fill_disk(subject, undo)
            case "cut":
                fleet.cut(subject)
                undo.callback(fleet.heal, subject)
            case "partition":
                cables.part(fleet.devices[: len(fleet.devices) // 2])
                undo.callback(cables.join_again)
            case "move":
                cables.move(subject)
                undo.callback(fleet.network.link_up, subject)
            case "mtu":
                cables.set_mtu(subject, MTU)
                undo.callback(cables.set_mtu, subject, None)
            case "overrun":
                self._overrun(subject)
            case _ if kind in NETEM:
                ends = {"towards": kind != "mute", "away": kind != "deaf"}
                for link in fleet.devices if what == "all" else [subject]:
                    cables.disturb(link, NETEM[kind], **ends)
                    undo.callback(partial(cables.disturb, link, **ends))
            case _:
                actions = {
                    "sa-removed": self._sabotage.remove_sa,
                    "sa-added": self._sabotage.add_sa,
                    "policy-removed": self._sabotage.remove_policy,
                    "route-removed": self._sabotage.remove_route,
                }
                actions[method](subject)

    # Processes.

    def _kill(self, subject: str, daemons: Sequence[str], undo: ExitStack) -> None:
        for daemon in daemons:
            self._fleet.processes.kill(f"{subject}/{daemon}")
        undo.callback(self._start_again, subject, daemons)

    def _start_again(self, subject: str, daemons: Sequence[str]) -> None:
        self._fleet.revive(subject)
        for daemon in daemons:
            self._fleet.start_daemon(subject, daemon)

    def _pause(self, subject: str, daemons: Sequence[str], undo: ExitStack) -> None:
        paused = [self._fleet.processes[f"{subject}/{daemon}"] for daemon in daemons]
        undo.callback(_signal, paused, signal.SIGCONT)
        _signal(paused, signal.SIGSTOP)

    def _kill_at(self, moment: Moment, subject: str, undo: ExitStack) -> None:
        """Have another device begin anew, and kill the TM at this moment of its epoch."""
        fleet = self._fleet
        other = self._chance.choice([name for name in fleet.devices if name != subject])
        interface = fleet.network.port(subject).interface
        watch = MomentWatch(interface, fleet.network.pid(subject), fleet.addresses[subject])
        undo.callback(watch.close)
        victims = [fleet.processes[f"{subject}/{daemon}"] for daemon in BOTH]
        fleet.stop(other)
        undo.callback(self._start_if_parked, other)
        fleet.start(other, time.time_ns() + LEAD_NS)
        self.died_ns = watch.act(
            moment, lambda: _signal(victims, signal.SIGKILL), MOMENT_DEADLINE_S
        )
        self._kill(subject, BOTH, undo)

    def _start_if_parked(self, device: str) -> None:
        if self._fleet.status(device, "idpd")["state"] == "parked":
            self._fleet.start(device)

    # Clock and disk.

    def _set_clock(self, subject: str, ms: int, undo: ExitStack) -> None:
        """Set both daemons' wall clock, forwards or backwards; the fault ends when it is right."""
        device = self._fleet.device(subject)
        offset_ms = self._chance.choice((ms, -ms))
        self._note("clock_step_s", offset_ms / 1000)
        for daemon in BOTH:
            undo.callback(device.ask, daemon, "clock", offset_ms=0)
            device.ask(daemon, "clock", offset_ms=offset_ms)

    def _fill_disk(self, subject: str, undo: ExitStack) -> None:
        """Fill the disk of a device's state, and have it begin anew, which writes its state."""
        fleet = self._fleet

        def written() -> bool:
            return all(fleet.status(subject, daemon)["state_written"] for daemon in BOTH)

        before = self._count(subject, BOTH, "state.write_failed")
        fill_disk(fleet.device(subject).directory / "state", undo, written)
        fleet.stop(subject)
        fleet.start(subject)
        self._note("disk_refusals", self._count(subject, BOTH, "state.write_failed") - before)

    # Kernel.

    def _overrun(self, subject: str) -> None:
        """Change the kernel while idpd does not read; the note is how often it had to resync."""
        names = ("kernel.overruns", "link.overruns")
        before = [self._count(subject, ("idpd",), name) for name in names]
        with ExitStack() as undo:
            self._pause(subject, ("idpd",), undo)
            self._sabotage.flood(subject)
        after = [self._count(subject, ("idpd",), name) for name in names]
        for name, was, now in zip(names, before, after, strict=True):
            self._note(name.replace(".", "_"), now - was)

    def _count(self, subject: str, daemons: Sequence[str], name: str) -> int:
        found = [self._fleet.status(subject, daemon)["counters"] for daemon in daemons]
        return sum(int(counters.get(name, 0)) for counters in found)


def _signal(processes: Sequence[OwnedProcess], which: int) -> None:
    """Signal all of them, whichever is gone.

    Raises:
        ProcessGoneError: names the first that was.
    """
    with ExitStack() as all_of_them:
        for process in reversed(processes):
            all_of_them.callback(process.signal, which)
