"""What iproute2 sent and what a kernel answered, byte for byte (tests/vectors/xfrm/record.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from protocol.ipsec.model import KeyMaterial, Mode, SecurityAssociation, Suite
from protocol.xfrm.codec import decode
from protocol.xfrm.messages import Ack, DelPolicy, DelSa, ExpireSa, NewSa
from tests.support.xfrm import GROUP, OWN, plain

FOLDER = Path(__file__).parents[2] / "vectors" / "xfrm"
FIXTURES: list[dict[str, Any]] = [
    fixture
    for name in ("requests", "answers")
    for fixture in json.loads((FOLDER / f"{name}.json").read_text())
]


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda fixture: fixture["what"][:60])
def test_fixture(fixture: dict[str, Any]) -> None:
    frames = decode(bytes.fromhex(fixture["hex"]))
    assert json.loads(json.dumps([plain(frame.message) for frame in frames])) == fixture["expected"]


def messages(start: str) -> list[Any]:
    """Messages of the fixtures whose description starts so."""
    return [
        frame.message
        for fixture in FIXTURES
        if fixture["what"].startswith(start)
        for frame in decode(bytes.fromhex(fixture["hex"]))
    ]


def test_ip_and_kernel_mean_the_sa_that_was_written_on_the_command_line() -> None:
    sa = SecurityAssociation(
        source=OWN,
        destination=GROUP,
        spi=0x1001,
        suite=Suite.AES_GCM_128,
        key=KeyMaterial(bytes(range(20))),
        mode=Mode.TUNNEL,
        reqid=7,
        if_id=0x42,
        replay_window=32,
    )
    line = "xfrm state add src 2001:db8:b::1 dst ff0e::1 proto esp spi 0x1001"
    for start in (line, f"announced: {line}"):
        (message,) = messages(start)
        assert message.sa == sa
    assert sa in [message.sa for message in messages("dump of SAs") if isinstance(message, NewSa)]


def test_wide_windows_and_esn_are_read() -> None:
    found = {
        message.sa.spi: (message.sa.replay_window, message.sa.esn)
        for message in messages("dump of SAs")
        if isinstance(message, NewSa) and isinstance(message.sa, SecurityAssociation)
    }
    assert found[0x1004] == (64, False)
    assert found[0x1005] == (128, True)


def test_the_kernels_refusals_have_its_words() -> None:
    assert messages("refused: delete") == [Ack(3, "")]
    assert messages("refused: with the words") == [Ack(22, "Invalid address family")]
    assert messages("refused: with the kernel's words") == [Ack(22, "Invalid address family")]


def test_announcements() -> None:
    (deleted,) = messages("announced: xfrm state delete")
    assert isinstance(deleted, DelSa)
    (expired,) = messages("announced: it expired")
    assert isinstance(expired, ExpireSa)
    assert expired.hard
    (policy,) = messages("announced: xfrm policy delete")
    assert isinstance(policy, DelPolicy)
