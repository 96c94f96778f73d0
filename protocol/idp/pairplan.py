"""Unicast SAs, policies and routes: what the kernel shall hold for each peer, and what it holds.

For each peer the plan knows which SAs exist side by side, which one we send with, and which red
prefixes lie behind it; from that follows all that the kernel shall hold. What differs from the
record goes out as one batch, at most one at a time, so every batch starts from a known state. An
entry is in the record from the moment it is handed out until its removal is acknowledged.

Generations of a peer's SAs follow one another as the group's do (`protocol.idp.saplan`): written
beside the older one, used after the activation delay, the older one deleted after the deactivation
delay. The first one is used at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Any

from protocol.core.engine import Effect, Log, Report
from protocol.idp.config import IdpConfig
from protocol.idp.events import AddRoute, ApplyRoutes, ApplySas, RemoveRoute, RouteOperation
from protocol.idp.pairrecord import PAIR, Generation, Link, PairPhase, Record
from protocol.idp.rules import is_done, repetition
from protocol.ipsec.backend import (
    LOST,
    AddSa,
    ByteLimit,
    DeletePolicy,
    DeleteSa,
    Operation,
    Outcome,
    PutPolicy,
)
from protocol.ipsec.model import Policy, PolicyId, Prefix, SaId, SecurityAssociation
from protocol.ipsec.pairpolicy import PairPath

NS_PER_MS = 1_000_000
LABEL = "pairs:"
"""How the labels of our batches begin."""


_Lost = tuple[list[SaId], list[PolicyId], list[Prefix]]


@dataclass(slots=True)
class _Batch:
    """The batch under way.

    ``lost``: for each peer concerned what is removed. ``waits``: how many answers lack.
    """

    label: str
    operations: list[Operation]
    routes: list[RouteOperation]
    lost: dict[IPv6Address, _Lost]
    generations: list[Generation]
    waits: int = 0
    repeated: bool = False
    failed: list[Operation | RouteOperation] = field(default_factory=list)
    text: str = ""


class PairPlan:
    """The unicast SAs, policies and routes of one device.

    Args:
        config: settings.
        own: our black address.
        byte_limit: returns what an SA that we send with may carry.
    """

    def __init__(
        self, config: IdpConfig, own: IPv6Address, byte_limit: Callable[[], ByteLimit | None]
    ) -> None:
        self._config = config
        self._own = own
        self._activation_ns = config.activation_delay_ms * NS_PER_MS
        self._deactivation_ns = config.deactivation_delay_ms * NS_PER_MS
        self._byte_limit = byte_limit
        self._serial = self.batches = 0
        self.failures = 0
        self._forget()

    def _forget(self) -> None:
        self._links: dict[IPv6Address, Link] = {}
        self._records: dict[IPv6Address, Record] = {}
        self._changed: dict[IPv6Address, None] = {}
        self._reached: list[IPv6Address] = []
        self._batch: _Batch | None = None

    # What the rest of the engine may know.

    @property
    def wake_mono_ns(self) -> int | None:
        """When `advance` has something to do; None while a batch is under way."""
        if self._batch is not None:
            return None
        return self._next_step()

    def _next_step(self) -> int | None:
        """Return when the next step is due by the clock alone."""
        timed = self._of(PairPhase.STANDBY, PairPhase.TRAILING)
        return min([generation.due_mono_ns for generation in timed], default=None)

    def _of(self, *phases: PairPhase) -> list[Generation]:
        return [g for link in self._links.values() for g in link.generations if g.phase in phases]

    @property
    def differing(self) -> int:
        """For how many peers something was changed that `advance` has not looked at yet."""
        return len(self._changed)

    @property
    def busy(self) -> bool:
        """Whether a batch is under way or to come: the kernel may differ from the record."""
        return self._batch is not None or bool(self._changed)

    def record(self) -> tuple[set[SaId], list[Policy], list[Prefix]]:
        """Return the SAs that the SAD may hold, the policies and the routes."""
        records = self._records.values()
        policies = [policy for record in records for policy in record.policies.values()]
        routes = [prefix for record in records for prefix in record.routes]
        return {sa_id for record in records for sa_id in record.sas}, policies, routes

    def needed(self) -> set[SaId]:
        """Return the SAs that are not running out."""
        live = self._of(PairPhase.STANDBY, PairPhase.ACTIVE)
        return {sa.id for one in live for sa in (one.outbound, one.inbound)}

    def disown(self, policies: Iterable[PolicyId], routes: Iterable[Prefix]) -> None:
        """Take out of the record what somebody has removed, so that `advance` writes it again."""
        gone, ways = set(policies), set(routes)
        for peer, record in self._records.items():
            if gone & record.policies.keys() or ways & record.routes.keys():
                record.policies = {n: p for n, p in record.policies.items() if n not in gone}
                record.routes = dict.fromkeys(one for one in record.routes if one not in ways)
                record.led = None
                self._changed[peer] = None

    def holder(self, sa_id: SaId) -> IPv6Address | None:
        """Return the peer with such an SA, or that is to have it; None: there is none (IDP-28)."""
        held = (peer for peer, record in self._records.items() if sa_id in record.sas)
        spi = sa_id.spi
        for peer, link in self._links.items():
            for one in link.generations:
                # Nearly always the SPI alone says no.
                if spi in (one.outbound.spi, one.inbound.spi) and sa_id in (
                    one.outbound.id,
                    one.inbound.id,
                ):
                    return next(held, peer)
        return next(held, None)

    def epoch_of(self, sa_id: SaId) -> str | None:
        """Return the epoch in which we send, or sent, to a peer with this SA; None: in none."""
        for generation in self._of(*PairPhase):
            if generation.outbound.id == sa_id:
                return generation.epoch
        return None

    def is_written(self, peer: IPv6Address) -> bool:
        """Return whether we can send to a peer."""
        link = self._links.get(peer)
        if link is None:
            return False
        for generation in link.generations:
            if generation.phase is PairPhase.ACTIVE or generation.phase is PairPhase.STANDBY:
                return True
        return False

    def take_reached(self) -> list[IPv6Address]:
        """Return the peers with SAs that were written since the last call."""
        reached, self._reached = self._reached, []
        return reached

    def describe(self, peer: IPv6Address) -> dict[str, Any]:
        """Return a peer's SAs as plain JSON values, never keys."""
        link = self._links.get(peer)
        current = None if link is None else link.current()
        if link is None or current is None:
            return {"state": "none"}
        return {
            "state": current.phase.value,
            "epoch": current.epoch,
            "spi_out": f"{current.outbound.spi:#010x}",
            "spi_in": f"{current.inbound.spi:#010x}",
            "generations": len(link.generations),
        }

    # What shall be. Nothing happens before `advance`.

    def install(
        self,
        peer: IPv6Address,
        epoch: str,
        sas: tuple[SecurityAssociation, SecurityAssociation],
    ) -> None:
        """Let there be newer SAs with a peer, the outbound one first."""
        assert self._config.if_id is not None
        link = self._links.get(peer)
        if link is None:
            reqid = self._config.unicast_reqid
            path = PairPath(self._own, peer, self._config.if_id, reqid)
            link = self._links[peer] = Link(path)
        waiting = [g for g in link.generations if g.phase is PairPhase.NEW and not g.handed_out]
        link.generations = [g for g in link.generations if g not in waiting]
        if len(link.generations) >= self._config.max_epochs:
            self._shorten(link)
        link.generations.append(Generation(epoch, *sas))
        self._changed[peer] = None

    @staticmethod
    def _shorten(link: Link) -> None:
        """Let the oldest generation go early; if we send with it, with the next one instead."""
        oldest = link.generations.pop(0)
        if oldest.phase is PairPhase.ACTIVE:
            standby = [g for g in link.generations if g.phase is PairPhase.STANDBY]
            if standby:
                standby[-1].move(PairPhase.ACTIVE)

    def run_out(self, peers: Iterable[IPv6Address], now_mono_ns: int) -> None:
        """Let the SAs with these peers run out: there are no newer ones."""
        for peer in peers:
            link = self._links.get(peer)
            for generation in [] if link is None else link.generations:
                self._trail(generation, now_mono_ns)

    def lead(self, peer: IPv6Address, prefixes: tuple[Prefix, ...]) -> None:
        """Let these prefixes lie behind a peer with SAs."""
        link = self._links.get(peer)
        if link is not None and link.prefixes != prefixes:
            link.prefixes = prefixes
            self._changed[peer] = None

    def remove(self, peers: Iterable[IPv6Address]) -> None:
        """Let there be nothing for these peers."""
        for peer in peers:
            if self._links.pop(peer, None) is not None:
                self._changed[peer] = None

    @property
    def peers(self) -> list[IPv6Address]:
        """Return the peers with SAs, or to have some."""
        return list(self._links)

    # Batches.

    def advance(self, now_mono_ns: int) -> list[Effect]:
        """Hand out the next batch if none is under way and something differs."""
        if self._batch is not None:
            return []
        self._step(now_mono_ns)
        if not self._changed:
            return []
        peers = list(self._changed)
        self._changed.clear()
        batch = self._differences(peers)
        if not batch.operations and not batch.routes:
            return []
        return self._hand_out(batch)

    def _step(self, now_mono_ns: int) -> None:
        """Take the steps whose time has come."""
        due_mono_ns = self._next_step()
        if not self._changed and (due_mono_ns is None or due_mono_ns > now_mono_ns):
            return  # most calls come between two steps
        for peer, link in list(self._links.items()):
            for generation in list(link.generations):
                if generation.phase is PairPhase.STANDBY and generation.due_mono_ns <= now_mono_ns:
                    self._activate(link, generation, now_mono_ns)
                    self._changed[peer] = None
                elif (
                    generation.phase is PairPhase.TRAILING and generation.due_mono_ns <= now_mono_ns
                ):
                    link.generations.remove(generation)
                    self._changed[peer] = None
            if not link.generations:
                del self._links[peer]

    def _activate(self, link: Link, generation: Generation, now_mono_ns: int) -> None:
        generation.move(PairPhase.ACTIVE)
        for older in link.generations[: link.generations.index(generation)]:
            self._trail(older, now_mono_ns)

    def _trail(self, generation: Generation, now_mono_ns: int) -> None:
        if PAIR.allows(generation.phase, PairPhase.TRAILING):
            generation.move(PairPhase.TRAILING, now_mono_ns + self._deactivation_ns)

    def _differences(self, peers: list[IPv6Address]) -> _Batch:
        """Compare what shall be with the record, which has from now on what is added."""
        gone: list[Operation] = []
        new: list[Operation] = []
        policies: list[Operation] = []
        old: list[Operation] = []
        removed: list[RouteOperation] = []
        added: list[RouteOperation] = []
        generations: list[Generation] = []
        lost: dict[IPv6Address, _Lost] = {}
        for peer in peers:
            link = self._links.get(peer)
            record = self._records.setdefault(peer, Record())
            current = None if link is None else link.current()
            wanted = Record()
            led: tuple[int, tuple[Prefix, ...]] | None = None
            lost_policies: list[PolicyId] = []
            lost_routes: list[Prefix] = []
            outbound = set() if link is None else {g.outbound.id for g in link.generations}
            if link is not None and current is not None:
                for generation in link.generations:
                    for sa in (generation.outbound, generation.inbound):
                        wanted.sas[sa.id] = sa
                    if generation.phase is PairPhase.NEW and not generation.handed_out:
                        generation.handed_out = True
                        generations.append(generation)
                led = current.outbound.spi, link.prefixes
                if led != record.led:
                    wanted.policies = {one.id: one for one in link.path.policies(*led)}
                    wanted.routes = dict.fromkeys(link.prefixes)
            lost_sas = [sa_id for sa_id in record.sas if sa_id not in wanted.sas]
            for sa_id, sa in wanted.sas.items():
                if record.sas.get(sa_id) != sa:
                    new += [DeleteSa(sa_id)] if sa_id in record.sas else []
                    new.append(AddSa(sa, self._byte_limit() if sa_id in outbound else None))
            # Two of an epoch's three batches are about SAs alone.
            if led is None or led != record.led:
                lost_policies = [name for name in record.policies if name not in wanted.policies]
                lost_routes = [one for one in record.routes if one not in wanted.routes]
                gone += [DeletePolicy(name) for name in lost_policies]
                policies += [
                    PutPolicy(policy)
                    for name, policy in wanted.policies.items()
                    if record.policies.get(name) != policy
                ]
                removed += [RemoveRoute(one) for one in lost_routes]
                added += [AddRoute(one) for one in wanted.routes if one not in record.routes]
                record.policies.update(wanted.policies)
                record.routes.update(wanted.routes)
                # What is to go is there until it has gone.
                record.led = None if lost_policies or lost_routes else led
            old += [DeleteSa(sa_id) for sa_id in lost_sas]
            record.sas.update(wanted.sas)
            lost[peer] = (lost_sas, lost_policies, lost_routes)
        self._serial += 1
        # Policies go first, for another peer's may take the same selector in the same batch.
        operations = [*gone, *new, *policies, *old]
        label = f"{LABEL}{self._serial}"
        return _Batch(label, operations, [*removed, *added], lost, generations)

    def _hand_out(self, batch: _Batch) -> list[Effect]:
        self._batch = batch
        self.batches += 1
        effects: list[Effect] = []
        if batch.operations:
            effects.append(ApplySas(batch.label, tuple(batch.operations)))
        if batch.routes:
            effects.append(ApplyRoutes(batch.label, tuple(batch.routes)))
        batch.waits = len(effects)
        return effects

    def stop(self) -> list[Effect]:
        """Remove everything; the plan is then as new, and ignores outcomes on the way."""
        records = self._records.values()
        operations: list[Operation] = [DeletePolicy(n) for r in records for n in r.policies]
        operations += [DeleteSa(sa_id) for record in records for sa_id in record.sas]
        routes: list[RouteOperation] = [RemoveRoute(one) for r in records for one in r.routes]
        self._forget()
        effects: list[Effect] = []
        if operations:
            effects.append(ApplySas(f"{LABEL}remove", tuple(operations)))
        if routes:
            effects.append(ApplyRoutes(f"{LABEL}remove", tuple(routes)))
        return effects

    # Outcomes.

    def applied(
        self, label: str, outcomes: Sequence[Outcome], now_mono_ns: int, *, routes: bool
    ) -> list[Effect]:
        """Take in what became of the SAs and policies of a batch, or of its routes."""
        batch = self._batch
        if batch is None or batch.label != label:
            return []
        performed = batch.routes if routes else batch.operations
        for index, operation in enumerate(performed):
            outcome = outcomes[index] if index < len(outcomes) else LOST
            if not is_done(operation, outcome):
                batch.failed.append(operation)
                batch.text = batch.text or outcome.text or str(outcome.errno)
        batch.waits -= 1
        if batch.waits:
            return []
        self._batch = None
        effects: list[Effect] = []
        if batch.failed:
            self.failures += len(batch.failed)
            text = f"{label}: {len(batch.failed)} failed, first: {batch.text}"
            effects.append(
                Report("idp.pairs_failed", {"label": label, "failed": len(batch.failed)})
            )
            effects.append(Log("error" if batch.repeated else "warning", text))
            if not batch.repeated:
                return [*effects, *self._hand_out(_repair(batch))]
        return [*effects, *self._conclude(batch, now_mono_ns), *self.advance(now_mono_ns)]

    def _conclude(self, batch: _Batch, now_mono_ns: int) -> list[Effect]:
        """Move the generations of a batch that is over."""
        unwritten = {o.sa.id for o in batch.failed if isinstance(o, AddSa)}
        for peer, lost in batch.lost.items():
            self._strike_out(peer, lost, batch.failed)
            link = self._links.get(peer)
            for generation in [] if link is None else list(link.generations):
                if generation not in batch.generations:
                    continue
                assert link is not None
                if generation.outbound.id in unwritten:
                    link.generations.remove(generation)
                    self._changed[peer] = None
                    continue
                self._reached.append(peer)
                if any(g.phase is PairPhase.ACTIVE for g in link.generations):
                    due_mono_ns = now_mono_ns + self._activation_ns
                    generation.move(PairPhase.STANDBY, due_mono_ns)
                else:
                    self._activate(link, generation, now_mono_ns)
        records = self._records.values()
        fields = {
            "epoch": batch.generations[-1].epoch if batch.generations else "",
            "peers": sum(self.is_written(peer) for peer in self._links),
            "sas": sum(len(record.sas) for record in records),
            "policies": sum(len(record.policies) for record in records),
            "routes": sum(len(record.routes) for record in records),
            "operations": len(batch.operations) + len(batch.routes),
        }
        return [Report("t_unicast_written", fields)]

    def _strike_out(
        self, peer: IPv6Address, lost: _Lost, failed: Sequence[Operation | RouteOperation]
    ) -> None:
        """Take what was removed out of the record; what could not be is tried again some day."""
        record = self._records[peer]
        kept = {o.id for o in failed if isinstance(o, DeleteSa | DeletePolicy)}
        kept_routes = {o.prefix for o in failed if isinstance(o, RemoveRoute)}
        for sa_id in lost[0]:
            if sa_id not in kept:
                record.sas.pop(sa_id, None)
        for name in lost[1]:
            if name not in kept:
                record.policies.pop(name, None)
        for prefix in lost[2]:
            if prefix not in kept_routes:
                record.routes.pop(prefix, None)
        if not (record.sas or record.policies or record.routes):
            del self._records[peer]


def _repair(batch: _Batch) -> _Batch:
    """Return what tries the failed operations once more."""
    operations: list[Operation] = []
    routes: list[RouteOperation] = []
    for operation in batch.failed:
        if isinstance(operation, AddRoute | RemoveRoute):
            routes.append(operation)
        else:
            operations += repetition(operation)
    label = f"{LABEL}repair:{batch.label.removeprefix(LABEL)}"
    return _Batch(label, operations, routes, batch.lost, batch.generations, repeated=True)
