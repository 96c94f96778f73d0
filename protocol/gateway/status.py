"""A gateway's state as plain JSON values, for the control socket's ``status``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from protocol.core.engine import Instant
from protocol.gateway.legs import LegState
from protocol.gateway.reach import Reach
from protocol.mproxy.flows import FlowTable

_NS_PER_MS = 1_000_000


def describe(
    legs: Iterable[LegState], reach: Reach, flows: FlowTable, now: Instant
) -> dict[str, Any]:
    """Return legs, partitions and flows.

    Keys: ``legs``: each with ``partition``, ``address``, ``counts``, ``epoch``, ``gateways`` (the
    others there) and ``speaks_for`` (origins); ``partitions``: each with ``partition``, ``hops``
    (gateways on the way), ``path``, ``leg``, ``gateway`` (next on the way), ``prefixes`` and
    ``members``; ``flows``.
    """
    legs = list(legs)
    names = {address: speaker.name for leg in legs for address, speaker in leg.speakers.items()}
    return {
        "legs": [_leg(leg, reach, now) for leg in legs],
        "partitions": [
            {
                "partition": origin,
                "hops": len(way.path) - 1,
                "path": list(way.path),
                "leg": way.leg,
                "gateway": None if way.speaker is None else names.get(way.speaker),
                "prefixes": [str(net) for net in way.prefixes],
                "members": [
                    {"address": str(member.address), "name": member.name} for member in way.members
                ],
            }
            for origin, way in sorted(reach.ways.items())
        ],
        "flows": [
            {
                "source": str(flow.key.source),
                "group": str(flow.key.group),
                "in": flow.interface,
                "outs": list(flow.outs),
                "packets": flow.count.packets,
                "refused": flow.count.refused,
                "idle_ms": (now.mono_ns - flow.active_mono_ns) // _NS_PER_MS,
            }
            for flow in flows
        ],
    }


def _leg(leg: LegState, reach: Reach, now: Instant) -> dict[str, Any]:
    return {
        "partition": leg.name,
        "address": str(leg.leg.address),
        "tunnel": leg.leg.tunnel,
        "counts": leg.counts,
        "epoch": None if leg.epoch is None else str(leg.epoch),
        "speaks_for": sorted(reach.spoken.get(leg.name, {})),
        "announced": sorted(str(net) for net in leg.told),
        "gateways": [
            {
                "address": str(address),
                "name": speaker.name,
                "heard_ms": (now.mono_ns - speaker.heard_mono_ns) // _NS_PER_MS,
                "claims": {claim.origin: list(claim.path) for claim in speaker.claims},
            }
            for address, speaker in sorted(leg.speakers.items())
        ],
    }
