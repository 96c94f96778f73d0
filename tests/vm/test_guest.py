"""The guest, seen from outside: status, output, result files, interruption; few boots."""

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from testbed.vm import layout

pytestmark = [pytest.mark.vm, pytest.mark.slow]

COMMAND = [sys.executable, "-m", "testbed.environment", "--env", "vm"]
BOOT_SECONDS = 120

RUNS = layout.VM_CACHE / "runs"
LEFT_BEFORE = set(RUNS.iterdir()) if RUNS.is_dir() else set()
"""Of runs that were killed, as some tests here are: ``make clean`` removes them."""

PROBE = r"""
echo "to out"; echo "to err" >&2; printf 'a\rb\r' >&2
echo "cwd=$PWD guest=$TESTBED_GUEST accelerator=$TESTBED_ACCELERATOR tty=$TESTBED_TTY"
python -c 'import sys, testbed, pyroute2; print("python", sys.executable, testbed.__file__)'
ip xfrm state add src ::1 dst ::1 proto esp spi 0x100 mode transport \
    aead "rfc4106(gcm(aes))" 0x1111111111111111111111111111111111111111 128 && echo esp
ip link add xfrm0 type xfrm dev lo if_id 42 && echo xfrm-interface
tc qdisc add dev lo root netem delay 1ms && tc qdisc del dev lo root && echo netem
nft add table inet guard && echo nftables
mnexec -n true && echo mnexec
python -c 'import socket; socket.socket(15, 3, 2)' && echo pfkey
mkdir -p "$1/deep" && echo kept >"$1/deep/result" && echo lost >/tmp/elsewhere
touch README.md.changed
exit 7
"""

INTERRUPTIBLE = r"""
trap 'echo cleaned >>"$1/result"; exit 130' INT
echo started >"$1/result"
echo started
while :; do read -r line </proc/uptime; done
"""

DEAF = r"""
trap 'echo deaf' INT
echo finished >"$1/repetition"
echo started
while :; do read -r line </proc/uptime; done
"""


def guest_command(script: str, folder: Path) -> list[str]:
    return [*COMMAND, "--writable", str(folder), "--", "bash", "-c", script, "bash", str(folder)]


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[bytes]:
    folder = tmp_path_factory.mktemp("results")
    done = subprocess.run(
        guest_command(PROBE, folder), cwd=layout.PROJECT, capture_output=True, check=False
    )
    done.args = folder
    return done


def test_the_exit_status_is_the_commands(probe: subprocess.CompletedProcess[bytes]) -> None:
    assert probe.returncode == 7, probe.stderr.decode()


def test_output_and_error_stay_apart_and_whole(probe: subprocess.CompletedProcess[bytes]) -> None:
    assert probe.stdout.startswith(b"to out\n")
    assert b"to err\na\rb\r" in probe.stderr
    assert b"to err" not in probe.stdout


def test_the_project_has_the_same_paths(probe: subprocess.CompletedProcess[bytes]) -> None:
    text = probe.stdout.decode()
    assert re.search(rf"^cwd={layout.PROJECT} guest=1 accelerator=(tcg|kvm) tty=$", text, re.M)
    assert f"{layout.PROJECT}/testbed/__init__.py" in text


@pytest.mark.parametrize(
    "feature", ["esp", "xfrm-interface", "netem", "nftables", "mnexec", "pfkey"]
)
def test_the_guest_can(feature: str, probe: subprocess.CompletedProcess[bytes]) -> None:
    assert feature in probe.stdout.decode().splitlines(), probe.stderr.decode()


def test_only_the_writable_folder_changes(probe: subprocess.CompletedProcess[bytes]) -> None:
    assert isinstance(probe.args, Path)
    assert (probe.args / "deep" / "result").read_text() == "kept\n"
    assert not (layout.PROJECT / "README.md.changed").exists()


def test_nothing_is_left_of_a_guest_that_ended_well(
    probe: subprocess.CompletedProcess[bytes],
) -> None:
    assert probe.returncode == 7
    left = {run for run in RUNS.iterdir() if (run / "shipment.tar").exists()}
    assert left <= LEFT_BEFORE


@contextmanager
def running(script: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a command in a guest and wait until it says that it runs."""
    process = subprocess.Popen(
        guest_command(script, folder), cwd=layout.PROJECT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_an_interrupted_command_cleans_up(tmp_path: Path) -> None:
    with running(INTERRUPTIBLE, tmp_path) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(BOOT_SECONDS) == 130
    assert (tmp_path / "result").read_text() == "started\ncleaned\n"


def test_a_second_interruption_ends_the_guest_and_keeps_results(tmp_path: Path) -> None:
    with running(DEAF, tmp_path) as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == "deaf\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(BOOT_SECONDS) == 130
    assert (tmp_path / "repetition").read_text() == "finished\n"


def test_a_killed_launcher_takes_the_guest_along(tmp_path: Path) -> None:
    with running(DEAF, tmp_path) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        guest = os.pidfd_open(int(children[0]))
        process.kill()
        process.wait(BOOT_SECONDS)
        # Readable when the process has ended.
        assert select.select([guest], [], [], BOOT_SECONDS)[0]
        os.close(guest)
