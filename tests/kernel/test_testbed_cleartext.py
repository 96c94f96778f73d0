"""The tunnel to compare with: red multicast crosses the same routers, and everybody can read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from testbed import session
from testbed.fleet import Fleet, FleetOptions
from testbed.redstreams import StreamSpec, streams_by_source
from testbed.surroundings import lans
from testbed.wait import wait_until
from topologies.families import coalition

pytestmark = [pytest.mark.kernel, pytest.mark.slow]


def test_clear_text_crosses_the_black_network_as_it_is(tmp_path: Path) -> None:
    topology = coalition(2)
    options = FleetOptions(
        sa_backend="memory", guard=False, clear_text=True, keep=tmp_path, capture=True
    )

    def inside() -> dict[str, Any]:
        with Fleet(topology, options) as fleet:
            for device in fleet.devices:
                fleet.start(device)
            fleet.await_members(list(fleet.devices), deadline_s=60)
            fleet.surroundings.wait_group(topology.group.black_group)
            clients = lans(topology)
            streams = fleet.surroundings.streams(fleet.processes)
            try:
                receiver = streams.receive(clients["d2"][-1])
                receiver.wait_ready()
                sender = streams.send(clients["d1"][0], StreamSpec(5, 20))
                wait_until(
                    lambda: any(True for _ in streams_by_source(receiver.ask())),
                    60,
                    "nothing of the stream has arrived",
                )
                sent = sender.stop()["sent"]
            finally:
                streams.close()
        return {
            "sent": sent,
            "captured": {link.link: str(link.path) for link in fleet.captured},
            "facts": (fleet.facts["clear_text"], fleet.facts["guard"]),
        }

    seen = session.call(inside)
    assert seen["facts"] == (True, False)
    wire = Path(seen["captured"]["r1-d1"]).read_bytes()
    # The stream's own mark stands on the wire for everybody to read.
    assert wire.count(b"RTs1\0\0\0\x05") >= 1
