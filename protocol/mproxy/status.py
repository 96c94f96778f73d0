"""The proxy's state as plain JSON values, for the control socket's ``status``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from protocol.core.engine import Instant
from protocol.mproxy.config import MproxyConfig
from protocol.mproxy.flows import FlowTable
from protocol.mproxy.messages import Address
from protocol.mproxy.port import NS_PER_MS, Port


def describe(
    config: MproxyConfig,
    ports: Iterable[Port],
    flows: FlowTable,
    joined: Mapping[Address, frozenset[Address] | None],
    now: Instant,
) -> dict[str, Any]:
    """Return interfaces, groups, flows and upstream memberships."""
    return {
        "upstream": {
            "interface": config.upstream,
            "signal": config.signal_upstream,
            "joined": [
                {"group": str(group), "sources": source_names(sources)}
                for group, sources in joined.items()
            ],
        },
        "downstream": [_port(port, now) for port in ports],
        "flows": [
            {
                "source": str(flow.key.source),
                "group": str(flow.key.group),
                "in": flow.interface,
                "outs": list(flow.outs),
                "packets": flow.count.packets,
                "refused": flow.count.refused,
                "idle_ms": (now.mono_ns - flow.active_mono_ns) // NS_PER_MS,
            }
            for flow in flows
        ],
    }


def source_names(wish: frozenset[Address] | None) -> str | list[str]:
    """Return the sources of a wish as text; every source is ``any``."""
    return "any" if wish is None else [str(source) for source in sorted(wish)]


def _port(port: Port, now: Instant) -> dict[str, Any]:
    return {
        "interface": port.interface,
        "family": port.family.number,
        "state": port.state.value,
        "address": None if port.address is None else str(port.address),
        "querier": None if port.querier is None else str(port.querier),
        "groups": [
            {
                "group": str(group.group),
                "sources": source_names(group.wanted),
                "host": str(group.host),
                "next_ms": (group.wake_mono_ns - now.mono_ns) // NS_PER_MS,
            }
            for group in port.listeners
        ],
    }
