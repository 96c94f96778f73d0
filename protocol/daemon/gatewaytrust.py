"""What the legs' idpds learn of trust: gatewayd reads it too, and hands it from leg to leg.

The legs share one cache directory. An idpd that has learned a revocation list keeps it there; those
of the other legs are told to read again, and hand it on in their partitions (GATE-19).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from protocol.core.engine import Instant
from protocol.core.errors import LocalError
from protocol.gateway import rules
from protocol.gateway.events import LegView

REREAD_NS = 5_000_000_000
"""Certificates are read again at most so often."""


class LegTrust:
    """Watches what each leg's idpd trusts.

    Args:
        reread: for each partition, reads the leg's certificates and revocation lists again.
        tell: for each partition, has the leg's idpd do the same.
        log: gets a line when they cannot be read.
    """

    def __init__(
        self,
        reread: Mapping[str, Callable[[], object]],
        tell: Mapping[str, Callable[[], None]],
        log: Callable[[str, str], None],
    ) -> None:
        self._reread = reread
        self._tell = tell
        self._log = log
        self._again_mono_ns: dict[str, int] = {}
        self._digests: dict[str, str] = {}

    def on_view(self, partition: str, view: LegView, *, strangers: bool, now: Instant) -> None:
        """Read again if idpd has other revocation lists, or hears somebody whom we do not know."""
        news = rules.is_news(view.trust_digest, self._digests.get(partition))
        if now.mono_ns < self._again_mono_ns.get(partition, 0) or not (news or strangers):
            return
        self._again_mono_ns[partition] = now.mono_ns + REREAD_NS
        try:
            self._reread[partition]()
        except LocalError as error:
            self._log("warning", f"leg {partition}: {error}")
        if news:
            self._digests[partition] = view.trust_digest
            for other, tell in self._tell.items():
                if other != partition:
                    tell()
