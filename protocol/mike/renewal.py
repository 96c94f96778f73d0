"""A new key without a change of members: by time (the TM), and on the operator's word (anyone).

A key that is renewed by the TM alone is new to outsiders and to devices that left. Only a device's
own renewal heals its own compromise: its leaf secret is replaced, and everything above it.
"""

from __future__ import annotations

from typing import Any

from protocol.core.engine import Instant, Report
from protocol.core.retransmit import with_jitter
from protocol.mike.config import NS_PER_MS
from protocol.mike.distribution import Distribution
from protocol.mike.epochs import Epoch
from protocol.mike.fields import NONCE_LENGTH
from protocol.mike.instance import TIMER_REKEY
from protocol.mike.manager import Manager
from protocol.mike.states import Attempt, State

JITTER_PARTS = 10
"""The interval is shortened by up to one part in so many: TMs of several groups on one network
that started together do not stay together."""


class Renewer(Manager):
    """Renewal of the key."""

    def renew(self) -> None:
        """As TM, renew our leaf and thereby the key (also when IDP asks us to join again)."""
        if self.attempt is None:
            self.attempt = Attempt(self.fresh_bytes(NONCE_LENGTH), self.fresh_secret())
        self.ask_for_ourselves()
        self.proceed()

    def request_rekey(self) -> None:
        """The operator wants a new key: renew our own share, whatever our role (MIKE-25)."""
        if self.state not in (State.MEMBER, State.TM):
            self.log("warning", "no rekey: this device is in no group")
            return
        if self.rekey_wait_ms(self.now):
            self.counters.count("MIKE-25")
            self.log("warning", "no rekey: our share was renewed only just now")
            return
        self.emit(Report("mike.rekey", {"cause": "operator"}))
        if self.state is State.TM:
            self.renew()
        else:
            self.join()

    def rekey_wait_ms(self, now: Instant) -> int:
        """MIKE-25: return how long the operator has to wait before the next renewal, 0: not."""
        if self.share_since is None:
            return 0
        passed_ms = (now.mono_ns - self.share_since.mono_ns) // NS_PER_MS
        return max(0, self.config.rekey_interval_min_ms - passed_ms)

    # By time.

    def establish(self, agreement: Epoch) -> None:
        """Beside what a TM does: every epoch begins the interval anew."""
        super().establish(agreement)
        self._renew_later()

    def take_role(self) -> None:
        """Beside what a TM does: it is ours now to renew the key."""
        super().take_role()
        self._renew_later()

    def _renew_later(self) -> None:
        """MIKE-24: as TM, set the timer of the next renewal.

        The interval counts from the key, not from the role: it may have been handed over late.
        """
        interval_ns = self.config.rekey_interval_ms * NS_PER_MS
        if self.state is not State.TM or interval_ns == 0:
            return
        jitter_ns = interval_ns // JITTER_PARTS
        draw = int.from_bytes(self.fresh_bytes(6), "big")
        delay_ns = with_jitter(interval_ns - jitter_ns, jitter_ns, draw)
        age_ns = 0 if self.key_since is None else self.now.mono_ns - self.key_since.mono_ns
        self.after_ns(TIMER_REKEY, max(delay_ns - age_ns, 0))

    def on_rekey_timer(self) -> None:
        """MIKE-24: renew, unless an unfinished epoch is about to."""
        if self.state is not State.TM or self.is_busy:
            return
        self.emit(Report("mike.rekey", {"cause": "interval"}))
        if isinstance(self.current, Distribution):
            # A new root under the keys that all have: one message of one wrap.
            self.next_epoch()
        else:
            self.renew()

    # For people.

    def rekey_status(self, now: Instant) -> dict[str, Any]:
        """Say when key and share were last renewed; plain JSON values."""
        return {
            "key_since_wall_ns": None if self.key_since is None else self.key_since.wall_ns,
            "share_since_wall_ns": None if self.share_since is None else self.share_since.wall_ns,
            "interval_ms": self.config.rekey_interval_ms,
            "wait_ms": self.rekey_wait_ms(now),
        }
