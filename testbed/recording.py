"""A recording of the black wire of a network that is up, for ``testbed capture``."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from testbed.capture import Capture, black_points
from testbed.errors import TestbedError
from testbed.pcap import merge
from testbed.witness import PREFERENCES, KeyCollector, write_keys

if TYPE_CHECKING:
    from testbed.fleet import Fleet

PCAP_FILE: Final = "black.pcap"
PREFERENCES_FILE: Final = "preferences"
README_FILE: Final = "README"

_README: Final = """\
black.pcap: every black link of {topology}, {seconds:g} s, in order of time; a packet that crossed
several links is there several times.
"""
_README_KEYS: Final = """
esp_sa: the keys of {keys} SAs, of every epoch while it was recorded. Whoever has it reads the
traffic: mode 0600, keep it so. The folder is a configuration directory for tshark:

    WIRESHARK_CONFIG_DIR=$PWD tshark -r black.pcap -Y esp
"""


class Recording:
    """Records until its time is up; `tick` must be called again and again.

    Args:
        fleet: entered.
        folder: existing directory for the results.
        seconds: how long.
        decrypt: whether keys are collected too.
        link: the one black link to record, all if empty.

    Raises:
        TestbedError: there is no such link, no kernel SAs to decrypt with, or tcpdump fails.
    """

    def __init__(
        self, fleet: Fleet, folder: Path, *, seconds: float, decrypt: bool, link: str = ""
    ) -> None:
        points = black_points(fleet.network)
        chosen = [point for point in points if link in {"", point.link}]
        if not chosen:
            known = ", ".join(point.link for point in points)
            raise TestbedError(f"no black link {link!r}; there are {known}")
        if decrypt and not fleet.options.kernel:
            raise TestbedError(
                "nothing can be decrypted: this network has no kernel SAs (--sa-backend memory)"
            )
        self._folder = folder
        self._seconds = seconds
        self._topology = fleet.topology.name
        self._files = tempfile.TemporaryDirectory(prefix="recording")
        self._keys: KeyCollector | None = None
        self._capture = Capture(chosen, str(fleet.facts["run_id"]), Path(self._files.name))
        try:
            if decrypt:
                nodes = {name: fleet.network.pid(name) for name in fleet.devices}
                self._keys = KeyCollector(nodes)
            self._capture.start()
        except BaseException:
            self.close()
            raise
        self._end = time.monotonic() + seconds

    def tick(self) -> dict[str, Any] | None:
        """Go on; return what was recorded once the time is up.

        Returns:
            ``links`` (as `testbed.capture.CapturedLink`), ``sas`` (how many keys were written).

        Raises:
            TestbedError: a capture or the kernel failed meanwhile.
        """
        self._capture.check()
        if self._keys is not None:
            self._keys.poll()
        if time.monotonic() < self._end:
            return None
        captured = self._capture.stop()
        merge([one.path for one in captured], self._folder / PCAP_FILE)
        readme = _README.format(topology=self._topology, seconds=self._seconds)
        count = 0
        if self._keys is not None:
            self._keys.poll()
            sas = self._keys.sas()
            count = len(sas)
            write_keys(self._folder, sas)
            lines = [f"{name}: {value}\n" for name, value in PREFERENCES.items()]
            (self._folder / PREFERENCES_FILE).write_text("".join(lines), encoding="ascii")
            readme += _README_KEYS.format(keys=count)
        (self._folder / README_FILE).write_text(readme, encoding="utf-8")
        self.close()
        return {"links": [one.as_json() for one in captured], "sas": count}

    def stop_now(self) -> None:
        """Have the next `tick` finish it."""
        self._end = time.monotonic()

    def close(self) -> None:
        """End it, whether or not its time is up; idempotent."""
        self._capture.abandon()
        if self._keys is not None:
            self._keys.close()
        self._files.cleanup()
