"""The set-up's routing steps, with programs that stand in for Debian's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from testbed.vm import layout

STAND_INS = {
    "apt-get": """
case "$*" in
    *indextargets*) echo "Debian http://debian.example/debian bookworm main" ;;
    *"source --download-only frr"*)
        [ ! -e "$PROJECT/offline" ] || { echo "E: Failed to fetch it"; exit 100; }
        printf 'Version: 8.4.4-1\\n' >frr_8.4.4-1.dsc
        echo original >frr_8.4.4.orig.tar.xz ;;
esac
""",
    "dpkg-query": "echo -n installed",
    # A source that can be configured but not made.
    "dpkg-source": """
mkdir source && printf '#!/bin/sh\\n' >source/configure && chmod +x source/configure
""",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copytree(layout.PROJECT / "testbed" / "setup", tmp_path / "testbed" / "setup")
    (tmp_path / "bin").mkdir()
    for name, body in STAND_INS.items():
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
    return tmp_path


def setup(project: Path, step: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(project / "testbed" / "setup" / "setup.sh"), step],
        capture_output=True,
        text=True,
        check=False,
        env={
            "PATH": f"{project / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin",
            "PROJECT": str(project),
            **environment,
        },
    )


def leftovers(project: Path) -> list[str]:
    return [path.name for path in (project / ".cache" / "frr").glob("build.*") if path.is_dir()]


def test_frr_may_be_left_out(project: Path) -> None:
    done = setup(project, "frr", FRR="no")
    assert done.returncode == 0
    assert done.stderr == "setup: FRR is not wanted: black routers use static multicast routes\n"
    assert not (project / ".cache" / "frr").exists()


def test_a_source_that_cannot_be_fetched_is_one_line_with_its_cure(project: Path) -> None:
    (project / "offline").touch()
    done = setup(project, "frr")
    assert done.returncode == 1
    *_, line = done.stderr.splitlines()
    assert line.startswith(
        "setup: error: fetching the source package frr failed: E: Failed to fetch"
    )
    assert "(log: .cache/frr/build.log)" in line
    assert "run 'make setup' again, or do without it: FRR=no" in line
    assert leftovers(project) == []


def test_a_build_that_fails_leaves_the_former_one(project: Path) -> None:
    former = project / ".cache" / "frr" / "8.4.3-1-former"
    former.mkdir(parents=True)
    (former / "checksums").touch()
    (former.parent / "current").symlink_to(former.name)
    (former.parent / "build.killed").mkdir()
    done = setup(project, "frr")
    assert done.returncode == 1
    assert "setup: error: building FRR 8.4.4-1 failed: " in done.stderr
    assert (former.parent / "current").resolve() == former
    assert leftovers(project) == []


def test_what_is_there_is_not_made_again(project: Path) -> None:
    script = project / "testbed" / "setup" / "routing.sh"
    ask = f'source "{script}"; frr_recipe'
    recipe = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True).stdout
    built = project / ".cache" / "frr" / f"8.4.4-1-{recipe.strip()}"
    built.mkdir(parents=True)
    (built / "checksums").touch()
    (built.parent / "current").symlink_to(built.name)
    done = setup(project, "frr")
    assert (done.returncode, done.stderr) == (0, "")
    # Another way to build is another recipe; another comment is not.
    text = script.read_text()
    script.write_text(text.replace("-O1", "-O2"))
    changed = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True).stdout
    script.write_text(f"# a comment\n{text}")
    same = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True).stdout
    assert changed != recipe == same
