"""The verdict on the black wire: every captured frame is something that belongs there, or a leak.

tshark says what is in a frame, layer by layer and down into what an ICMPv6 error quotes or a PIM
Register carries; what is not on the list below is a leak. Independently of that, the raw octets
of every frame, ESP included, are searched for the prefixes of red networks.

What belongs on the wire: ESP; UDP of IDP, MIKE and the clock; OSPFv3, PIM, MLD and neighbour
discovery; PIM Registers around ESP, IDP or MIKE; ICMPv6 errors about any of these; fragments of
any of these.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from itertools import chain
from pathlib import Path
from typing import Any, Final

from protocol.guard.ruleset import UNIQUE_LOCAL
from testbed.capture import CapturedLink
from testbed.dissector import DissectorError, dissect
from testbed.guard import BlackChannels, red_networks
from testbed.pcap import CapturedFrame, concatenate, read_frames
from testbed.spec import Topology
from testbed.wirekinds import IDP, LAYER_FIELDS, MIKE, FragmentId, MisplacedError, Walk

_LINK_SCOPE: Final = 2
_SITE_ROUTERS: Final = IPv6Address("ff05::2")
"""Every IPv6 router is a member of it (RFC 4291 section 2.8), so every device reports it."""

LEAK: Final = "leak"
"""Kind of the frames that do not belong on the wire."""

_LEAKS_KEPT: Final = 20
_HEX_BYTES: Final = 160
_SEARCHED_PREFIX_BITS_MIN: Final = 48
"""A shorter prefix would be found by chance in so many octets of ciphertext."""

_QUIET: Final = {
    # A fragment is judged as such, with what its first one says.
    "ipv6.defragment": "FALSE",
    "esp.enable_encryption_decode": "FALSE",
    "esp.do_esp_sequence_analysis": "FALSE",
}
_ADDRESS_FIELDS: Final = (
    "ipv6.addr",
    "icmpv6.nd.ns.target_address",
    "icmpv6.nd.na.target_address",
    "icmpv6.opt.prefix",
    "icmpv6.mld.multicast_address",
    "icmpv6.mldr.mar.multicast_address",
    "icmpv6.mldr.mar.source_address",
    "pim.group_ip6",
    "pim.source_ip6",
    "pim.join_ip6",
    "pim.prune_ip6",
    "ospf.v3.address_prefix.ipv6",
)
_FIELDS: Final = (*LAYER_FIELDS, *_ADDRESS_FIELDS)


@dataclass(frozen=True, slots=True)
class LeakRules:
    """What belongs on the black wire, beside what every IPv6 network has.

    Attributes:
        idp_port: UDP port of IDP, source and destination.
        mike_port: the same of MIKE.
        clock_port: UDP port of the testbed's clock responders.
        groups: multicast groups of the black network: IDP's, MIKE's, ESP's.
        red: networks of the red side; unique local addresses are red in any case.
        markers: octets that only red packets contain: those of a test's own payload.
    """

    idp_port: int
    mike_port: int
    clock_port: int
    groups: frozenset[IPv6Address]
    red: tuple[IPv6Network | IPv4Network, ...] = ()
    markers: tuple[bytes, ...] = ()

    @classmethod
    def of(
        cls,
        topology: Topology,
        channels: BlackChannels,
        clock_port: int,
        markers: tuple[bytes, ...] = (),
    ) -> LeakRules:
        """Return what belongs on the black links of a topology."""
        return cls(
            idp_port=channels.idp_port,
            mike_port=channels.mike_port,
            clock_port=clock_port,
            groups=frozenset((channels.idp_group, channels.mike_group, topology.group.black_group)),
            red=red_networks(topology),
            markers=markers,
        )

    @property
    def octets(self) -> tuple[tuple[bytes, str], ...]:
        """Return what no frame may contain, each with its name."""
        found: list[tuple[bytes, str]] = [(marker, "a red payload") for marker in self.markers]
        for network in self.red:
            if network.version == 6 and network.prefixlen >= _SEARCHED_PREFIX_BITS_MIN:
                octets = network.network_address.packed[: network.prefixlen // 8]
                found.append((octets, f"the red prefix {network}"))
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Leak:
    """A frame that does not belong on the black wire.

    Attributes:
        link: where it was captured.
        number: of the frame in that link's file, from 1 (as tshark counts).
        wall_ns: when, UTC.
        reason: what is wrong with it.
        summary: its layers and addresses.
        data: its first octets, hexadecimal.
    """

    link: str
    number: int
    wall_ns: int
    reason: str
    summary: str
    data: str


@dataclass(frozen=True, slots=True)
class LeakReport:
    """The verdict.

    Attributes:
        by_link: link -> kind of traffic -> frames; `LEAK` is the kind of what is none.
        leaks: the first of the frames that do not belong on the wire.
        dropped: frames that the captures lack, so nothing is known of them.
    """

    by_link: dict[str, dict[str, int]]
    leaks: tuple[Leak, ...]
    dropped: int

    @property
    def counts(self) -> dict[str, int]:
        """Return kind of traffic -> frames on all links, leaks apart."""
        total: Counter[str] = Counter()
        for kinds in self.by_link.values():
            total.update(kinds)
        del total[LEAK]
        return dict(total)

    @property
    def links(self) -> dict[str, int]:
        """Return link -> frames."""
        return {link: sum(kinds.values()) for link, kinds in self.by_link.items()}

    @property
    def leak_count(self) -> int:
        """Return how many frames do not belong on the wire."""
        return sum(kinds.get(LEAK, 0) for kinds in self.by_link.values())

    @property
    def frames(self) -> int:
        """Return how many frames were looked at."""
        return sum(self.links.values())

    @property
    def ok(self) -> bool:
        """Return whether frames were seen, all of them, and every one belongs on the wire."""
        return self.frames > 0 and self.leak_count == 0 and self.dropped == 0

    def text(self) -> str:
        """Return the verdict for people, with the packets."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.counts.items()))
        lines = [
            f"{self.leak_count} leaks in {self.frames} frames on {len(self.links)} black links "
            f"({kinds or 'nothing'}); {self.dropped} frames not captured"
        ]
        for leak in self.leaks:
            lines.append(f"  {leak.link} frame {leak.number}: {leak.reason}: {leak.summary}")
            lines.append(f"    {leak.data}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values for a record."""
        return {
            "ok": self.ok,
            "frames": self.frames,
            "counts": self.counts,
            "links": self.links,
            "dropped": self.dropped,
            "leak_count": self.leak_count,
            "leaks": [
                {name: getattr(leak, name) for name in Leak.__slots__} for leak in self.leaks
            ],
        }


def check_leaks(captured: Sequence[CapturedLink], rules: LeakRules) -> LeakReport:
    """Judge every frame of a capture.

    Raises:
        TestbedError: a file is torn or no capture, or tshark fails.
    """
    links = {one.link: one for one in captured}
    numbered = chain.from_iterable(
        ((link, number, frame) for number, frame in enumerate(read_frames(one.path), 1))
        for link, one in links.items()
    )
    judge = _Judge(rules, {rules.idp_port: IDP, rules.mike_port: MIKE})
    with tempfile.TemporaryDirectory(prefix="leaks") as folder:
        merged = Path(folder, "all.pcap")
        concatenate([one.path for one in links.values()], merged)
        rows = dissect(
            merged,
            _FIELDS,
            preferences=_QUIET,
            as_data=(rules.idp_port, rules.mike_port, rules.clock_port),
        )
        for row, (link, number, frame) in _paired(rows, numbered):
            judge.take(link, number, frame, dict(zip(_FIELDS, row, strict=True)))
    return judge.report(links, sum(one.dropped for one in captured))


Numbered = tuple[str, int, CapturedFrame]


def _paired(
    rows: Iterator[tuple[str, ...]], frames: Iterator[Numbered]
) -> Iterator[tuple[tuple[str, ...], Numbered]]:
    """Yield each row of tshark with the frame that it is about."""
    for row in rows:
        frame = next(frames, None)
        if frame is None:
            raise DissectorError("tshark reports more frames than the captures have")
        yield row, frame
    if next(frames, None) is not None:
        raise DissectorError("tshark reports fewer frames than the captures have")


@dataclass(slots=True)
class _Fragment:
    """A frame whose kind only the first fragment of the same datagram tells."""

    id: FragmentId
    leak: Leak


@dataclass(slots=True)
class _Judge:
    rules: LeakRules
    ports: dict[int, str]
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    leaks: list[Leak] = field(default_factory=list)
    addresses: dict[str, str] = field(default_factory=dict)
    first: dict[FragmentId, str] = field(default_factory=dict)
    later: list[_Fragment] = field(default_factory=list)

    def take(self, link: str, number: int, frame: CapturedFrame, fields: dict[str, str]) -> None:
        try:
            self._look_for_red(frame.data, fields)
            walk = Walk(fields, self.ports, self.rules.clock_port)
            kind = walk.frame()
            if walk.fragment is not None:
                if kind:
                    self.first[walk.fragment] = kind
                else:
                    reason = "a later fragment of something that was not captured or is a leak"
                    leak = _leak(link, number, frame, fields, reason)
                    self.later.append(_Fragment(walk.fragment, leak))
                    return
            self.counts[link, kind] += 1
        except MisplacedError as error:
            self._add(_leak(link, number, frame, fields, str(error)))

    def report(self, links: dict[str, CapturedLink], dropped: int) -> LeakReport:
        for fragment in self.later:
            kind = self.first.get(fragment.id)
            if kind is None:
                self._add(fragment.leak)
            else:
                self.counts[fragment.leak.link, kind] += 1
        by_link: dict[str, dict[str, int]] = {link: {} for link in links}
        for (link, kind), frames in self.counts.items():
            by_link[link][kind] = frames
        return LeakReport(by_link, tuple(self.leaks), dropped)

    def _add(self, leak: Leak) -> None:
        self.counts[leak.link, LEAK] += 1
        if len(self.leaks) < _LEAKS_KEPT:
            self.leaks.append(leak)

    def _look_for_red(self, data: bytes, fields: dict[str, str]) -> None:
        for octets, name in self.rules.octets:
            if octets in data:
                raise MisplacedError(f"it contains {name}")
        for name in _ADDRESS_FIELDS:
            for text in fields[name].split(",") if fields[name] else ():
                if text not in self.addresses:
                    self.addresses[text] = self._address_defect(text)
                if self.addresses[text]:
                    raise MisplacedError(f"{self.addresses[text]} ({name})")

    def _address_defect(self, text: str) -> str:
        address = IPv6Address(text)
        if address.is_multicast:
            scope = address.packed[1] & 15
            known = address in self.rules.groups or address == _SITE_ROUTERS
            if scope > _LINK_SCOPE and not known:
                return f"it names {address}, which is no group of the black network"
            return ""
        red = (UNIQUE_LOCAL, *(net for net in self.rules.red if isinstance(net, IPv6Network)))
        return f"it names the red address {address}" if any(address in n for n in red) else ""


def _leak(
    link: str, number: int, frame: CapturedFrame, fields: dict[str, str], reason: str
) -> Leak:
    summary = f"{fields['frame.protocols']} {fields['ipv6.src']} > {fields['ipv6.dst']}"
    data = frame.data[:_HEX_BYTES].hex()
    return Leak(link, number, frame.wall_ns, reason, summary.strip(), data)
