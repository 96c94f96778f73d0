"""One target for each decoder: any bytes give a message in its one encoding, or the one error.

A target raises nothing if the code under it is right. What it was handed may come from anybody who
can send a datagram, write a file or answer for the kernel; no target needs a network or root.
"""

from __future__ import annotations

import hmac
import json
import os
import struct
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

import topologies
from protocol.core.errors import DecodeError, LocalError, PeerError
from protocol.daemon.config import load
from protocol.daemon.gatewayidp import read_view
from protocol.gateway import messages as gateway
from protocol.gateway.protection import Sealed
from protocol.identity import addressblocks, envelope
from protocol.identity.certificates import load_anchors
from protocol.identity.pki import DeviceSpec, make_coalition
from protocol.identity.profile import Anchor, DeviceCertificate, inspect_device
from protocol.identity.signed import open_signed
from protocol.identity.trust import TrustStore
from protocol.idp.documents import Part, Request, decode_chain, encode_chain
from protocol.idp.lighthello import LightHello
from protocol.idp.messages import Hello, PrefixAnnouncement
from protocol.idp.policy import DomainPolicy
from protocol.idpmike import messages as local
from protocol.mike.messages import DECODERS
from protocol.mproxy import igmp, mld
from protocol.xfrm import codec, pfkey_codec
from testbed import redtraffic, trace
from testbed.errors import TestbedError
from testbed.pcap import read_frames
from testbed.specreader import read_topology
from testbed.tomllines import SpecError, TomlDocument

Run = Callable[[bytes], None]


@dataclass(frozen=True)
class Target:
    """Something to be fuzzed.

    Attributes:
        run: takes any bytes; an exception is a finding.
        seeds: inputs to begin with, beside the committed corpus.
        weight: its share of the time.
    """

    run: Run
    seeds: tuple[bytes, ...] = ()
    weight: int = 1


def canonical(
    decode: Callable[[bytes], Any],
    encode: Callable[[Any], bytes] | None = None,
    error: type[Exception] = DecodeError,
) -> Run:
    """Return a target: whatever is accepted is exactly what would have been written."""

    def run(data: bytes) -> None:
        try:
            message = decode(data)
        except error:
            return
        again = message.encode() if encode is None else encode(message)
        assert again == data, f"{message} has two encodings"

    return run


def accepting(decode: Callable[[bytes], Any], *errors: type[Exception]) -> Run:
    """Return a target: a result or one of these errors."""

    def run(data: bytes) -> None:
        with suppress(*errors):
            decode(data)

    return run


def read_again(decode: Callable[[bytes], Any], encode: Callable[[Any], bytes]) -> Run:
    """Return a target: what was accepted and written again means the same."""

    def run(data: bytes) -> None:
        try:
            message = decode(data)
        except DecodeError:
            return
        with suppress(LocalError):  # a message of another's making that we never write
            assert decode(encode(message)) == message

    return run


def with_checksum(data: bytes) -> bytes:
    """Return an IGMP message with the right checksum: guessing it is no test of ours."""
    if len(data) < 4:
        return data
    bare = data[:2] + b"\0\0" + data[4:]
    return bare[:2] + struct.pack(">H", igmp.checksum(bare)) + bare[4:]


def _igmp(data: bytes) -> None:
    data = with_checksum(data)
    read_again(igmp.decode, lambda message: with_checksum(igmp.encode(message)))(data)


_KEY = bytes(range(32))


def _local(data: bytes) -> None:
    """A datagram of the local interface, of either daemon, under the right key."""
    if not data:
        return
    sender = local.Side.IDP if data[0] & 1 else local.Side.MIKE
    datagram = data[1:] + hmac.digest(_KEY, data[1:], "sha256")
    try:
        frame = local.decode(datagram, _KEY, sender)
    except DecodeError:
        return
    assert local.encode(frame, _KEY) == datagram


def _netlink(data: bytes) -> None:
    with suppress(DecodeError):
        codec.decode(data)
    if len(data) >= 4:  # as the body under a true header
        kind, flags = struct.unpack_from("=HH", data)
        head = struct.pack("=IHHII", 12 + len(data), kind, flags, 1, 0)
        with suppress(DecodeError):
            codec.decode(head + data[4:])


def _pfkey(data: bytes) -> None:
    with suppress(DecodeError):
        pfkey_codec.decode(data)
    data = data[: len(data) // 8 * 8]
    dump = struct.pack("=BBBBHHII", 2, 10, 0, 3, 2 + len(data) // 8, 0, 1, 1)
    with suppress(DecodeError):
        pfkey_codec.decode(dump + data)


@cache
def _scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="fuzz"))


@contextmanager
def _file(data: bytes) -> Iterator[Path]:
    """Give a file with these bytes that needs no disk."""
    descriptor = os.memfd_create("fuzz")
    try:
        os.write(descriptor, data)
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _pcap(data: bytes) -> None:
    with _file(data) as path, suppress(TestbedError):
        for _ in read_frames(path):
            pass


def _topology(data: bytes) -> None:
    with suppress(SpecError, UnicodeDecodeError):
        read_topology(TomlDocument(Path("topology.toml"), data.decode()))


def _trace_line(data: bytes) -> None:
    trace.parse(data)
    redtraffic.parse(data)


def _device_file(data: bytes) -> None:
    with _file(data) as path, suppress(LocalError):
        load(path)


def _gateway_view(data: bytes) -> None:
    """What a gatewayd takes from an idpd's answer: any JSON object."""
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(answer, dict):
        with suppress(LocalError):
            read_view(answer)


@cache
def _coalition() -> Any:
    specs = [DeviceSpec(f"d{n}", "alpha", IPv6Address(f"2001:db8:b::{n}")) for n in (1, 2)]
    return make_coalition(_scratch() / "pki", specs)


def _der(path: Path) -> bytes:
    pem = path.read_bytes()
    if b"X509 CRL" in pem:
        return x509.load_pem_x509_crl(pem).public_bytes(Encoding.DER)
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def _certificate(data: bytes) -> None:
    """A certificate or a CRL that another device sent: learned, or refused by rule."""
    anchors, own = _trust()
    store = TrustStore(anchors, own)
    with suppress(PeerError):
        store.learn((data,), None)
    with suppress(PeerError):
        store.learn_revocations(data, None)
    with suppress(PeerError):
        open_signed(data, anchors[0], None)
    ours = own.known.peer
    peers = [device.peer for device in store.devices()]
    assert [peer for peer in peers if peer.address == ours.address] == [ours]


@cache
def _trust() -> tuple[list[Anchor], DeviceCertificate]:
    files = _coalition().files("d1")
    anchors = load_anchors(files.anchors)
    own = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    return anchors, inspect_device(own, anchors)


def _certificate_seeds() -> tuple[bytes, ...]:
    files = _coalition().files("d2")
    assert files.revocations is not None
    lists = sorted(files.revocations.iterdir())
    return tuple(map(_der, [files.certificate, *sorted(files.anchors.iterdir()), *lists]))


def _topology_seeds() -> tuple[bytes, ...]:
    names: Iterable[str] = ("coalition", "coalition-wan")
    return tuple((topologies.FOLDER / name / "topology.toml").read_bytes() for name in names)


_DEVICE_FILE = b"""
[device]
name = "d1"
nation = "alpha"
address = "2001:db8:b::1"
run_directory = "."
[black]
interface = "black0"
[identity]
certificate = "device.pem"
key = "device.key"
anchors = "."
peers = "."
[local]
secret = "local.secret"
"""


def _toml(data: bytes) -> None:
    """The domain policy's table, as an operator writes it."""
    try:
        table = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return
    with suppress(LocalError):
        policy = DomainPolicy.from_table(table)
        assert DomainPolicy.decode(policy.encode()) == policy


def decoders() -> dict[str, Target]:
    """Return the targets by name."""
    found = {f"mike-{kind.name.lower()}": Target(canonical(one)) for kind, one in DECODERS.items()}
    found |= {
        "envelope": Target(accepting(envelope.decode, DecodeError)),
        "idp-hello": Target(canonical(Hello.decode)),
        "idp-light-hello": Target(canonical(LightHello.decode)),
        "idp-prefixes": Target(canonical(PrefixAnnouncement.decode)),
        "idp-request": Target(canonical(Request.decode)),
        "idp-part": Target(canonical(Part.decode)),
        "idp-chain": Target(canonical(decode_chain, encode_chain)),
        "idp-policy": Target(canonical(DomainPolicy.decode)),
        "idp-policy-table": Target(_toml),
        "address-blocks": Target(canonical(addressblocks.decode, addressblocks.encode, ValueError)),
        "certificates": Target(_certificate, _certificate_seeds()),
        "local-interface": Target(_local),
        "mld": Target(read_again(mld.decode, mld.encode)),
        "igmp": Target(_igmp),
        "netlink": Target(_netlink, weight=2),
        "pf-key": Target(_pfkey),
        "pcap": Target(_pcap),
        "trace-line": Target(_trace_line),
        "topology": Target(_topology, _topology_seeds(), weight=2),
        "device-file": Target(_device_file, (_DEVICE_FILE,)),
        "gateway-part": Target(canonical(gateway.Part.decode)),
        "gateway-table": Target(canonical(gateway.decode_table, gateway.encode_table)),
        "gateway-sealed": Target(canonical(Sealed.decode)),
        "gateway-view": Target(_gateway_view),
    }
    return found
