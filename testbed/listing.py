"""Lists a topology as text: every wire with what is on it, black before red."""

from __future__ import annotations

from collections.abc import Iterator

from testbed.spec import Link, NodeKind, RendezvousPoint, Side, Topology
from testbed.wiring import RED, Port, Wire, Wiring


def listing(topology: Topology) -> str:
    """Return the text of ``testbed topology show``."""
    wiring = Wiring(topology)
    lines = [f"{topology.name}: {topology.title}", ""]
    for side in Side:
        for wire in wiring.wires:
            if wire.side is side:
                lines += _wire(wiring, wire)
    lines += _stubs(wiring)
    for router in topology.routers:
        if router.rendezvous_point is not None:
            assert topology.rendezvous_address is not None
            backup = router.rendezvous_point is RendezvousPoint.BACKUP
            lines += [] if backup else [""]
            what = "its backup" if backup else "rendezvous point"
            lines.append(f"{what} {router.name}, {topology.rendezvous_address.ip}")
    group = topology.fitted_group
    lines += ["", f"ESP to {group.black_group}, xfrm interface id {group.if_id}, MTU {group.mtu}"]
    return "\n".join(lines)


def limits(link: Link, common: float | None = None) -> str:
    """Return what a link does to packets, in words; empty if nothing.

    Args:
        link: the link.
        common: a bandwidth in Mbit/s that need not be said.
    """
    parts = []
    if link.bandwidth_mbit is not None and link.bandwidth_mbit != common:
        parts.append(f"{link.bandwidth_mbit:g} Mbit/s")
    if link.delay_ms:
        jitter = f" ± {link.jitter_ms:g}" if link.jitter_ms else ""
        parts.append(f"{link.delay_ms:g}{jitter} ms")
    if link.loss_percent:
        parts.append(f"{link.loss_percent:g} % lost")
    if link.mtu is not None:
        parts.append(f"MTU {link.mtu}")
    return ", ".join(parts)


def _wire(wiring: Wiring, wire: Wire) -> Iterator[str]:
    links = [wiring.topology.links[port.link] for port in wire.ports]
    if wire.name in wiring.nodes:
        yield f"{wire.name} ({wire.side} switch)"
        said = [_limits(link) for link in links]
    else:
        yield f"{wire.name} ({wire.side} link, {_limits(links[0])})"
        said = [""] * len(links)
    for port, limit in zip(wire.ports, said, strict=True):
        mark = "└" if port is wire.ports[-1] else "├"
        yield f" {mark}─ {_port(wiring, port)}  {limit}".rstrip()


def _port(wiring: Wiring, port: Port) -> str:
    node = wiring.nodes[port.node]
    what = node.kind.replace("_", " ")
    if node.kind is NodeKind.DEVICE and node.nation:
        what = node.nation
    addresses = "  ".join(str(address) for address in port.addresses)
    return f"{node.name:<6} {what:<10} {port.interface:<6} {addresses:<22}"


def _stubs(wiring: Wiring) -> Iterator[str]:
    lonely = [
        device
        for device in wiring.topology.of_kind(NodeKind.DEVICE)
        if not any(port.interface == RED for port in wiring.ports[device.name])
    ]
    if lonely:
        yield "red LANs that nobody else is on"
    for device in lonely:
        mark = "└" if device is lonely[-1] else "├"
        addresses = "  ".join(str(address) for address in device.red_addresses)
        yield f" {mark}─ {device.name:<6} {device.nation:<10} {RED:<6} {addresses}"


def _limits(link: Link) -> str:
    return limits(link) or "unlimited"
