"""Asks tshark, which shares no code with us, what is in captured frames."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from testbed.errors import TestbedError

_COMPLAINT_BYTES: Final = 4000


class DissectorError(TestbedError):
    """tshark is missing or refuses."""


def dissect(
    pcap: Path,
    fields: Sequence[str],
    *,
    preferences: Mapping[str, str],
    as_data: Sequence[int] = (),
    display_filter: str = "",
    profile: Path | None = None,
) -> Iterator[tuple[str, ...]]:
    """Yield one row per frame: the text of each field, several values separated by commas.

    tshark runs without the user's own configuration.

    Args:
        pcap: the file.
        fields: names of tshark.
        preferences: name -> value.
        as_data: UDP ports whose payload is not looked into.
        display_filter: which frames; all if empty.
        profile: directory with tshark's private files, such as keys: they do not appear in the
            process list, as arguments would. None: an empty one.

    Raises:
        DissectorError: tshark is not installed, or failed; its own words.
    """
    program = shutil.which("tshark")
    if program is None:
        raise DissectorError("tshark is not installed; run 'make setup'")
    command = [program, "-n", "-r", str(pcap), "-T", "fields", "-E", "separator=/t"]
    for name, value in preferences.items():
        command += ["-o", f"{name}:{value}"]
    for port in as_data:
        command += ["-d", f"udp.port=={port},data"]
    for name in fields:
        command += ["-e", name]
    if display_filter:
        command += ["-Y", display_filter]
    with tempfile.TemporaryDirectory(prefix="dissector") as empty, tempfile.TemporaryFile() as said:
        environment = {**os.environ, "WIRESHARK_CONFIG_DIR": str(profile or empty)}
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            env=environment,
            encoding="utf-8",
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    yield tuple(line.rstrip("\n").split("\t"))
            except GeneratorExit:
                process.kill()
                raise
        if process.returncode != 0:
            said.seek(0)
            lines = said.read(_COMPLAINT_BYTES).decode(errors="replace").strip().splitlines()
            detail = lines[-1] if lines else "no message"
            raise DissectorError(f"tshark ended with {process.returncode}: {detail}")
