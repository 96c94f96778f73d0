"""What is set up inside a node's namespace, by kind of node: interfaces, addresses, static routes.

Forwarding is on where packets are passed on: in routers, LAN routers, and devices with a red LAN.
Multicast forwarding is switched on by whichever daemon routes multicast there.
"""

from __future__ import annotations

from typing import Any, Final

from testbed import namespaces
from testbed.network_batch import NetworkError, batch, json_values
from testbed.spec import Address, Node, NodeKind, SecureGroup
from testbed.wiring import RED, Wiring, black_interface

RED_STUB: Final = "red0-lan"
XFRM: Final = "xfrm0"


def xfrm_interface(leg: int) -> str:
    """Return a device's xfrm interface, or that of a gateway's leg."""
    return f"xfrm{leg}"


def set_sysctls(wiring: Wiring, node: Node) -> None:
    """Set what interfaces inherit, in the calling thread's namespace, before there are any."""
    settings = {
        "net/ipv6/conf/{}/accept_dad": 0,
        "net/ipv6/conf/{}/accept_ra": 0,
        # A link that was cut and is plugged in again has its addresses still.
        "net/ipv6/conf/{}/keep_addr_on_down": 1,
        # Replies of other nations come through xfrm0, where no route of the LAN leads back.
        "net/ipv4/conf/{}/rp_filter": 0,
    }
    if forwards(wiring, node):
        settings["net/ipv6/conf/{}/forwarding"] = 1
        if node.kind is not NodeKind.ROUTER:
            settings["net/ipv4/conf/{}/forwarding"] = 1
    for name, value in settings.items():
        for scope in ("all", "default"):
            namespaces.write_sysctl(name.format(scope), value)


def forwards(wiring: Wiring, node: Node) -> bool:
    """Return whether a node passes packets on."""
    match node.kind:
        case NodeKind.ROUTER | NodeKind.LAN_ROUTER | NodeKind.GATEWAY:
            return True
        case NodeKind.DEVICE:
            return any(port.interface == RED for port in wiring.ports[node.name])
        case _:
            return False


def configure(wiring: Wiring, node: Node, *, with_xfrm: bool) -> None:
    """Set up a node in the calling thread's namespace, and check the result.

    Raises:
        NetworkError: what could not be made or is not as asked for.
    """
    group = wiring.topology.fitted_group
    wanted: dict[str, tuple[Address, ...]] = {}
    lines = ["link set lo up"]
    if loopbacks := wiring.topology.loopbacks(node):
        wanted["lo"] = loopbacks
    mtus: dict[str, int] = {}
    for port in wiring.ports[node.name]:
        mtu = wiring.topology.links[port.link].mtu
        if mtu is not None:
            mtus[port.interface] = mtu
        lines.append(f"link set {port.interface}{f' mtu {mtu}' if mtu else ''} up")
        wanted[port.interface] = port.addresses
    stub = node.kind is NodeKind.DEVICE and RED not in wanted
    if stub:
        # The far end of the red cable lies in the same namespace, nobody answers there.
        lines += [
            f"link add {RED} type veth peer name {RED_STUB}",
            f"link set {RED_STUB} addrgenmode none up",
            f"link set {RED} up",
        ]
        wanted[RED] = node.red_addresses
    for interface, addresses in wanted.items():
        lines += [_address_line(address, interface) for address in addresses]
    sources: list[str] = []
    if node.kind is NodeKind.DEVICE:
        sources = [""]
    elif node.kind is NodeKind.GATEWAY:
        sources = [f" from {port.addresses[0].ip}" for port in wiring.ports[node.name]]
    for leg, source in enumerate(sources):
        lines += _device_lines(group, leg, source, with_xfrm=with_xfrm)
        if with_xfrm:
            wanted[xfrm_interface(leg)] = ()
            mtus[xfrm_interface(leg)] = group.mtu
    lines += [*route_lines(wiring, node.name, "add"), "addr show"]
    made = json_values(batch("ip", lines, node.name))
    if stub:
        namespaces.write_sysctl(f"net/ipv6/conf/{RED_STUB}/disable_ipv6", 1)
    if not made:
        raise NetworkError(f"{node.name}: 'ip' did not report what it made")
    by_name = {entry["ifname"]: entry for entry in made[-1] if "ifname" in entry}
    for interface, addresses in wanted.items():
        entry = by_name.get(interface, {})
        _verify(node.name, interface, entry, addresses, mtus.get(interface))


def route_lines(wiring: Wiring, node: str, verb: str) -> list[str]:
    """Return the lines for ``ip -batch`` that add or replace a node's static routes."""
    return [
        f"route {verb} {route.destination} via {route.via.ip} dev {route.interface}"
        for route in wiring.routes(node)
    ]


def _address_line(address: Address, interface: str) -> str:
    # IPv4 knows no duplicate address detection that could be waived.
    return f"addr add {address} dev {interface}{' nodad' if address.version == 6 else ''}"


def _device_lines(group: SecureGroup, leg: int, source: str, *, with_xfrm: bool) -> list[str]:
    black, xfrm = black_interface(leg), xfrm_interface(leg)
    # Else ff00::/8 would be ambiguous among the interfaces for the ESP packets: for their route
    # the kernel asks neither the xfrm interface nor its lower device, only the SA's addresses. So
    # a gateway's legs, whose packets go to one group, have routes told apart by the source.
    target = f"{group.black_group}/128{source}"
    lines = [f"route add multicast {target} dev {black} table local metric 1"]
    if with_xfrm:
        lines += [
            f"link add {xfrm} type xfrm dev {black} if_id {group.if_id + leg}",
            f"link set {xfrm} addrgenmode none mtu {group.mtu} multicast on up",
        ]
    return lines


def _verify(
    node: str,
    interface: str,
    entry: dict[str, Any],
    addresses: tuple[Address, ...],
    mtu: int | None,
) -> None:
    if "UP" not in entry.get("flags", []):
        raise NetworkError(f"{node}: interface {interface} is not up")
    if mtu is not None and entry.get("mtu") != mtu:
        raise NetworkError(f"{node}: {interface} has MTU {entry.get('mtu')}, asked for {mtu}")
    for address in addresses:
        found = [
            info
            for info in entry.get("addr_info", [])
            if info["local"] == str(address.ip) and info["prefixlen"] == address.network.prefixlen
        ]
        if not found:
            raise NetworkError(f"{node}: {interface} lacks its address {address}")
        if found[0].get("tentative") or found[0].get("dadfailed"):
            raise NetworkError(f"{node}: address {address} is not usable at once")
