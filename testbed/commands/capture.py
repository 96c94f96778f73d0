"""``testbed capture``: record the black wire of a network that is up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from testbed.errors import TestbedError

if TYPE_CHECKING:
    from testbed.witness import EspCount, EspFlow


@click.command()
@click.option(
    "--run", "run_id", metavar="ID", help="Which network, if several are up (see 'testbed status')."
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True, max=3600),
    default=10,
    show_default=True,
    help="How long.",
)
@click.option("--link", default="", metavar="NAME", help="Only this black link.")
@click.option(
    "--decrypt", is_flag=True, help="Write the keys too (mode 0600), and have tshark decrypt."
)
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the files; new or empty.",
)
def capture(run_id: str | None, seconds: float, link: str, decrypt: bool, output: Path) -> None:
    """Record every black link and write OUTPUT/black.pcap.

    With --decrypt also OUTPUT/esp_sa: the keys of every SA of every epoch while it was recorded, as
    tshark reads them. Whoever has that file can read the traffic.

    \b
    Examples:
      testbed capture --seconds 30 --output wire
      testbed capture --decrypt --output wire
      WIRESHARK_CONFIG_DIR=$PWD/wire tshark -r wire/black.pcap -Y esp
    """
    from testbed import live

    mailbox = live.mailbox_of(live.choose(run_id))
    if output.is_dir() and any(output.iterdir()):
        raise TestbedError(f"{output} is not empty; choose another folder")
    output.mkdir(mode=0o700 if decrypt else 0o755, parents=True, exist_ok=True)
    answer = mailbox.record(output, seconds=seconds, decrypt=decrypt, link=link)
    click.echo(_summary(answer, output))
    if decrypt:
        from testbed.recording import PCAP_FILE
        from testbed.witness import count_with_profile

        click.echo(_table(count_with_profile(output / PCAP_FILE, output)))


def _summary(answer: Mapping[str, Any], output: Path) -> str:
    links = answer["links"]
    packets, dropped = (sum(link[key] for link in links) for key in ("packets", "dropped"))
    text = f"{output}/black.pcap: {packets} packets of {len(links)} black links"
    if dropped:
        text += f"; {dropped} more were not captured"
    if answer["sas"]:
        text += f"; {output}/esp_sa: the keys of {answer['sas']} SAs"
    return text


def _table(counts: Mapping[EspFlow, EspCount]) -> str:
    if not counts:
        return "tshark sees no ESP packets"
    lines = ["tshark, ESP packets by source and SPI: seen, decrypted, and what was in them"]
    for flow, count in sorted(counts.items()):
        inner = ", ".join(
            f"{number} {source} > {destination}"
            for (source, destination), number in sorted(count.inner.items())
        )
        numbers = f"{count.packets:>6} {count.decrypted:>6}"
        lines.append(f"  {flow.source}  {flow.spi:#010x} {numbers}  {inner}".rstrip())
    return "\n".join(lines)
