"""One simulated device: the engines of both daemons, what they run on, and what can befall them.

Between the two engines lies the local interface with its real encoding. The SAD is
`protocol.ipsec.memory`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from protocol.core.agenda import NS_PER_MS, Agenda
from protocol.core.engine import Instant
from protocol.core.errors import LocalError
from protocol.daemon.reconcile import read_own, remove_own, remove_own_routes
from protocol.daemon.routes import MemoryRoutes
from protocol.identity import Identity
from protocol.idp.config import IdpConfig, Unicast
from protocol.idp.engine import IdpEngine
from protocol.idp.events import (
    ApplyRoutes,
    ApplySas,
    FetchKey,
    KeyFetched,
    LinkChanged,
    PrefixAdded,
    PrefixRemoved,
    ReadKernel,
    RoutesApplied,
    SasApplied,
    TrustReread,
)
from protocol.ipsec.memory import MemoryBackend
from protocol.ipsec.model import Prefix
from protocol.mike.config import MikeConfig
from protocol.mike.engine import MikeEngine
from protocol.mike.events import Attend, EpochMarkFound, KeepEpochMark, PublishKey, RetireKey
from testbed.sim.chance import Chance, SeededKeys
from testbed.sim.daemon import WALL_START_NS, Daemon, Observer
from testbed.sim.people import Crypto, People, local_secret, secret_type

STOP_GAP_NS = 50 * NS_PER_MS
"""An orderly stop parks idpd first, so that its LEAVE still reaches miked."""


class Device:
    """Both daemons of a device, its clock, SAD and key directory.

    Attributes:
        index: counts from 0.
        people: all devices of its network, itself among them.
        address: its black address.
        announced: red prefixes that its idpd was told to announce.
        idpd, miked: its daemons.
        backend: its SAD and SPD.
        routes: its routes to red prefixes.
        keys: its key directory, by pointer.
        connected: whether its black interface has a carrier.
        paused: whether its processes stand still.
        clock_ns: how far its wall clock is ahead.
        entropy: its key source, the same for both daemons and over restarts.
        epoch_mark: on its disk: the largest epoch number used or seen (MIKE-29).
    """

    def __init__(
        self,
        index: int,
        people: People,
        chance: Chance,
        agenda: Agenda,
        observer: Observer,
        *,
        crypto: Crypto = Crypto.MODELLED,
        idp: IdpConfig,
        mike: MikeConfig | None = None,
    ) -> None:
        self.index = index
        self.people = people
        self.address = people.address(index)
        self.agenda = agenda
        self.observer = observer
        self.connected = True
        self.paused = False
        self.clock_ns = 0
        self.backend = MemoryBackend()
        self.routes = MemoryRoutes()
        self.keys: dict[str, bytes] = {}
        self._crypto = crypto
        red = () if idp.unicast is Unicast.OFF else people.prefixes(index)
        self._idp_config = replace(idp, prefixes=red)
        self.announced: set[Prefix] = set()
        self._revoked: set[int] = set()
        self._identities: dict[str, Identity] = {}
        self._commands: list[Callable[[], None]] = []
        self._mike_config = mike or MikeConfig()
        self.entropy = SeededKeys(chance.stream(f"keys of device {index}"))
        self._secret = local_secret(index)
        self._newest_wall_ns = dict.fromkeys(("idpd", "miked"), 0)
        self._wanted = False
        self.epoch_mark = 0
        self.idpd, self.miked = Daemon(self, "idpd"), Daemon(self, "miked")
        self.daemons = (self.idpd, self.miked)
        self.idpd.other, self.miked.other = self.miked, self.idpd
        self.idpd.perform_with(
            {
                ApplySas: self._apply_sas,
                ApplyRoutes: self._apply_routes,
                FetchKey: self._fetch_key,
                ReadKernel: self._read_kernel,
            }
        )
        self.miked.perform_with(
            {
                PublishKey: self._publish,
                RetireKey: self._retire,
                KeepEpochMark: self._keep_mark,
                Attend: lambda _: None,
            }
        )

    def now(self) -> Instant:
        """Read both clocks; the monotonic one is virtual time."""
        now_ns = self.agenda.now_ns
        return Instant(now_ns, WALL_START_NS + now_ns + self.clock_ns)

    @property
    def alive(self) -> bool:
        """Whether both daemons run the protocol."""
        return self.idpd.running and self.miked.running

    # What befalls it.

    def boot(self, daemon: Daemon) -> None:
        """Start a process anew, parked; it removes what a killed one left, as the daemons do."""
        own = self.people.identity(self.index, self._crypto, revoked=self._revoked)
        self._identities[daemon.name] = own
        if daemon is self.idpd:
            self.announced = set(self._idp_config.prefixes)
            remove_own(self.backend, self._idp_config)
            remove_own_routes(self.routes)
            daemon.boot(IdpEngine(self._idp_config, own, self._secret, self.entropy))
        else:
            self.keys.clear()
            secrets = secret_type(self._crypto)
            engine = MikeEngine(self._mike_config, own, self._secret, self.entropy, secrets)
            daemon.boot(engine)
            daemon.deliver(EpochMarkFound(self.epoch_mark))

    def power_on(self, gap_ms: int = 0) -> None:
        """Switch on: new processes on an empty kernel, idpd started so long after miked."""
        self.backend, self.routes = MemoryBackend(), MemoryRoutes()
        for daemon in self.daemons:
            self.boot(daemon)
        self.start(gap_ms)

    def start(self, gap_ms: int = 0) -> None:
        """Start both protocols, idpd so long after miked, or before."""
        self._wanted = True
        first, second = self.daemons if gap_ms < 0 else self.daemons[::-1]
        self.start_daemon(first)
        self.agenda.after(abs(gap_ms) * NS_PER_MS, self.start_daemon, second)

    def start_daemon(self, daemon: Daemon) -> None:
        """Start one protocol if its process is there and parked.

        A start-up time-stamp may not be below an earlier one of the same device: others would
        refuse it as recorded. So a clock that was set back is waited for.
        """
        if daemon.engine is None or daemon.running or not self._wanted:
            return
        wall_ns = self.now().wall_ns
        wait_ns = self._newest_wall_ns[daemon.name] - wall_ns
        if wait_ns >= 0:
            self.agenda.after(wait_ns + NS_PER_MS, self.start_daemon, daemon)
            return
        self._newest_wall_ns[daemon.name] = wall_ns
        daemon.start()

    def revive(self, daemon: Daemon) -> None:
        """Start a killed daemon anew."""
        self.boot(daemon)
        self.start_daemon(daemon)

    def power_off(self) -> None:
        """Lose power."""
        self._wanted = False
        for daemon in self.daemons:
            daemon.kill()
        self.backend, self.routes = MemoryBackend(), MemoryRoutes()
        self.keys.clear()

    def stop(self) -> None:
        """Park both protocols in order."""
        self._wanted = False
        self.idpd.stop()
        self.agenda.after(STOP_GAP_NS, self._stop_mike)

    def _stop_mike(self) -> None:
        if not self.idpd.running:
            self.miked.stop()

    def pause(self) -> None:
        """Let both processes stand still."""
        self.paused = True

    def resume(self) -> None:
        """Let them go on."""
        self.paused = False
        for daemon in self.daemons:
            daemon.resume()
        commands, self._commands = self._commands, []
        for command in commands:
            command()

    def set_carrier(self, up: bool) -> None:
        """Cut or heal the black interface."""
        self.connected = up
        if self.idpd.engine is not None:
            self.idpd.notify(LinkChanged(up))

    # What its operator does.

    def announce(self, prefix: Prefix, *, forced: bool = False) -> None:
        """``idpd prefix add``; ``forced``: by one whose own daemon does not check it.

        Commands wait while the processes stand still; without idpd they fail.
        """
        engine = self.idpd.engine
        if self.paused:
            self._commands.append(partial(self.announce, prefix, forced=forced))
        elif isinstance(engine, IdpEngine) and self.idpd.running:
            try:
                if not forced:
                    engine.unicast.check_addition(prefix)
            except LocalError:
                return
            self.announced.add(prefix)
            self.idpd.deliver(PrefixAdded(prefix))

    def withdraw(self, prefix: Prefix) -> None:
        """``idpd prefix remove``, of a prefix that may not be announced any more."""
        if self.paused:
            self._commands.append(partial(self.withdraw, prefix))
        elif self.idpd.engine is not None and prefix in self.announced:
            self.announced.discard(prefix)
            self.idpd.deliver(PrefixRemoved(prefix))

    def distrust(self, other: int) -> None:
        """Give both daemons a list that revokes another device's certificate."""
        if self.paused:
            self._commands.append(partial(self.distrust, other))
            return
        self._revoked.add(other)
        for identity in self._identities.values():
            identity.trust(self.people.known(self._crypto, self._revoked))
        self.idpd.deliver(TrustReread())

    # Effects of one engine.

    def _apply_sas(self, effect: ApplySas) -> None:
        outcomes = self.backend.apply(effect.operations)
        self.idpd.deliver(SasApplied(effect.label, outcomes))

    def _apply_routes(self, effect: ApplyRoutes) -> None:
        outcomes = self.routes.apply(effect.operations)
        self.idpd.deliver(RoutesApplied(effect.label, outcomes))

    def _read_kernel(self, _effect: ReadKernel) -> None:
        self.idpd.deliver(read_own(self.backend, self.routes, self._idp_config))

    def _fetch_key(self, effect: FetchKey) -> None:
        self.idpd.deliver(KeyFetched(effect.pointer, self.keys.get(effect.pointer)))

    def _publish(self, effect: PublishKey) -> None:
        self.keys[effect.pointer] = effect.group_key

    def _keep_mark(self, effect: KeepEpochMark) -> None:
        self.epoch_mark = effect.number

    def _retire(self, effect: RetireKey) -> None:
        self.keys.pop(effect.pointer, None)
