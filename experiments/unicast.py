"""How long after a join's trigger all unicast SAs, policies and routes are there too.

IDP writes the multicast SAs first, then those between pairs of devices, then, when prefixes have
been announced through these, policies and routes to the red LANs. All of it is in the devices'
traces; after the epoch is everywhere, the step waits until the traces show that it is complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from experiments.campaign import Repetition
from experiments.latencies import NS_PER_MS, Bench, Stamp, StepRecord
from testbed.errors import DeadlineError
from testbed.wait import wait_until
from testbed.wiring import Wiring

if TYPE_CHECKING:
    from testbed.fleet import Fleet


_REST_DEADLINE_S = 30.0
"""Announcing ends four hello intervals after the last change (IDP-24)."""

_REST_POLL_S = 0.5


class UnicastJoins:
    """The unicast side of one repetition of joins; does nothing where the variant has none.

    Args:
        fleet: loaded.
        repetition: of kind join.
        monitor: name of the monitor device.
    """

    def __init__(self, fleet: Fleet, repetition: Repetition, monitor: str) -> None:
        self._fleet = fleet
        self._monitor = monitor
        self.active = repetition.campaign.kind == "join" and repetition.variant.unicast != "off"
        self._deadline_s = repetition.campaign.check_deadline_ms / 1000
        self._prefixes: dict[str, int] = {}
        if self.active:
            wiring = Wiring(fleet.topology)
            self._prefixes = {name: len(wiring.red_prefixes(name)) for name in fleet.devices}

    def before(self, step: StepRecord) -> None:
        """Wait until the members announce nothing any more: the join before this one is over.

        Raises:
            TestbedError: a daemon has died, or they go on announcing.
        """
        if not self.active:
            return
        members = [name for name in step.expected if name != step.subject]

        def busy() -> list[str]:
            self._fleet.check_alive()
            return [name for name in members if self._fleet.status(name)["announcing_to"]]

        wait_until(
            lambda: not busy(),
            _REST_DEADLINE_S,
            lambda: f"prefixes are still announced by {', '.join(busy())}",
            pause_s=_REST_POLL_S,
        )

    def after(self, step: StepRecord) -> None:
        """Wait until every device has all its pairs' SAs and routes, or time is up.

        Raises:
            TestbedError: a daemon has died.
        """
        if not self.active or step.trigger_wall_ns is None:
            return
        for device in step.expected:
            try:
                self._fleet.await_event(
                    "t_unicast_written",
                    [device],
                    since_wall_ns=step.trigger_wall_ns,
                    deadline_s=self._deadline_s,
                    **self._complete(step, device),
                )
            except DeadlineError:
                return  # the row says what is missing

    def _complete(self, step: StepRecord, device: str) -> dict[str, int]:
        """Return what a device's trace says when nothing is missing."""
        others = [name for name in step.expected if name != device]
        return {"peers": len(others), "routes": sum(self._prefixes[name] for name in others)}

    def rows(
        self, steps: Sequence[StepRecord], bench: Bench, stamps: Sequence[Stamp]
    ) -> list[dict[str, Any]]:
        """Return the rows of unicast.csv of the repetition."""
        if not self.active:
            return []
        rows = []
        for number, step in enumerate(steps):
            begins = [s.begin_wall_ns for s in steps[number + 1 :] if s.begin_wall_ns is not None]
            end = float(begins[0]) if begins else float("inf")
            for device in step.expected:
                rows.append(self._row(step, device, bench, stamps, end))
        return rows

    def _row(
        self, step: StepRecord, device: str, bench: Bench, stamps: Sequence[Stamp], end: float
    ) -> dict[str, Any]:
        role = "joiner" if device == step.subject else "member"
        row: dict[str, Any] = {
            "campaign": step.campaign,
            "variant": step.variant,
            "repetition": step.repetition,
            "step": step.step,
            "group_size": step.group_size,
            "device": device,
            "role": "monitor" if device == self._monitor else role,
            "ok": False,
        }
        if step.trigger_wall_ns is None:
            return row
        # The joiner's own clock releases the trigger: the same number on its clock.
        trigger = step.trigger_wall_ns - bench.clock(step.subject).offset_ns
        mine = [
            s
            for s in stamps
            if s.device == device
            and s.daemon == "idpd"
            and trigger <= bench.on_reference_clock(s) < end
        ]

        def after_ms(found: Stamp | None) -> float | None:
            return (
                None if found is None else (bench.on_reference_clock(found) - trigger) / NS_PER_MS
            )

        wanted = self._complete(step, device)
        written = _first(mine, "t_written", epoch=step.epoch)
        sas = _first(mine, "t_unicast_written", peers=wanted["peers"], epoch=step.epoch)
        whole = _first(mine, "t_unicast_written", **wanted)
        row |= {
            "multicast_ms": after_ms(written),
            "sas_ms": after_ms(sas),
            "complete_ms": after_ms(whole),
            **_batches(mine, after=written, until=whole),
            "ok": step.status == "ok" and None not in (written, whole),
        }
        return row


def _first(stamps: Sequence[Stamp], point: str, **fields: Any) -> Stamp | None:
    """Return the first such event."""
    for stamp in stamps:
        if stamp.point == point and fields.items() <= dict(stamp.fields).items():
            return stamp
    return None


def _batches(
    stamps: Sequence[Stamp], after: Stamp | None, until: Stamp | None
) -> dict[str, float | int]:
    """Add up the batches that were performed on the way, by the monotonic clock."""
    found = {
        "multicast_batch_ms": 0.0,
        "pair_batch_ms": 0.0,
        "route_batch_ms": 0.0,
        "pair_batches": 0,
        "pair_operations": 0,
    }
    begun: dict[tuple[str, str], Stamp] = {}
    for stamp in stamps:
        kind, _, edge = stamp.point.partition(".")
        if kind not in ("sas", "routes") or until is None or stamp.mono_ns > until.mono_ns:
            continue
        label = str(stamp.fields["label"])
        if edge == "begin":
            begun[kind, label] = stamp
            continue
        begin = begun.get((kind, label))
        if begin is None:
            continue
        took_ms = (stamp.mono_ns - begin.mono_ns) / NS_PER_MS
        if label.startswith("pairs:"):
            found["route_batch_ms" if kind == "routes" else "pair_batch_ms"] += took_ms
            found["pair_batches"] += kind == "sas"
            found["pair_operations"] += int(begin.fields["operations"])
        elif label.startswith("write:") and (after is None or stamp.mono_ns <= after.mono_ns):
            found["multicast_batch_ms"] += took_ms
    return found
