"""What gatewayd asks a leg's idpd, and how it reads the answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from ipaddress import IPv6Address, ip_network
from typing import Any

from protocol.core.errors import LocalError
from protocol.daemon.controlclient import ControlClient
from protocol.gateway.config import Network
from protocol.gateway.events import LegView
from protocol.gateway.messages import Member
from protocol.idpmike import EpochId

TIMEOUT_MS = 5000
"""A daemon that is busy, in a crowded machine, still answers within a second or two."""


def read_view(answer: Mapping[str, Any] | None) -> LegView | None:
    """Return what an idpd's ``status`` says of its partition, None if it does not run.

    Raises:
        LocalError: it is no status of an idpd.
    """
    if answer is None or answer.get("state") != "running":
        return None
    try:
        epoch, own = answer["key_epoch"], answer.get("own_prefixes")
        return LegView(
            startup_wall_ns=int(answer["startup_wall_ns"]),
            epoch=None if epoch is None else EpochId.parse(epoch),
            up=tuple(
                Member(IPv6Address(peer["address"]), str(peer["name"]))
                for peer in answer["peers"]
                if peer["state"] == "up"
            ),
            prefixes=tuple(
                (ip_network(item["prefix"]), IPv6Address(item["peer"]))
                for item in answer.get("prefixes", ())
            ),
            trust_digest=str(answer.get("trust", {}).get("digest", "")),
            announced=None if own is None else frozenset(ip_network(text) for text in own),
        )
    except (KeyError, TypeError, ValueError, LocalError) as error:
        raise LocalError(f"idpd's status cannot be read: {error!r}") from error


class LegIdpd:
    """The idpd of one leg, as gatewayd sees it.

    Args:
        client: of its control socket.
        tell: gets what it says of its partition.
        log: gets a line when it refuses something.

    Attributes:
        counters: what went wrong, by reason.
    """

    def __init__(
        self,
        client: ControlClient,
        tell: Callable[[LegView | None], None],
        log: Callable[[str, str], None],
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._client = client
        self._tell = tell
        self._log = log
        self._refusals: set[str] = set()

    def poll(self) -> None:
        """Ask how it is, unless it still owes an answer."""
        if not self._client.waiting:
            self._client.ask({"cmd": "status"}, self._on_status)

    def _on_status(self, answer: dict[str, Any] | None) -> None:
        try:
            self._tell(read_view(answer))
        except LocalError as error:
            self.counters["gateway.status_unreadable"] += 1
            self._say(str(error))
            self._tell(None)

    def announce(self, prefix: Network) -> None:
        """Have it announce a prefix."""
        self._command("prefix_add", prefix)

    def withdraw(self, prefix: Network) -> None:
        """Have it announce a prefix no longer."""
        self._command("prefix_remove", prefix)

    def reread_trust(self) -> None:
        """Have it read certificates and revocation lists again, and hand on what is new."""
        self._ask({"cmd": "trust_reload"}, "")

    def _command(self, command: str, prefix: Network) -> None:
        # If it fails, the next poll shows what it announces; the engine then asks again.
        message = {"cmd": command, "prefix": str(prefix), "while_connected": True}
        self._ask(message, f" {prefix}")

    def _ask(self, message: dict[str, Any], about: str) -> None:
        command = message["cmd"]

        def done(answer: dict[str, Any] | None) -> None:
            if answer is None or not answer.get("ok"):
                self.counters[f"gateway.{command}_failed"] += 1
                reason = "no answer" if answer is None else str(answer.get("error"))
                self._say(f"{command}{about}: {reason}")

        self._client.ask(message, done)

    def _say(self, text: str) -> None:
        """Log a refusal once; there may be one in every poll."""
        if text not in self._refusals:
            if len(self._refusals) >= 256:
                self._refusals.clear()
            self._refusals.add(text)
            self._log("warning", text)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
