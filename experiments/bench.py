"""`make bench`: micro benchmarks, each as a ratio to a baseline of the same run.

The baseline is SHA-256 over 64 KiB: pure C, the same everywhere, so that two machines or two
commits can be compared by ratios. A new item is a function with `@item(...)` that returns what
is to be timed, or raises `SkipError` with the reason why it cannot be timed here.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from ipaddress import IPv6Address
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

if TYPE_CHECKING:
    from protocol.core.engine import Instant
    from protocol.identity import Identity
    from protocol.ipsec.model import SecurityAssociation
    from protocol.mike.treemath import NodeName

WALL_NS = 1_800_000_000_000_000_000
ROUNDS = 7
ROUND_NS = 40_000_000
"""Each round repeats an item for about this long; the median round counts."""

NETWORK_OF = (50, 1, 1)
"""Nations, devices of each and clients of each device in the network that is built."""

_NETWORK_ROUNDS_MAX = 3

Timed = Callable[[], object]
Prepared = Callable[[int], Timed | float]


class SkipError(Exception):
    """An item that cannot be timed on this machine."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one item gave.

    Attributes:
        name: of the item.
        us: median time in microseconds, None if skipped.
        ratio: to the baseline.
        note: why it was skipped.
    """

    name: str
    us: float | None
    ratio: float | None
    note: str = ""


_ITEMS: list[tuple[str, Prepared]] = []


def item(name: str) -> Callable[[Callable[[], Timed]], Callable[[], Timed]]:
    """Register an item; the decorated function prepares it and returns what is timed."""

    def register(prepare: Callable[[], Timed]) -> Callable[[], Timed]:
        _ITEMS.append((name, lambda _rounds: prepare()))
        return prepare

    return register


def measured(name: str) -> Callable[[Callable[[int], float]], Callable[[int], float]]:
    """Register an item that takes the time itself: it is given the rounds, returns microseconds."""

    def register(measure: Callable[[int], float]) -> Callable[[int], float]:
        _ITEMS.append((name, measure))
        return measure

    return register


def time_us(timed: Timed, round_ns: int = ROUND_NS, rounds: int = ROUNDS) -> float:
    """Return the median time of one call in microseconds."""
    began = time.perf_counter_ns()
    timed()
    once = max(1, time.perf_counter_ns() - began)
    count = max(1, round_ns // once)
    found = []
    gc.collect()
    for _ in range(rounds):
        began = time.perf_counter_ns()
        for _ in range(count):
            timed()
        found.append((time.perf_counter_ns() - began) / count / 1000)
    return statistics.median(found)


# --- what is timed -------------------------------------------------------------------------------


@item("baseline: SHA-256 of 64 KiB")
def _baseline() -> Timed:
    data = bytes(65536)
    return lambda: hashlib.sha256(data).digest()


def _identities(count: int) -> list[Identity]:
    """Return identities that trust each other, with keys of no worth."""
    from protocol.identity import Identity, KnownDevice, Peer

    keys = [
        Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"bench %d" % n).digest())
        for n in range(count)
    ]
    devices = [
        KnownDevice(
            Peer(_address(n), f"d{n + 1}", "bench", hashlib.sha256(b"%d" % n).digest()[:16]),
            key.public_key(),
        )
        for n, key in enumerate(keys)
    ]
    made = [Identity(devices[n], key, devices) for n, key in enumerate(keys)]
    for identity in made:
        identity.begin(WALL_NS)
    return made


def _address(index: int) -> IPv6Address:
    return IPv6Address("2001:db8:b::1") + index


def _now() -> Instant:
    from protocol.core.engine import Instant

    return Instant(1_000_000_000, WALL_NS)


@item("envelope: seal 200 bytes (Ed25519 sign)")
def _seal() -> Timed:
    from protocol.identity import PROTOCOL_MIKE

    sender, _ = _identities(2)
    now, body = _now(), bytes(200)
    return lambda: sender.seal(PROTOCOL_MIKE, 1, body, now)


@item("envelope: seal and open (sign, verify, all checks)")
def _open() -> Timed:
    from protocol.identity import PROTOCOL_MIKE

    sender, receiver = _identities(2)
    now, body = _now(), bytes(200)

    def timed() -> object:
        datagram = sender.seal(PROTOCOL_MIKE, 1, body, now)
        return receiver.open(datagram, PROTOCOL_MIKE, _address(0), now)

    return timed


SIGNED_HELLO = "hello: a signed one, handled by IDP (known peer)"
LIGHT_HELLO = "hello: a light one, handled by IDP (known peer)"
_HELLOS = 200


def _hello_us(*, light: bool, rounds: int) -> float:
    """Return the time of one hello of a device that is up, from the datagram to the effects."""
    from protocol.core.engine import DatagramReceived, Started
    from protocol.identity import PROTOCOL_IDP
    from protocol.idp import lighthello
    from protocol.idp.config import IdpConfig
    from protocol.idp.engine import IdpEngine
    from protocol.idp.lighthello import Commitment, HashChain, LightHello
    from protocol.idp.messages import Hello, MessageKind

    sender = _identities(2)[0]
    now, source = _now(), _address(0)
    fingerprint, startup_wall_ns = sender.me.fingerprint, WALL_NS
    context = lighthello.context(fingerprint, startup_wall_ns, 0)
    chain = HashChain(context, bytes(32), _HELLOS)
    commitment = Commitment(0, 0, _HELLOS, 1000, 0, chain.value(0))
    body = Hello(1000, 4, chain=commitment).encode()
    found = []
    for _ in range(rounds):
        sender.startup_wall_ns = None
        sender.begin(startup_wall_ns)
        engine = IdpEngine(
            IdpConfig(sa_group=IPv6Address("ff0e::1")), _identities(2)[1], bytes(32), _Zeros()
        )
        engine.handle(Started(WALL_NS + 1), now)
        payloads = [
            sender.seal(PROTOCOL_IDP, MessageKind.HELLO, body, now) for _ in range(_HELLOS + 1)
        ]
        if light:
            payloads[1:] = [
                LightHello(fingerprint, startup_wall_ns, 0, index, chain.value(index)).encode()
                for index in range(1, _HELLOS + 1)
            ]
        events = [DatagramReceived("group", source, payload) for payload in payloads]
        engine.handle(events[0], now)
        began = time.perf_counter_ns()
        for event in events[1:]:
            engine.handle(event, now)
        found.append((time.perf_counter_ns() - began) / _HELLOS / 1000)
        counters = engine.status(now)["counters"]
        assert counters["idp.hello_light" if light else "idp.hello_signed"] >= _HELLOS
    return statistics.median(found)


@measured(SIGNED_HELLO)
def _signed_hello(rounds: int) -> float:
    return _hello_us(light=False, rounds=rounds)


@measured(LIGHT_HELLO)
def _light_hello(rounds: int) -> float:
    return _hello_us(light=True, rounds=rounds)


class _Zeros:
    """A key source for what is thrown away."""

    def random_bytes(self, length: int) -> bytes:
        return bytes(length)


def _join(members: int) -> Timed:
    """Return the joining device's computation: from its leaf secret up to the group key."""
    from protocol.mike.agreement import Agreement
    from protocol.mike.keytree import KeyTree
    from protocol.mike.schedule import NodeSecret, epoch_keys, node_secret
    from protocol.mike.treemath import ROOT, left, right

    leaves = [NodeSecret(hashlib.sha256(b"leaf %d" % number).digest()) for number in range(members)]
    tree = KeyTree({ROOT: _address(0)}, {})
    for number in range(1, members):
        tree, _ = tree.inserted(_address(number), leaves[number].blinded, bytes(32))
    known: dict[NodeName, bytes] = {}

    def secret(name: NodeName) -> NodeSecret:
        if name in tree.members:
            made = leaves[int(tree.members[name]) - int(_address(0))]
        else:
            below, beside = secret(left(name)), secret(right(name))
            made = NodeSecret(node_secret(below, beside.blinded, below.blinded, beside.blinded))
        known[name] = made.blinded
        return made

    secret(ROOT)
    known.pop(ROOT)
    full = KeyTree(tree.members, known)
    joiner, leaf = _address(members - 1), leaves[-1]

    def timed() -> object:
        agreement = Agreement(joiner, full, (), leaf, {})
        agreement.climb()
        assert agreement.root is not None
        return epoch_keys(bytes(32), agreement.root.reveal())

    return timed


@item("MIKE: joining device computes the key, 3 members")
def _join_3() -> Timed:
    return _join(3)


@item("MIKE: joining device computes the key, 10 members")
def _join_10() -> Timed:
    return _join(10)


@item("MIKE: joining device computes the key, 50 members")
def _join_50() -> Timed:
    return _join(50)


def _sender_sas() -> list[SecurityAssociation]:
    """Return the SAs of one epoch of ten members, as device 1 writes them."""
    from protocol.ipsec.model import Suite
    from protocol.ipsec.schedule import sender_sas

    return sender_sas(
        bytes(32),
        epoch_number=7,
        epoch_tag=bytes(8),
        members=[_address(number) for number in range(10)],
        group=IPv6Address("ff0e::1"),
        suite=Suite.AES_GCM_128,
        own=_address(0),
        reqid=7,
        if_id=66,
    )


@item("key schedule: SAs of ten senders from a group key")
def _schedule() -> Timed:
    return _sender_sas


@item("XFRM: encode one NEWSA")
def _encode() -> Timed:
    from protocol.xfrm.codec import encode
    from protocol.xfrm.messages import NewSa

    message = NewSa(_sender_sas()[1])
    return lambda: encode(message, 1)


SIMULATED = "simulator: a virtual second of ten devices {}, {} cryptography (CPU time)"
FULL = "full of faults"
SOAKED = "in a soak test"
_SIMULATED_MEMBERS = 10


def _simulated_us(crypto: str, theme: str | None = None) -> float:
    """Return the CPU time of a virtual second, over a few seeds of the simulator."""
    from testbed.sim.people import Crypto
    from testbed.sim.run import run
    from testbed.sim.scenario import Theme, draw

    about = None if theme is None else Theme(theme)
    verdicts = [
        run(draw(seed, members=_SIMULATED_MEMBERS, crypto=Crypto(crypto), theme=about))
        for seed in range(1, 4)
    ]
    return sum(one.cpu_s for one in verdicts) / sum(one.virtual_ms for one in verdicts) * 1e9


@measured(SIMULATED.format(FULL, "modelled"))
def _simulated_modelled(_rounds: int) -> float:
    return _simulated_us("modelled")


@measured(SIMULATED.format(FULL, "real"))
def _simulated_real(_rounds: int) -> float:
    return _simulated_us("real")


@measured(SIMULATED.format(SOAKED, "modelled"))
def _simulated_soak(_rounds: int) -> float:
    return _simulated_us("modelled", "soak")


@functools.cache
def _network_us(rounds: int) -> tuple[float, float]:
    """Return what building and removing a network took, each by its nodes and links."""
    from protocol.core.errors import LocalError
    from testbed.errors import TestbedError
    from testbed.isolation import call_isolated
    from testbed.network import Network
    from topologies.families import coalition

    topology = coalition(*NETWORK_OF)
    parts = len(topology.nodes) + len(topology.links)

    def once() -> tuple[float, float]:
        network = Network(topology, with_xfrm=False)
        network.build()
        network.stop()
        return network.timings_ms["total"], network.timings_ms["stop"]

    try:
        times = [call_isolated(once) for _ in range(min(rounds, _NETWORK_ROUNDS_MAX))]
    except (TestbedError, LocalError, OSError) as error:
        raise SkipError(str(error).strip().splitlines()[-1]) from error
    built, removed = zip(*times, strict=True)
    return statistics.median(built) * 1000 / parts, statistics.median(removed) * 1000 / parts


@measured("network of 50 devices with LANs: built, per node and link")
def _network_built(rounds: int) -> float:
    return _network_us(rounds)[0]


@measured("network of 50 devices with LANs: removed, per node and link")
def _network_removed(rounds: int) -> float:
    return _network_us(rounds)[1]


def _sa_write(backend: str) -> Timed:
    """Return one SA written and deleted, in a network namespace of our own."""
    from experiments.errors import ExperimentError
    from experiments.sa_write import Subject, Supply, suite_of_this_kernel
    from protocol.core.errors import LocalError

    suite = suite_of_this_kernel()
    try:
        subject = Subject(backend, 1, suite)
    except LocalError as error:
        raise SkipError(str(error)) from error
    (sa,) = Supply(suite, 1).take(1)

    def timed() -> object:
        try:
            subject.replace([], [sa])
            subject.replace([sa.id], [])
        except ExperimentError as error:
            raise SkipError(str(error)) from error
        return None

    return timed


@item("SA write and delete over netlink")
def _sa_netlink() -> Timed:
    return _sa_write("netlink")


@item("SA write and delete, a command each")
def _sa_command() -> Timed:
    return _sa_write("command")


# --- running -------------------------------------------------------------------------------------


def run(round_ns: int = ROUND_NS, rounds: int = ROUNDS) -> list[Result]:
    """Time every item; the first one is the baseline."""
    results: list[Result] = []
    baseline = 0.0
    for name, prepare in _ITEMS:
        try:
            made = prepare(rounds)
            microseconds = made if isinstance(made, float) else time_us(made, round_ns, rounds)
        except SkipError as reason:
            results.append(Result(name, None, None, f"not here: {reason}"))
            continue
        baseline = baseline or microseconds
        results.append(Result(name, round(microseconds, 3), round(microseconds / baseline, 3)))
    return results


def table(results: list[Result]) -> str:
    """Return the results for a terminal."""
    width = max(len(result.name) for result in results)
    lines = [f"{'':<{width}}  {'time':>12}  {'x baseline':>10}"]
    for result in results:
        if result.us is None:
            lines.append(f"{result.name:<{width}}  {result.note}")
        else:
            lines.append(f"{result.name:<{width}}  {result.us:>9.1f} us  {result.ratio:>10.3f}")
    signed, light = (
        next((r.us for r in results if r.name == name), None)
        for name in (SIGNED_HELLO, LIGHT_HELLO)
    )
    if signed and light:
        lines.append(f"hello: a signed one costs {signed / light:.1f} times a light one")
    for what in ((FULL, "modelled"), (FULL, "real"), (SOAKED, "modelled")):
        us = next((r.us for r in results if r.name == SIMULATED.format(*what)), None)
        if us:
            lines.append(
                f"simulator, {', '.join(what)}: {1e6 / us:.0f} virtual seconds a CPU second"
            )
    netlink, command = (
        next((r.us for r in results if r.name == name), None)
        for name in ("SA write and delete over netlink", "SA write and delete, a command each")
    )
    if netlink and command:
        lines.append(f"SA write and delete: netlink is 1/{command / netlink:.0f} of a command each")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Print the table, or JSON with ``--json``; with ``--kernel`` only what needs kernel SAs."""
    from testbed.namespaces import CLONE_NEWNET, unshare

    kernel = "--kernel" in arguments
    _ITEMS[1:] = [entry for entry in _ITEMS[1:] if entry[0].startswith("SA write") == kernel]
    if kernel:
        unshare(CLONE_NEWNET)  # the machine's own SAD stays untouched
    results = run()
    print(json.dumps([asdict(r) for r in results]) if "--json" in arguments else table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
