"""Changes of the connectivity table on their way to MIKE: some at once, some together (IDP-16).

Pure state, owned and driven by the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv6Address

from protocol.core.addresses import text_of
from protocol.core.engine import Effect, Instant, Report, SetTimer
from protocol.idp import rules
from protocol.idp.connectivity import Change, ChangeKind
from protocol.idp.signalling import Signalling

TIMER_NEWS = "idp.news"

FIRST_PART = 10
"""News of the first device in a group waits this part: a join in a quiet network is over by then,
and one that lasts longer goes on undisturbed by JOINs (MIKE-17)."""

Tm = Callable[[], IPv6Address | None]
"""Returns the transaction manager."""


class News:
    """Tells MIKE of changes.

    Args:
        own: our address.
        delay_ns: how long news waits.
        mike: our end of the local interface.
        tm: whom MIKE named as transaction manager.
    """

    def __init__(self, own: IPv6Address, delay_ns: int, mike: Signalling, tm: Tm) -> None:
        self._own = own
        self._delay_ns = delay_ns
        self._mike = mike
        self._tm = tm
        self.forget()

    def forget(self) -> None:
        """Begin anew with an instance."""
        self._waiting: dict[IPv6Address, Change] = {}
        self._group_told = False

    def drop(self, address: IPv6Address) -> None:
        """Something newer is said of this device: what waits is not true any more."""
        self._waiting.pop(address, None)

    def detected(self, change: Change, now: Instant, *, in_group: bool = False) -> list[Effect]:
        """Tell MIKE of a change: at once if it has to act, else with the next news.

        Args:
            change: of the connectivity table.
            now: the time.
            in_group: the device says that it has a group key.
        """
        fields = {"peer": text_of(change.address), "name": change.name, "kind": change.kind.value}
        effects: list[Effect] = [Report("t_detect", fields)]
        restarted = change.kind is ChangeKind.RESTART and change.address == self._tm()
        if rules.may_wait(change.signal, change.address, self._own, tm_restarted=restarted):
            first = in_group and not self._group_told
            if first or not self._waiting:
                wait_ns = self._delay_ns // FIRST_PART if first else self._delay_ns
                effects.append(SetTimer(TIMER_NEWS, now.mono_ns + wait_ns))
            self._group_told |= in_group
            self._waiting[change.address] = change
            return effects
        self.drop(change.address)
        return effects + self._signalled(change, now)

    def on_due(self, now: Instant) -> list[Effect]:
        """Tell MIKE of the devices that came meanwhile."""
        waiting, self._waiting = self._waiting, {}
        return [effect for change in waiting.values() for effect in self._signalled(change, now)]

    def _signalled(self, change: Change, now: Instant) -> list[Effect]:
        return self._mike.signal(change.signal, change.address, change.startup_wall_ns, now)
