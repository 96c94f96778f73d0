"""From MIKE's status to the SA plan: fetch the key behind the pointer, derive the SAs, plan them.

Pure state, owned and driven by the engine. At most one status is being followed: the newest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Any

from protocol.core.counters import RuleCounters
from protocol.core.engine import CancelTimer, Effect, Log, Report, SetTimer
from protocol.idp import rules
from protocol.idp.config import IdpConfig, SaMode
from protocol.idp.confirming import Confirmations, IsLost
from protocol.idp.events import ApplySas, FetchKey
from protocol.idp.saplan import EpochSas, SaPlan
from protocol.idpmike import EpochId, GroupStatus
from protocol.ipsec.backend import ByteLimit, Operation, Outcome
from protocol.ipsec.grouppolicy import ALL_IPV4_MULTICAST, ALL_MULTICAST, GroupPath
from protocol.ipsec.schedule import sender_sas, shared_sa

NS_PER_MS = 1_000_000

TIMER_KEY = "idp.key"

REMOVAL = "remove"
REMOVAL_AGAIN = "repair:remove"
"""Labels of what removes everything at stop."""


@dataclass(frozen=True, slots=True)
class WrittenEpoch:
    """An epoch whose group SAs are in the SAD: now the pairs' SAs may follow.

    Attributes:
        epoch: which.
        members: in position order.
        spis: of the group's SAs.
        group_key: exported group key.
    """

    epoch: EpochId
    members: tuple[IPv6Address, ...]
    spis: tuple[int, ...]
    group_key: bytes = field(repr=False)


class GroupSync:
    """Keeps the SAD in step with the group.

    Attributes:
        plan: of the group's SAs.
        epoch: the newest epoch whose key we have, or None.
        tm: the transaction manager of MIKE's newest status, or None.
        ended: why we have none: ``excluded``, ``no key``, or None.
    """

    def __init__(
        self,
        config: IdpConfig,
        own: IPv6Address,
        counters: RuleCounters,
        is_lost: IsLost,
        byte_limit: Callable[[], ByteLimit | None],
    ) -> None:
        self._config = config
        self._byte_limit = byte_limit
        self._own = own
        self._counters = counters
        self._least_ns = config.deactivation_min_ms * NS_PER_MS
        self._confirmations = Confirmations(own, is_lost, counters, config.max_peers)
        path = GroupPath(
            own=own,
            group=config.sa_group,
            if_id=config.if_id,
            reqid=config.reqid,
            destinations=(ALL_MULTICAST, *((ALL_IPV4_MULTICAST,) if config.ipv4 else ())),
        )
        self.plan = SaPlan(config, path)
        self._removal: Sequence[Operation] = ()
        self._reset()

    def _reset(self) -> None:
        self._confirmations.forget()
        self._wanted: GroupStatus | None = None
        self._fetched_again = False
        self._excluded = False
        self._key_failure = ""
        self._fresh: WrittenEpoch | None = None
        self.epoch: EpochId | None = None
        self.tm: IPv6Address | None = None
        self._expired: EpochId | None = None
        self.ended: str | None = None

    def take_written(self) -> WrittenEpoch | None:
        """Return the newest epoch once its SAs are written, once; the key is then forgotten."""
        fresh = self._fresh
        if fresh is None or self.plan.written_epoch != fresh.epoch:
            return None
        self._fresh = None
        return fresh

    @property
    def wake_mono_ns(self) -> int | None:
        """When `on_plan_due` has something to do."""
        return self.plan.wake_mono_ns

    def status(self) -> dict[str, Any]:
        """Return our part of ``idpd status``."""
        written, active = self.plan.written_epoch, self.plan.active_epoch
        return {
            "epoch": None if written is None else str(written),
            "active_epoch": None if active is None else str(active),
            "key_epoch": None if self.epoch is None else str(self.epoch),
            "excluded": self._excluded,
            "sas": self.plan.describe(),
            "sa_failures": self.plan.failures,
            "last_failure": self._key_failure or self.plan.last_failure,
        }

    def start(self) -> list[Effect]:
        """Write the policies."""
        self._removal = ()
        return self.plan.start()

    def stop(self) -> ApplySas:
        """Forget the group; return the batch that removes its SAs and policies."""
        self._reset()
        removal = self.plan.stop()
        self._removal = removal.operations
        return removal

    def on_status(self, status: GroupStatus, now_mono_ns: int) -> list[Effect]:
        """Follow a checked status: fetch the key of a new epoch; remove all if we are excluded."""
        if rules.is_excluded(self._own, status.members):
            self._wanted, self.epoch, self._excluded = None, None, True
            self._fresh, self.ended = None, "excluded"
            self._confirmations.forget()
            self._counters.count("IDP-12")
            effects: list[Effect] = [Report("idp.excluded", {"epoch": str(status.epoch)})]
            return effects + self.plan.want_none(now_mono_ns)
        self._excluded = False
        self.tm = status.tm
        if status.epoch == self._expired:
            self._counters.count("IDP-62")
            return []
        known = self._wanted.epoch if self._wanted is not None else self.epoch
        if status.epoch == known and not self._key_failure:
            self._counters.count("idp.status_repeated")
            return []
        self._wanted, self._fetched_again, self._key_failure = status, False, ""
        return [CancelTimer(TIMER_KEY), FetchKey(status.pointer)]

    def expire(self, now_mono_ns: int) -> list[Effect]:
        """IDP-62: remove the SAs of the epoch we have; it does not come back."""
        self._expired = self.epoch
        self._wanted, self.epoch = None, None
        self._fresh, self.ended = None, "excluded"
        self._confirmations.forget()
        self._counters.count("IDP-62")
        effects: list[Effect] = [
            Report("idp.expired", {"epoch": str(self._expired)}),
            Log("error", f"the lifetime of epoch {self._expired} is over: its SAs are removed"),
        ]
        return effects + self.plan.want_none(now_mono_ns)

    def on_key(self, pointer: str, group_key: bytes | None, now_mono_ns: int) -> list[Effect]:
        """Take in the key of the newest status; that of an older one comes too late.

        Raises:
            PeerError: not a group key (IDP-13).
        """
        status = self._wanted
        if status is None or status.pointer != pointer:
            return []
        if group_key is None:
            return self._on_no_key(status, now_mono_ns)
        rules.check_group_key(group_key)
        self._wanted, self.epoch, self.ended = None, status.epoch, None
        sas = self._sas(status, group_key)
        spis = tuple(sa.spi for sa in (sas.own, *sas.others))
        self._fresh = WrittenEpoch(status.epoch, tuple(status.members), spis, group_key)
        if self._config.sa_mode is SaMode.PER_SENDER:
            self._confirmations.expect(status.epoch, status.members, group_key)
        return self.plan.want(sas, now_mono_ns)

    def on_key_due(self) -> list[Effect]:
        """Try to fetch the key once more."""
        return [] if self._wanted is None else [FetchKey(self._wanted.pointer)]

    def on_applied(self, label: str, outcomes: Sequence[Outcome], now_mono_ns: int) -> list[Effect]:
        """Take in what became of a batch."""
        if label in (REMOVAL, REMOVAL_AGAIN):
            return self._on_removed(label, outcomes)
        failures = self.plan.failures
        effects = self.plan.applied(label, outcomes, now_mono_ns)
        if self.plan.failures > failures:
            self._counters.count("IDP-14", self.plan.failures - failures)
        written, active = self.plan.written_epoch, self.plan.active_epoch
        effects += self._confirmations.written(written, now_mono_ns, waits=written != active)
        return effects + self.reconsider(now_mono_ns)

    def on_plan_due(self, now_mono_ns: int) -> list[Effect]:
        """Take the steps whose time has come."""
        return self.plan.due(now_mono_ns)

    def on_notice(self, payload: bytes, sender: IPv6Address, now_mono_ns: int) -> list[Effect]:
        """Take a device's notice that it has an epoch's SAs, or sends with them.

        Raises:
            PeerError: it is none (IDP-41), or not a member's (IDP-42).
        """
        effects = self._confirmations.heard(payload, sender)
        return effects + self.reconsider(now_mono_ns)

    def is_confirmed_by(self, address: IPv6Address) -> bool:
        """Return whether a device has said that it has the newest epoch's SAs."""
        return self._confirmations.has(address)

    def on_notice_due(self, now_mono_ns: int) -> list[Effect]:
        """Give our notice, or ask for others'."""
        return self._confirmations.due(now_mono_ns)

    def reconsider(self, now_mono_ns: int) -> list[Effect]:
        """IDP-43: switch to an epoch that everybody has, or that is in use all the same.

        IDP-46: let the older SAs go when everybody has switched.
        """
        active = self.plan.active_epoch
        if active == self.plan.written_epoch:
            effects = self._confirmations.give_up()
            effects += self._confirmations.active(active, now_mono_ns)
            at_mono_ns, more = self._confirmations.drained(now_mono_ns, self._least_ns)
            if active is not None and at_mono_ns is not None:
                self.plan.drained(active, at_mono_ns)
            return effects + more
        epoch, effects = self._confirmations.complete(now_mono_ns)
        return effects if epoch is None else effects + self.plan.confirm(epoch, now_mono_ns)

    def _on_removed(self, label: str, outcomes: Sequence[Outcome]) -> list[Effect]:
        """IDP-14 for the removal at stop, which the plan has already forgotten."""
        failed = [
            (operation, outcome)
            for operation, outcome in zip(self._removal, outcomes, strict=False)
            if not rules.is_done(operation, outcome)
        ]
        self._removal = ()
        if not failed:
            return []
        self._counters.count("IDP-14", len(failed))
        text = f"{label}: {len(failed)} failed, first: {failed[0][1].text}"
        if label == REMOVAL_AGAIN:
            return [Log("error", text)]
        self._removal = tuple(operation for operation, _ in failed)
        return [Log("warning", text), ApplySas(REMOVAL_AGAIN, self._removal)]

    def _on_no_key(self, status: GroupStatus, now_mono_ns: int) -> list[Effect]:
        """IDP-14 for the key: one repetition, then the SAs we have run out."""
        self._counters.count("IDP-14")
        text = f"no group key behind {status.pointer}"
        if not self._fetched_again:
            self._fetched_again = True
            at_mono_ns = now_mono_ns + self._config.retry_ms * NS_PER_MS
            return [Log("warning", text), SetTimer(TIMER_KEY, at_mono_ns)]
        self._key_failure = text
        self._fresh, self.ended = None, "no key"
        effects: list[Effect] = [
            Report("idp.key_failed", {"epoch": str(status.epoch)}),
            Log("error", f"{text}: not in epoch {status.epoch}"),
        ]
        return effects + self.plan.give_up(now_mono_ns)

    def _sas(self, status: GroupStatus, group_key: bytes) -> EpochSas:
        """Derive the SAs of an epoch."""
        config = self._config
        limit = self._byte_limit()
        if config.sa_mode is SaMode.PAPER:
            shared = shared_sa(
                group_key,
                epoch_number=status.epoch.number,
                epoch_tag=status.epoch.tag,
                group=config.sa_group,
                suite=config.suite,
                own=self._own,
                reqid=config.reqid,
                if_id=config.if_id,
            )
            return EpochSas(status.epoch, shared, limit=limit)
        sas = sender_sas(
            group_key,
            epoch_number=status.epoch.number,
            epoch_tag=status.epoch.tag,
            members=status.members,
            group=config.sa_group,
            suite=config.suite,
            own=self._own,
            reqid=config.reqid,
            if_id=config.if_id,
            directions=config.sa_directions,
        )
        own = next(sa for sa in sas if sa.source == self._own)
        others = tuple(sa for sa in sas if sa is not own)
        return EpochSas(status.epoch, own, others, limit)
