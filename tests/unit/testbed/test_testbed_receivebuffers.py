"""The limit of receive buffers is raised, never lowered, and as large as a daemon asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.daemon.sockets import RECEIVE_BUFFER_BYTES
from testbed.receivebuffers import WANTED, raise_limit


@pytest.mark.parametrize(("before", "after"), [(212_992, WANTED), (4 * WANTED, 4 * WANTED)])
def test_the_limit_is_raised_and_never_lowered(tmp_path: Path, before: int, after: int) -> None:
    file = tmp_path / "rmem_max"
    file.write_text(f"{before}\n")
    assert raise_limit(file)
    assert int(file.read_text()) == after


def test_it_is_what_a_daemon_asks_for() -> None:
    assert WANTED == RECEIVE_BUFFER_BYTES


def test_without_the_setting_it_is_said(tmp_path: Path) -> None:
    assert not raise_limit(tmp_path / "missing")
