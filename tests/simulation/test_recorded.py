"""A recording that cannot be played is one line; a real one is in tests/emulation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from testbed import cli

EVENT = {"wall_ns": 1, "mono_ns": 1, "device": "d1", "daemon": "idpd", "point": "event"}


@pytest.mark.parametrize(
    ("trace", "text"),
    [
        ("", "holds no events"),
        ("junk", "trace:1: no line of a trace"),
        ('{"point": "event"}', "trace:1: no line of a trace"),
        (json.dumps({**EVENT, "daemon": "mproxyd", "type": "Stopped"}), "is not of one process"),
        (json.dumps({**EVENT, "daemon": "miked", "type": "Stopped"}), "with --record-secrets too"),
        (json.dumps({**EVENT, "type": "Stopped"}), "idpd.secrets: No such file"),
    ],
)
def test_what_is_no_recording(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trace: str, text: str
) -> None:
    config, file = tmp_path / "config.toml", tmp_path / "trace"
    config.write_text("nothing = 1\n")
    file.write_text(trace)
    with pytest.raises(SystemExit) as caught:
        cli.main(["sim", "--recording", str(file), "--config", str(config)])
    output = capsys.readouterr()
    assert (caught.value.code, output.out) == (1, "")
    assert text in output.err
    assert len(output.err.splitlines()) == 1


def test_recording_and_config_go_together(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "trace"
    file.write_text("")
    for words in (["--recording", str(file)], ["--seed", "1", "--config", str(file)]):
        with pytest.raises(SystemExit) as caught:
            cli.main(["sim", *words])
        assert caught.value.code == 2
        assert "go together" in capsys.readouterr().err
