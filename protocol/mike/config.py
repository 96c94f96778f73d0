"""What an operator may set of MIKE: every field with its unit, its default and the reason for it.

Times are milliseconds in the configuration, because people write them, and nanoseconds inside the
engine, because clocks count them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum

from protocol.core.errors import LocalError
from protocol.identity.envelope import DATAGRAM_MAX
from protocol.mike.fields import MEMBERS_MAX

NS_PER_MS = 1_000_000
"""Nanoseconds in a millisecond."""

DATAGRAM_SIZE_MIN = 512
"""What never comes in fragments fits, for groups of up to 256 members: 126 + 35 + 9 * 36 bytes of a
PATH. Larger ones are not built with so small datagrams (MIKE-20)."""

LISTED_MAX = 1024
"""Members that a status on the local interface can list."""


class Mode(StrEnum):
    """How the group key comes about."""

    KA = "ka"
    """Key agreement: all compute it."""
    KD = "kd"
    """Key distribution: the TM draws and wraps it."""
    AUTO = "auto"
    """One or the other, by the size of the group (MIKE-34)."""


OFF_BY_ZERO = frozenset({"rekey_interval_ms"})
"""What 0 switches off; everything else is at least 1."""


@dataclass(frozen=True, slots=True)
class MikeConfig:
    """Timers and limits of one MIKE instance.

    Attributes:
        join_retry_ms: first repetition of an unanswered JOIN; it doubles each time, and is 0.5 to
            1.5 of that by chance. 150: several times a loaded join (tens of ms), well below
            `founding_delay_ms`.
        join_retry_max_ms: where the doubling ends, and so the price of a lost JOIN at worst. 1000.
        founding_delay_ms: how long a joiner listens for a group before it founds one. 400: two
            chances for a JOIN, of which one may be lost, and the paper's own join latency.
        status_interval_ms: the TM's STATUS beacon. 1000: one signature check per device and second;
            a device that missed everything notices within this time.
        status_after_epoch_ms: delay of the extra STATUS that follows every new epoch. 50: the
            joiner's key gets confirmed, yet its check does not compete with the SA writes of the
            same epoch.
        tm_silence_ms: a TM unheard for so long is taken for gone even if IDP still hears the device
            (its MIKE died, its IDP lives). 5000: five lost beacons in a row, and longer than IDP's
            own verdict (4 x 1000).
        tm_answer_ms: a TM whose device began anew has so long to answer whether it is TM still.
            500: many round trips, and with the dead interval less than a dead TM may cost.
        repair_delay_ms: how long a member waits for what it misses before it asks: 0.5 to 1.5 of
            this, so that of many that lost one datagram a few ask (MIKE-28). 100: longer than any
            reordering inside one network, shorter than a human notices.
        repair_retry_max_ms: the question is repeated, doubling from `repair_delay_ms` up to this.
            1000.
        repeat_interval_min_ms: the TM answers one device's JOIN or REPAIR at most this often. 50: a
            flood from one device costs 20 signatures a second.
        tree_retry_ms: first repetition of a TREE whose sponsors are still silent; it doubles. 100.
        sponsor_timeout_ms: a sponsor silent for so long is excluded by the next epoch. 1500: four
            repetitions of TREE; a living device joins again by itself.
        handover_retry_ms: first repetition of a HANDOVER until the new TM is heard; it doubles.
            100.
        handover_tries: HANDOVERs sent in all before the TM keeps its role. 6: three seconds.
        election_timeout_ms: how long each candidate of an election has before the next one acts.
            500: IDP instances notice a silent device within one jitter of each other.
        takeover_grace_ms: how long a TREE of a not yet acceptable TM is kept. 5000: IDP's verdict
            on the old TM (4 x 1000) comes within it.
        rejoin_backoff_ms: an excluded device joins again after a random time in 0.5 to 1.5 of this.
            1000: RFC 9838 section 2.4 asks for a random wait.
        rekey_interval_ms: the TM renews its share, and with it the key, once no epoch came for so
            long; up to a tenth less by chance. 0: never, so that nothing disturbs a measurement.
        rekey_interval_min_ms: one member renews its share at most this often, by its own operator's
            word and as far as the TM grants it. 1000: a renewal costs every member about a join.
        members_max: largest group this device serves as TM. 128: the paper's
            "approximately 50" with room; its TREE has at most 13 fragments. At most 1024: a status
            to IDP lists all members.
        datagram_size_max: bytes of UDP payload above which a message is sent in fragments of our
            own (MIKE-26). 1232: what no IPv6 link has to fragment (RFC 8200 section 5). At least
            512, so that everything but a TREE always fits; at most 8192.
        change_parts_min: a TREE of at least so many fragments goes only to whom it has to tell all;
            the others get a CHANGE (MIKE-39). 8: about 95 members. Below, one message that serves
            all is simpler, and a newcomer need not be resolved before it hears anything.
        mode: ``ka``, ``kd`` or ``auto``; what a TM makes of its group, whatever the members are set
            to. ``ka``: contributory, and no device knows more than the others.
        kd_members_min: with ``auto``, a group of at least so many is switched to key distribution.
            64: above the paper's "approximately 50"; TREEs have six fragments there.
        ka_members_max: with ``auto``, a group of at most so many is switched back. 48: far enough
            below `kd_members_min` that one device that comes and goes switches nothing.
        kd_batch_ms: in key distribution mode the TM makes the next epoch, and sends further parts
            of one, so long after the last. 25: joins that arrive together take two epochs; far
            below what a join may take.
        keys_kept: published keys kept, the newest included. 2: make before break needs the last
            two, the next but one is retired.
    """

    join_retry_ms: int = 150
    join_retry_max_ms: int = 1000
    founding_delay_ms: int = 400
    status_interval_ms: int = 1000
    status_after_epoch_ms: int = 50
    tm_silence_ms: int = 5000
    tm_answer_ms: int = 500
    repair_delay_ms: int = 100
    repair_retry_max_ms: int = 1000
    repeat_interval_min_ms: int = 50
    tree_retry_ms: int = 100
    sponsor_timeout_ms: int = 1500
    handover_retry_ms: int = 100
    handover_tries: int = 6
    election_timeout_ms: int = 500
    takeover_grace_ms: int = 5000
    rejoin_backoff_ms: int = 1000
    rekey_interval_ms: int = 0
    rekey_interval_min_ms: int = 1000
    members_max: int = 128
    datagram_size_max: int = 1232
    change_parts_min: int = 8
    keys_kept: int = 2
    mode: Mode = Mode.KA
    kd_members_min: int = 64
    ka_members_max: int = 48
    kd_batch_ms: int = 25

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "mode", Mode(self.mode))
        except ValueError:
            names = ", ".join(Mode)
            raise LocalError(f"mike.mode must be one of {names}: {self.mode!r}") from None
        for item in fields(self):
            if item.name == "mode":
                continue
            value = getattr(self, item.name)
            least = 0 if item.name in OFF_BY_ZERO else 1
            if type(value) is not int or value < least:
                raise LocalError(
                    f"mike.{item.name} must be a whole number of at least {least}: {value!r}"
                )
        if 0 < self.rekey_interval_ms < self.rekey_interval_min_ms:
            raise LocalError("mike.rekey_interval_ms is smaller than mike.rekey_interval_min_ms")
        if self.join_retry_max_ms < self.join_retry_ms:
            raise LocalError("mike.join_retry_max_ms is smaller than mike.join_retry_ms")
        if self.members_max > LISTED_MAX:
            raise LocalError("mike.members_max is at most 1024: a status to IDP lists all members")
        if not self.ka_members_max < self.kd_members_min <= MEMBERS_MAX // 2:
            raise LocalError(
                "mike.kd_members_min must be above mike.ka_members_max and at most"
                f" {MEMBERS_MAX // 2}: {self.kd_members_min}"
            )
        if not DATAGRAM_SIZE_MIN <= self.datagram_size_max <= DATAGRAM_MAX:
            raise LocalError(
                f"mike.datagram_size_max must be from {DATAGRAM_SIZE_MIN} to {DATAGRAM_MAX}:"
                f" {self.datagram_size_max}"
            )
        if not 0 < self.tm_answer_ms < self.tm_silence_ms:
            raise LocalError("mike.tm_answer_ms must be positive and below mike.tm_silence_ms")
        if self.tm_silence_ms <= self.status_interval_ms:
            raise LocalError("mike.tm_silence_ms must exceed mike.status_interval_ms")
