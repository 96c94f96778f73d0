"""The command line: help everywhere, exit statuses, one line for an error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from testbed import cli
from testbed.errors import TestbedError


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    output = capsys.readouterr()
    code = caught.value.code
    return code if isinstance(code, int) else 0, output.out, output.err


def every_command() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    context = click.Context(cli.command_line)
    for name in cli.COMMANDS:
        command = cli.command_line.get_command(context, name)
        assert command is not None, name
        found.append((name,))
        if isinstance(command, click.Group):
            found += [(name, inner) for inner in command.commands]
    return found


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_every_command_explains_itself_with_an_example(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    code, out, err = run(capsys, *words, "--help")
    assert (code, err) == (0, "")
    group = out.startswith(f"Usage: testbed {' '.join(words)} [OPTIONS] COMMAND")
    from_experiments = words[0] == "run" and len(words) == 2  # its group has the examples
    assert group or from_experiments or "Example" in out, out
    # Examples keep their lines: click's mark for that is a backspace, not its escape sequence.
    assert "\\b" not in out
    assert "Examples:" not in out or "Examples:\n    testbed " in out


def test_help_imports_no_heavy_module() -> None:
    script = (
        "import sys; from testbed import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'pandas', 'matplotlib', 'mininet', 'cryptography', 'pyroute2', 'experiments'}\n"
        "sys.exit(f'imported: {heavy & set(sys.modules)}' if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in cli.COMMANDS:
        assert name in done.stdout


def test_the_summaries_of_help_are_those_of_the_commands() -> None:
    for name, (_, _, summary) in cli.COMMANDS.items():
        assert summary.endswith("."), name
        assert len(summary) < 70, name


@pytest.mark.parametrize(
    "words",
    [("bogus",), ("up",), ("up", "measurement", "--env", "moon"), ("topology", "show"), ("--no",)],
)
def test_wrong_usage_is_2(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    code, _, err = run(capsys, *words)
    assert code == 2
    assert "Traceback" not in err


def test_an_expected_error_is_one_line_and_1(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "topology", "show", "mesurement")
    assert (code, out) == (1, "")
    assert err.startswith("testbed: error: unknown topology 'mesurement'; known: ")
    assert err.count("\n") == 1


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(TestbedError, match="unknown topology"):
        cli.main(["--debug", "topology", "show", "mesurement"])


def test_a_mistake_in_a_topology_file_names_its_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "t.toml"
    path.write_text('[topology]\nname = "x"\ntitle = 3\n')
    code, _, err = run(capsys, "topology", "show", str(path))
    assert code == 1
    assert err == f"testbed: error: {path}:3: topology: title: must be a non-empty string, is 3\n"


def test_an_interrupt_is_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.command_line, "main", interrupted)
    assert run(capsys)[0] == 130


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("bug")

    monkeypatch.setattr(cli.command_line, "main", broken)
    with pytest.raises(KeyError):
        cli.main([])


def test_no_network_is_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TESTBED_RUN_BASE", str(tmp_path))
    for words in (("status",), ("down",), ("exec", "d1", "true")):
        code, _, err = run(capsys, *words)
        assert (code, err.count("\n")) == (1, 1)
        assert "no network is up" in err
    assert run(capsys, "down", "--all")[:2] == (0, "no network is up\n")
    assert run(capsys, "clean")[:2] == (0, "nothing to clean\n")


def test_topologies_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "topology", "list")
    assert code == 0
    assert "measurement" in out
    code, out, _ = run(capsys, "topology", "show", "measurement")
    assert code == 0
    assert "d10" in out
    assert "100 Mbit/s" in out


def test_a_coalition_is_made_and_a_device_revoked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    target = tmp_path / "pki"
    code, out, _ = run(capsys, "pki", "make", "star(2)", str(target))
    assert code == 0
    assert out.split() == [str(target / "devices" / "d1"), str(target / "devices" / "d2")]
    assert run(capsys, "pki", "make", "star(2)", str(target))[0] == 1
    assert run(capsys, "pki", "revoke", str(target), "d2")[:2] == (0, "revoked: d2\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    code, out, _ = run(capsys, "completion", shell)
    assert code == 0
    assert "_TESTBED_COMPLETE" in out
