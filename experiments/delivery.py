"""One repetition of a delivery campaign: who receives whose red multicast, from the first packet.

All devices start; then every red LAN sends to every other and the devices send their own; listeners
leave and come back; a device leaves the group and comes back. When the fleet has ended, everything
that was on the black wire is judged (experiments/verdicts.py). Streams run only while the whole
group is in one epoch, so that every packet's epoch is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from experiments.campaign import PlannedStep, Repetition
from experiments.latencies import StepRecord
from experiments.ledger import Ledger
from experiments.outcome import NS_PER_S, STEP_ERRORS, Context, Outcome, blank, fail
from experiments.redside import GROUPS, RedSide
from experiments.streams import Arrivals, Flow
from experiments.verdicts import Verdicts
from testbed.errors import DaemonDiedError, TestbedError, one_line
from testbed.wait import wait_until
from testbed.witness import KeyCollector

if TYPE_CHECKING:
    from testbed.fleet import Fleet

GROUP_DEADLINE_S: Final = 90.0
FIRST_DEADLINE_S: Final = 60.0
_FIRST_INTERVAL_MS: Final = 100
_SADS_DEADLINE_S: Final = 20.0


def run(fleet: Fleet, repetition: Repetition, context: Context) -> Outcome:
    """Run one repetition on a fleet that was loaded for it."""
    with Delivery(fleet, repetition, context) as delivery:
        return delivery.run()


class Delivery:
    """Runs one repetition.

    Args:
        fleet: entered, parked, capturing every black link.
        repetition: of a delivery campaign.
        context: what else is given.
    """

    def __init__(self, fleet: Fleet, repetition: Repetition, context: Context) -> None:
        self._fleet = fleet
        self._repetition = repetition
        self._campaign = repetition.campaign
        self._context = context
        self._members = list(fleet.devices)
        self._ledger = Ledger(frozenset(str(group) for group in GROUPS.values()))
        self._epoch = ""
        self._about = {
            "campaign": self._campaign.kind,
            "variant": repetition.variant.name,
            "repetition": repetition.index,
        }
        self._deliveries: list[dict[str, Any]] = []
        self._listeners: list[dict[str, Any]] = []
        self._counters: list[dict[str, Any]] = []
        self._stages: list[dict[str, Any]] = []
        self._records = [self._blank(step) for step in repetition.steps]
        self._broken = ""
        self._mark("loaded")
        self._links = {device: fleet.network.port(device).link for device in fleet.devices}
        self._red = RedSide(fleet, context.clock)
        try:
            self._keys = KeyCollector({name: fleet.network.pid(name) for name in fleet.devices})
        except BaseException:
            self._red.close()
            raise

    def __enter__(self) -> Delivery:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the red places' sockets; the keys stay for the witness unless all went wrong."""
        self._red.close()
        if kind is not None:
            self._keys.close()

    def _blank(self, step: PlannedStep) -> StepRecord:
        return blank(self._repetition, step, self._fleet.devices, self._fleet.devices)

    # --- the repetition --------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Do all steps but those that judge the captures, which are left for later."""
        steps: dict[str, Callable[[PlannedStep, StepRecord], None]] = {
            "first": self._first,
            "matrix": self._matrix,
            "listeners": self._come_and_go,
            "member": self._member_leaves,
        }
        fit = True
        for planned, record in zip(self._repetition.steps, self._records, strict=True):
            if fit and planned.method in steps:
                fit = self._step(planned, record, steps[planned.method])
        try:
            self._read_counters()
            for device in reversed(self._members):
                self._fleet.stop(device)
            self._keys.poll()
        except STEP_ERRORS as error:
            self._broken = self._broken or one_line(error)
        outcome = Outcome({}, self._records, self._broken, dict(self._about))
        outcome.after = lambda: self._judge(outcome)
        return outcome

    def _step(
        self,
        planned: PlannedStep,
        record: StepRecord,
        act: Callable[[PlannedStep, StepRecord], None],
    ) -> bool:
        """Do one step; return whether the group is fit for the next."""
        record.begin_wall_ns = self._context.clock.now_ns()
        record.status = "ok"
        fit = True
        self._fleet.idle()
        try:
            self._fleet.check_alive()
            act(planned, record)
            self._keys.poll()
        except STEP_ERRORS as error:
            fail(record, one_line(error))
            fit = False
            if isinstance(error, DaemonDiedError):
                self._broken = str(error)
        record.epoch = self._epoch or None
        idle = self._fleet.idle()
        record.idle_percent = float(idle.mean_percent)
        record.end_wall_ns = self._context.clock.now_ns()
        self._context.on_step(record)
        return fit

    def _first(self, planned: PlannedStep, record: StepRecord) -> None:
        """Start everything; when does the first red packet of each place reach all others?"""
        record.trigger_wall_ns = self._context.clock.now_ns()
        for device in self._fleet.devices:
            self._fleet.start(device)
        self._enter_epoch("group")
        self._fleet.surroundings.wait_group(self._fleet.topology.group.black_group)
        self._mark("black-group")
        self._mark_routing()
        self._red.await_listeners(self._fleet.devices)
        self._mark("listeners")
        for family in self._red.families:
            flows = self._red.streams[family].run(
                self._senders(),
                packets=int(FIRST_DEADLINE_S * 1000 / _FIRST_INTERVAL_MS),
                interval_ms=_FIRST_INTERVAL_MS,
                deadline_s=0,
                until_first=True,
            )
            self._account(record, "first", family, flows)
            stamps = [
                flow.arrivals[receiver].first_wall_ns
                for flow in flows
                for receiver in self._red.expected(flow.sender)
            ]
            known = [stamp for stamp in stamps if stamp is not None]
            if len(known) == len(stamps):
                self._mark(f"first-packet-ipv{family}", max(known))
        self._check_epoch(record)

    def _matrix(self, planned: PlannedStep, record: StepRecord) -> None:
        """The LAN's client, then its device, sends a stream to everybody."""
        record.packet_sender = self._red.clients(record.subject)[0]
        for family in self._red.families:
            for sender in (record.packet_sender, record.subject):
                flows = self._stream(family, [sender])
                self._account(record, "matrix", family, flows)
        self._check_epoch(record)
        record.packet_ok = record.status == "ok"

    def _come_and_go(self, planned: PlannedStep, record: StepRecord) -> None:
        """All clients of a LAN stop listening, then listen again."""
        lan = record.subject
        record.packet_sender = self._sender(planned)
        self._watched_stream(record, "joined", lan)
        began = self._context.clock.now_ns()
        self._red.leave(lan)
        self._red.silence(self._red.clients(lan))
        self._watched_stream(record, "left", lan, self._since_ms(began))
        began = self._context.clock.now_ns()
        self._red.join(lan)
        self._red.silence(())
        self._watched_stream(record, "rejoined", lan, self._since_ms(began))
        self._check_epoch(record)

    def _member_leaves(self, planned: PlannedStep, record: StepRecord) -> None:
        """A device leaves the group, its clients listen on; then it comes back."""
        lan = record.subject
        record.packet_sender = self._sender(planned)
        began = record.trigger_wall_ns = self._context.clock.now_ns()
        self._fleet.stop(lan)
        self._members.remove(lan)
        self._enter_epoch()
        self._red.silence((*self._red.clients(lan), lan))
        self._watched_stream(record, "member-left", lan, self._since_ms(began))
        self._check_epoch(record)
        began = self._context.clock.now_ns()
        self._fleet.start(lan)
        self._members.append(lan)
        self._enter_epoch()
        self._fleet.surroundings.wait_group(self._fleet.topology.group.black_group)
        self._red.silence(())
        self._watched_stream(record, "member-back", lan, self._since_ms(began))
        for family in self._red.families:
            sender = self._red.clients(lan)[0]
            self._account(record, "member-back", family, self._stream(family, [sender]))
        self._check_epoch(record)

    # --- streams ---------------------------------------------------------------------------------

    def _senders(self) -> list[str]:
        """Return the first client of every LAN, and every device."""
        return [*(self._red.clients(lan)[0] for lan in self._fleet.devices), *self._fleet.devices]

    def _sender(self, planned: PlannedStep) -> str:
        return self._red.clients(self._fleet.devices[planned.packet_sender - 1])[0]

    def _stream(self, family: int, senders: Sequence[str]) -> list[Flow]:
        return self._red.streams[family].run(
            senders,
            packets=self._campaign.packets,
            interval_ms=self._campaign.packet_interval_ms,
            deadline_s=self._campaign.check_deadline_ms / 1000,
        )

    def _watched_stream(
        self, record: StepRecord, stage: str, lan: str, change_ms: float | None = None
    ) -> None:
        """Send a stream from elsewhere while the LAN's wire is watched."""
        assert record.packet_sender is not None
        for family in self._red.families:
            self._red.frames(lan)
            (flow,) = self._stream(family, [record.packet_sender])
            frames = self._red.frames(lan)
            expected = self._red.expected(flow.sender)
            clients = self._red.clients(lan)
            here = [flow.arrivals[name].received for name in clients]
            others = [flow.arrivals[name].received for name in expected if name not in clients]
            wanted = flow.sent if set(clients) <= expected else 0
            ok = (
                frames == wanted
                and set(here) == {wanted}
                and min(others, default=flow.sent) == flow.sent
            )
            self._listeners.append(
                {
                    **self._about,
                    "stage": stage,
                    "lan": lan,
                    "family": family,
                    "epoch": self._epoch,
                    "sender": flow.sender,
                    "sent": flow.sent,
                    "frames": frames,
                    "expected_frames": wanted,
                    "received_min": min(here),
                    "received_max": max(here),
                    "others_received_min": min(others, default=None),
                    "change_ms": change_ms,
                    "ok": ok,
                }
            )
            self._account(record, stage, family, [flow])
            if not ok:
                fail(
                    record,
                    f"{stage}, IPv{family}: {frames} frames of {wanted} expected on the wire of "
                    f"{lan}'s LAN, its clients got {min(here)} to {max(here)} of {flow.sent}",
                )

    def _account(self, record: StepRecord, phase: str, family: int, flows: Iterable[Flow]) -> None:
        """Put what was sent into the ledger and what arrived into the table."""
        for flow in flows:
            source = self._red.places[flow.sender]
            address = str(source.addresses[family])
            self._ledger.add(self._epoch, address, flow.sent, early=phase == "first")
            expected = self._red.expected(flow.sender)
            wrong = []
            for receiver, arrivals in flow.arrivals.items():
                if receiver not in self._red.concerned(flow.sender):
                    continue
                wanted = receiver in expected
                delivered = _delivered(phase, flow, arrivals)
                if not delivered if wanted else arrivals.received > 0:
                    wrong.append(f"{receiver} {arrivals.received}")
                place = self._red.places[receiver]
                self._deliveries.append(
                    {
                        **self._about,
                        "phase": phase,
                        "family": family,
                        "epoch": self._epoch,
                        "sender": flow.sender,
                        "sender_lan": source.lan,
                        "sender_kind": source.kind,
                        "receiver": receiver,
                        "receiver_lan": place.lan,
                        "receiver_kind": place.kind,
                        "must_arrive": wanted,
                        "sent": flow.sent,
                        "received": arrivals.received,
                        "duplicates": arrivals.duplicates,
                        "first_number": arrivals.first_number,
                        "first_arrival_ms": arrivals.first_arrival_ms,
                        "median_ms": arrivals.median_ms,
                        "delivered": delivered if wanted else None,
                    }
                )
            if wrong or flow.refusal:
                refused = f"; a packet was refused: {flow.refusal}" if flow.refusal else ""
                fail(
                    record,
                    f"{phase}, IPv{family}, from {flow.sender} {flow.sent} packets: wrong at "
                    f"{', '.join(wrong) or 'nobody'}{refused}",
                )

    # --- epochs and times ------------------------------------------------------------------------

    def _enter_epoch(self, stage: str = "") -> None:
        """Wait until all members are in one epoch and hold its SAs only; note which these are."""
        self._epoch = self._fleet.await_members(self._members, deadline_s=GROUP_DEADLINE_S)
        if stage:
            self._mark(stage)
        shared = self._repetition.variant.sa_mode == "paper"
        wanted = 1 if shared else len(self._members)

        def counts() -> list[int | None]:
            return [self._fleet.sa_count(device) for device in self._members]

        wait_until(
            lambda: set(counts()) == {wanted},
            _SADS_DEADLINE_S,
            lambda: f"SAs of old epochs are still there: {counts()} instead of {wanted} each",
        )
        check = self._fleet.sad_check(self._members, _SADS_DEADLINE_S)
        if not check.ok:
            raise TestbedError(f"SAD check: {check.reason}")
        self._keys.poll()
        self._ledger.enter(self._epoch, {spi for spis in check.spis.values() for spi in spis})

    def _check_epoch(self, record: StepRecord) -> None:
        """A stream's epoch is known only if the group was in one epoch all the time."""
        now = {str(self._fleet.status(name, "idpd").get("active_epoch")) for name in self._members}
        if now != {self._epoch}:
            fail(record, f"the epoch changed from {self._epoch} to {', '.join(sorted(now))}")

    def _mark(self, stage: str, at_ns: int | None = None) -> None:
        """Note how long after the beginning of `up` something was seen."""
        at = self._context.clock.now_ns() if at_ns is None else at_ns
        seconds = (at - self._context.load_began_ns) / NS_PER_S
        self._stages.append({**self._about, "stage": stage, "since": "up", "seconds": seconds})

    def _mark_routing(self) -> None:
        """Note what the black routers say of themselves, since their daemons were started."""
        report = self._fleet.surroundings.report
        if report is None:
            return
        for name, seconds in report.as_json().items():
            if isinstance(seconds, float):
                row = {"stage": f"routing-{name.removesuffix('_s')}", "since": "routers started"}
                self._stages.append({**self._about, **row, "seconds": seconds})

    def _since_ms(self, began_ns: int) -> float:
        return (self._context.clock.now_ns() - began_ns) / 1e6

    # --- results ---------------------------------------------------------------------------------

    def _read_counters(self) -> None:
        """Read what the guards dropped and what the proxies counted."""
        for device in self._fleet.devices:
            self._count(device, "guard", self._fleet.drops(device))
        for node, counters in self._red.counters().items():
            self._count(node, "mproxy", counters)

    def _count(self, node: str, source: str, counters: Any) -> None:
        self._counters += [
            {**self._about, "node": node, "source": source, "counter": name, "value": value}
            for name, value in counters.items()
        ]

    def _judge(self, outcome: Outcome) -> None:
        """Judge the captures, then make the tables."""
        verdicts = Verdicts(
            self._fleet, self._links, self._ledger, self._red.places, self._keys.sas()
        )
        self._keys.close()
        by_method = {record.method: record for record in self._records}
        for method, judge in (("leaks", verdicts.leaks), ("witness", verdicts.witness)):
            record = by_method[method]
            record.begin_wall_ns = self._context.clock.now_ns()
            record.status = "ok"
            try:
                for reason in judge():
                    fail(record, reason)
            except STEP_ERRORS as error:
                fail(record, one_line(error))
            record.end_wall_ns = self._context.clock.now_ns()
            self._context.on_step(record)
        if all(by_method[m].status == "ok" for m in ("leaks", "witness")):
            verdicts.discard(keep=self._campaign.keep_captures)
        for record in self._records:
            if record.status == "not-run":
                record.reason = record.reason or "an earlier step of the repetition failed"
        outcome.tables = {
            "steps.csv": [record.row() for record in self._records],
            "deliveries.csv": self._deliveries,
            "listeners.csv": self._listeners,
            "convergence.csv": self._stages,
            "counters.csv": self._counters,
            "leaks.csv": [{**self._about, **row} for row in verdicts.leak_rows],
            "witness.csv": [{**self._about, **row} for row in verdicts.witness_rows],
        }


def _delivered(phase: str, flow: Flow, arrivals: Arrivals) -> bool:
    """A stream is delivered if all of it arrived; the first packets need only begin to arrive."""
    if phase == "first":
        return arrivals.received > 0
    return 0 < flow.sent == arrivals.received and not flow.refusal
