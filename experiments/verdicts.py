"""What the captures of the black wire say when all is over: no leak, and all is accounted for.

Keys are in memory and, while tshark runs, in a private file; only counts leave this module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments.ledger import Counted, Ledger
from experiments.redside import Place
from experiments.streams import MARK
from testbed.capture import CapturedLink
from testbed.device import RESPONDER_PORT
from testbed.guard import BlackChannels
from testbed.leaks import LeakReport, LeakRules, check_leaks
from testbed.witness import decrypt_count

if TYPE_CHECKING:
    from protocol.ipsec.model import SecurityAssociation
    from testbed.fleet import Fleet


def judge_leaks(fleet: Fleet) -> tuple[LeakReport, list[dict[str, Any]]]:
    """Judge every frame of every black link of a fleet that has ended; return rows for leaks.csv.

    Raises:
        TestbedError: a capture is torn, or tshark fails.
    """
    options = fleet.options
    rules = LeakRules.of(
        fleet.topology, BlackChannels.of(options.idp, options.mike), RESPONDER_PORT, (MARK,)
    )
    report = check_leaks(fleet.captured, rules)
    dropped = {one.link: one.dropped for one in fleet.captured}
    rows = [
        {"link": link, "traffic": kind, "frames": frames, "not_captured": dropped[link]}
        for link, kinds in report.by_link.items()
        for kind, frames in sorted(kinds.items())
    ]
    return report, rows


class Verdicts:
    """Judges the captures of a fleet that has ended.

    Args:
        fleet: whose context was left; it captured.
        links: name of each device's own black link.
        ledger: what was sent.
        places: red places by name.
        sas: every SA of every epoch, with its keys.

    Attributes:
        leak_rows: rows of leaks.csv, one per link and kind of traffic.
        witness_rows: rows of witness.csv, one per device and epoch.
    """

    def __init__(
        self,
        fleet: Fleet,
        links: Mapping[str, str],
        ledger: Ledger,
        places: Mapping[str, Place],
        sas: Sequence[SecurityAssociation],
    ) -> None:
        self._fleet = fleet
        self._links = links
        self._ledger = ledger
        self._places = places
        self._sas = sas
        self.leak_rows: list[dict[str, Any]] = []
        self.witness_rows: list[dict[str, Any]] = []

    def leaks(self) -> list[str]:
        """Judge every frame of every black link; return what is wrong.

        Raises:
            TestbedError: a capture is torn, or tshark fails.
        """
        report, rows = judge_leaks(self._fleet)
        self.leak_rows += rows
        return [] if report.ok else [report.text()]

    def witness(self) -> list[str]:
        """Have tshark decrypt each device's own link and compare; return what is not equal.

        Raises:
            DissectorError: tshark is missing or refuses.
        """
        problems = []
        captured = {one.link: one for one in self._fleet.captured}
        for device, link in self._links.items():
            sources = [
                str(address)
                for place in self._places.values()
                if place.lan == device
                for address in place.addresses.values()
            ]
            for row in self._ledger.rows(self._counted(captured[link], device), sources):
                self.witness_rows.append({"link": link, "device": device, **row})
                if not row["equal"]:
                    problems.append(
                        f"{device} in epoch {row['epoch'] or '(forming)'}: {row['packets']} ESP "
                        f"packets, {row['decrypted']} decrypted, {row['red']} of them red "
                        f"streams, {row['sent']} sent and {row['sent_early']} sent early"
                    )
        return problems

    def _counted(self, captured: CapturedLink, device: str) -> list[Counted]:
        black = self._fleet.addresses[device]
        return [
            Counted(flow.spi, count.packets, count.decrypted, count.inner)
            for flow, count in decrypt_count(captured.path, self._sas).items()
            if flow.source == black
        ]

    def discard(self, *, keep: bool) -> None:
        """Remove the captures of a clean repetition, unless they are wanted."""
        if not keep:
            for one in self._fleet.captured:
                one.path.unlink(missing_ok=True)
