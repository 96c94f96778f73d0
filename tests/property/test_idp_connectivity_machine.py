"""The connectivity table against a slow model that keeps everything it ever heard."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from protocol.core.errors import PeerError
from protocol.idp.connectivity import ConnectivityTable, PeerState
from protocol.idp.messages import Hello
from protocol.idpmike import SignalKind
from tests.support.identities import known_device

DEVICES = st.integers(0, 4)
MS = 1_000_000


class Connectivity(RuleBasedStateMachine):
    """The model: for each device its last start-up time-stamp, and every hello with its time.

    A device is up if the time since its last hello was below its dead interval at every moment at
    which somebody looked; it was lost at the first such moment.
    """

    ROOM = 4

    def __init__(self) -> None:
        super().__init__()
        self.table = ConnectivityTable(self.ROOM)
        self.now_ms = 0
        self.history: dict[int, list[tuple[int, int, Hello]]] = {}
        self.lost: set[int] = set()

    def _model_room(self) -> int | None:
        """Who gives way: the lost device whose last hello is oldest; -1: nobody can."""
        if len(self.history) < self.ROOM:
            return None
        lost = sorted(self.lost, key=lambda i: (self.history[i][-1][0], i))
        return lost[0] if lost else -1

    @rule(
        index=DEVICES,
        startup=st.integers(1, 3),
        interval=st.sampled_from([50, 1000]),
        factor=st.sampled_from([2, 4]),
    )
    def hello(self, index: int, startup: int, interval: int, factor: int) -> None:
        said = Hello(interval, factor)
        known = self.history.get(index)
        expected: SignalKind | None = None
        refused = ""
        if known is None:
            victim = self._model_room()
            if victim == -1:
                refused = "IDP-6"
            else:
                if victim is not None:
                    del self.history[victim]
                    self.lost.remove(victim)
                expected = SignalKind.JOIN
        elif startup < known[-1][1]:
            refused = "IDP-5"
        elif startup > known[-1][1]:
            expected = SignalKind.JOIN
        elif index in self.lost:
            expected = SignalKind.RESTORE
        if not refused:
            self.history.setdefault(index, []).append((self.now_ms, startup, said))
            self.lost.discard(index)

        peer = known_device(index).peer
        if refused:
            with pytest.raises(PeerError, match=f"^{refused}: "):
                self.table.heard(peer, startup, said, self.now_ms * MS)
            return
        change = self.table.heard(peer, startup, said, self.now_ms * MS)
        assert (change.signal if change else None) == expected
        if change is not None:
            assert (change.address, change.startup_wall_ns) == (peer.address, startup)

    @rule(ms=st.sampled_from([1, 49, 50, 99, 100, 200, 999, 2000, 4000]))
    def time_passes(self, ms: int) -> None:
        self.now_ms += ms
        expected = []
        for index in sorted(self.history):
            heard_ms, _, said = self.history[index][-1]
            silent_ms = self.now_ms - heard_ms
            dead_ms = said.dead_factor * said.hello_interval_ms
            if index not in self.lost and silent_ms >= dead_ms:
                self.lost.add(index)
                expected.append((known_device(index).peer.address, SignalKind.LEAVE))
        changes = self.table.expire(self.now_ms * MS)
        assert [(change.address, change.signal) for change in changes] == expected

    @rule(index=st.integers(0, 4))
    def certificate_is_revoked(self, index: int) -> None:
        peer = known_device(index).peer
        known, was_lost = self.history.pop(index, None), index in self.lost
        self.lost.discard(index)
        changes = self.table.remove(lambda fingerprint: fingerprint == peer.fingerprint)
        expected = [] if known is None or was_lost else [(peer.address, SignalKind.LEAVE)]
        assert [(change.address, change.signal) for change in changes] == expected

    @invariant()
    def same_table(self) -> None:
        states = {entry.address: entry.state for entry in self.table.entries()}
        assert states == {
            known_device(index).peer.address: PeerState.LOST if index in self.lost else PeerState.UP
            for index in self.history
        }
        assert self.table.up_count == len(self.history) - len(self.lost)
        assert len(self.table) <= self.ROOM

    @invariant()
    def next_deadline_is_the_first_moment_at_which_expire_would_act(self) -> None:
        deadlines = [
            heard_ms + said.dead_factor * said.hello_interval_ms
            for index, hellos in self.history.items()
            if index not in self.lost
            for heard_ms, _, said in hellos[-1:]
        ]
        first = min(deadlines, default=None)
        assert self.table.next_deadline_mono_ns == (None if first is None else first * MS)


TestConnectivity = Connectivity.TestCase
TestConnectivity.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
