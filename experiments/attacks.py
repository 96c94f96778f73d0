"""An attacker on the black switch: what each attack achieves, and what it costs the victims.

Each step is one attack. First it goes on by itself, and nothing may change: tables, SAs, policies,
routes, epochs, red packets. Then a device joins under it, in turns with joins without; nothing may
come of it but those joins. A flood goes to two devices, while one joins to those on whom that
depends, the transaction manager and the joiner: all five on two processors would pay what five
processors have to. Joins beside as many frames on the same cables to nobody show what of the cost
is only that the attacker and the switch share the victims' processors.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from experiments.attackbench import AttackBench, Join
from experiments.campaign import DECRYPTION, FLOODS, PlannedStep, Repetition
from experiments.latencies import StepRecord
from experiments.outcome import STEP_ERRORS, Context, Outcome, Tables, fail
from experiments.streamsteps import StreamSteps
from testbed.attacker.evidence import Usage
from testbed.attacker.program import ALL
from testbed.attacker.weapons import MEMBER
from testbed.device import DAEMONS
from testbed.errors import DaemonDiedError, one_line

if TYPE_CHECKING:
    from testbed.fleet import Fleet

QUIET, ATTACK, BUSY = "quiet", "attack", "busy"
"""A join without an attack, under it, and beside as many frames that go to nobody."""


NOT_WHOLE = "not judged: the group was not whole and quiet before it"
STAGES = {
    QUIET: "a join before it failed",
    ATTACK: "under it the group was broken",
    BUSY: "a join beside as many frames to nobody failed",
}
AFTERWARDS = "the group did not recover after it"
"""What a step that ended early came to, by how far it had got."""

SLACK = 8
"""Messages that may be sent before, and read after, the moment at which we look."""

EPOCHS_PER_JOIN = 2
"""A device joins, and leaves again."""

NOTHING = "nothing"
NO_KERNEL = "not run: no kernel SAs"


def run(fleet: Fleet, repetition: Repetition, context: Context) -> Outcome:
    """Run one repetition; only KeyboardInterrupt and errors of ours pass through."""
    return _Attacks(fleet, repetition, context).run()


class _Attacks(StreamSteps):
    table = "attacks.csv"

    def __init__(self, fleet: Fleet, repetition: Repetition, context: Context) -> None:
        super().__init__(fleet, repetition, context)
        self._bench = AttackBench(fleet, repetition, context)
        self._joins: list[dict[str, Any]] = []
        self._quiet: list[float] = []
        self._stage = NOT_WHOLE

    def measure(self) -> None:
        """Run all attacks on one network; one that breaks the group does not end the others."""
        bench = self._bench
        try:
            bench.open()
            for planned, record in zip(self.repetition.steps, self.records, strict=True):
                record.begin_wall_ns = record.trigger_wall_ns = self.clock.now_ns()
                try:
                    self._attack(planned, record)
                except DaemonDiedError:
                    raise
                except STEP_ERRORS as error:
                    fail(record, f"{record.method}: {self._stage}: {one_line(error)}")
                    bench.attacker.end()
                    bench.renew()
                self.finish(record)
        finally:
            bench.close()

    def outcome(self) -> Outcome:
        """Add the joins."""
        found = super().outcome()
        tables: Tables = {**found.tables, "attack_joins.csv": self._joins}
        return Outcome(tables, found.steps, found.broken, found.about)

    # One attack.

    def _attack(self, planned: PlannedStep, record: StepRecord) -> None:
        row = self._row(record)
        self.rows.append(row)
        self._stage = NOT_WHOLE
        self._bench.settle()
        self.clock.sleep(planned.jitter_ns / 1e9)
        if record.method == DECRYPTION:
            self._decrypt(record, row)
            return
        if ALL[record.method].esp and not self.fleet.options.kernel:
            row["achieved"] = NO_KERNEL
            return
        achieved = self._alone(record, row)
        achieved += self._with_joins(planned, record, row)
        if record.method == "tm-member":
            self._bench.restart(self._bench.stayers[-1])
        self._judge(record, row, achieved)

    def _alone(self, record: StepRecord, row: dict[str, Any]) -> list[str]:
        """Let the attack go on while nothing else happens; return what it achieved."""
        bench = self._bench
        bench.red()
        refused, dropped = bench.refusals(), bench.guard_drops()
        began_ns = self.clock.now_ns()
        before, messages = bench.look(), bench.believed()
        self._stage = STAGES[ATTACK]
        report = self._send(record)
        self._stage = AFTERWARDS
        after = bench.look()
        row |= {name: report[name] for name in ("sent", "rate_pps", "mbit_per_s", "answered")}
        row |= {name: report[name] for name in report if name.startswith(DAEMONS)}
        row |= {name: report[name] for name in ("buffer_full", "esp_refused", "growth_kib")}
        row["refused"] = bench.refusals() - refused
        row["guard_dropped"] = bench.guard_drops() - dropped
        achieved = bench.changes(before, after)
        if ALL[record.method].who != MEMBER:  # what a member signs is authentic
            achieved += _believed(messages, bench.believed())
        if epochs := bench.epochs_since(began_ns):
            achieved.append(f"{epochs} new epochs")
        return achieved + self._red(row)

    def _send(self, record: StepRecord) -> dict[str, Any]:
        """Attack for the plan's time; return what was sent, and what it cost."""
        bench = self._bench
        heard = bench.attacker.status()["heard"]
        before = bench.usage()
        targets = bench.ends(joining=False) if record.method in FLOODS else ()
        bench.attacker.begin(record.method, targets=targets)
        self.clock.sleep(self.campaign.window_ms / 1000)
        report = bench.attacker.end()
        answered = bench.attacker.status()["heard"] - heard
        return {**report, "answered": answered, **_costs(before, bench.usage(), report)}

    def _with_joins(
        self, planned: PlannedStep, record: StepRecord, row: dict[str, Any]
    ) -> list[str]:
        """Let a device join without and under the attack; return what else came of it."""
        bench = self._bench
        flood = record.method in FLOODS
        bench.settle()
        before, used = bench.look(), bench.usage()
        extra: Counter[str] = Counter()
        for number in range(planned.amount):
            beside = flood and (number == 0 or number < planned.amount - 1)
            for condition in (QUIET, ATTACK, *([BUSY] if beside else [])):
                began_ns = self.clock.now_ns()
                self._join(record, condition, row)
                extra[condition] += max(0, bench.epochs_since(began_ns) - EPOCHS_PER_JOIN)
        bench.settle()
        achieved = bench.changes(before, bench.look(), joined=True)
        # A starved machine makes some too: what it makes without the attack is not its doing.
        if extra[ATTACK] > max(extra[QUIET], extra[BUSY]):
            achieved.append(f"{extra[ATTACK]} epochs more than joins and leaves")
        row["growth_kib"] = max(row["growth_kib"], _growth(used, bench.usage()))
        return achieved + self._red(row)

    def _join(self, record: StepRecord, condition: str, row: dict[str, Any]) -> None:
        """Let the device join under a condition, and leave without one."""
        bench = self._bench
        self._stage = STAGES[condition]
        report: Mapping[str, Any] = {}
        mute = condition == BUSY
        if condition != QUIET:
            targets = bench.ends(joining=True) if record.method in FLOODS else ()
            rate = row["joined_pps"] if mute else None
            bench.attacker.begin(record.method, targets=targets, mute=mute, rate_pps=rate)
        try:
            joined = bench.join()
        finally:
            if condition != QUIET:
                report = bench.attacker.end()
        self._stage = AFTERWARDS
        bench.leave()
        if condition == ATTACK:
            row["joined_pps"] = report["rate_pps"]
        self._note(record, condition, joined, report.get("rate_pps"))

    def _decrypt(self, record: StepRecord, row: dict[str, Any]) -> None:
        """Try what an ex-member knew on everything that was sent after its exclusion."""
        bench = self._bench
        before = bench.attacker.status()
        self._join(record, QUIET, row)
        esp, notices, opened = bench.old_keys_open()
        row["tried"] = esp + notices
        if self.fleet.options.kernel and not esp:
            fail(record, "no ESP packet was captured after the exclusion")
        if not notices:
            fail(record, f"no notice was captured after the exclusion (before: {before})")
        self._judge(record, row, opened)

    # Rows and verdicts.

    def _red(self, row: dict[str, Any]) -> list[str]:
        counts = self._bench.red()
        row["red_sent"] += counts.sent
        row["red_lost"] += counts.lost
        row["red_twice"] += counts.twice
        achieved = [f"{counts.twice} red packets delivered twice"] if counts.twice else []
        return achieved + counts.foreign

    def _note(
        self, record: StepRecord, condition: str, joined: Join, rate_pps: float | None
    ) -> None:
        if condition == QUIET:
            self._quiet.append(joined.last_ms)
        self._joins.append(
            {
                **self._key(record),
                "condition": condition,
                "rate_pps": rate_pps,
                "joiner_ms": joined.joiner_ms,
                "monitor_ms": joined.monitor_ms,
                "last_ms": joined.last_ms,
            }
        )

    def _judge(self, record: StepRecord, row: dict[str, Any], achieved: list[str]) -> None:
        """Fail the step if the attack achieved something, or cost more than it may."""
        row["achieved"] = "; ".join(achieved) or NOTHING
        if achieved:
            fail(record, f"{record.method} achieved: {row['achieved']}")
        self._judge_joins(record, row)
        growth = (row["growth_kib"] or 0) / 1024
        if growth > self.campaign.growth_mib_max:
            fail(record, f"{record.method}: a daemon grew by {growth:.1f} MiB")

    def _judge_joins(self, record: StepRecord, row: dict[str, Any]) -> None:
        """Compare joins under the attack with all quiet ones, and with those beside its frames."""
        under, busy = (
            [
                join["last_ms"]
                for join in self._joins
                if join["step"] == record.step and join["condition"] == condition
            ]
            for condition in (ATTACK, BUSY)
        )
        if not under or not self._quiet:
            return
        quiet_ms = statistics.median(self._quiet)
        row["join_ratio"] = statistics.median(under) / quiet_ms
        if not busy:
            return
        beside_ms = max(quiet_ms, statistics.median(busy))
        row["busy_ratio"] = statistics.median(under) / beside_ms
        if row["busy_ratio"] > self.campaign.join_ratio_max:
            fail(
                record,
                f"{record.method}: a join takes {row['busy_ratio']:.1f} times as long under it as "
                "beside as many frames to nobody",
            )

    def _key(self, record: StepRecord) -> dict[str, Any]:
        return {
            "campaign": record.campaign,
            "variant": record.variant,
            "repetition": record.repetition,
            "step": record.step,
            "attack": record.method,
        }

    def _row(self, record: StepRecord) -> dict[str, Any]:
        weapon = ALL.get(record.method)
        return {
            **self._key(record),
            "who": "ex-member" if weapon is None else weapon.who,
            "flood": record.method in FLOODS,
            "achieved": "",
            "join_ratio": None,
            "joined_pps": None,
            "busy_ratio": None,
            "growth_kib": None,
            "red_sent": 0,
            "red_lost": 0,
            "red_twice": 0,
        }


def _believed(
    before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]]
) -> list[str]:
    """Return which daemons have believed more messages than the others have sent."""
    found = []
    for daemon, (opened, sent) in after.items():
        more = (opened - before[daemon][0]) - (sent - before[daemon][1])
        if more > SLACK:
            found.append(f"{daemon} believed {more} messages that nobody sent")
    return found


def _costs(
    before: Mapping[str, Usage], after: Mapping[str, Usage], report: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what an attack cost the member that paid most."""
    found: dict[str, Any] = {}
    for daemon in DAEMONS:
        spent_ns = max(after[d].cpu_ns[daemon] - before[d].cpu_ns[daemon] for d in before)
        found[f"{daemon}_cpu_percent"] = spent_ns / max(report["seconds"], 1e-3) / 1e7
        found[f"{daemon}_us_per_frame"] = spent_ns / 1000 / max(report["sent"], 1)
    found["buffer_full"] = sum(after[d].full - before[d].full for d in before)
    found["esp_refused"] = sum(after[d].esp - before[d].esp for d in before)
    found["growth_kib"] = _growth(before, after)
    return found


def _growth(before: Mapping[str, Usage], after: Mapping[str, Usage]) -> int:
    """Return by how much the daemon grew that grew most, in KiB."""
    return max(
        after[device].rss_kib[daemon] - before[device].rss_kib[daemon]
        for device in before
        for daemon in DAEMONS
    )
