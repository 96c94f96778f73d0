"""The independent witness: tshark decrypts what was captured, with keys read from the kernels.

tshark shares no code with us, neither for ESP nor for the ciphers. What it decrypts with a good
integrity check value under the key of one sender and epoch was sent by that sender in that epoch.

Keys leave the kernel only here and only when somebody asked: into a file of mode 0600 that tshark
reads as its table ``esp_sa`` from a private configuration directory, never as an argument.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from protocol.core.errors import LocalError
from protocol.ipsec.model import SaId, SecurityAssociation, Suite
from protocol.xfrm.messages import NewSa
from protocol.xfrm.netlink import NetlinkBackend
from protocol.xfrm.observer import XfrmObserver
from testbed.dissector import DissectorError, dissect
from testbed.errors import TestbedError

KEY_FILE: Final = "esp_sa"
"""The name under which tshark looks for its table of SAs in a configuration directory."""

PREFERENCES: Final = {
    "esp.enable_encryption_decode": "TRUE",
    "esp.enable_authentication_check": "TRUE",
}
"""What makes tshark decrypt and check."""

# tshark's names of the algorithms: cipher and, apart from AEADs, MAC. Its plain "AES-GCM [RFC4106]"
# takes the ICV for ciphertext.
_GCM: Final = ("AES-GCM with 16 octet ICV [RFC4106]", "NULL")
_ALGORITHMS: Final[dict[Suite, tuple[str, str]]] = {
    Suite.AES_GCM_128: _GCM,
    Suite.AES_GCM_256: _GCM,
    Suite.AES_CBC_SHA256: ("AES-CBC [RFC3602]", "HMAC-SHA-256-128 [RFC4868]"),
    Suite.TDES_SHA1: ("TripleDES-CBC [RFC2451]", "HMAC-SHA-1-96 [RFC2404]"),
}
_FIELDS: Final = (
    "frame.protocols",
    "ipv6.src",
    "ipv6.dst",
    "ip.src",
    "ip.dst",
    "esp.spi",
    "esp.sequence",
    "esp.icv_good",
)
_TRUE: Final = frozenset({"1", "True"})


class KeyCollector:
    """Collects every SA that the kernels hold or get while it is open: rekeying replaces them.

    Args:
        nodes: device -> process that holds its namespaces.

    Raises:
        TestbedError: this kernel has no XFRM, or no right to read it.
    """

    def __init__(self, nodes: Mapping[str, int]) -> None:
        self._sas: dict[tuple[object, ...], SecurityAssociation] = {}
        self._observers: dict[str, XfrmObserver] = {}
        self._backends: dict[str, NetlinkBackend] = {}
        try:
            for device, pid in nodes.items():
                self._observers[device] = XfrmObserver(pid)
                self._backends[device] = NetlinkBackend(pid)
            # Listening began first, so nothing falls between.
            for device in nodes:
                self._read(device)
        except LocalError as error:
            self.close()
            raise TestbedError(f"cannot read the kernels' SAs: {error}") from None

    def poll(self) -> None:
        """Take what the kernels have announced; call it now and then, and at the end.

        Raises:
            TestbedError: the kernel did not tell.
        """
        try:
            for device, observer in self._observers.items():
                for event in observer.events():
                    if event.kind == "lost":
                        self._read(device)
                    elif isinstance(event.message, NewSa):
                        self._take(event.message.sa)
        except LocalError as error:
            raise TestbedError(f"cannot read the kernels' SAs: {error}") from None

    def sas(self) -> list[SecurityAssociation]:
        """Return every SA seen so far, without repetition, in the order of their first sight."""
        return list(self._sas.values())

    def close(self) -> None:
        """Close the sockets and forget the keys; idempotent."""
        for observer in self._observers.values():
            observer.close()
        for backend in self._backends.values():
            backend.close()
        self._observers.clear()
        self._backends.clear()
        self._sas.clear()

    def _read(self, device: str) -> None:
        for sa in self._backends[device].dump_sas():
            self._take(sa)

    def _take(self, sa: object) -> None:
        if isinstance(sa, SecurityAssociation):
            self._sas.setdefault((sa.source, sa.id, sa.suite, sa.key.digest), sa)


def key_lines(sas: Iterable[SecurityAssociation]) -> list[str]:
    """Return the lines of tshark's table ``esp_sa``.

    An SA that several devices hold with different sources is one that all senders share (SA mode
    ``paper``): any source fits it.
    """
    sources: dict[tuple[SaId, Suite, str], set[str]] = {}
    chosen: dict[tuple[SaId, Suite, str], SecurityAssociation] = {}
    for sa in sas:
        identity = (sa.id, sa.suite, sa.key.digest)
        sources.setdefault(identity, set()).add(str(sa.source))
        chosen[identity] = sa
    lines = []
    for identity, sa in chosen.items():
        source = str(sa.source) if len(sources[identity]) == 1 else "*"
        cipher, mac = _ALGORITHMS[sa.suite]
        values = (
            *("IPv6", source, str(sa.destination), f"0x{sa.spi:08x}"),
            *(cipher, _hex(sa.key.encryption), mac, _hex(sa.key.authentication)),
        )
        lines.append(",".join(f'"{value}"' for value in values))
    return lines


def write_keys(folder: Path, sas: Iterable[SecurityAssociation]) -> Path:
    """Write the key file into a folder, readable by its owner only; return its path."""
    path = folder / KEY_FILE
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        os.fchmod(file.fileno(), 0o600)
        file.writelines(f"{line}\n" for line in key_lines(sas))
    return path


class EspFlow(NamedTuple):
    """Whose packets of which SA."""

    source: str
    spi: int


@dataclass(slots=True)
class EspCount:
    """What tshark says of the packets of one flow; a packet seen on several links counts once.

    Attributes:
        packets: distinct sequence numbers.
        decrypted: those of them with a good integrity check value.
        inner: source and destination inside -> how many of the decrypted ones.
    """

    packets: int = 0
    decrypted: int = 0
    inner: Counter[tuple[str, str]] = field(default_factory=Counter)


def decrypt_count(pcap: Path, sas: Iterable[SecurityAssociation]) -> dict[EspFlow, EspCount]:
    """Have tshark decrypt the ESP packets of a capture with these SAs' keys and count them.

    PIM Registers, which carry copies of ESP packets, are left out.

    Raises:
        DissectorError: tshark is missing or refuses.
    """
    with tempfile.TemporaryDirectory(prefix="witness") as name:  # of mode 0700
        write_keys(Path(name), sas)
        return count_with_profile(pcap, Path(name))


def count_with_profile(pcap: Path, profile: Path) -> dict[EspFlow, EspCount]:
    """Do as `decrypt_count`, with the key file that lies in a folder."""
    seen: dict[EspFlow, dict[int, tuple[str, str] | None]] = {}
    rows = dissect(
        pcap,
        _FIELDS,
        preferences={**PREFERENCES, "esp.do_esp_sequence_analysis": "FALSE"},
        display_filter="esp && !pim",
        profile=profile,
    )
    for row in rows:
        values = dict(zip(_FIELDS, row, strict=True))
        try:
            flow = EspFlow(values["ipv6.src"].split(",")[0], int(values["esp.spi"], 0))
            sequence = int(values["esp.sequence"])
        except ValueError:
            raise DissectorError(f"tshark says of an ESP packet: {' '.join(row)}") from None
        inner = _inner(values) if values["esp.icv_good"] in _TRUE else None
        packets = seen.setdefault(flow, {})
        packets[sequence] = packets.get(sequence) or inner
    return {
        flow: EspCount(
            len(packets),
            sum(inner is not None for inner in packets.values()),
            Counter(inner for inner in packets.values() if inner is not None),
        )
        for flow, packets in seen.items()
    }


def _inner(values: Mapping[str, str]) -> tuple[str, str]:
    """Return source and destination of the packet in the tunnel, or of the outer one."""
    if values["ip.src"]:
        return values["ip.src"].split(",")[0], values["ip.dst"].split(",")[0]
    return values["ipv6.src"].split(",")[-1], values["ipv6.dst"].split(",")[-1]


def _hex(key: bytes) -> str:
    return f"0x{key.hex()}" if key else ""
