"""Which SAs and policies are written, switched and removed when, and what the SAD holds by now.

The plan is told which epoch is wanted, what became of each batch, and what time it is; it answers
with effects. At most one batch is under way, so every batch is made from a known state. `SaPlan`
records each SA from the moment it is handed out until its removal is acknowledged: what the SAD may
hold is always a known set, nothing is left behind and nothing is deleted twice.

SA mode ``per-sender`` makes before it breaks (RFC 5374 section 4.2.1): write the new epoch's SAs;
once all members have them (`protocol.idp.confirming`), at the latest after the activation delay,
pin our policy to our new SPI; once all members send with it and nothing older is under way, at the
latest after the deactivation delay, delete the older epochs' SAs. SA mode ``paper`` deletes the
shared SA, then writes the new one.

Where the new epoch cannot be installed, the older SAs go all the same when their time is over:
rather silent than under a key that an excluded device may know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from protocol.core.engine import Effect, Log, Report
from protocol.core.transitions import Move, TransitionTable
from protocol.idp.config import IdpConfig, SaMode
from protocol.idp.events import ApplySas
from protocol.idp.rules import is_done, repetition
from protocol.idpmike import EpochId
from protocol.ipsec.backend import (
    LOST,
    AddSa,
    ByteLimit,
    DeleteSa,
    Operation,
    Outcome,
    PutPolicy,
    name_of,
)
from protocol.ipsec.grouppolicy import GroupPath
from protocol.ipsec.model import Policy, SaId, SecurityAssociation

NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class EpochSas:
    """What the SAD shall hold for one epoch.

    Attributes:
        epoch: which.
        own: the SA we send with; in mode ``paper`` the only one.
        others: the SAs we receive with.
        limit: how much ours may carry; what we receive is the sender's to count.
    """

    epoch: EpochId
    own: SecurityAssociation
    others: tuple[SecurityAssociation, ...] = ()
    limit: ByteLimit | None = None


class Phase(StrEnum):
    """Where an epoch's SAs stand."""

    WAITING = "waiting"
    WRITING = "writing"
    WRITTEN = "written"
    ACTIVE = "active"
    TRAILING = "trailing"
    FAILED = "failed"


EPOCH = TransitionTable(
    "epoch",
    Phase.WAITING,
    [
        Move(Phase.WAITING, Phase.WRITING, "its turn"),
        Move(Phase.WRITING, Phase.WRITTEN, "our own SA is in the SAD"),
        Move(Phase.WRITING, Phase.FAILED, "our own SA cannot be written"),
        Move(Phase.WRITTEN, Phase.ACTIVE, "our policy uses it"),
        Move(Phase.WRITTEN, Phase.FAILED, "our policy cannot be moved"),
        Move(Phase.WRITTEN, Phase.TRAILING, "overtaken"),
        Move(Phase.ACTIVE, Phase.TRAILING, "a newer one is active, or we cannot follow"),
        Move(Phase.FAILED, Phase.TRAILING, "a newer one is active"),
    ],
)
"""Every move of an epoch's SAs (docs/idp.md section 8); from TRAILING they are deleted."""


@dataclass(slots=True, eq=False)
class _Generation:
    """The SAs of one epoch; ``at_mono_ns``: when the next step is due (WRITTEN, TRAILING)."""

    wanted: EpochSas
    phase: Phase = Phase.WAITING
    at_mono_ns: int = 0

    def move(self, phase: Phase) -> None:
        assert EPOCH.allows(self.phase, phase), f"{self.phase} -> {phase}"
        self.phase = phase


class _Purpose(StrEnum):
    """What a batch is for; also the first word of its label."""

    POLICIES = "policies"
    WRITE = "write"
    ACTIVATE = "activate"
    DELETE = "delete"
    REMOVE = "remove"
    AUDIT = "audit"


@dataclass(slots=True)
class _Batch:
    """The batch under way.

    ``generations``: the one that is written or activated, or those that are deleted.
    ``operations``: what is still to be done, for a repetition only what failed.
    ``switches``: whether our policy moves to the generation's own SA in this batch.
    """

    purpose: _Purpose
    label: str
    operations: list[Operation]
    generations: list[_Generation] = field(default_factory=list)
    switches: bool = False
    repeated: bool = False


class SaPlan:
    """The SAs and policies of one group on one device."""

    def __init__(self, config: IdpConfig, path: GroupPath) -> None:
        self._path = path
        self._per_sender = config.sa_mode is SaMode.PER_SENDER
        self._activation_ns = config.activation_delay_ms * NS_PER_MS
        self._deactivation_ns = config.deactivation_delay_ms * NS_PER_MS
        self._max_epochs = config.max_epochs
        self._generations: list[_Generation] = []
        self._owners: dict[SaId, _Generation | None] = {}
        self._batch: _Batch | None = None
        self._pinned: SaId | None = None
        self._removing = False
        self.batches = 0
        self.failures = 0
        self.last_failure = ""

    # What the rest of the engine may know.

    @property
    def recorded(self) -> frozenset[SaId]:
        """Every SA of ours that the SAD may hold."""
        return frozenset(self._owners)

    @property
    def busy(self) -> bool:
        """Whether a batch is under way, so that the kernel may differ from the record."""
        return self._batch is not None

    def needed(self) -> set[SaId]:
        """Return the SAs that are not running out."""
        live = [*self._of(Phase.WRITTEN), *self._of(Phase.ACTIVE)]
        return {sa_id for sa_id, owner in self._owners.items() if owner in live}

    def policies(self) -> list[Policy]:
        """Return what the SPD shall hold."""
        spi = 0 if self._pinned is None else self._pinned.spi
        return [*self._path.outbound(spi), *self._path.inbound(), *self._path.forward()]

    @property
    def written_epoch(self) -> EpochId | None:
        """The newest epoch whose own SA is in the SAD."""
        for generation in reversed(self._generations):
            if generation.phase in (Phase.WRITTEN, Phase.ACTIVE):
                return generation.wanted.epoch
        return None

    @property
    def active_epoch(self) -> EpochId | None:
        """The epoch we send with."""
        active = self._active()
        return None if active is None else active.wanted.epoch

    def epoch_of(self, sa_id: SaId) -> EpochId | None:
        """Return the epoch in which we send, or sent, with this SA; None: it is none of those."""
        return next((g.wanted.epoch for g in self._generations if g.wanted.own.id == sa_id), None)

    @property
    def wake_mono_ns(self) -> int | None:
        """When `due` has something to do; None while a batch is under way or nothing is planned."""
        if self._batch is not None:
            return None
        timed = (Phase.WRITTEN, Phase.TRAILING)
        return min((g.at_mono_ns for g in self._generations if g.phase in timed), default=None)

    def describe(self) -> list[dict[str, object]]:
        """Return the epochs that have SAs, oldest first, as plain JSON values."""
        return [
            {
                "epoch": str(g.wanted.epoch),
                "phase": g.phase.value,
                "sas": sum(owner is g for owner in self._owners.values()),
            }
            for g in self._generations
        ]

    # What the engine tells the plan.

    def start(self) -> list[Effect]:
        """Write the policies, once."""
        assert self._batch is None
        assert not self._generations
        return self._hand_out(_Batch(_Purpose.POLICIES, "policies", [*self._path.start_up()]))

    def want(self, wanted: EpochSas, now_mono_ns: int) -> list[Effect]:
        """Install a newer epoch. One that still waits is overtaken and never written."""
        self._generations = [g for g in self._generations if g.phase is not Phase.WAITING]
        self._generations.append(_Generation(wanted))
        return self._advance(now_mono_ns)

    def want_none(self, now_mono_ns: int) -> list[Effect]:
        """Remove every SA: we are not a member any more."""
        self._generations = [g for g in self._generations if g.phase is not Phase.WAITING]
        self._removing = bool(self._generations or self._owners) or self._batch is not None
        return self._advance(now_mono_ns)

    def give_up(self, now_mono_ns: int) -> list[Effect]:
        """The group moved to an epoch we cannot follow: let the SAs we have run out."""
        self._trail(self._generations, now_mono_ns)
        return self._advance(now_mono_ns)

    def confirm(self, epoch: EpochId, now_mono_ns: int) -> list[Effect]:
        """Everybody has the SAs of an epoch: it need not wait any longer."""
        for generation in self._of(Phase.WRITTEN):
            if generation.wanted.epoch == epoch:
                generation.at_mono_ns = min(generation.at_mono_ns, now_mono_ns)
        return self._advance(now_mono_ns)

    def drained(self, epoch: EpochId, at_mono_ns: int) -> None:
        """Nobody needs what is older than the epoch we send with any longer than until then."""
        for generation in self._of(Phase.TRAILING) if self.active_epoch == epoch else []:
            generation.at_mono_ns = min(generation.at_mono_ns, at_mono_ns)

    def due(self, now_mono_ns: int) -> list[Effect]:
        """Take the steps whose time has come."""
        return self._advance(now_mono_ns)

    def stop(self) -> ApplySas:
        """Remove all SAs and policies; the plan is then as new, and ignores outcomes on the way."""
        deletions: list[Operation] = [DeleteSa(sa_id) for sa_id in self._owners]
        self._generations, self._owners = [], {}
        self._batch, self._pinned, self._removing = None, None, False
        return ApplySas("remove", (*deletions, *self._path.removal()))

    def repair(self, operations: list[Operation]) -> list[Effect]:
        """Put right what somebody else has changed; no batch is under way."""
        assert self._batch is None
        return self._hand_out(_Batch(_Purpose.AUDIT, "audit", operations)) if operations else []

    def applied(self, label: str, outcomes: Sequence[Outcome], now_mono_ns: int) -> list[Effect]:
        """Take in what became of a batch."""
        batch = self._batch
        if batch is None or batch.label != label:
            return []
        self._batch = None
        failed = self._record(batch, outcomes)
        effects: list[Effect] = []
        if failed:
            self.failures += len(failed)
            operation, outcome = failed[0]
            self.last_failure = (
                f"{label}: {len(failed)} of {len(batch.operations)} failed,"
                f" first {name_of(operation)}: {outcome.text or outcome.errno}"
            )
            effects.append(Report("idp.sas_failed", {"label": label, "failed": len(failed)}))
            effects.append(Log("error" if batch.repeated else "warning", self.last_failure))
            if not batch.repeated and not self._removing:
                again = [step for operation, _ in failed for step in repetition(operation)]
                subject = label.partition(":")[2] or label
                repair = replace(batch, label=f"repair:{subject}", operations=again, repeated=True)
                return [*effects, *self._hand_out(repair)]
        effects += self._conclude(batch, [operation for operation, _ in failed], now_mono_ns)
        return effects + self._advance(now_mono_ns)

    # Choosing the next batch.

    def _advance(self, now_mono_ns: int) -> list[Effect]:
        """Hand out the next batch if none is under way."""
        if self._batch is not None:
            return []
        if self._removing:
            return self._remove(now_mono_ns)
        waiting = self._of(Phase.WAITING)
        older = self._before(waiting[0]) if waiting else []
        if older and not self._per_sender:
            return self._delete(older, waiting[0], now_mono_ns)
        if waiting:
            self._make_room(now_mono_ns)
            if len(self._generations) <= self._max_epochs:
                return self._write(waiting[0], now_mono_ns)
        ready = [g for g in self._of(Phase.WRITTEN) if g.at_mono_ns <= now_mono_ns]
        if ready:
            return self._activate(ready[-1])
        over = [g for g in self._of(Phase.TRAILING) if g.at_mono_ns <= now_mono_ns]
        return self._delete(over, over[-1], now_mono_ns) if over else []

    def _make_room(self, now_mono_ns: int) -> None:
        """Hurry the oldest epoch if, with the one that waits, there would be too many."""
        if len(self._generations) <= self._max_epochs:
            return
        oldest = self._generations[0]
        written = self._of(Phase.WRITTEN)
        if oldest.phase is Phase.ACTIVE and written:
            written[-1].at_mono_ns = now_mono_ns
        else:
            if oldest.phase is not Phase.TRAILING:
                oldest.move(Phase.TRAILING)
            oldest.at_mono_ns = now_mono_ns

    def _write(self, generation: _Generation, now_mono_ns: int) -> list[Effect]:
        """Add the SAs of an epoch, our own first.

        An SPI that an older epoch still uses is taken over: the old SA goes first. If it is the one
        our policy is pinned to, or if we send with no epoch yet, our policy moves in the same
        batch, right after our own SA was added: it never points at a peer's SA. For the same
        reason an epoch that waits for its activation and loses its own SPI is not activated.
        """
        wanted = generation.wanted
        sas = {sa.id: sa for sa in (wanted.own, *wanted.others)}
        switches = self._per_sender and (self._active() is None or self._pinned in sas)
        self._trail([g for g in self._of(Phase.WRITTEN) if g.wanted.own.id in sas], now_mono_ns)
        operations: list[Operation] = []
        for sa_id, sa in sas.items():
            if sa_id in self._owners:
                operations.append(DeleteSa(sa_id))
            operations.append(AddSa(sa, wanted.limit if sa is wanted.own else None))
            self._owners[sa_id] = generation
            if switches and sa is wanted.own:
                operations += self._path.switch(sa.spi)
        generation.move(Phase.WRITING)
        label = f"write:{wanted.epoch}"
        return self._hand_out(_Batch(_Purpose.WRITE, label, operations, [generation], switches))

    def _activate(self, generation: _Generation) -> list[Effect]:
        """Pin our policy to our SA of this epoch."""
        steps: list[Operation] = [*self._path.switch(generation.wanted.own.spi)]
        label = f"activate:{generation.wanted.epoch}"
        return self._hand_out(_Batch(_Purpose.ACTIVATE, label, steps, [generation], switches=True))

    def _delete(
        self, generations: list[_Generation], named: _Generation, now_mono_ns: int
    ) -> list[Effect]:
        """Delete the SAs of these epochs, and any whose deletion failed earlier."""
        operations: list[Operation] = [
            DeleteSa(sa_id)
            for sa_id, owner in self._owners.items()
            if owner is None or owner in generations
        ]
        label = f"delete:{named.wanted.epoch}"
        batch = _Batch(_Purpose.DELETE, label, operations, generations)
        if operations:
            return self._hand_out(batch)
        return self._conclude_deletion(batch, []) + self._advance(now_mono_ns)

    def _remove(self, now_mono_ns: int) -> list[Effect]:
        """Delete every SA and unpin our policy."""
        operations: list[Operation] = [DeleteSa(sa_id) for sa_id in self._owners]
        if self._pinned is not None:
            operations += self._path.switch(0)
        gone = [g for g in self._generations if g.phase is not Phase.WAITING]
        self._removing = False
        if not operations:
            self._generations = [g for g in self._generations if g not in gone]
            return self._advance(now_mono_ns)
        return self._hand_out(_Batch(_Purpose.REMOVE, "exclude", operations, gone))

    def _hand_out(self, batch: _Batch) -> list[Effect]:
        self._batch = batch
        self.batches += 1
        return [ApplySas(batch.label, tuple(batch.operations))]

    # Taking in outcomes.

    def _record(
        self, batch: _Batch, outcomes: Sequence[Outcome]
    ) -> list[tuple[Operation, Outcome]]:
        """Bring the record up to date; return what failed."""
        failed = []
        for index, operation in enumerate(batch.operations):
            outcome = outcomes[index] if index < len(outcomes) else LOST
            if isinstance(operation, AddSa) and outcome.errno == 0:
                continue  # recorded when it was handed out; the way of nearly all
            done = is_done(operation, outcome)
            if not done:
                failed.append((operation, outcome))
            if isinstance(operation, PutPolicy) and done and batch.switches:
                self._pinned = batch.generations[0].wanted.own.id
            elif isinstance(operation, PutPolicy) and done and batch.purpose is _Purpose.REMOVE:
                self._pinned = None
            elif isinstance(operation, DeleteSa) and batch.purpose is not _Purpose.WRITE and done:
                self._owners.pop(operation.id, None)
        if failed and batch.purpose is _Purpose.WRITE:
            # A failed deletion before a successful addition does no harm.
            added = {o.sa.id for o in batch.operations if isinstance(o, AddSa)}
            bad = {o.sa.id for o, _ in failed if isinstance(o, AddSa)}
            failed = [
                (o, outcome)
                for o, outcome in failed
                if not (isinstance(o, DeleteSa) and o.id in added)
            ]
            if batch.repeated:
                for sa_id in bad:
                    self._owners[sa_id] = None
        return failed

    def _conclude(
        self, batch: _Batch, failed: Sequence[Operation], now_mono_ns: int
    ) -> list[Effect]:
        """Move the epochs of a batch that is over, repeated if it had to be."""
        match batch.purpose:
            case _Purpose.WRITE:
                return self._conclude_write(batch, failed, now_mono_ns)
            case _Purpose.ACTIVATE:
                generation = batch.generations[0]
                return self._switched(generation, not failed, now_mono_ns)
            case _Purpose.DELETE | _Purpose.REMOVE:
                return self._conclude_deletion(batch, failed)
            case _Purpose.POLICIES | _Purpose.AUDIT:
                return []

    def _conclude_write(
        self, batch: _Batch, failed: Sequence[Operation], now_mono_ns: int
    ) -> list[Effect]:
        generation = batch.generations[0]
        wanted = generation.wanted
        missing = [operation.sa.id for operation in failed if isinstance(operation, AddSa)]
        fields = {"epoch": str(wanted.epoch), "sas": 1 + len(wanted.others) - len(missing)}
        effects: list[Effect] = []
        if missing:
            effects.append(Report("idp.sas_missing", {**fields, "missing": len(missing)}))
        else:
            effects.append(Report("t_written", fields))
        if wanted.own.id in missing:
            generation.move(Phase.FAILED)
            self._trail(self._before(generation), now_mono_ns)
            return effects
        generation.move(Phase.WRITTEN)
        generation.at_mono_ns = now_mono_ns + self._activation_ns
        if not self._per_sender:
            effects += self._switched(generation, True, now_mono_ns)
        elif batch.switches:
            unpinned = any(isinstance(operation, PutPolicy) for operation in failed)
            effects += self._switched(generation, not unpinned, now_mono_ns)
        return effects

    def _switched(self, generation: _Generation, done: bool, now_mono_ns: int) -> list[Effect]:
        """Our policy was moved to this epoch, or would not move: the older ones run out."""
        generation.move(Phase.ACTIVE if done else Phase.FAILED)
        self._trail(self._before(generation), now_mono_ns)
        if not done:
            return []
        return [Report("t_active", {"epoch": str(generation.wanted.epoch)})]

    def _conclude_deletion(self, batch: _Batch, failed: Sequence[Operation]) -> list[Effect]:
        for operation in failed:
            if isinstance(operation, DeleteSa):
                self._owners[operation.id] = None
        self._generations = [g for g in self._generations if g not in batch.generations]
        if failed or batch.purpose is _Purpose.REMOVE:
            return []
        if self._per_sender:
            gone = [str(generation.wanted.epoch) for generation in batch.generations]
        else:
            gone = [str(g.wanted.epoch) for g in self._generations if g.phase is Phase.WAITING]
        return [Report("t_deleted", {"epoch": epoch}) for epoch in gone]

    # Helpers.

    def _of(self, phase: Phase) -> list[_Generation]:
        return [g for g in self._generations if g.phase is phase]

    def _before(self, generation: _Generation) -> list[_Generation]:
        return self._generations[: self._generations.index(generation)]

    def _active(self) -> _Generation | None:
        """The epoch that our policy uses and that is not running out."""
        active = self._of(Phase.ACTIVE)
        return active[-1] if active else None

    def _trail(self, generations: Sequence[_Generation], now_mono_ns: int) -> None:
        """Let these epochs run out."""
        for generation in generations:
            if generation.phase in (Phase.WRITTEN, Phase.ACTIVE, Phase.FAILED):
                generation.move(Phase.TRAILING)
                generation.at_mono_ns = now_mono_ns + self._deactivation_ns
