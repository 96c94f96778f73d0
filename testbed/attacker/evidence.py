"""What an attack may not change, and what it costs: both read from outside, before and after.

What the daemons say of themselves is compared with what their kernels hold; costs come from /proc.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from protocol.core.errors import LocalError
from protocol.ipsec.snapshot import SadSnapshot
from protocol.xfrm.netlink import NetlinkBackend
from testbed.cpu import processor_ns
from testbed.errors import ProcessGoneError, TestbedError, naming_the_gone

_MOVING: Final = frozenset({"last_hello_ms"})
"""Fields of a peer that change by the time alone."""

_IDPD: Final = (
    "state",
    "startup_wall_ns",
    "prefixes",
    "own_prefixes",
    "epoch",
    "active_epoch",
    "sa_mode",
    "hello_interval_ms",
    "policy",
)
_MIKED: Final = ("state", "startup_wall_ns", "role", "epoch", "members", "tm", "term", "mode")


def protocol_state(idpd: Mapping[str, Any], miked: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a device's statuses only the protocols' own moves may change.

    Args:
        idpd: answer of its control socket.
        miked: the same.
    """
    peers = {
        peer["address"]: {key: value for key, value in peer.items() if key not in _MOVING}
        for peer in idpd["peers"]
    }
    found: dict[str, Any] = {f"peer {address}": peer for address, peer in sorted(peers.items())}
    found |= {f"idpd {name}": idpd.get(name) for name in _IDPD}
    found |= {f"miked {name}": miked.get(name) for name in _MIKED}
    trust = idpd.get("trust") or {}
    found |= {f"trust {name}": trust.get(name) for name in ("digest", "learned")}
    return found


def kernel_state(pid: int) -> dict[str, Any]:
    """Return SAs, policies and tunnel routes of a device's kernel; keys as digests.

    Args:
        pid: a process in its network namespace.

    Raises:
        TestbedError: the kernel does not tell.
    """
    try:
        backend = NetlinkBackend(pid)
        try:
            snapshot = SadSnapshot.of(backend.dump_sas())
            policies = sorted(str(policy) for policy in backend.dump_policies())
        finally:
            backend.close()
    except LocalError as error:
        raise TestbedError(f"cannot read SAs and policies: {error}") from None
    with naming_the_gone(f"process {pid}", "its routes cannot be read"):
        routes = Path(f"/proc/{pid}/net/ipv6_route").read_text(encoding="ascii").splitlines()
    return {
        "SAs": [tuple(entry) for entry in snapshot.entries],
        "policies": policies,
        "routes": sorted(line.split()[0] for line in routes if line.split()[-1] == "xfrm0"),
    }


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return what has changed, in words."""
    found = []
    for name in before.keys() | after.keys():
        old, new = before.get(name), after.get(name)
        if old != new:
            found.append(f"{name}: {_short(old)} became {_short(new)}")
    return sorted(found)


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} entries"
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@dataclass(frozen=True, slots=True)
class Usage:
    """What a device's daemons have used up to a moment, read from /proc.

    Attributes:
        cpu_ns: processor time by daemon.
        rss_kib: resident memory by daemon.
        full: datagrams that found a socket's buffer full.
        esp: ESP packets that its kernel refused.
    """

    cpu_ns: Mapping[str, int]
    rss_kib: Mapping[str, int]
    full: int = 0
    esp: int = 0


def usage(pids: Mapping[str, int]) -> Usage:
    """Read it.

    Args:
        pids: daemon -> process; all in one network namespace.
    """
    pid = next(iter(pids.values()))
    return Usage(
        {name: processor_ns(one) for name, one in pids.items()},
        {name: resident_kib(one) for name, one in pids.items()},
        _table(pid, "snmp6").get("Udp6RcvbufErrors", 0),
        sum(_table(pid, "xfrm_stat").values()),
    )


def refused(counters: Mapping[str, int]) -> int:
    """Return how many datagrams a daemon has refused, by the counters of its status."""
    return sum(count for name, count in counters.items() if _is_refusal(name))


def _is_refusal(name: str) -> bool:
    return "-" in name or name.startswith(("group.", "idp.notice"))


def resident_kib(pid: int) -> int:
    """Return the resident memory of a process (``VmRSS`` of ``/proc/PID/status``), in KiB.

    Raises:
        ProcessGoneError: it has ended.
    """
    name, doing = f"process {pid}", "its memory cannot be read"
    with naming_the_gone(name, doing):
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    for line in lines:
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise ProcessGoneError(name, doing)  # it waits to be reaped


def _table(pid: int, name: str) -> dict[str, int]:
    """Return counters of a process's network namespace; none if the kernel has no such table."""
    path = Path(f"/proc/{pid}/net/{name}")
    if not path.exists():
        return {}
    with naming_the_gone(f"process {pid}", f"its {name} cannot be read"):
        rows = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) == 2}
