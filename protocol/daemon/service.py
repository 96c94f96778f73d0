"""What idpd and miked share: parked, armed, running.

A daemon is loaded once and then parked, silent and outside of every multicast group. ``start`` arms
it; at the trigger it becomes an instance of its protocol; ``stop`` parks it again with nothing left
behind.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from enum import StrEnum
from functools import partial
from ipaddress import IPv6Address
from typing import Any

from protocol.core.engine import DatagramReceived, Engine, Started, Stopped
from protocol.core.errors import LocalError
from protocol.daemon.clock import SystemClock
from protocol.daemon.config import ChannelSection, DeviceConfig
from protocol.daemon.control import Handler
from protocol.daemon.effects import CommonEffects
from protocol.daemon.entropy import OsKeySource, RecordingKeySource
from protocol.daemon.floodedsocket import FloodedSocket
from protocol.daemon.groupsocket import GroupSocket
from protocol.daemon.keys import KeyDirectory
from protocol.daemon.memory import Memory
from protocol.daemon.ownidentity import identity_files, read_identity
from protocol.daemon.policyfile import load_policy
from protocol.daemon.privileges import protect_memory
from protocol.daemon.process import DaemonProcess
from protocol.daemon.sockets import LocalSocket, Received
from protocol.daemon.strangersreader import StrangersReader
from protocol.daemon.warmup import warm_up
from protocol.identity.identity import Identity
from protocol.idp.events import TrustReread
from protocol.idp.policykeeper import OwnPolicy

SPIN_NS = 2_000_000
"""The daemon wakes this long before the trigger and watches the clock for the rest: a sleep alone
ends 50 to 100 us late, and a millisecond late under emulation."""

RECHECK_NS = 1_000_000_000
"""The trigger is a wall time, and the wall clock may be set: look again this long before."""

TRIGGER_DISTANCE_NS_MAX = 3_600_000_000_000
"""A trigger further away than an hour, either way, is a mistake of units or of a clock."""

TRIGGER_TIMER = "daemon.trigger"
CLOCK_TIMER = "daemon.clock"

CLOCK_OFFSET_MS_MAX = 20 * 365 * 86_400_000
"""Twenty years."""


class State(StrEnum):
    """What a daemon is doing."""

    PARKED = "parked"
    ARMED = "armed"
    RUNNING = "running"


class Service(DaemonProcess):
    """One of the two daemons of an IPsec device.

    Subclasses say which engine, which channels and which effects.

    Attributes:
        read_at_once: datagrams of a socket that are read before other sockets and the timers have
            their turn, if so many are there.
        form: filter of what cannot be a message of this protocol.
        asking: kinds of message that a device in no group sends.
    """

    read_at_once: int = 1
    form: array[int]
    asking: tuple[int, ...] = ()

    def __init__(
        self,
        config: DeviceConfig,
        *,
        recording: bool = False,
        recording_secrets: bool = False,
        exit_with_parent: bool = False,
        log_level: str = "info",
    ) -> None:
        self._recording_secrets = recording_secrets
        self._system_clock = SystemClock(config.injected_offset_us * 1000)
        self._clock_step_ns = 0
        self.recorded: RecordingKeySource | None = None
        super().__init__(
            config.device,
            self._system_clock,
            recording=recording,
            exit_with_parent=exit_with_parent,
            log_level=log_level,
        )
        self.config = config
        self.state = State.PARKED
        self._trigger_wall_ns: int | None = None
        self._ignored: Counter[str] = Counter()

    # What a subclass provides.

    def make_engine(self, identity: Identity) -> Engine:
        """Return the parked engine."""
        raise AssertionError(self)

    def channel(self) -> ChannelSection:
        """Return group and port of the black channel."""
        raise AssertionError(self)

    def open_local(self) -> LocalSocket:
        """Open the channel to the other daemon."""
        raise AssertionError(self)

    def prepare(self, stack: ExitStack) -> None:
        """Open what else is needed (``stack`` closes it) and remove what a killed daemon left."""

    def channel_of(self, _payload: bytes) -> str:
        """Return the channel that a datagram of the black socket belongs to."""
        return "group"

    def may_follow(self, _payload: bytes) -> bool:
        """Return whether a datagram is handed in after others that were read with it."""
        return False

    def shedder(self) -> Callable[[bytes, int], bool]:
        """Return what says that a datagram of a known address is one of too many (AUTH-19)."""
        return self.identity.sheds

    def arm_more(self) -> None:
        """Join what else a running daemon is a member of."""

    def clean_up(self) -> None:
        """Remove what an instance may have left outside of this process."""

    def own_commands(self) -> dict[str, Handler]:
        """Return further control commands."""
        return {}

    def own_counters(self) -> Mapping[str, int]:
        """Return further counters for ``status``."""
        return {}

    def own_status(self) -> dict[str, Any]:
        """Return further fields for ``status``."""
        return {}

    # Life.

    def open_all(self, stack: ExitStack) -> None:
        """Load the identity, make the engine, open both channels."""
        self._protect()
        self.keys = KeyDirectory(self.config.key_directory)
        self.memory = Memory(self.config.state_directory, self.daemon, self.log)
        self.identity = self.load_identity()
        freshness_ms = self.config.identity.freshness_ms
        self.memory.recall_startup(self.identity, self.clock.now().wall_ns, freshness_ms)
        self.policy = self.load_policy()
        self.engine = self.make_engine(self.identity)
        self.group = GroupSocket(
            self.config.black_interface,
            self.config.device.address,
            self.channel(),
            self.config.multicast_hops,
            self.known_addresses,
            form=self.form,
            asking=self.asking,
        )
        for sock in (self.group, *self.group.flooded):
            sock.sheds = self.shedder()
        stack.callback(self.group.close)
        self.local = self.open_local()
        stack.callback(self.local.close)
        self.runtime = self.make_runtime(self.engine)
        self.runtime.watch_clock(freshness_ms * 1_000_000, self._on_clock_set)
        ways: dict[str, GroupSocket | LocalSocket] = {"group": self.group, "local": self.local}
        self.common = CommonEffects(self.runtime, self.loop, self.trace, self.log, ways)
        self.runtime.perform_with(self.common.table())
        self.prepare(stack)
        self.loop.add_reader(self.local.fileno(), self._local_readable)
        self.loop.add_reader(self.group.fileno(), self._group_readable)
        for sock in self.group.flooded:
            self.loop.add_reader(sock.fileno(), partial(self._suspects_readable, sock))
        assert self.group.strangers is not None
        StrangersReader(self.group.strangers, self.loop, self.clock, self._hand_in, self._ignored)
        self._know()
        warm_up()

    def known_addresses(self) -> list[IPv6Address]:
        """Return the black addresses of the other devices whose certificates we hold."""
        return [peer.address for peer in self.identity.trusted_peers()]

    def begin(self) -> None:
        """Start at once if the file says so."""
        if not self.config.park:
            self._arm(None)

    def end(self) -> None:
        """Park."""
        self._stop()

    def make_key_source(self) -> OsKeySource:
        """Return where the engine's unpredictable bytes come from."""
        if not self._recording_secrets:
            return OsKeySource()
        path = self.files.secrets_file(self.daemon)
        self.log.write("warning", f"every secret of this process is written to {path}")
        self.recorded = RecordingKeySource(path)
        return self.recorded

    def load_identity(self) -> Identity:
        """Read certificates and keys; say so if others will refuse ours."""
        return read_identity(self.config, self.clock.now(), self.log)

    def load_policy(self) -> OwnPolicy | None:
        """Read the domain policy; refuse to run if our settings break it."""
        config = self.config
        now = self.clock.now()
        policy, notices = load_policy(config.policy, config.identity, config.idp, now.wall_ns)
        for notice in notices:
            self.log.write("warning", notice)
        return policy

    def idle_wanted(self) -> bool:
        """Say whether an idle moment has something to do."""
        return super().idle_wanted() or self.memory.pending

    def idle(self) -> None:
        """Write out trace, log and state."""
        self.memory.write()
        super().idle()

    def reread_trust(self) -> TrustReread:
        """Read anchors, certificates and CRLs again; return what is new.

        Raises:
            LocalError: one of them is malformed; nothing was changed.
        """
        from protocol.identity.certificates import reload_trust

        store = self.identity.store
        assert store is not None
        policy = self.load_policy()
        known, numbers = {**store.deployed, **store.learned}, store.entries()
        notices = reload_trust(self.identity, identity_files(self.config), self.clock.now().wall_ns)
        for notice in notices:
            self.log.write("warning", notice)
        newer = {entry.issuer for entry in set(store.entries()) - set(numbers)}
        return TrustReread(
            {key: der for key, der in store.deployed.items() if key not in known},
            {item.issuer_id: item.der for item in store.revocations if item.issuer_id in newer},
            policy,
        )

    # Datagrams.

    def _deliver(self, channel: str, received: Received) -> None:
        """Hand a datagram in; it may bring a certificate, so that a stranger is one no longer."""
        payload, source, waited_ns = received
        self.runtime.deliver(DatagramReceived(channel, source, payload, waited_ns))
        if self.identity.shedding.changes != self._sorted:
            self._know()

    def _know(self) -> None:
        """Tell the sockets whose datagrams are to be read first."""
        self._sorted = self.identity.shedding.changes
        self.identity.agree()
        self.group.know(self.known_addresses(), self.identity.shedding.suspects())

    def _local_readable(self) -> None:
        # Also when parked: a stopped engine still waits for the other daemon's acknowledgement.
        for _ in range(self.read_at_once):
            received = self.local.receive()
            if received is None:
                return
            self._deliver("local", received)

    def _group_readable(self) -> None:
        waiting: list[tuple[int, Received]] = []
        while len(waiting) < self.read_at_once:
            received = self.group.receive()
            if received is None:
                break
            waiting.append((self.clock.now().mono_ns, received))
        waiting.sort(key=lambda read: self.may_follow(read[1].payload))
        for number, (read_mono_ns, received) in enumerate(waiting):
            if number:
                # The other daemon does not wait behind the network.
                self._local_readable()
            behind_ns = self.clock.now().mono_ns - read_mono_ns
            self._hand_in(received._replace(waited_ns=received.waited_ns + behind_ns))

    def _suspects_readable(self, sock: FloodedSocket) -> None:
        """Read a row of datagrams, most of which are forged; those of the others go first."""
        for received in sock.receive_many():
            self._hand_in(received)

    def _hand_in(self, received: Received) -> None:
        if self.state is State.RUNNING:
            self._deliver(self.channel_of(received.payload), received)
        else:
            self._ignored["group.ignored_parked"] += 1

    # Control commands.

    def more_commands(self) -> dict[str, Handler]:
        """Return the commands of a daemon that parks, and its own."""
        return {
            "start": self._on_start,
            "stop": self._on_stop,
            "trust_reload": self._on_trust_reload,
            "clock": self._on_clock,
            **self.own_commands(),
        }

    def more_counters(self) -> Mapping[str, int]:
        """Return what the sockets dropped."""
        counters = self.group.all_counters()
        if self.memory.failed_total:
            counters["state.write_failed"] = self.memory.failed_total
        for more in (self.local.counters, self._ignored, self.own_counters()):
            counters.update(more)
        return counters

    def more_status(self) -> dict[str, Any]:
        """Return who this is, and whether the protocol runs."""
        return {
            "nation": self.config.device.nation,
            "address": str(self.config.device.address),
            "state": self.state.value,
            "trigger_wall_ns": self._trigger_wall_ns,
            "state_written": not self.memory.pending,
            "suspects": [str(address) for address in self.identity.shedding.suspects()],
            **self.own_status(),
        }

    def on_reread(self, event: TrustReread) -> None:
        """Act upon trust that was read again; MIKE needs nothing but the identity's."""

    def _on_trust_reload(self, _request: dict[str, Any]) -> dict[str, Any]:
        event = self.reread_trust()
        self._know()
        self.on_reread(event)
        return {
            "certificates": len(event.certificates),
            "revocation_lists": len(event.revocations),
            "policy": None if event.policy is None else event.policy.policy.version,
        }

    def _on_clock(self, request: dict[str, Any]) -> dict[str, Any]:
        """Set the wall clock of an emulated device, as NTP or an operator would a real one."""
        offset_ms = request.get("offset_ms")
        if not self.config.emulated_clock:
            raise LocalError("the clock is the system's: set [clock] emulated = true in a testbed")
        if type(offset_ms) is not int or abs(offset_ms) > CLOCK_OFFSET_MS_MAX:
            raise LocalError(f"offset_ms must be a whole number up to {CLOCK_OFFSET_MS_MAX}")
        self._system_clock.offset_ns = self.config.injected_offset_us * 1000 + offset_ms * 1_000_000
        return {"wall_ns": self.clock.now().wall_ns}

    def _on_clock_set(self, step_ns: int) -> None:
        # In the middle of an event: what follows has to wait for its end.
        self._clock_step_ns = step_ns
        self.loop.set_timer(CLOCK_TIMER, self.clock.now().mono_ns, self._begin_anew)

    def _begin_anew(self, _name: str) -> None:
        """The clock was set so far that others refuse our messages, or our start: a new instance.

        What we say is judged by its time and by that of our start (AUTH-3, AUTH-10). With a start
        from a wrong clock nobody would hear us until an operator came.
        """
        text = f"the clock was set by {self._clock_step_ns / 1e9:.0f} s: beginning anew"
        self.log.write("warning", text)
        if self.state is not State.RUNNING:
            return
        self._stop()
        freshness_ms = self.config.identity.freshness_ms
        self.memory.correct_startup(self.identity, self.clock.now().wall_ns, freshness_ms)
        self._arm(None)

    def _on_start(self, request: dict[str, Any]) -> dict[str, Any]:
        at_wall_ns = request.get("at_wall_ns")
        if at_wall_ns is not None and type(at_wall_ns) is not int:
            raise LocalError("at_wall_ns must be UTC in nanoseconds, or null for now")
        self._arm(at_wall_ns)
        return {"state": self.state.value, "trigger_wall_ns": self._trigger_wall_ns}

    def _arm(self, at_wall_ns: int | None) -> None:
        """Prepare for the trigger; without a time, trigger as soon as this command is answered."""
        if self.state is not State.PARKED:
            raise LocalError(f"cannot start: the daemon is {self.state.value} (stop it first)")
        now = self.clock.now()
        if at_wall_ns is None:
            self._remember(now.wall_ns)
            at_wall_ns = self.clock.now().wall_ns
        elif abs(at_wall_ns - now.wall_ns) > TRIGGER_DISTANCE_NS_MAX:
            raise LocalError("at_wall_ns is more than an hour away from this device's clock")
        self._trigger_wall_ns = at_wall_ns
        self.runtime.note_clock()
        try:
            self.group.join()
            self.arm_more()
        except LocalError:
            self.group.leave()
            raise
        self._remember(at_wall_ns)
        self.idle()
        self.state = State.ARMED
        self._set_trigger()

    def _protect(self) -> None:
        """Keep our memory to ourselves; say what could not be had, and whether this is root."""
        for text in protect_memory():
            self.log.write("warning", text)
        if os.geteuid() == 0:
            self.log.write("warning", "this daemon runs as root: [users] would name its own user")

    def _remember(self, trigger_wall_ns: int) -> None:
        """Put on the disk what the instance of this trigger must not repeat."""
        self.memory.keep_startup(self.identity.startup_after(trigger_wall_ns))

    def _set_trigger(self) -> None:
        now = self.clock.now()
        left_ns = (self._trigger_wall_ns or 0) - now.wall_ns - SPIN_NS
        if left_ns > RECHECK_NS:
            left_ns -= RECHECK_NS // 2
        self.loop.set_timer(TRIGGER_TIMER, now.mono_ns + max(left_ns, 0), self._on_trigger)

    def _on_trigger(self, _name: str) -> None:
        trigger_wall_ns = self._trigger_wall_ns or 0
        if trigger_wall_ns - self.clock.now().wall_ns > 2 * SPIN_NS:
            self._set_trigger()
            return
        while self.clock.now().wall_ns < trigger_wall_ns:
            pass
        self.group.drain()
        self.state = State.RUNNING
        woke = self.clock.now()
        self.runtime.deliver(Started(trigger_wall_ns))
        late_ns = woke.wall_ns - trigger_wall_ns
        self.trace.report("daemon.woke", {"trigger_wall_ns": trigger_wall_ns, "late_ns": late_ns})

    def _on_stop(self, _request: dict[str, Any]) -> dict[str, Any]:
        self._stop()
        self.trace.flush()
        self.log.flush()
        return {"state": self.state.value}

    def _stop(self) -> None:
        """Park: engine stopped, groups left, nothing of ours in kernel or key directory."""
        was_running = self.state is State.RUNNING
        self.loop.cancel_timer(TRIGGER_TIMER)
        try:
            if was_running:
                self.runtime.deliver(Stopped())
        finally:
            self.state = State.PARKED
            self._trigger_wall_ns = None
            self.group.leave()
            if was_running:
                self.clean_up()
