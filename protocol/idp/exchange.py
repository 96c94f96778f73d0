"""What devices tell each other about trust: certificates, revocation lists, the domain policy.

The front that the engine calls; the work is done in `protocol.idp.strangers`,
`protocol.idp.revocations` and `protocol.idp.policykeeper`. What changes the trust of the device is
stored through an effect, told to MIKE, and left for the engine to act upon: `released` messages are
to be read again, and after `changed` the devices that are not acceptable any more are to go.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from ipaddress import IPv6Address
from typing import Any

from protocol.core.buckets import Bucket
from protocol.core.counters import RuleCounters
from protocol.core.engine import DatagramReceived, Effect, Instant, KeySource, Log, Report
from protocol.core.errors import PeerError
from protocol.identity import Identity, KnownDevice, Opened, Peer, UnknownCertificateError
from protocol.idp.config import IdpConfig
from protocol.idp.documents import Assembler, Part, Request, Subject
from protocol.idp.events import DropTrust, KeepTrust, TrustReread
from protocol.idp.lighthello import LightHello
from protocol.idp.messages import Hello, MessageKind
from protocol.idp.policy import DomainPolicy
from protocol.idp.policykeeper import OwnPolicy, PolicyKeeper
from protocol.idp.revocations import DELAY_NS, TIMER_TRUST, Revocations
from protocol.idp.signalling import Signalling
from protocol.idp.strangers import Strangers
from protocol.idpmike import Credential, CredentialKind, EpochId
from protocol.idpmike.messages import DER_MAX

KINDS = frozenset(
    {
        MessageKind.REQUEST,
        MessageKind.CERTIFICATE,
        MessageKind.REVOCATIONS,
        MessageKind.POLICY,
    }
)
"""Kinds of message that are ours to read."""

TIMERS = (TIMER_TRUST,)

REQUESTS_PER_S = 100
"""Questions of devices that we know which are answered (IDP-57)."""

NEWS_MAX = 512
"""Things learned that are remembered for a MIKE that starts anew."""

SECRET_LENGTH = 32

Refuse = Callable[[str, PeerError, Instant], list[Effect]]
"""Counts and logs what broke a rule: the engine's."""


class Exchange:
    """Owned and driven by the engine.

    Args:
        config: of the engine.
        identity: whose store learns.
        counters: of the engine.
        keys: where unpredictable bytes come from.
        mike: our end of the interface to MIKE.
        refuse: see `Refuse`.
        policy: the domain policy of the device, or None.

    Attributes:
        changed: whether trust has changed since the engine last looked.
    """

    def __init__(
        self,
        config: IdpConfig,
        identity: Identity,
        *,
        counters: RuleCounters,
        keys: KeySource,
        mike: Signalling,
        refuse: Refuse,
        policy: OwnPolicy | None,
    ) -> None:
        self._identity = identity
        self._counters = counters
        self._keys = keys
        self._mike = mike
        self._refuse = refuse
        self._strangers = Strangers(identity, counters)
        self._revocations = Revocations(identity, counters)
        self._policy = PolicyKeeper(policy, config, identity, counters, mike)
        self._news: dict[bytes, Credential] = {}
        self.changed = False
        self.forget()

    def forget(self) -> None:
        """Begin anew with an instance; what was learned stays."""
        if self._identity.store is not None:
            self._strangers.begin(self._keys.random_bytes(SECRET_LENGTH))
        self._revocations.forget()
        self._policy.forget()
        self._assembler = Assembler()
        self._requests = Bucket(REQUESTS_PER_S, 0)

    def _own_trouble(self, now: Instant) -> list[Effect]:
        """Say in the log if other devices will refuse us from now on."""
        problem = self._identity.own_problem(now)
        return [] if problem is None else [Log("error", f"other devices will refuse us: {problem}")]

    def own_hello(
        self, interval_ms: int, dead_factor: int, epoch: EpochId | None, pair_key: bytes
    ) -> Hello:
        """Return a hello of ours, with what it says about policy and revocation lists."""
        policy = self._policy.policy
        if policy is not None:  # a large group may slow hellos down, but not beyond the policy
            interval_ms = min(interval_ms, policy.hello_interval_max_ms)
        return Hello(
            hello_interval_ms=interval_ms,
            dead_factor=dead_factor,
            epoch=epoch,
            pair_key=pair_key,
            policy_version=self._policy.version,
            policy_digest=self._policy.digest,
            trust_digest=self._revocations.digest,
        )

    def policy(self) -> DomainPolicy | None:
        """The domain policy that we keep to."""
        return self._policy.policy

    def status(self) -> dict[str, Any]:
        """Return our part of ``idpd status``."""
        store = self._identity.store
        if store is None:
            return self._policy.status()
        return {
            **self._policy.status(),
            "trust": {
                "digest": self._revocations.digest.hex(),
                "learned": len(store.learned),
                "awaited": self._strangers.awaited,
                "operations": dict(sorted(store.operations.items())),
                "revocation_lists": [
                    {
                        "issuer": item.issuer_name,
                        "number": item.version[0],
                        "revoked": len(item.revoked),
                    }
                    for item in store.revocations
                ],
            },
        }

    # Messages.

    def on_unknown(
        self,
        error: UnknownCertificateError,
        event: DatagramReceived,
        now: Instant,
        in_use: Container[IPv6Address],
    ) -> list[Effect]:
        """Take a message of a certificate that we do not have."""
        store = self._identity.store
        if store is None:
            return []
        before = store.learned
        try:
            device, effects = self._strangers.on_message(error, event, now, in_use)
        except PeerError as refused:
            return self._refuse(error.peer, refused, now)
        if device is not None:
            effects += self._on_learned(device, before, now)
        return effects

    def on_light(self, event: DatagramReceived, now: Instant) -> list[Effect]:
        """Take a light hello that did not count: perhaps we lack its sender's certificate."""
        if self._identity.store is None:
            return []
        try:
            fingerprint = LightHello.decode(event.payload).fingerprint
        except PeerError:
            return []  # refused and counted already
        if self._identity.knows(fingerprint):
            return []
        return self._strangers.on_light(event, fingerprint, now)

    def met(self) -> list[IPv6Address]:
        """Return whose certificate has come while no hello of theirs was kept; once."""
        met, self._strangers.met = self._strangers.met, []
        return met

    def _on_learned(
        self, device: KnownDevice, before: dict[bytes, bytes], now: Instant
    ) -> list[Effect]:
        """Act upon a certificate that was learned."""
        peer = device.peer
        store = self._identity.store
        assert store is not None
        after = store.learned
        self._identity.trust(store.devices())
        self.changed = True
        fields = {"peer": str(peer.address), "name": peer.name, "nation": peer.nation}
        text = f"learned the certificate of {peer.name} ({peer.nation}), {peer.address}"
        effects: list[Effect] = [Report("idp.learned", fields), Log("info", text)]
        for gone in before.keys() - after.keys():
            self._news.pop(gone, None)
            effects.append(DropTrust("certificate", gone))
        der = after.get(peer.fingerprint)
        if der is None:
            return effects  # pre-deployed meanwhile
        effects.append(KeepTrust("certificate", peer.fingerprint, der))
        credential = Credential(CredentialKind.CERTIFICATE, der)
        return effects + self._tell(peer.fingerprint, credential, now)

    def released(self) -> list[DatagramReceived]:
        """Return the messages whose sender's certificate has come meanwhile; once."""
        released, self._strangers.released = self._strangers.released, []
        return released

    def on_message(self, opened: Opened, now: Instant) -> list[Effect]:
        """Take an authenticated message of one of our kinds.

        Raises:
            PeerError: what is wrong with it.
        """
        peer = opened.peer
        if opened.kind == MessageKind.REQUEST:
            request = Request.decode(opened.body)
            if request.returned:
                return []  # we have learned its certificate meanwhile
            if not self._requests.take(now.mono_ns):
                self._counters.count("IDP-57")
                return []
            return self._on_request(peer, request, now)
        part = Part.decode(opened.body)
        if opened.kind == MessageKind.CERTIFICATE:
            return []
        document = self._assembler.add(peer.address, opened.kind, part, now.mono_ns)
        if document is None:
            return []
        if opened.kind == MessageKind.POLICY:
            return self._policy.on_document(peer, document, now)
        return self._on_revocations(document, now)

    def _on_request(self, peer: Peer, request: Request, now: Instant) -> list[Effect]:
        """Answer a device that we know."""
        match request.subject:
            case Subject.CERTIFICATE:
                if request.fingerprint != self._identity.me.fingerprint:
                    self._counters.count("idp.asked_for_other")
                    return []
                return self._strangers.hand_out(peer.address, now)
            case Subject.REVOCATIONS:
                return self._revocations.on_request(peer, request, now)
            case Subject.POLICY:
                return self._policy.on_request(peer, now)

    def _on_revocations(self, document: bytes, now: Instant) -> list[Effect]:
        """Learn a revocation list."""
        store = self._identity.store
        if store is None:
            return []
        item = store.learn_revocations(document, now.wall_ns)
        if item is None:
            return []
        self._changed_lists()
        fields = {"issuer": item.issuer_name, "number": item.version[0]}
        text = f"revocation list {item.version[0]} of '{item.issuer_name}' counts from now on"
        effects: list[Effect] = [
            Report("idp.revocations", fields),
            Log("info", text),
            *self._own_trouble(now),
            KeepTrust("revocations", item.issuer_id, item.der),
        ]
        credential = Credential(CredentialKind.REVOCATIONS, item.der)
        return effects + self._tell(item.issuer_id, credential, now)

    def _changed_lists(self) -> None:
        self.changed = True  # without a store, too: who holds the identity has changed it
        store = self._identity.store
        if store is not None:
            self._identity.trust(store.devices())
            self._revocations.refresh()

    def refused_policy(
        self, peer: Peer, hello: Hello, now: Instant, *, up: bool
    ) -> list[Effect] | None:
        """IDP-58: compare a peer's domain policy with ours; return None if the hello counts."""
        effects, reason = self._policy.judge(peer, hello, now, up=up)
        if reason:
            return effects + self._refuse(peer.name, PeerError("IDP-58", reason), now)
        return None

    def on_hello(self, peer: Peer, hello: Hello, now: Instant) -> list[Effect]:
        """A peer's hello counted: compare its revocation lists with ours (IDP-55)."""
        admitted = self._policy.admit(peer, now)
        if self._revocations.settles(peer, hello.trust_digest):
            return admitted
        delay_ns = int.from_bytes(self._keys.random_bytes(4), "big") % DELAY_NS
        return admitted + self._revocations.on_hello(peer, hello.trust_digest, now, delay_ns)

    def on_timer(self, now: Instant) -> list[Effect]:
        """Take the steps whose time has come."""
        return self._revocations.on_timer(now)

    # Files, and MIKE.

    def on_reread(self, event: TrustReread, now: Instant, *, running: bool) -> list[Effect]:
        """The operator changed the files: MIKE is told, and, if we run, everybody of the lists."""
        self._changed_lists()
        if event.policy is not None:
            self._policy.replace(event.policy)
        effects = self._own_trouble(now)
        for key, der in event.certificates.items():
            effects += self._tell(key, Credential(CredentialKind.CERTIFICATE, der), now)
        for key, der in event.revocations.items():
            effects += self._tell(key, Credential(CredentialKind.REVOCATIONS, der), now)
        if running:
            effects += self._revocations.announce(list(event.revocations.values()), now)
        return effects

    def _tell(self, key: bytes, credential: Credential, now: Instant) -> list[Effect]:
        """Tell MIKE, and remember it for a MIKE that starts anew."""
        if len(credential.der) > DER_MAX:
            text = f"{len(credential.der)} bytes are too long to hand to MIKE: reload it there, too"
            return [Log("error", text)]
        self._news.pop(key, None)
        self._news[key] = credential
        if len(self._news) > NEWS_MAX:
            del self._news[next(iter(self._news))]
        return self._mike.inform(credential, now)

    def repeat(self, now: Instant) -> list[Effect]:
        """Tell a MIKE that started anew what was learned."""
        effects = [
            effect
            for credential in self._news.values()
            for effect in self._mike.inform(credential, now)
        ]
        return effects + self._policy.repeat(now)
