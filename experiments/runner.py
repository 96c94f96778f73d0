"""Runs a plan into a run directory: loads fleets, runs what is missing, records as it goes.

An interrupted run keeps its finished repetitions; running it again does the rest. A fleet of
daemons is loaded once per variant and parked between repetitions; one that broke is loaded anew,
and what was not recorded because of it is measured again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from experiments.campaign import Campaign, Repetition
from experiments.errors import ExperimentError, RecordError
from experiments.kinds import KINDS
from experiments.latencies import StepRecord
from experiments.outcome import STEP_ERRORS, Context, Outcome, Time, fail
from experiments.record import SA_WRITE_KEY, RunDirectory
from testbed.errors import one_line

if TYPE_CHECKING:
    from testbed.fleet import Fleet

BROKEN_MAX = 3
"""A run ends when the daemons broke in this many repetitions in a row."""

LoadFleet = Callable[[Repetition, str], "AbstractContextManager[Fleet]"]
"""Makes a fleet for a repetition's variant; the text names the folder for its logs."""

MeasureSaWrites = Callable[[Campaign, int], list[dict[str, Any]]]
"""Runs the sa-write campaign; returns the rows of sa_writes.csv."""


class Display(Protocol):
    """What the runner shows its progress on (testbed.progress.Progress)."""

    def stage(self, text: str) -> None:
        """Say what is being done now."""

    def step(self, text: str = "", count: int = 1) -> None:
        """Count steps as done."""

    def note(self, text: str) -> None:
        """Print a line."""


def step_count(run: RunDirectory) -> int:
    """Return how many steps are left to do."""
    todo = [r for r in run.plan.repetitions() if not run.has(r.key)]
    sa_write = run.plan.sa_write() is not None and not run.has(SA_WRITE_KEY)
    return sum(len(repetition.steps) for repetition in todo) + int(sa_write)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Runner:
    """Runs what a run directory lacks."""

    def __init__(
        self,
        run: RunDirectory,
        load_fleet: LoadFleet,
        measure_sa_writes: MeasureSaWrites,
        display: Display,
        clock: Time | None = None,
    ) -> None:
        self._run = run
        self._plan = run.plan
        self._load_fleet = load_fleet
        self._measure_sa_writes = measure_sa_writes
        self._display = display
        self._time = clock or Time()
        self._failed = 0

    def execute(self, session: Mapping[str, Any]) -> None:
        """Run every missing repetition.

        Args:
            session: what is known of this invocation (environment, versions); kept in the manifest.

        Raises:
            ExperimentError: the run cannot go on; what is finished is kept.
            KeyboardInterrupt: passed on after the manifest says so.
        """
        _same_platform(self._run, session)
        record: dict[str, Any] = {**session, "started": _now(), "loads": []}
        self._run.manifest["sessions"].append(record)
        self._run.save_manifest(state="running")
        state = "interrupted"
        try:
            self._sa_writes()
            self._repetitions(record)
            state = "complete"
        except STEP_ERRORS as error:
            state = "failed"
            raise ExperimentError(
                f"{one_line(error)} (finished repetitions are kept: --resume)"
            ) from error
        except ExperimentError:
            state = "failed"
            raise
        finally:
            record["ended"] = _now()
            self._run.save_manifest(state=state, clock_offsets_ns=self._run.clock_offsets())
            self._run.merge()

    def _sa_writes(self) -> None:
        campaign = self._plan.sa_write()
        if campaign is None or self._run.has(SA_WRITE_KEY):
            return
        self._display.stage("SA writes per backend")
        rows = self._measure_sa_writes(campaign, self._plan.seed)
        self._run.write_part(SA_WRITE_KEY, {"sa_writes.csv": rows}, {"campaign": "sa-write"})
        self._display.step("SA writes")

    def _missing(self) -> list[Repetition]:
        """Return the repetitions that are not recorded."""
        return [r for r in self._plan.repetitions() if not self._run.has(r.key)]

    def _repetitions(self, record: dict[str, Any]) -> None:
        todo = self._missing()
        broken_in_row = 0
        while todo:
            first = todo[0]
            variant = first.variant
            number = sum(len(s["loads"]) for s in self._run.manifest["sessions"]) + 1
            self._display.stage(f"{first.campaign.kind} {variant.name}: loading daemons")
            began, began_ns = time.monotonic(), self._time.now_ns()
            finished: tuple[Repetition, Outcome] | None = None
            measured, trouble, broken = False, "", ""
            try:
                with self._load_fleet(first, f"{number:02d}-{variant.name}") as fleet:
                    load = {
                        "variant": variant.name,
                        "seconds": round(time.monotonic() - began, 3),
                        "facts": fleet.facts,
                    }
                    record["loads"].append(load)
                    self._run.save_manifest()
                    while todo and _share_fleet(first, todo[0]) and not broken and finished is None:
                        repetition = todo.pop(0)
                        outcome = self._measure(fleet, repetition, began_ns)
                        broken = outcome.broken
                        broken_in_row = broken_in_row + 1 if broken else 0
                        if outcome.after is None:
                            self._record(repetition, outcome)
                        else:
                            finished = repetition, outcome
                    measured = True
            except STEP_ERRORS as error:
                if not record["loads"]:
                    raise  # it has never worked here
                what = "ending the daemons and the network" if measured else "loading or measuring"
                broken = trouble = f"{what}: {one_line(error)}"
                broken_in_row += 1
                if not measured:
                    todo = self._missing()
            if finished is not None:
                self._conclude(*finished, trouble)
            elif trouble:
                self._display.note(f"{first.campaign.kind} {variant.name}: {trouble}")
            if broken_in_row >= BROKEN_MAX:
                raise ExperimentError(f"the daemons broke {BROKEN_MAX} times in a row: {broken}")

    def _measure(self, fleet: Fleet, repetition: Repetition, load_began_ns: int) -> Outcome:
        campaign = repetition.campaign
        head = f"{campaign.kind} {repetition.variant.name}"
        self._display.stage(f"{head}: repetition {repetition.index}/{campaign.repetitions}")

        def on_step(step: StepRecord) -> None:
            if step.status != "ok":
                self._failed += 1
                self._display.note(
                    f"{head}, repetition {step.repetition}, step {step.step} "
                    f"({step.subject} {step.method}): {step.status}: {step.reason}"
                )
            self._display.step(f"{step.subject} {step.method}")

        measure = KINDS[campaign.kind].load()
        outcome: Outcome = measure(fleet, repetition, Context(self._time, on_step, load_began_ns))
        return outcome

    def _conclude(self, repetition: Repetition, outcome: Outcome, trouble: str) -> None:
        """Do what had to wait for the end of the fleet, then record.

        What cannot be judged, because the fleet did not end well or for another reason, fails the
        last step, and nothing more.
        """
        self._display.stage(f"{repetition.campaign.kind}: judging what was captured")
        assert outcome.after is not None
        if not trouble:
            try:
                outcome.after()
            except STEP_ERRORS as error:
                trouble = f"judging what was captured: {one_line(error)}"
        if trouble:
            fail(outcome.steps[-1], trouble)
            outcome.tables["steps.csv"] = [step.row() for step in outcome.steps]
            self._display.note(f"{repetition.campaign.kind} {repetition.variant.name}: {trouble}")
        self._record(repetition, outcome)

    def _record(self, repetition: Repetition, outcome: Outcome) -> None:
        self._run.write_part(repetition.key, outcome.tables, outcome.about)
        left = sum(step.status == "not-run" for step in outcome.steps)
        if left:
            self._display.step("not run", count=left)
        if outcome.broken:
            head = f"{repetition.campaign.kind} {repetition.variant.name}"
            self._display.note(f"{head}: daemons are loaded anew: {outcome.broken}")


def _share_fleet(one: Repetition, other: Repetition) -> bool:
    """Return whether two repetitions can run on the same loaded fleet."""
    captures = [KINDS[repetition.campaign.kind].capture for repetition in (one, other)]
    if one is not other and one.variant.fresh_fleet:
        return False
    return one.variant.daemons() == other.variant.daemons() and captures[0] == captures[1]


def _same_platform(run: RunDirectory, session: Mapping[str, Any]) -> None:
    """Refuse to mix measurements of two platforms in one run."""
    here = session.get("environment") or {}
    for earlier in run.manifest["sessions"][:1]:
        there = earlier.get("environment") or {}
        for key in ("environment", "accelerator", "kernel"):
            if there.get(key) != here.get(key):
                raise RecordError(
                    f"{run.path.name} was measured with {key} {there.get(key)}, this is "
                    f"{here.get(key)}: start a new run instead of resuming it"
                )


def failed_steps(run: RunDirectory) -> int:
    """Return how many recorded steps are not ok, and SA writes of the two backends compared."""
    steps = sum(row["status"] != "ok" for row in run.rows("steps.csv"))
    compared = ("netlink", "command")
    writes = sum(
        row["ok"] != "1" and row["backend"] in compared for row in run.rows("sa_writes.csv")
    )
    return steps + writes


def missing_parts(run: RunDirectory) -> int:
    """Return how many planned parts are not there."""
    return len(run.keys()) - len(run.parts())
