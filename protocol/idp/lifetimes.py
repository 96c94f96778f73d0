"""How long the SAs of an epoch are used: renewed in time, removed when their time is over.

By time: the lifetime counts from the moment at which we had the epoch's key. The engine keeps it,
not the kernel: all SAs of an epoch end together, whatever the backend, and the group is asked for a
new epoch before (IDP-61). What is still there at the end goes, and nothing takes its place
(IDP-62).

By bytes: only the kernel sees the packets, so it counts, for each SA that we send with, and says
when a new epoch is to be asked for (IDP-63).
"""

from __future__ import annotations

from collections.abc import Callable

from protocol.core.engine import CancelTimer, Effect, Instant, SetTimer
from protocol.idp import rules
from protocol.idp.config import IdpConfig
from protocol.idp.policy import DomainPolicy
from protocol.idpmike import EpochId
from protocol.ipsec.backend import ByteLimit

TIMER_LIFETIME = "idp.lifetime"
TIMER_WORN = "idp.worn"

NS_PER_S = 1_000_000_000

WORN_AGAIN_NS = 2 * NS_PER_S
"""The kernel says it once; whoever has to do something about it may be starting just then."""


class Lifetimes:
    """Owned and driven by the engine.

    Args:
        config: settings.
        policy: returns the domain policy that we keep to, or None.
        random_below: returns a random number below a bound.
    """

    def __init__(
        self,
        config: IdpConfig,
        policy: Callable[[], DomainPolicy | None],
        random_below: Callable[[int], int],
    ) -> None:
        self._config = config
        self._policy = policy
        self._random_below = random_below
        self.forget()

    def forget(self) -> None:
        """Begin anew with an instance."""
        self._epoch: EpochId | None = None
        self._end_mono_ns: int | None = None
        self._limit_ns = 0
        self._worn = False

    def byte_limit(self) -> ByteLimit | None:
        """Return what an SA that we send with may carry from now on (IDP-63); None: any number."""
        policy = self._policy()
        most = 0 if policy is None else policy.sa_lifetime_max_bytes
        return rules.byte_limit(self._config.sa_lifetime_bytes or most)

    def follow(self, epoch: EpochId | None, is_tm: bool, now: Instant) -> list[Effect]:
        """Note the epoch whose key we have; its time begins with the first call that names it."""
        if epoch == self._epoch:
            return []
        self._epoch = epoch
        unworn: list[Effect] = [CancelTimer(TIMER_WORN)] if self._worn else []
        self._worn = False
        return unworn + self._begin(is_tm, now)

    def _begin(self, is_tm: bool, now: Instant) -> list[Effect]:
        """Set the timer of the epoch whose time begins."""
        policy = self._policy()
        most_s = 0 if policy is None else policy.sa_lifetime_max_s
        self._limit_ns = (self._config.sa_lifetime_s or most_s) * NS_PER_S
        if self._epoch is None or not self._limit_ns:
            if self._end_mono_ns is None:
                return []
            self._end_mono_ns = None
            return [CancelTimer(TIMER_LIFETIME)]
        self._end_mono_ns = now.mono_ns + self._limit_ns
        spread_ns = self._random_below(self._limit_ns // 20)
        due_ns = rules.renewal_ns(self._limit_ns, spread_ns, is_tm=is_tm)
        return [SetTimer(TIMER_LIFETIME, now.mono_ns + due_ns)]

    def on_due(self, now: Instant) -> tuple[bool, list[Effect]]:
        """Say whether the end has come; if not, a renewal is to be asked for, and again later."""
        end_mono_ns = self._end_mono_ns
        if end_mono_ns is None:
            return False, []
        if rules.is_over(end_mono_ns, now.mono_ns):
            self._end_mono_ns = None
            return True, []
        again_mono_ns = now.mono_ns + max(self._limit_ns // 20, 1)
        return False, [SetTimer(TIMER_LIFETIME, min(again_mono_ns, end_mono_ns))]

    def on_worn(self, now: Instant) -> list[Effect]:
        """An SA of our epoch has carried much (IDP-63): a renewal is to be asked for, and again."""
        self._worn = True
        return [SetTimer(TIMER_WORN, now.mono_ns + WORN_AGAIN_NS)]
