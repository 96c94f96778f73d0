"""What only IDP's engine asks for: SAs and policies, routes, and the key that MIKE left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from protocol.core.engine import Effect
from protocol.core.errors import LocalError
from protocol.daemon.effects import Answers, Performer
from protocol.daemon.entropy import RecordingKeySource
from protocol.daemon.keys import KeyDirectory
from protocol.daemon.logfile import LogFile
from protocol.daemon.routes import Routes
from protocol.daemon.trace import TraceWriter
from protocol.idp.events import (
    ApplyRoutes,
    ApplySas,
    FetchKey,
    KernelChanged,
    KernelRead,
    KeyFetched,
    ReadKernel,
    RoutesApplied,
    SasApplied,
)
from protocol.ipsec.backend import IpsecBackend, IpsecError, Outcome

ERRNO_BACKEND_FAILED = 5
"""EIO: the outcome of every operation of a batch whose backend as a whole failed."""


class IdpEffects:
    """SAs and policies, routes, and the key that MIKE left."""

    def __init__(
        self,
        answers: Answers,
        backend: IpsecBackend,
        routes: Routes,
        *,
        keys: KeyDirectory,
        trace: TraceWriter,
        log: LogFile,
        read: Callable[[], KernelRead],
        recorded: RecordingKeySource | None = None,
    ) -> None:
        self._answers = answers
        self._backend = backend
        self._routes = routes
        self._keys = keys
        self._trace = trace
        self._log = log
        self._read = read
        self._recorded = recorded

    def table(self) -> dict[type[Effect], Performer]:
        """Return the function for each effect."""
        return {
            ApplySas: self.apply_sas,
            ApplyRoutes: self.apply_routes,
            FetchKey: self.fetch_key,
            ReadKernel: self.read_kernel,
        }

    def apply_sas(self, effect: ApplySas) -> None:
        """Perform the batch; its duration and result go to the trace."""
        self._trace.report(
            "sas.begin", {"label": effect.label, "operations": len(effect.operations)}
        )
        try:
            outcomes = self._backend.apply(effect.operations)
        except IpsecError as error:
            self._log.write("error", f"SA backend {self._backend.name}: {error}")
            outcomes = [Outcome(ERRNO_BACKEND_FAILED, str(error)) for _ in effect.operations]
            self._answers.deliver(KernelChanged())  # some of it may have been done all the same
        self._trace.report("sas.end", _result(effect.label, outcomes))
        self._answers.deliver(SasApplied(effect.label, outcomes))

    def apply_routes(self, effect: ApplyRoutes) -> None:
        """Perform the batch; its duration and result go to the trace."""
        self._trace.report(
            "routes.begin", {"label": effect.label, "operations": len(effect.operations)}
        )
        try:
            outcomes = self._routes.apply(effect.operations)
        except LocalError as error:
            self._log.write("error", str(error))
            self._answers.deliver(KernelChanged())
            outcomes = [Outcome(ERRNO_BACKEND_FAILED, str(error)) for _ in effect.operations]
        self._trace.report("routes.end", _result(effect.label, outcomes))
        self._answers.deliver(RoutesApplied(effect.label, outcomes))

    def read_kernel(self, _effect: ReadKernel) -> None:
        """Read back what carries our marks."""
        found = self._read()
        if found.problem:
            self._log.write("error", f"reading the kernel back: {found.problem}")
        self._answers.deliver(found)

    def fetch_key(self, effect: FetchKey) -> None:
        """Read the key file the pointer names."""
        group_key = self._keys.fetch(effect.pointer)
        if self._recorded is not None and group_key is not None:
            self._recorded.note_key(effect.pointer, group_key)
        self._answers.deliver(KeyFetched(effect.pointer, group_key))


def _result(label: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return what the trace says of a batch."""
    failed = [outcome.text for outcome in outcomes if not outcome.ok]
    fields: dict[str, Any] = {"label": label, "failed": len(failed)}
    if failed:
        fields["texts"] = sorted(set(failed))[:8]
    return fields
