"""Whether peers keep the same domain policy as we: compared, asked for, adopted, refused.

Pure state, owned and driven by `protocol.idp.exchange`. A device without a policy goes with
devices without one only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv6Address
from typing import Any

from protocol.core.counters import RuleCounters
from protocol.core.engine import Effect, Instant, Log, Report, SendDatagram
from protocol.core.errors import PeerError
from protocol.identity import PROTOCOL_IDP, Identity, Peer
from protocol.idp.config import IdpConfig
from protocol.idp.documents import Request, Subject, split
from protocol.idp.events import KeepTrust
from protocol.idp.hellos import GROUP
from protocol.idp.messages import NO_DIGEST, Hello, MessageKind
from protocol.idp.policy import DomainPolicy
from protocol.idp.signalling import Signalling
from protocol.idpmike import SignalKind, Standing

PEERS_MAX = 512
"""Peers with another policy that are remembered; the one longest unheard gives way."""

GAP_NS = 2_000_000_000
GAP_MAX_NS = 60_000_000_000
"""A peer is asked for its policy again after this, doubling up to that, while it keeps it."""

REASON_MAX = 200
"""Characters of a reason for MIKE."""


@dataclass(frozen=True)
class OwnPolicy:
    """The domain policy that a device starts with, and how it judges others.

    Attributes:
        policy: what it keeps to.
        document: the signed document, as others may ask for it.
        open: returns the content of a signed document at a time (UTC ns), or raises `PeerError`.
    """

    policy: DomainPolicy
    document: bytes
    open: Callable[[bytes, int], bytes]

    @cached_property
    def digest(self) -> bytes:
        """What our hello says; computed once, for it is compared with that of every hello."""
        return self.policy.digest()


@dataclass(slots=True)
class _Other:
    """A peer that keeps another policy than we."""

    version: int
    digest: bytes
    due_mono_ns: int
    gap_ns: int = GAP_NS
    verdict: str = ""
    barred: bool = False


class PolicyKeeper:
    """See the module.

    Args:
        own: what we keep to, or None.
        config: of the engine; a policy that it breaks is not adopted.
        identity: what seals.
        counters: of the engine.
        mike: our end of the interface to MIKE.
    """

    def __init__(
        self,
        own: OwnPolicy | None,
        config: IdpConfig,
        identity: Identity,
        counters: RuleCounters,
        mike: Signalling,
    ) -> None:
        self._own = own
        self._config = config
        self._identity = identity
        self._counters = counters
        self._mike = mike
        self.forget()

    def forget(self) -> None:
        """Begin anew with an instance; what was adopted stays, and MIKE bars nobody any more."""
        self._others: OrderedDict[IPv6Address, _Other] = OrderedDict()

    @property
    def policy(self) -> DomainPolicy | None:
        """The policy that we keep to."""
        return None if self._own is None else self._own.policy

    @property
    def version(self) -> int:
        """Its version, 0 without one."""
        return 0 if self._own is None else self._own.policy.version

    @property
    def digest(self) -> bytes:
        """Its digest, zeros without one."""
        return NO_DIGEST if self._own is None else self._own.digest

    def status(self) -> dict[str, Any]:
        """Return our part of ``idpd status``."""
        if self._own is None:
            return {"policy": None}
        policy = self._own.policy
        return {"policy": {"digest": policy.digest().hex(), **policy.describe()}}

    # Hellos.

    def judge(
        self, peer: Peer, hello: Hello, now: Instant, *, up: bool
    ) -> tuple[list[Effect], str]:
        """Compare a peer's policy with ours.

        Args:
            peer: who sent the hello.
            hello: it.
            now: the time.
            up: whether the peer is up; it then has its dead interval to adopt ours, or we its.

        Returns:
            The effects, and why the hello is refused; empty: it is not.
        """
        own = self._own
        version, digest = (0, NO_DIGEST) if own is None else (own.policy.version, own.digest)
        if hello.policy_version == version and hello.policy_digest == digest:
            return [], "" if own is None else self._broken_by(hello)
        other = self._others.get(peer.address)
        if other is None or other.digest != hello.policy_digest:
            barred = other is not None and other.barred
            other = _Other(hello.policy_version, hello.policy_digest, now.mono_ns, barred=barred)
            self._others[peer.address] = other
            if len(self._others) > PEERS_MAX:
                self._others.popitem(last=False)
        self._others.move_to_end(peer.address)
        reason = self._reason(other)
        effects: list[Effect] = []
        if self._own is not None and hello.policy_version and now.mono_ns >= other.due_mono_ns:
            effects += self._ask(peer.address, other, now)
        if not up and not other.barred:
            other.barred = True
            effects += self._mike.inform(Standing(peer.address, reason[:REASON_MAX]), now)
            effects += self._mike.signal(SignalKind.LEAVE, peer.address, 0, now)
        return effects, reason

    def _broken_by(self, hello: Hello) -> str:
        """Say what a hello breaks of the policy that it claims to keep."""
        policy, announced = self.policy, hello.hello_interval_ms
        if policy is None:
            return ""
        low, high = policy.hello_interval_min_ms, policy.hello_interval_max_ms
        if low <= announced <= high:
            return ""
        return f"it announces a hello interval of {announced} ms, the policy allows {low} to {high}"

    def admit(self, peer: Peer, now: Instant) -> list[Effect]:
        """Tell MIKE that a peer whose hello counted may be acted upon again."""
        other = self._others.pop(peer.address, None) if self._others else None
        if other is None or not other.barred:
            return []
        return self._mike.inform(Standing(peer.address, ""), now)

    def _reason(self, other: _Other) -> str:
        """Name the difference."""
        if other.verdict:
            return other.verdict
        theirs = f"domain policy {other.version}" if other.version else "no domain policy"
        ours = f"domain policy {self.version}" if self._own is not None else "none"
        return f"it keeps {theirs}, we keep {ours}"

    def _ask(self, to: IPv6Address, other: _Other, now: Instant) -> list[Effect]:
        other.due_mono_ns = now.mono_ns + other.gap_ns
        other.gap_ns = min(2 * other.gap_ns, GAP_MAX_NS)
        if other.verdict:
            return []
        self._counters.count("idp.policy_asked")
        body = Request(Subject.POLICY).encode()
        sealed = self._identity.seal(PROTOCOL_IDP, MessageKind.REQUEST, body, now, to)
        return [SendDatagram(GROUP, sealed, to)]

    # Documents.

    def on_request(self, peer: Peer, now: Instant) -> list[Effect]:
        """Send our policy to a device that asks for it."""
        if self._own is None:
            return []
        self._counters.count("idp.policy_sent")
        seal, to = self._identity.seal, peer.address
        bodies = [part.encode() for part in split(self._own.document)]
        return [
            SendDatagram(GROUP, seal(PROTOCOL_IDP, MessageKind.POLICY, body, now, to), to)
            for body in bodies
        ]

    def on_document(self, peer: Peer, document: bytes, now: Instant) -> list[Effect]:
        """IDP-59, IDP-60: judge a peer's policy document; adopt it if it is newer and we can.

        Raises:
            PeerError: why it is not adopted.
        """
        own, other = self._own, self._others.get(peer.address)
        if own is None or other is None or other.verdict:
            raise PeerError("IDP-54", "a policy that was not asked for")
        self._counters.count("idp.policy_verified")
        try:
            policy = _opened(own, document, other, now)
        except PeerError as error:
            other.verdict = f"{self._reason(other)}; its document is refused: {error.reason}"
            raise
        difference = "; ".join(own.policy.differences(policy))
        verdict = f"its domain policy differs: {difference}"
        defects = policy.defects(self._config)
        newer = policy.version > own.policy.version and policy.domain == own.policy.domain
        if newer and not defects:
            return self._adopt(OwnPolicy(policy, document, own.open), peer, difference, now)
        if newer:
            broken = "; ".join(f"{field} {text}" for field, text in defects)
            verdict += f" (not adopted, we would break it: {broken})"
        other.verdict = verdict
        raise PeerError("IDP-60", verdict)

    def _adopt(self, own: OwnPolicy, peer: Peer, difference: str, now: Instant) -> list[Effect]:
        """Keep to a newer policy from now on."""
        self._own = own
        for other in self._others.values():
            other.verdict, other.due_mono_ns = "", now.mono_ns
        version = own.policy.version
        return [
            KeepTrust("policy", b"\x00", own.document),
            Report("idp.policy", {"version": version, "from": str(peer.address)}),
            Log("info", f"adopted domain policy {version} from {peer.name}: {difference}"),
        ]

    def replace(self, own: OwnPolicy) -> None:
        """Keep to the operator's newer policy; an older one in the file changes nothing."""
        present = self._own
        if present is None or present.policy.domain != own.policy.domain:
            return
        if own.policy.version > present.policy.version:
            self._own = own
            for other in self._others.values():
                other.verdict = ""

    def repeat(self, now: Instant) -> list[Effect]:
        """Tell a MIKE that started anew whose messages it may not act upon."""
        return [
            effect
            for address, other in self._others.items()
            if other.barred
            for effect in self._mike.inform(
                Standing(address, self._reason(other)[:REASON_MAX]), now
            )
        ]


def _opened(own: OwnPolicy, document: bytes, other: _Other, now: Instant) -> DomainPolicy:
    """IDP-59: return the policy in a peer's document, if it is signed and the one it announces."""
    policy = DomainPolicy.decode(own.open(document, now.wall_ns))
    if (policy.version, policy.digest()) != (other.version, other.digest):
        raise PeerError("IDP-59", "not the policy that its hello names")
    return policy
