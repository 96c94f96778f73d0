"""What to do when somebody else has changed the SAD, the SPD or the routing table behind our back.

The kernel tells whoever runs the engine of changes that are not ours. The engine then has what
carries our marks read back, and compares it with its record:

* what is there and not in the record is removed;
* a policy or a route that lacks, or was changed, is put back;
* an SA that lacks is **never** written again under its key: its sequence numbers would begin anew,
  so a nonce could come twice (RFC 4106 section 8), the receivers' windows would refuse us, and the
  window of an inbound SA would take in what it had refused. A new epoch is asked for instead.

Pure state, owned and driven by `protocol.idp.group`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from protocol.core.counters import RuleCounters
from protocol.core.engine import Effect, Instant, Log, Report, SetTimer
from protocol.idp import rules
from protocol.idp.events import ApplyRoutes, KernelRead, ReadKernel, RemoveRoute
from protocol.idp.pairplan import LABEL, PairPlan
from protocol.idp.saplan import SaPlan
from protocol.ipsec.backend import DeletePolicy, DeleteSa, Operation, PutPolicy
from protocol.ipsec.model import Policy, PolicyId, SaId

TIMER_AUDIT = "idp.audit"

DELAY_NS = 50_000_000
"""From the first word of a change to the reading: several changes are often made together."""

PAUSE_NS = 1_000_000_000
"""Between two readings: who changes the kernel all the time costs us no more than this."""

STRAY = f"{LABEL}stray"
"""Label of the batch that removes routes which are not in the record."""


class Audit:
    """Compares the kernel with the record when there is reason to.

    Args:
        plan: of the group's SAs.
        pairs: of the pairs' SAs.
        counters: of the engine.
        rejoin: has MIKE make us a member anew, with a new epoch.
    """

    def __init__(
        self,
        plan: SaPlan,
        pairs: PairPlan,
        counters: RuleCounters,
        rejoin: Callable[[Instant], list[Effect]],
    ) -> None:
        self._plan = plan
        self._pairs = pairs
        self._counters = counters
        self._rejoin = rejoin
        self.forget()

    def forget(self) -> None:
        """Begin anew with an instance."""
        self._waits = False
        self._read_mono_ns = -PAUSE_NS
        self._asked: tuple[int, int] | None = None
        self._lacking: frozenset[SaId] = frozenset()

    def changed(self, now: Instant) -> list[Effect]:
        """The kernel holds something else than before, and it was not us."""
        if self._waits:
            return []
        self._waits = True
        at_mono_ns = max(now.mono_ns + DELAY_NS, self._read_mono_ns + PAUSE_NS)
        return [SetTimer(TIMER_AUDIT, at_mono_ns)]

    def due(self, now: Instant) -> list[Effect]:
        """Have the kernel read."""
        self._waits = False
        self._read_mono_ns = now.mono_ns
        self._asked = self._batches()
        return [ReadKernel()]

    def read(self, found: KernelRead, now: Instant) -> list[Effect]:
        """Compare, and put right what differs; read again if we were writing meanwhile."""
        asked, self._asked = self._asked, None
        if found.problem or asked != self._batches() or self._plan.busy or self._pairs.busy:
            return self.changed(now)
        group, pairs = self._plan.needed(), self._pairs.needed()
        lacking = rules.lacking({*group, *pairs}, found.sas)
        new, self._lacking = lacking - self._lacking, lacking
        sas, policies, routes = self._pairs.record()
        unknown = rules.stray(found.sas, self._plan.recorded | sas)
        operations: list[Operation] = [DeleteSa(one) for one in unknown]
        in_kernel = {policy.id: policy for policy in found.policies}
        wanted = self._plan.policies()
        operations += [PutPolicy(one) for one in _changed(wanted, in_kernel)]
        ours = {policy.id for policy in (*wanted, *policies)}
        operations += [DeletePolicy(name) for name in rules.stray(in_kernel, ours)]
        # What is disowned the pairs' plan writes again when the engine lets it proceed.
        gone = [policy.id for policy in _changed(policies, in_kernel)]
        ways = rules.stray(routes, found.routes)
        self._pairs.disown(gone, ways)
        strays = [RemoveRoute(one) for one in rules.stray(found.routes, routes)]
        count = len(operations) + len(strays) + len(gone) + len(ways)
        if not count and not new:
            return []
        self._counters.count("IDP-64", count)
        self._counters.count("IDP-65", len(new))
        fields = {"repaired": count, "lacking": len(new)}
        effects: list[Effect] = [
            Report("idp.audit", fields),
            Log("warning", f"the kernel was changed behind our back: {_words(count, len(new))}"),
            *self._plan.repair(operations),
        ]
        if strays:
            effects.append(ApplyRoutes(STRAY, tuple(strays)))
        return effects + (self._rejoin(now) if new else [])

    def _batches(self) -> tuple[int, int]:
        return self._plan.batches, self._pairs.batches


def _changed(wanted: Iterable[Policy], found: dict[PolicyId, Policy]) -> list[Policy]:
    return [policy for policy in wanted if found.get(policy.id) != policy]


def _words(repaired: int, lacking: int) -> str:
    texts = [f"{repaired} policies, routes or unknown SAs put right"] if repaired else []
    texts += [f"{lacking} SAs lack: a new epoch is asked for"] if lacking else []
    return ", ".join(texts)
