"""What a captured frame is, from the layers that tshark finds in it (`testbed.leaks`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Final

ESP, IDP, MIKE, CLOCK = "ESP", "IDP", "MIKE", "clock"
OSPF, PIM, MLD, ND, ECHO = "OSPFv3", "PIM", "MLD", "ND", "echo"
ERROR, REGISTER = "ICMPv6 error", "PIM Register"

_ICMPV6: Final = (
    dict.fromkeys(range(1, 5), ERROR)
    | dict.fromkeys((130, 131, 132, 143), MLD)
    | dict.fromkeys(range(133, 137), ND)
    | dict.fromkeys((128, 129), ECHO)
)
LAYER_FIELDS: Final = (
    "frame.protocols",
    "ipv6.src",
    "ipv6.dst",
    "udp.srcport",
    "udp.dstport",
    "icmpv6.type",
    "ipv6.fraghdr.ident",
    "ipv6.fraghdr.nxt",
)
"""What `Walk` needs to know of a frame; tshark's names."""

FragmentId = tuple[str, str, str]
"""Source, destination and identification."""


class MisplacedError(Exception):
    """A frame does not belong on the black wire; the text says why."""


class Walk:
    """Goes through the layers of one frame from the outside in.

    Args:
        fields: values of `LAYER_FIELDS`, several of one name separated by commas.
        ports: UDP port, source and destination -> kind.
        clock_port: UDP port of the clock responders.

    Attributes:
        fragment: identity of the datagram of which the frame is a fragment, or None.
    """

    def __init__(
        self, fields: Mapping[str, str], ports: Mapping[int, str], clock_port: int
    ) -> None:
        self._layers = fields["frame.protocols"].split(":")
        self._values: dict[str, Iterator[str]] = {
            name: iter(fields[name].split(",")) for name in LAYER_FIELDS if fields[name]
        }
        self._ports = ports
        self._clock_port = clock_port
        self.fragment: FragmentId | None = None

    def frame(self) -> str:
        """Return the kind of the frame; empty for a fragment that does not say.

        Raises:
            MisplacedError: it does not belong on the wire.
        """
        if self._layers[:3] != ["eth", "ethertype", "ipv6"]:
            raise MisplacedError("it is not IPv6 over Ethernet")
        return self._packet(self._layers[3:])

    def _packet(self, layers: list[str]) -> str:
        """Judge what follows an IPv6 header."""
        source, destination = self._next("ipv6.src"), self._next("ipv6.dst")
        match layers:
            case ["ipv6.fraghdr", *rest]:
                return self._fragment(source, destination, rest)
            case ["ipv6.hopopts", "icmpv6", *rest]:
                return self._icmpv6(rest)
            case ["icmpv6", *rest]:
                return self._icmpv6(rest)
            case ["esp"]:
                return ESP
            case ["udp"] | ["udp", "data"]:
                return self._udp()
            case ["ospf"]:
                return OSPF
            case ["pim"]:
                return PIM
            case ["pim", "ipv6", *rest]:
                return self._register(rest)
        raise MisplacedError("it is nothing that belongs on a black link")

    def _fragment(self, source: str, destination: str, rest: list[str]) -> str:
        fragment = (source, destination, self._next("ipv6.fraghdr.ident"))
        kind = self._next("ipv6.fraghdr.nxt")
        if rest == ["data"]:
            self.fragment = fragment
            return ESP if kind == "50" else ""
        if kind == "44":
            raise MisplacedError("it is a fragment of a fragment")
        self._values["ipv6.src"] = chain([source], self._values["ipv6.src"])
        self._values["ipv6.dst"] = chain([destination], self._values["ipv6.dst"])
        found = self._packet(rest)
        self.fragment = fragment
        return found

    def _udp(self) -> str:
        ports = int(self._next("udp.srcport")), int(self._next("udp.dstport"))
        if ports[0] == ports[1] and ports[0] in self._ports:
            return self._ports[ports[0]]
        if self._clock_port in ports:
            return CLOCK
        raise MisplacedError(f"its UDP ports are {ports[0]} and {ports[1]}")

    def _icmpv6(self, rest: list[str]) -> str:
        number = int(self._next("icmpv6.type"))
        kind = _ICMPV6.get(number)
        if kind is None:
            raise MisplacedError(f"its ICMPv6 type is {number}")
        if kind != ERROR or not rest:
            if rest and rest != ["data"]:
                raise MisplacedError("its ICMPv6 message carries a packet")
            return kind
        if rest[0] != "ipv6":
            raise MisplacedError("its ICMPv6 error quotes no IPv6 packet")
        if not self._inner(rest[1:]):
            raise MisplacedError("its ICMPv6 error quotes a fragment that does not say of what")
        return kind

    def _register(self, rest: list[str]) -> str:
        inner = self._inner(rest)
        if inner not in {ESP, IDP, MIKE, PIM}:  # PIM: the empty packet of a Null-Register
            raise MisplacedError(f"its PIM Register carries {inner or 'a fragment'}")
        return f"{REGISTER} ({'null' if inner == PIM else inner})"

    def _inner(self, layers: list[str]) -> str:
        """Judge a packet inside a packet; that it is a fragment does not make the frame one."""
        kind = self._packet(layers)
        self.fragment = None
        return kind

    def _next(self, name: str) -> str:
        value = next(self._values.get(name, iter(())), None)
        if value is None:
            raise MisplacedError(f"tshark finds no {name} in it")
        return value
