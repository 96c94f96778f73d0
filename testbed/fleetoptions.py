"""What a fleet is asked to be: SA backend and mode, daemons' settings, what is recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from testbed.cleartext import CLEAR
from testbed.device import DEFAULT_SUITE
from testbed.errors import TestbedError
from testbed.network import XFRM
from testbed.routing.base import RoutingOptions

KERNEL_BACKENDS: Final = frozenset({"netlink", "command", "pfkey"})
BACKENDS: Final = (*sorted(KERNEL_BACKENDS), "memory")
SA_MODES: Final = ("per-sender", "paper")


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """How the devices of a fleet are set up.

    Attributes:
        run_id: names the run if this process is none yet. Empty: a new one.
        keep: directory that receives logs, traces and configurations at the end; None: thrown away.
        sa_backend: ``netlink``, ``command``, ``pfkey`` or ``memory``.
        sa_mode: ``per-sender`` or ``paper``.
        suite: algorithm suite of the SAs; empty: AES-GCM, in mode ``paper`` 3DES and SHA-1.
        idp: values that replace defaults in section ``[idp]`` of every device.
        mike: the same for ``[mike]``.
        ipsec: the same for ``[ipsec]``; ``unicast`` is ``off`` unless it says otherwise.
        injected_offset_us: per device, shifts its wall clock (tests of the clock measurement).
        observe_kernel: whether the kernel's SA notifications are collected.
        capture: whether tcpdump records every black link into ``keep``, to the end of all daemons.
        clear_text: instead of IPsec the devices get a tunnel that protects nothing, for comparison
            of throughput (testbed/cleartext.py); needs the memory backend and no guard.
        guard: whether every device gets its nftables guard (docs/guard.md), before any interface.
        routing: how black routers route, where the topology has any.
        nursery: whether one process imports the daemons' code and forks them all, which starts
            twenty of them in a tenth of the time; False: each is executed by itself.
        pre_deployed: whether every device has all certificates from the start; False: they learn
            each other's (docs/idp.md section 12). Source-specific black groups need them.
        domain_policy: whether the devices keep to a signed domain policy (docs/idp.md section 13),
            which allows what they are set to and nothing else.
        seed: recorded; the fleet itself chooses nothing at random.
    """

    run_id: str = ""
    keep: Path | None = None
    sa_backend: str = "netlink"
    sa_mode: str = "per-sender"
    suite: str = ""
    idp: Mapping[str, Any] = field(default_factory=dict)
    mike: Mapping[str, Any] = field(default_factory=dict)
    ipsec: Mapping[str, Any] = field(default_factory=dict)
    injected_offset_us: Mapping[str, int] = field(default_factory=dict)
    observe_kernel: bool = True
    capture: bool = False
    clear_text: bool = False
    guard: bool = True
    routing: RoutingOptions = field(default_factory=RoutingOptions)
    nursery: bool = True
    pre_deployed: bool = True
    domain_policy: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sa_backend not in BACKENDS:
            raise TestbedError(f"SA backend {self.sa_backend!r} is none of {', '.join(BACKENDS)}")
        if self.sa_mode not in SA_MODES:
            raise TestbedError(f"SA mode {self.sa_mode!r} is none of {', '.join(SA_MODES)}")
        if self.clear_text and (self.kernel or self.guard):
            raise TestbedError("clear text needs the memory backend and no guard: nothing is kept")
        if self.capture and self.keep is None:
            raise TestbedError("a capture needs a directory to keep it in")

    @property
    def tunnel(self) -> str:
        """The devices' interface by which red packets leave them, empty if there is none."""
        if self.clear_text:
            return CLEAR
        return XFRM if self.kernel else ""

    @property
    def policy(self) -> dict[str, Any] | None:
        """The domain policy of the devices, as people write it; None: they have none."""
        if not self.domain_policy:
            return None
        return {
            "domain": "testbed",
            "version": 1,
            "suites": [self.suite or DEFAULT_SUITE[self.sa_mode]],
            "sa_modes": [self.sa_mode],
            "unicast": [str(self.ipsec.get("unicast", "off"))],
            "key_bits_min": 112,
            "sa_lifetime_min_s": 10,
            "sa_lifetime_max_s": 30 * 86_400,
            "sa_lifetime_min_bytes": 1 << 20,
            "sa_lifetime_max_bytes": 1 << 62,
            "hello_interval_min_ms": 50,
            "hello_interval_max_ms": 60_000,
        }

    @property
    def kernel(self) -> bool:
        """Whether SAs are really in a kernel."""
        return self.sa_backend in KERNEL_BACKENDS
