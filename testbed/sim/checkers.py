"""What must hold: each checker is a small class that names the first thing that is wrong.

While a run lasts a checker sees every record (safety). When it is judged, with the faults over, it
sees all live devices at once (liveness); some judge the whole run once more when all agree. None
looks into an engine. tests/simulation shows each of them a broken history that it must object to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv6Address

from protocol.ipsec.model import Prefix
from testbed.sim.history import (
    Agreed,
    Detected,
    Evidence,
    Injected,
    KeyPublished,
    MikeStarted,
    Record,
    Sampled,
    Signalled,
    View,
)

TIMERS_MAX = 24
"""Names of timers that both engines have together, with some room."""

OUTSTANDING_MAX = 512
"""Both directions of the local interface (docs/local-interface.md: 256 each)."""

KEYS_MAX = 3
"""Published keys: `keys_kept` (2), and the next one before the oldest is retired."""

EPOCHS_MAX = 4
"""Epochs of SAs side by side (`IdpConfig.max_epochs`)."""

REFUSALS_MAX = 256
"""Entries in the lists of refusals of both engines, known devices and strangers."""

ENTRIES_MAX, ENTRIES_PER_PEER = 300, 100
"""Entries of all containers of both engines: half as much again as was seen, with unicast and five
prefixes a device."""

SENT_PER_SECOND = 60
"""Datagrams a device may send in the mean of a sample, of whatever kind, for each other device."""


class Checker:
    """Objects, or does not.

    Attributes:
        name: as it is printed.
        watches: kinds of records that it is shown; all, unless it says less.
    """

    name = ""
    watches: tuple[type[Record], ...] = (Record,)

    def record(self, _record: Record) -> str | None:
        """Return what is wrong with this record, given those before; of a kind it watches."""
        return None

    def judge(self, _views: Sequence[View]) -> str | None:
        """Return what is wrong with these live devices, now that no fault is left."""
        return None

    def conclude(self, _evidence: Evidence) -> str | None:
        """Return what is wrong with the run as a whole, once all agree."""
        return None


class OneKeyPerEpoch(Checker):
    """No two keys for one epoch id, no key for two epochs."""

    name = "one-key-per-epoch"
    watches = (KeyPublished,)

    def __init__(self) -> None:
        self._key_of: dict[str, bytes] = {}
        self._epoch_of: dict[bytes, str] = {}

    def record(self, record: Record) -> str | None:
        """Compare with every key seen before, of whatever device."""
        if not isinstance(record, KeyPublished):
            return None
        if self._key_of.setdefault(record.pointer, record.key) != record.key:
            return f"two keys for epoch {record.pointer}"
        epoch = self._epoch_of.setdefault(record.key, record.pointer)
        if epoch != record.pointer:
            return f"epochs {epoch} and {record.pointer} have one key"
        return None


class EpochsGrow(Checker):
    """At one instance of MIKE the numbers of established epochs only grow."""

    name = "epochs-grow"
    watches = (MikeStarted, KeyPublished)

    def __init__(self) -> None:
        self._last: dict[int, int] = {}

    def record(self, record: Record) -> str | None:
        """Compare with the device's last."""
        if isinstance(record, MikeStarted):
            self._last.pop(record.device, None)
        elif isinstance(record, KeyPublished):
            number = int(record.pointer.partition("-")[0])
            last = self._last.get(record.device, 0)
            if number <= last:
                return f"epoch {number} after epoch {last}"
            self._last[record.device] = number
        return None


class StrangersChangeNothing(Checker):
    """What a stranger sends has no effect but a line in the log, and changes no state."""

    name = "strangers-change-nothing"
    watches = (Injected,)

    def record(self, record: Record) -> str | None:
        """Look at effects and status."""
        if not isinstance(record, Injected):
            return None
        done = [effect for effect in record.effects if effect != "Log"]
        if done or record.changed:
            return f"{record.what} caused {done}, changed {list(record.changed)}"
        return None


class StateIsBounded(Checker):
    """Timers, queues, keys, SAs and what is sent stay within bounds that depend on n only."""

    name = "state-is-bounded"
    watches = (Sampled,)

    def __init__(self, members: int) -> None:
        self._members = members

    def record(self, record: Record) -> str | None:
        """Compare with the bounds."""
        if not isinstance(record, Sampled):
            return None
        sent_max = SENT_PER_SECOND * self._members * max(record.span_ms, 1_000) / 1_000
        for what, amount, bound in (
            ("timers", record.timers, TIMERS_MAX),
            ("unacknowledged local messages", record.outstanding, OUTSTANDING_MAX),
            ("published keys", record.keys, KEYS_MAX),
            ("SAs", record.sas, 3 * EPOCHS_MAX * self._members),
            ("remembered refusals", record.refusals, REFUSALS_MAX),
            (
                "entries in the engines",
                record.entries,
                ENTRIES_MAX + ENTRIES_PER_PEER * self._members,
            ),
            ("datagrams sent", record.sent, sent_max),
        ):
            if amount > bound:
                return f"{amount} {what}, more than {bound:g}"
        return None


class TablesAgree(Checker):
    """Every live device has exactly the other live devices up."""

    name = "tables-agree"

    def judge(self, views: Sequence[View]) -> str | None:
        """Compare each table with who is there."""
        there = frozenset(view.address for view in views)
        for view in views:
            missing = there - view.peers_up - {view.address}
            if missing:
                return f"d{view.device + 1} lacks {_names(missing)}"
            ghosts = view.peers_up - there
            if ghosts:
                return f"d{view.device + 1} still has {_names(ghosts)}"
        return None


class GroupAgrees(Checker):
    """All live devices are in one epoch with one key and one TM, and send with it."""

    name = "group-agrees"

    def judge(self, views: Sequence[View]) -> str | None:
        """Compare epochs, keys, members and TM."""
        there = frozenset(view.address for view in views)
        for view in views:
            who = f"d{view.device + 1}"
            if view.epoch is None or view.unfinished:
                return f"{who} has epoch {view.epoch}, unfinished: {view.unfinished}"
            if view.key is None:
                return f"{who} has no key for epoch {view.epoch}"
            if view.epoch != views[0].epoch or view.key != views[0].key:
                first = views[0]
                return f"{who} has epoch {view.epoch}, d{first.device + 1} has {first.epoch}"
            if view.members != there:
                return f"{who} has members {_names(view.members)}, there are {_names(there)}"
            if view.tm != views[0].tm or view.is_tm != (view.tm == view.address):
                return f"{who} takes {view.tm} for TM, is TM itself: {view.is_tm}"
            if view.active_epoch != view.epoch:
                return f"{who} sends with epoch {view.active_epoch}, not {view.epoch}"
        return None


class SasAgree(Checker):
    """Every SAD holds the SAs of the live devices and nothing else: none for a dead one."""

    name = "sas-agree"

    def __init__(self, *, shared: bool = False) -> None:
        self._shared = shared

    def judge(self, views: Sequence[View]) -> str | None:
        """Compare sources, then the SADs; with a shared SA each device's source is its own."""
        there = frozenset(view.address for view in views)
        for view in views:
            wanted = frozenset({view.address}) if self._shared else there
            if view.sources - wanted:
                return f"d{view.device + 1} has SAs of {_names(view.sources - wanted)}, not there"
            if wanted - view.sources:
                return f"d{view.device + 1} lacks SAs of {_names(wanted - view.sources)}"
            if view.sad != views[0].sad:
                return f"the SADs of d{views[0].device + 1} and d{view.device + 1} differ"
        return None


class SignalsLeadToKeys(Checker):
    """Every membership event that reaches a MIKE which must act leads to a new key there."""

    name = "signals-lead-to-keys"
    watches = (MikeStarted, KeyPublished, Signalled)

    def __init__(self) -> None:
        self._due: dict[int, str] = {}

    def record(self, record: Record) -> str | None:
        """Note what is due, and what has come."""
        if isinstance(record, MikeStarted | KeyPublished):
            self._due.pop(record.device, None)
        elif isinstance(record, Signalled):
            if record.matters:
                self._due[record.device] = f"{record.kind} of {record.peer}, {record.at_ms:.0f} ms"
            elif record.own:
                # It leaves the group, whatever it was about to do.
                self._due.pop(record.device, None)
        return None

    def judge(self, views: Sequence[View]) -> str | None:
        """Object to what is still due at a live device."""
        for view in views:
            if view.device in self._due:
                return f"d{view.device + 1} made no key after: {self._due[view.device]}"
        return None


class NoRekey(Checker):
    """After a given time nothing is noticed and no epoch is made: for a flap that is too short."""

    name = "no-rekey"
    watches = (KeyPublished, Detected)

    def __init__(self, since_ms: float) -> None:
        self._since_ms = since_ms

    def record(self, record: Record) -> str | None:
        """Object to every new key and every change of a table."""
        if record.at_ms < self._since_ms:
            return None
        if isinstance(record, KeyPublished):
            return f"epoch {record.pointer} was made"
        if isinstance(record, Detected):
            return f"{record.kind} of {record.peer} was noticed"
        return None


class KeysAreRenewed(Checker):
    """Where all agree and MIKE renews keys by itself, the last one is not too old (MIKE-24)."""

    name = "keys-are-renewed"
    watches = (KeyPublished, Agreed)

    def __init__(self, age_ms_max: int) -> None:
        self._age_ms_max = age_ms_max
        self._last_ms = 0.0

    def record(self, record: Record) -> str | None:
        """Note a key; whenever all agree, compare."""
        if isinstance(record, KeyPublished):
            self._last_ms = record.at_ms
        elif record.at_ms - self._last_ms > self._age_ms_max:
            return f"the key is of {self._last_ms:.0f} ms, older than {self._age_ms_max} ms"
        return None


class DeadIsForgotten(Checker):
    """From a bound on, no table has a device up that died; from a later one on, no SA or route."""

    name = "dead-is-forgotten"

    def __init__(self, dead: IPv6Address, behind: Iterable[Prefix], *, sas: bool) -> None:
        self._dead, self._behind = dead, frozenset(behind)
        self._sas = sas

    def judge(self, views: Sequence[View]) -> str | None:
        """Look for the dead device."""
        for view in views:
            if self._dead in view.peers_up:
                return f"d{view.device + 1} still has {self._dead} up"
            if self._sas and self._dead in view.sources | view.pairs.peers:
                return f"d{view.device + 1} still has an SA or policy of {self._dead}"
            left = self._behind & view.routes
            if left:
                return f"d{view.device + 1} still has routes to {', '.join(map(str, left))}"
        return None


def _names(addresses: frozenset[IPv6Address]) -> str:
    return ", ".join(str(address) for address in sorted(addresses)) or "nobody"
