"""A daemon with the kernel's multicast routers: it runs from its start to its end, never parks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from protocol.core.engine import Started, Stopped
from protocol.daemon.clock import SystemClock
from protocol.daemon.effects import Performer
from protocol.daemon.mproxykernel import MulticastRouter
from protocol.daemon.process import DaemonProcess
from protocol.daemon.tables import RunFiles
from protocol.mproxy.events import (
    CountersRead,
    DeleteMfc,
    FlowCount,
    FlowKey,
    ReadCounters,
    SetMfc,
)
from protocol.mproxy.messages import Family


class RouterProcess(DaemonProcess):
    """What mproxyd and gatewayd have in common.

    Attributes:
        running: between `begin` and `end`.
        routers: of the kernel, by family; what a subclass opens.
    """

    def __init__(
        self,
        files: RunFiles,
        injected_offset_us: int,
        *,
        recording: bool = False,
        exit_with_parent: bool = False,
        log_level: str = "info",
    ) -> None:
        super().__init__(
            files,
            SystemClock(injected_offset_us * 1000),
            recording=recording,
            exit_with_parent=exit_with_parent,
            log_level=log_level,
        )
        self.running = False
        self.routers: dict[Family, MulticastRouter] = {}

    def begin(self) -> None:
        """Start the engine."""
        self.running = True
        self.runtime.deliver(Started(self.clock.now().wall_ns))

    def end(self) -> None:
        """Stop the engine: nothing of it stays in the kernel; idempotent."""
        if self.running:
            self.runtime.deliver(Stopped())
            self.running = False

    def routing_table(self) -> dict[type[Any], Performer]:
        """Return the function for each effect that concerns the kernel's multicast routes."""
        return {
            SetMfc: self._set_mfc,
            DeleteMfc: self._delete_mfc,
            ReadCounters: self._read_counters,
        }

    def _router(self, key: FlowKey) -> MulticastRouter:
        return self.routers[Family.of(key.group)]

    def _set_mfc(self, effect: SetMfc) -> None:
        self._router(effect.key).set_route(effect.key, effect.interface, effect.outs)

    def _delete_mfc(self, effect: DeleteMfc) -> None:
        self._router(effect.key).delete_route(effect.key)

    def _read_counters(self, effect: ReadCounters) -> None:
        counts: dict[FlowKey, FlowCount] = {}
        for key in effect.keys:
            count = self._router(key).count(key)
            if count is not None:
                counts[key] = count
        self.runtime.deliver(CountersRead(counts))

    def more_counters(self) -> Mapping[str, int]:
        """Return what the kernel's routers refused."""
        counters: Counter[str] = Counter()
        for router in self.routers.values():
            counters.update(router.counters)
        return counters

    def more_status(self) -> dict[str, Any]:
        """Return that it runs."""
        return {"state": "running" if self.running else "ended"}
