"""A topology becomes a Mininet network: nodes, cables, bridge, addresses, queues, and the proof.

One node costs Mininet's shell plus two processes, ``ip -batch`` and ``tc -batch``, whose last
lines read back what was made: an address, queue or link that is not as asked for ends the build
with a `NetworkError` (Mininet itself only logs). The cables' far ends and the bridge lie in the
run's own network namespace (`testbed.isolation`): their names cannot clash with another run's.

``pyroute2`` would do the same in-process, but importing it costs more in the emulated guest (1.6 to
2 s) than all batches of ten devices together.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from testbed import namespaces
from testbed.errors import TestbedError
from testbed.isolation import is_isolated
from testbed.namespaces import NetNamespace
from testbed.spec import INTERFACE_NAME_MAX, Link, Node, Topology

if TYPE_CHECKING:
    from mininet.net import Mininet

BLACK: Final = "black0"
RED: Final = "red0"
RED_STUB: Final = "red0-lan"
XFRM: Final = "xfrm0"

_BATCH_TIMEOUT_S: Final = 60.0
_HTB_RATE: Final = re.compile(r"^class htb .* rate ([0-9.]+)([KMG]?)bit", re.MULTILINE)
_UNITS: Final = {"": 1e-6, "K": 1e-3, "M": 1.0, "G": 1e3}


class NetworkError(TestbedError):
    """The network could not be built as the topology asks."""


class Network:
    """A built topology.

    Attributes:
        topology: what was asked for.
        timings_ms: how long each part of the build took, and per node and link.
        has_xfrm: whether the devices have their ``xfrm0``.
        xfrm_reason: why not, else empty.
    """

    def __init__(self, topology: Topology, *, with_xfrm: bool = True) -> None:
        self.topology = topology
        self.timings_ms: dict[str, float] = {}
        self.has_xfrm = False
        self.xfrm_reason = "" if with_xfrm else "not wanted: the SA backend needs no kernel"
        self._with_xfrm = with_xfrm
        self._mininet: Mininet | None = None
        self._namespaces: dict[str, NetNamespace] = {}
        self._cables = {link.ends[0]: link for link in topology.links}
        self._traffic_control: dict[str, list[str]] = {}
        self._made: list[str] = []

    # --- life ----------------------------------------------------------------------------------

    def build(self) -> None:
        """Build and verify everything.

        Raises:
            NetworkError: what could not be made or is not as asked for.
        """
        if not is_isolated():
            raise NetworkError("a network is only built in a run's own namespaces")
        self._refuse_clashes()
        start = time.monotonic()
        try:
            self._create()
            created = time.monotonic()
            self._configure_switches()
            if self._with_xfrm:
                self._probe_xfrm()
            for device in self.topology.devices:
                self._configure_device(device)
            configured = time.monotonic()
            self._verify_switches()
        except BaseException:
            self.stop()
            raise
        end = time.monotonic()
        parts = len(self.topology.nodes) + len(self.topology.links)
        self.timings_ms |= {
            "create": round((created - start) * 1e3, 1),
            "configure": round((configured - created) * 1e3, 1),
            "verify_switches": round((end - configured) * 1e3, 1),
            "total": round((end - start) * 1e3, 1),
            "per_node_and_link": round((end - start) * 1e3 / parts, 1),
        }

    def stop(self) -> None:
        """Remove everything; idempotent."""
        start = time.monotonic()
        for namespace in self._namespaces.values():
            namespace.close()
        self._namespaces.clear()
        gone = [name for name in self._made if name in namespaces.interface_names()]
        if gone:
            _batch("ip", [f"link del {name}" for name in gone], "the black switch")
        self._made.clear()
        if self._mininet is not None:
            self._mininet.stop()
            self._mininet = None
            self.timings_ms["stop"] = round((time.monotonic() - start) * 1e3, 1)

    # --- use -----------------------------------------------------------------------------------

    def pid(self, node: str) -> int:
        """Return the process that holds a node's namespaces."""
        if self._mininet is None:
            raise NetworkError("the network is not built")
        return int(self._mininet.nameToNode[self.topology.node(node).name].pid)

    def namespace(self, device: str) -> NetNamespace:
        """Return a device's network namespace."""
        if device not in self._namespaces:
            raise NetworkError(f"there is no device {device!r} in this network")
        return self._namespaces[device]

    def port(self, device: str) -> str:
        """Return the switch's end of a device's black cable."""
        return _port_name(self._cables[device])

    def link_down(self, device: str) -> int:
        """Cut a device's black cable, both directions; return when (UTC ns)."""
        return self._set_cable(device, up=False)

    def link_up(self, device: str) -> int:
        """Plug a device's black cable in again; return when (UTC ns)."""
        return self._set_cable(device, up=True)

    def facts(self) -> dict[str, Any]:
        """Return what a manifest says about the network."""
        return {
            "topology": self.topology.as_json(),
            "timings_ms": dict(self.timings_ms),
            "xfrm_interface": self.has_xfrm,
            "xfrm_interface_missing_because": self.xfrm_reason,
        }

    def _set_cable(self, device: str, *, up: bool) -> int:
        if device not in self._cables:
            raise NetworkError(f"there is no device {device!r} in this network")
        namespaces.set_interface_up(self.port(device), up=up)
        return time.time_ns()

    # --- building ------------------------------------------------------------------------------

    def _refuse_clashes(self) -> None:
        planned = [node.name for node in self.topology.switches]
        planned += [_port_name(link) for link in self.topology.links]
        for name in planned:
            if len(name) > INTERFACE_NAME_MAX:
                raise NetworkError(f"interface name {name} has over {INTERFACE_NAME_MAX} letters")
        clash = sorted(namespaces.interface_names().intersection(planned))
        if clash:
            raise NetworkError(
                f"interface {clash[0]} exists already and is not this run's; it is left alone: "
                "rename the node in the topology, or remove the interface"
            )

    def _create(self) -> None:
        from testbed.mininet_nodes import new_mininet

        # No address of the run's own namespace may talk on the black wire.
        namespaces.write_sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        net = self._mininet = new_mininet()
        for number, switch in enumerate(self.topology.switches, 1):
            net.addSwitch(switch.name, dpid=f"{number:x}")
        for device in self.topology.devices:
            node = net.addHost(device.name, ip=None)
            namespace = NetNamespace.of(device.name, node.pid)
            self._namespaces[device.name] = namespace
            with namespace.entered():
                for scope in ("all", "default"):
                    namespaces.write_sysctl(f"net/ipv6/conf/{scope}/accept_dad", 0)
                    namespaces.write_sysctl(f"net/ipv6/conf/{scope}/accept_ra", 0)
        for number, link in enumerate(self.topology.links, 1):
            device_name, switch_name = link.ends
            try:
                made = net.addLink(
                    net.nameToNode[device_name],
                    net.nameToNode[switch_name],
                    intfName1=BLACK,
                    intfName2=_port_name(link),
                    addr1=_mac(0, number),
                    addr2=_mac(1, number),
                    bw=link.bandwidth_mbit,
                )
            except Exception as error:
                raise NetworkError(f"link {device_name}-{switch_name}: {error}") from None
            self._made.append(_port_name(link))
            self._traffic_control[device_name] = made.intf1.traffic_control
            self._traffic_control[_port_name(link)] = made.intf2.traffic_control

    def _configure_switches(self) -> None:
        lines = []
        for switch in self.topology.switches:
            snooping = int(switch.multicast_snooping)
            lines.append(
                f"link add {switch.name} type bridge stp_state 0 mcast_snooping {snooping}"
            )
            self._made.append(switch.name)
        for link in self.topology.links:
            lines.append(f"link set {_port_name(link)} master {link.ends[1]} up")
        lines += [f"link set {switch.name} up" for switch in self.topology.switches]
        _batch("ip", lines, "the black switch")
        queues = [
            line for link in self.topology.links for line in self._traffic_control[_port_name(link)]
        ]
        _batch("tc", queues, "the black switch")

    def _probe_xfrm(self) -> None:
        """Find out once whether this kernel has xfrm interfaces."""
        group = self.topology.group
        with next(iter(self._namespaces.values())).entered():
            done = _run("ip", [f"link add {XFRM} type xfrm dev {BLACK} if_id {group.if_id}"])
            if done.returncode == 0:
                _batch("ip", [f"link del {XFRM}"], "the probe")
                self.has_xfrm = True
            else:
                said = done.stderr.strip().splitlines()
                self.xfrm_reason = f"the kernel has no xfrm interfaces ({said[0] if said else '?'})"

    def _configure_device(self, device: Node) -> None:
        group = self.topology.group
        lines = [
            "link set lo up",
            f"link set {BLACK} up",
            f"addr add {device.black} dev {BLACK} nodad",
            # A stub: the far end of the red cable lies in the same namespace, nobody answers there.
            f"link add {RED} type veth peer name {RED_STUB}",
            f"link set {RED_STUB} addrgenmode none up",
            f"link set {RED} up",
            f"addr add {device.red} dev {RED} nodad",
            # Else ff00::/8 would be ambiguous among the interfaces for the ESP packets.
            f"route add multicast {group.black_group}/128 dev {BLACK} table local metric 1",
        ]
        if self.has_xfrm:
            lines += [
                f"link add {XFRM} type xfrm dev {BLACK} if_id {group.if_id}",
                f"link set {XFRM} addrgenmode none mtu {group.mtu} multicast on up",
            ]
        lines += ["link show", "addr show"]
        with self.namespace(device.name).entered():
            made = _json_values(_batch("ip", lines, device.name))
            namespaces.write_sysctl(f"net/ipv6/conf/{RED_STUB}/disable_ipv6", 1)
            queues = [*self._traffic_control[device.name], f"class show dev {BLACK}"]
            classes = _batch("tc", queues, device.name)
        if len(made) < 2:
            raise NetworkError(f"{device.name}: 'ip' did not report what it made")
        self._verify_device(device, made[0], made[1])
        _verify_rates([self._cables[device.name]], classes, device.name)

    # --- verifying -----------------------------------------------------------------------------

    def _verify_device(self, device: Node, links: list[Any], addresses: list[Any]) -> None:
        wanted = [BLACK, RED] + [XFRM] * self.has_xfrm
        by_name = {link["ifname"]: link for link in links}
        for name in wanted:
            if "UP" not in by_name.get(name, {}).get("flags", []):
                raise NetworkError(f"{device.name}: interface {name} is not up")
        for name, interface in ((BLACK, device.black), (RED, device.red)):
            assert interface is not None
            entry: dict[str, Any] = next(
                (link for link in addresses if link.get("ifname") == name), {}
            )
            found = [
                address
                for address in entry.get("addr_info", [])
                if address["local"] == str(interface.ip)
                and address["prefixlen"] == interface.network.prefixlen
            ]
            if not found:
                raise NetworkError(f"{device.name}: {name} lacks its address {interface}")
            if found[0].get("tentative") or found[0].get("dadfailed"):
                raise NetworkError(f"{device.name}: address {interface} is not usable at once")

    def _verify_switches(self) -> None:
        if not self.topology.links:
            return
        (links,) = _json_values(_batch("ip", ["link show"], "the black switch"))
        by_name = {link["ifname"]: link for link in links}
        for link in self.topology.links:
            entry = by_name.get(_port_name(link), {})
            if entry.get("master") != link.ends[1] or "UP" not in entry.get("flags", []):
                raise NetworkError(f"cable {_port_name(link)} is not plugged into {link.ends[1]}")
        queues = [f"class show dev {_port_name(link)}" for link in self.topology.links]
        classes = _batch("tc", queues, "the black switch")
        _verify_rates(self.topology.links, classes, "the black switch")


def _verify_rates(links: Iterable[Link], classes: str, where: str) -> None:
    """Check that ``tc class show`` lists one HTB class per limited link, with its rate."""
    wanted = [link.bandwidth_mbit for link in links if link.bandwidth_mbit is not None]
    found = [float(number) * _UNITS[unit] for number, unit in _HTB_RATE.findall(classes)]
    matches = len(found) == len(wanted) and all(
        abs(rate - asked) <= 0.01 * asked for rate, asked in zip(found, wanted, strict=True)
    )
    if not matches:
        raise NetworkError(
            f"{where}: limits of {wanted} Mbit/s were asked for, the kernel has {found}; "
            "does it have sch_htb?"
        )


def _port_name(link: Link) -> str:
    device, switch = link.ends
    return f"{switch}-{device}"


def _mac(side: int, number: int) -> str:
    """Return a locally administered address that is the same in every run."""
    return f"02:00:00:{side:02x}:{number >> 8:02x}:{number & 255:02x}"


def _run(program: str, lines: Iterable[str]) -> subprocess.CompletedProcess[str]:
    text = "\n".join(lines) + "\n"
    try:
        return subprocess.run(
            [program, "-j", "-batch", "-"],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=_BATCH_TIMEOUT_S,
        )
    except FileNotFoundError:
        raise NetworkError(
            f"{program} is not installed (package iproute2); run 'make setup'"
        ) from None
    except subprocess.TimeoutExpired:
        raise NetworkError(f"{program} did not end within {_BATCH_TIMEOUT_S:g} s") from None


def _batch(program: str, lines: list[str], where: str) -> str:
    """Run lines in one process in the calling thread's namespace; return what it printed.

    Raises:
        NetworkError: a line failed; names it and what the kernel said.
    """
    done = _run(program, lines)
    complaints = [line for line in done.stderr.splitlines() if "quantum of class" not in line]
    if done.returncode != 0:
        failed = next((line for line in complaints if line.startswith("Command failed")), "")
        number = failed.rpartition(":")[2].strip()
        which = lines[int(number) - 1] if number.isdigit() else program
        reason = next((line for line in complaints if line is not failed), "unknown reason")
        raise NetworkError(f"{where}: '{program} {which}' failed: {reason}")
    return done.stdout


def _json_values(text: str) -> list[Any]:
    """Return the JSON documents that stand one after the other in a text."""
    decoder = json.JSONDecoder()
    values = []
    rest = text.lstrip()
    while rest:
        value, end = decoder.raw_decode(rest)
        values.append(value)
        rest = rest[end:].lstrip()
    return values
