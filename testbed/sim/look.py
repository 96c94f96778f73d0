"""Looking at a simulated device: what it says of itself, and how much it holds."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address

from protocol.core.addresses import address_said
from protocol.core.engine import Engine
from protocol.ipsec.snapshot import SadSnapshot
from testbed.sim.device import Device
from testbed.sim.history import Sampled, View
from testbed.sim.pairview import pairs_of

_PLAIN = (int, float, bytes, str, bool, type(None), IPv6Address, type)
_SEQUENCES = (list, tuple, set, frozenset, deque)


def view_of(device: Device, group: IPv6Address, *, shared_sa: bool) -> View:
    """Return what a live device says of itself.

    Args:
        device: with both daemons running.
        group: the black multicast group of the SAs that all share.
        shared_sa: whether one SA serves all senders (mode ``paper``).
    """
    assert device.idpd.engine is not None
    assert device.miked.engine is not None
    idp = device.idpd.engine.status(device.now())
    mike = device.miked.engine.status(device.now())
    sas = device.backend.dump_sas()
    of_group = [sa for sa in sas if sa.destination == group]
    snapshot = SadSnapshot.of(of_group)
    epoch = mike["epoch"]
    return View(
        device=device.index,
        address=device.address,
        peers_up=frozenset(address_said(p["address"]) for p in idp["peers"] if p["state"] == "up"),
        epoch=epoch,
        unfinished=mike["pending"] is not None or mike["joining"],
        key=None if epoch is None else device.keys.get(epoch),
        members=frozenset(map(address_said, mike["members"])),
        tm=None if mike["tm"] is None else address_said(mike["tm"]),
        is_tm=mike["role"] == "tm",
        active_epoch=idp["active_epoch"],
        sources=frozenset(sa.source for sa in of_group),
        pairs=pairs_of(device, group),
        routes=frozenset(device.routes.dump()),
        announced=frozenset(device.announced),
        sad=snapshot.digest_without_source if shared_sa else snapshot.digest,
    )


def sample_of(device: Device, at_ms: float, span_ms: float, *, deep: bool = False) -> Sampled:
    """Measure what a device holds, and what it sent since the last time.

    Args:
        device: which.
        at_ms: virtual time.
        span_ms: time since the last sample.
        deep: count the entries in the engines, too, which takes long.
    """
    outstanding = refusals = entries = 0
    for daemon, link in ((device.idpd, "local"), (device.miked, "link")):
        if daemon.engine is not None:
            status = daemon.engine.status(device.now())
            outstanding += status[link]["outstanding"]
            refusals += len(status["refused"])
            entries += entries_of(daemon.engine) if deep else 0
    sent = sum(daemon.sent for daemon in device.daemons)
    for daemon in device.daemons:
        daemon.sent = 0
    return Sampled(
        at_ms=at_ms,
        device=device.index,
        timers=sum(len(daemon.timers) for daemon in device.daemons),
        outstanding=outstanding,
        keys=len(device.keys),
        sas=len(device.backend.dump_sas()),
        refusals=refusals,
        entries=entries,
        sent=sent,
        span_ms=span_ms,
    )


def entries_of(engine: Engine) -> int:
    """Count the entries of every container that an engine reaches: what grows, shows here."""
    total = 0
    seen: set[int] = set()
    waiting: list[object] = [engine]
    while waiting:
        item = waiting.pop()
        if isinstance(item, _PLAIN) or id(item) in seen:
            continue
        seen.add(id(item))
        parts: Iterable[object]
        if isinstance(item, Mapping):
            total += len(item)
            parts = [*item.keys(), *item.values()]
        elif isinstance(item, _SEQUENCES):
            total += len(item)
            parts = item
        else:
            parts = _attributes(item)
        waiting += [part for part in parts if not isinstance(part, _PLAIN)]
    return total


def _attributes(item: object) -> list[object]:
    """Return what an object of the engines' own code holds; nothing for any other."""
    kind = type(item)
    if not kind.__module__.startswith("protocol."):
        return []
    names = [name for base in kind.__mro__ for name in getattr(base, "__slots__", ())]
    held = [getattr(item, name, None) for name in names]
    return held + list(getattr(item, "__dict__", {}).values())
