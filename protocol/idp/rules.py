"""Every rule of IDP, by its id: a row in docs/idp.md section 6, a check here, a test.

A check on what a peer sent raises `PeerError`; the engine counts it under the rule and drops the
message. The other rules say when we act; their checks return the answer.

Rules IDP-1, IDP-17 and IDP-41 (syntax) are checked while a body is read, in
`protocol.idp.messages` and `protocol.idp.notice`.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Container, Iterable, Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from typing import NoReturn, TypeVar

from protocol.core.errors import PeerError
from protocol.idp.config import (
    DEAD_FACTOR_MAX,
    DEAD_FACTOR_MIN,
    HELLO_INTERVAL_MS_MAX,
    HELLO_INTERVAL_MS_MIN,
)
from protocol.idp.events import RemoveRoute, RouteOperation
from protocol.idp.lighthello import CHAIN_LENGTH_MAX, Commitment
from protocol.idp.messages import Hello
from protocol.idpmike import SignalKind
from protocol.ipsec.backend import AddSa, ByteLimit, DeletePolicy, DeleteSa, Operation, Outcome
from protocol.ipsec.model import Prefix, SaId
from protocol.ipsec.schedule import GROUP_KEY_LENGTH

T = TypeVar("T")

RULES: dict[str, str] = {
    "IDP-1": "A hello body is exactly 76 bytes, reserved bits and unused epoch fields zero",
    "IDP-2": "An announced hello interval lies between 50 and 60000 ms",
    "IDP-3": "An announced dead factor lies between 2 and 20",
    "IDP-4": "A hello under our own address that another certificate signed is refused",
    "IDP-5": "The start-up time-stamp of a known device never goes back",
    "IDP-6": "The connectivity table is bounded; only a lost device gives way",
    "IDP-7": "Silent for the announced dead factor times the announced hello interval is down",
    "IDP-8": "A new device is answered once, after a random delay, by a triggered hello",
    "IDP-9": "A device that was cut off signals RESTORE of itself with the first hello it hears",
    "IDP-10": "Who did not run, or is behind with reading, does not take silence for absence",
    "IDP-11": "A group status names each member once, at most the table's size, the TM among them",
    "IDP-12": "A device that is not among the members removes every SA of the group",
    "IDP-13": "A group key has exactly 32 bytes",
    "IDP-14": "What fails at the SAD, the SPD or the key's file is tried once more, then reported",
    "IDP-15": "A parked instance reads nothing and says nothing",
    "IDP-16": "JOIN and RESTORE of another device wait to be signalled together, a tenth as"
    " long with the first device in a group; LEAVE, and JOIN of a restarted TM, never wait",
    "IDP-17": "A prefix announcement is one list, sorted, without repetition, of at most 256",
    "IDP-18": "A prefix announcement counts only from the present instance of a device that is up,"
    " through its own SA",
    "IDP-19": "An announcement that is older than the one we have changes nothing",
    "IDP-20": "At most 16 announcements of one device are read in one hello interval of ours",
    "IDP-21": "A device announces only what its certificate authorises",
    "IDP-22": "A prefix is a unicast network, not the default route, and does not touch the black"
    " network",
    "IDP-23": "A prefix overlaps none of ours and none of another device's",
    "IDP-24": "Announcing stops after four quiet hello intervals, when the receiver has the list",
    "IDP-25": "A pair key that is ours, or of low order, makes no SAs",
    "IDP-26": "In mode group a device has unicast SAs with members of the epoch only",
    "IDP-27": "A pair's SAs of an epoch are never installed twice; rather the group is rejoined",
    "IDP-28": "An SPI at which another peer's SA is received is refused",
    "IDP-29": "The prefixes of all devices together are bounded",
    "IDP-30": "A light hello is exactly 68 bytes",
    "IDP-31": "A chain has at most 256 values, each due 3/4 to 1 hello interval after the last",
    "IDP-32": "A light hello counts only after a signed one of the same instance and chain",
    "IDP-33": "Each value of a chain counts once, and only in rising order",
    "IDP-34": "A light hello's value hashes to the newest one known of its chain",
    "IDP-35": "A hello a dead interval late in its chain does not count, unless it was just signed",
    "IDP-36": "Who falls silent, and a member not there, is asked before it is taken for down",
    "IDP-37": "A value is revealed in its own time only, and never after the content has changed",
    "IDP-38": "The hello interval grows so that all hellos together stay within the budget",
    "IDP-39": "A hello that was overtaken by a later signed one does not count",
    "IDP-40": "A member of the group that is not up one dead interval later is signalled as LEAVE",
    "IDP-41": "A notice is exactly 36 bytes",
    "IDP-42": "A notice counts only from a member of the epoch, under the epoch's key",
    "IDP-43": "An epoch is used when every member that is not lost has it, or the delay is over",
    "IDP-44": "A member's question for our notice is answered once; it asks at most 8 times in an"
    " epoch",
    "IDP-45": "A prefix announcement is authentic under the pair's key, and counts once, in order",
    "IDP-46": "Older SAs go when every member that is not lost sends with newer ones and as long"
    " again has passed, or the delay is over",
    "IDP-50": "Messages of kinds 4 to 7, and documents in them, are exactly as in section 12",
    "IDP-51": "A stranger is asked for its certificate by no longer message than it sent",
    "IDP-52": "A stranger is asked once in 500 ms, all 50 times a second, none again if refused",
    "IDP-53": "A stranger gets a cookie first; our certificate once it comes back",
    "IDP-54": "A document counts only whole, a certificate only from whom it was asked of",
    "IDP-55": "A peer with other revocation lists is asked for them, ever more rarely",
    "IDP-56": "A device whose certificate is acceptable no more is signalled as LEAVE at once",
    "IDP-57": "At most 100 questions a second of known devices are answered",
    "IDP-58": "A device that keeps another domain policy is refused, the difference named",
    "IDP-59": "A policy document counts only if a signer of the configured authority signed it",
    "IDP-60": "A newer policy is adopted if our settings keep it; an older one never",
    "IDP-61": "A new epoch is asked for before the SAs' lifetime ends: by the TM, then by anyone",
    "IDP-62": "At the end of their lifetime the SAs of an epoch are removed and never come back",
    "IDP-63": "A new epoch is asked for before an SA that we send with has carried its bytes",
    "IDP-64": "What carries our marks in the kernel and is not in our record is removed; policies"
    " and routes that lack are written again",
    "IDP-65": "An SA that lacks is never written again; a new epoch is asked for",
}
"""One line for each rule; the test compares it with the table of docs/idp.md."""


def check_hello(hello: Hello) -> None:
    """IDP-2, IDP-3, IDP-31: refuse what would keep a dead peer alive, flood us or cost too much."""
    if not HELLO_INTERVAL_MS_MIN <= hello.hello_interval_ms <= HELLO_INTERVAL_MS_MAX:
        raise PeerError("IDP-2", f"hello interval of {hello.hello_interval_ms} ms")
    if not DEAD_FACTOR_MIN <= hello.dead_factor <= DEAD_FACTOR_MAX:
        raise PeerError("IDP-3", f"dead factor of {hello.dead_factor}")

    if hello.chain is not None:
        _check_chain(hello.hello_interval_ms, hello.chain)


def _check_chain(hello_interval_ms: int, chain: Commitment) -> None:
    """IDP-31: refuse a chain that would cost us too many hashes or be valid for too long."""
    if not (chain.index <= chain.length and 1 <= chain.length <= CHAIN_LENGTH_MAX):
        raise PeerError("IDP-31", f"chain at {chain.index} of {chain.length}")
    if not hello_interval_ms * 3 <= chain.step_ms * 4 <= hello_interval_ms * 4:
        raise PeerError("IDP-31", f"chain step of {chain.step_ms} ms")


def check_not_own_address(sender: IPv6Address, own: IPv6Address) -> None:
    """IDP-4: refuse a hello under our address: it would make MIKE join or leave in our name.

    Our own hellos, looped back by multicast, were dropped before: they carry our certificate.
    """
    if sender == own:
        raise PeerError("IDP-4", f"another certificate is in use for our own address {own}")


def check_startup_not_older(startup_wall_ns: int, known_wall_ns: int) -> None:
    """IDP-5: refuse an instance older than the one we know."""
    if startup_wall_ns < known_wall_ns:
        back_ms = (known_wall_ns - startup_wall_ns) / 1e6
        raise PeerError("IDP-5", f"start-up time-stamp went back by {back_ms:.3f} ms")


def check_table_room(up_count: int, max_peers: int) -> None:
    """IDP-6: refuse a new device when the table is full of devices that are up."""
    if up_count >= max_peers:
        raise PeerError("IDP-6", f"connectivity table full ({max_peers} devices up)")


def is_silent(last_mono_ns: int, dead_interval_ns: int, now_mono_ns: int) -> bool:
    """IDP-7: whether a device is down."""
    return now_mono_ns - last_mono_ns >= dead_interval_ns


def triggered_hello_mono_ns(
    now_mono_ns: int, last_mono_ns: int | None, gap_ns: int, delay_ns: int
) -> int:
    """IDP-8: when to answer a new device; ``delay_ns`` is random below the spread."""
    earliest = now_mono_ns if last_mono_ns is None else max(now_mono_ns, last_mono_ns + gap_ns)
    return earliest + delay_ns


def was_inaudible(audible_mono_ns: int | None, dead_interval_ns: int, now_mono_ns: int) -> bool:
    """IDP-9: whether the others have taken us for down, by their own rule IDP-7."""
    return audible_mono_ns is not None and now_mono_ns - audible_mono_ns >= dead_interval_ns


def proves_reconnection(cut_off_mono_ns: int | None, instance_first_mono_ns: int) -> bool:
    """IDP-9: whether hearing this instance shows that we are back where we were before the cut."""
    return cut_off_mono_ns is not None and instance_first_mono_ns <= cut_off_mono_ns


def was_not_running(due_mono_ns: int, hello_interval_ns: int, now_mono_ns: int) -> bool:
    """IDP-10: whether a timer fired so late that we did not run, or not often enough, meanwhile."""
    return now_mono_ns - due_mono_ns > hello_interval_ns // 2


def check_status(members: Sequence[IPv6Address], tm: IPv6Address, limit: int) -> None:
    """IDP-11: refuse a group status that contradicts itself.

    That statuses come once and in order is the local interface's work (`LocalLink`).
    """
    if not 1 <= len(members) <= limit:
        raise PeerError("IDP-11", f"{len(members)} members, not 1 to {limit}")
    if len(set(members)) != len(members):
        raise PeerError("IDP-11", "a member is named twice")
    if tm not in members:
        raise PeerError("IDP-11", f"transaction manager {tm} is not a member")


def is_excluded(own: IPv6Address, members: Sequence[IPv6Address]) -> bool:
    """IDP-12: whether the group goes on without us."""
    return own not in members


def check_group_key(group_key: bytes) -> None:
    """IDP-13: refuse a key of another length."""
    if len(group_key) != GROUP_KEY_LENGTH:
        raise PeerError("IDP-13", f"group key of {len(group_key)} bytes")


def is_done(operation: Operation | RouteOperation, outcome: Outcome) -> bool:
    """IDP-14: whether the kernel is now as the operation wants it.

    Deleting what is not there leaves nothing to be done again.
    """
    if outcome.ok:
        return True
    if isinstance(operation, DeleteSa):
        return outcome.errno == errno.ESRCH
    if isinstance(operation, DeletePolicy | RemoveRoute):
        return outcome.errno in (errno.ENOENT, errno.ESRCH)
    return False


def repetition(operation: Operation) -> list[Operation]:
    """IDP-14: what tries a failed operation once more; an SA that is in the way goes first."""
    if isinstance(operation, AddSa):
        return [DeleteSa(operation.sa.id), operation]
    return [operation]


def may_read(running: bool) -> bool:
    """IDP-15: whether datagrams and timers mean anything to us now."""
    return running


def may_wait(
    kind: SignalKind, peer: IPv6Address, own: IPv6Address, *, tm_restarted: bool = False
) -> bool:
    """IDP-16: whether a signal is only news: no MIKE acts on another device's JOIN or RESTORE.

    But if the TM's device has begun anew, MIKE asks whether it is TM still (MIKE-37).
    """
    return kind is not SignalKind.LEAVE and peer != own and not tm_restarted


def fail_unknown_chain() -> NoReturn:
    """IDP-32: a light hello of a chain that no signed hello has told us of proves nothing."""
    raise PeerError("IDP-32", "light hello of a chain that we do not know")


def check_index(index: int, known: int, length: int) -> None:
    """IDP-33 and IDP-31: refuse a value that was revealed before, or beyond the chain's end."""
    if index <= known:
        raise PeerError("IDP-33", "light hello repeated or overtaken")
    if index > length:
        raise PeerError("IDP-31", f"light hello {index} of a chain of {length}")


def check_value(leads_to_known: bool) -> None:
    """IDP-34: refuse a value that does not lead to the one we know."""
    if not leads_to_known:
        raise PeerError("IDP-34", "light hello is not of its chain")


def is_in_time(due_mono_ns: int, dead_interval_ns: int, arrived_mono_ns: int) -> bool:
    """IDP-35: whether a hello says more than that a device was there some time ago."""
    return arrived_mono_ns - due_mono_ns <= dead_interval_ns


def check_in_time(due_mono_ns: int, dead_interval_ns: int, arrived_mono_ns: int) -> None:
    """IDP-35: refuse a hello that arrives a dead interval after its time in the chain."""
    if not is_in_time(due_mono_ns, dead_interval_ns, arrived_mono_ns):
        late_ms = (arrived_mono_ns - due_mono_ns) / 1e6
        raise PeerError("IDP-35", f"hello is {late_ms:.0f} ms late in its chain")


def was_just_signed(sent_wall_ns: int, dead_interval_ns: int, arrived_wall_ns: int) -> bool:
    """IDP-35: whether a signed hello is recent by the wall clocks, if not by its chain.

    Its sender's monotonic clock may have stood still: that of a suspended machine does.
    """
    return abs(arrived_wall_ns - sent_wall_ns) <= dead_interval_ns


def asked_after_ns(hello_interval_ns: int, dead_interval_ns: int) -> int:
    """IDP-36: return after how long a silence a device is asked before it is taken for down.

    Not before one and a half hello intervals, when a hello is certainly missing.
    """
    return (max(dead_interval_ns, 3 * hello_interval_ns) + 1) // 2


def next_index(index: int, age_ns: int, step_ns: int) -> int:
    """IDP-37: which value is revealed next: the one that is due, the others are left out.

    So a device that did not run for a while need not sign, which would keep it from running.
    """
    return max(index + 1, age_ns // step_ns)


def paced_interval_ms(hello_interval_ms: int, devices: int, budget_per_s: int) -> int:
    """IDP-38: the hello interval among so many devices, in steps of a quarter of ours.

    Steps, because the interval is announced, and every new announcement needs a signed hello.
    """
    needed_ms = devices * 1000 / budget_per_s
    if needed_ms <= hello_interval_ms:
        return hello_interval_ms
    step_ms = max(hello_interval_ms // 4, 1)
    return min(-int(-needed_ms // step_ms) * step_ms, HELLO_INTERVAL_MS_MAX)


def check_not_overtaken(sequence: int, newest: int) -> None:
    """IDP-39: refuse a signed hello that a later one of its sender has overtaken."""
    if sequence < newest:
        raise PeerError("IDP-39", "hello was overtaken by a later one")


def absent_members(
    members: Sequence[IPv6Address], own: IPv6Address, up: Iterable[IPv6Address]
) -> tuple[IPv6Address, ...]:
    """IDP-40: the members of our group that are not up; none if we are no member ourselves."""
    there = {own, *up}
    return tuple(who for who in members if who not in there) if own in members else ()


ANNOUNCEMENTS_MAX = 16
"""Announcements of one device read in one hello interval (IDP-20): a join takes about four."""

QUIET_INTERVALS = 4
"""Hello intervals without a change after which announcing stops (the paper; IDP-24)."""

_LINK_LOCAL = (IPv4Network("169.254.0.0/16"), IPv6Network("fe80::/10"))
_NOT_UNICAST = (
    *_LINK_LOCAL,
    IPv4Network("0.0.0.0/8"),
    IPv4Network("127.0.0.0/8"),
    IPv4Network("224.0.0.0/3"),
    IPv6Network("::/8"),
    IPv6Network("ff00::/8"),
)


def check_announcer(instance_wall_ns: int | None, startup_wall_ns: int) -> None:
    """IDP-18: refuse what does not come from the instance that we know to be up."""
    if instance_wall_ns is None:
        raise PeerError("IDP-18", "prefixes announced by a device that is not up")
    if startup_wall_ns != instance_wall_ns:
        raise PeerError("IDP-18", "prefixes announced by another instance than the one that is up")


def check_announcement_rate(count: int) -> None:
    """IDP-20: refuse a flood before it costs a MAC and a look at every prefix each."""
    if count > ANNOUNCEMENTS_MAX:
        raise PeerError(
            "IDP-20", f"more than {ANNOUNCEMENTS_MAX} announcements in a hello interval"
        )


def is_old(version: int, known_version: int) -> bool:
    """IDP-19: whether an announcement says less than we know."""
    return version < known_version


def check_authorised(prefix: Prefix, authorised: Iterable[Prefix]) -> None:
    """IDP-21: refuse a prefix that the nation's CA did not give to the device.

    The certificate of a gateway's leg names those of the other partitions (docs/gateways.md).
    """
    if not any(_within(prefix, whole) for whole in authorised):
        raise PeerError("IDP-21", f"its certificate does not authorise {prefix}")


def check_kind(prefix: Prefix, black: Iterable[IPv6Network]) -> None:
    """IDP-22: refuse what would draw away traffic that is nobody's, or the black network's."""
    if prefix.prefixlen == 0:
        raise PeerError("IDP-22", f"{prefix} is the default route")
    if any(_overlap(prefix, network) for network in _NOT_UNICAST):
        raise PeerError("IDP-22", f"{prefix} is no network of unicast addresses")
    for network in black:
        if _overlap(prefix, network):
            raise PeerError("IDP-22", f"{prefix} touches the black network {network}")


def check_overlap(prefix: Prefix, own: Iterable[Prefix], other: IPv6Address | None) -> None:
    """IDP-23: refuse a prefix that is partly ours or another device's: first come, first served.

    ``other`` is the device whose prefix overlaps this one, None if there is none.
    """
    mine = next((network for network in own if _overlap(prefix, network)), None)
    if mine is not None:
        raise PeerError("IDP-23", f"{prefix} overlaps our own {mine}")
    if other is not None:
        raise PeerError("IDP-23", f"{prefix} overlaps a prefix of {other}")


def is_quiet(changed_mono_ns: int, hello_interval_ns: int, now_mono_ns: int) -> bool:
    """IDP-24: whether nothing has changed for so long that announcing stops."""
    return now_mono_ns - changed_mono_ns >= QUIET_INTERVALS * hello_interval_ns


def check_pair_key(pair_key: bytes, own: bytes) -> None:
    """IDP-25: refuse our own key; that of low order shows when it is used."""
    if pair_key == own:
        raise PeerError("IDP-25", "its pair key is our own")


def is_fellow(peer: IPv6Address, own: IPv6Address, members: Container[IPv6Address]) -> bool:
    """IDP-26: whether both we and the peer have the group key of the epoch."""
    return own in members and peer in members


def was_installed(now: tuple[int, str], before: tuple[int, str] | None) -> bool:
    """IDP-27: whether these SAs, by instance and epoch, would be installed a second time.

    Their sequence numbers would begin again: the peer's replay window would refuse them, and a
    nonce could come twice (RFC 4106 section 8).
    """
    return now == before


def check_spi(spi: int, holder: IPv6Address | None, peer: IPv6Address) -> None:
    """IDP-28: refuse an SPI at which another peer's packets would arrive."""
    if holder is not None and holder != peer:
        raise PeerError("IDP-28", f"SPI {spi:#010x} is that of {holder} already")


def check_room(count: int, max_routes: int) -> None:
    """IDP-29: refuse more prefixes than we are ready to route."""
    if count > max_routes:
        raise PeerError("IDP-29", f"more than {max_routes} prefixes of all devices together")


def _within(prefix: Prefix, whole: Prefix) -> bool:
    if isinstance(prefix, IPv4Network):
        return isinstance(whole, IPv4Network) and prefix.subnet_of(whole)
    return isinstance(whole, IPv6Network) and prefix.subnet_of(whole)


def _overlap(one: Prefix, other: Prefix) -> bool:
    return one.version == other.version and one.overlaps(other)


def renewal_ns(lifetime_ns: int, spread_ns: int, *, is_tm: bool) -> int:
    """IDP-61: when to ask for a new epoch; the TM earlier, so that one is enough."""
    return lifetime_ns * 8 // 10 if is_tm else lifetime_ns * 9 // 10 + spread_ns


def byte_limit(lifetime_bytes: int) -> ByteLimit | None:
    """IDP-63: what an SA that we send with may carry, 0: any number of bytes.

    A new epoch is asked for after 80 % of it; the rest carries us until that is used.
    """
    return ByteLimit(lifetime_bytes * 8 // 10, lifetime_bytes) if lifetime_bytes else None


def is_over(end_mono_ns: int, now_mono_ns: int) -> bool:
    """IDP-62: whether the lifetime of an epoch's SAs has ended."""
    return now_mono_ns >= end_mono_ns


def stray(found: Iterable[T], known: Collection[T]) -> list[T]:
    """IDP-64: what is on one side and not on the other: in the kernel, and not in the record."""
    return [one for one in found if one not in known]


def lacking(needed: Collection[SaId], found: Collection[SaId]) -> frozenset[SaId]:
    """IDP-65: the SAs that nobody but a new epoch may replace."""
    return frozenset(needed) - frozenset(found)


def check_notice(authentic: bool) -> None:
    """IDP-42: refuse a notice that no member of the epoch can have made."""
    if not authentic:
        raise PeerError("IDP-42", "its notice is not that of a member of the epoch")


def is_confirmed(missing: Iterable[IPv6Address]) -> bool:
    """IDP-43, IDP-46: whether every member that can be waited for has said so."""
    return next(iter(missing), None) is None


def drain_ns(measured_ns: int, least_ns: int) -> int:
    """IDP-46: how long what was sent under older SAs may be under way."""
    return max(measured_ns, least_ns)


def is_new_question(question: int, answered: int) -> bool:
    """IDP-44: whether a device asks once more, and not an old question comes again."""
    return question > answered
