"""Eyes on the kernel of every device: SAs, red packets, processor idle time. SKELETON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class KernelEvent:
    """A notification about an SA that the kernel sent to the observer.

    Attributes:
        wall_ns: UTC at which the observer received it.
        device: in whose namespace.
        kind: ``new``, ``delete``, ``expire``, ...
        spi: of the SA.
        fields: source, destination and what else was told; never keys.
    """

    wall_ns: int
    device: str
    kind: str
    spi: int
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SadCheck:
    """Whether the SADs of all devices agree.

    Attributes:
        ok: they do; always False when not applicable.
        applicable: False when there is nothing to compare, see ``reason``.
        source: ``kernel`` (read back by netlink) or ``memory`` (told by idpd).
        epoch: the common epoch, if there is one.
        reason: empty when ok, else what differs, naming devices.
        digests: digest of each device's SAD.
        spis: SPIs of each device's SAD, sorted.
        elapsed_ms: how long it took until they agreed.
    """

    ok: bool
    applicable: bool
    source: str
    epoch: str | None
    reason: str
    digests: Mapping[str, str]
    spis: Mapping[str, tuple[int, ...]]
    elapsed_ms: float

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values for a record."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class PacketCheck:
    """Whether red multicast reaches everybody through IPsec.

    Attributes:
        ok: every packet arrived at every other device; always False when not applicable.
        applicable: False for the memory backend: "not applicable: memory backend".
        reason: empty when ok.
        delivered: sender -> receiver -> milliseconds, None where it did not arrive.
    """

    ok: bool
    applicable: bool
    reason: str
    delivered: Mapping[str, Mapping[str, float | None]]

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values for a record."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class IdleReport:
    """Idle share of the processors.

    Attributes:
        series: (UTC ns at the end of the interval, idle percent over all processors).
        minimum_percent: the worst interval; 100.0 if there was none.
        mean_percent: over the whole time.
        interval_s: nominal length of an interval.
    """

    series: tuple[tuple[int, float], ...]
    minimum_percent: float
    mean_percent: float
    interval_s: float
