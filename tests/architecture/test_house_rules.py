"""The house rules that a machine can check (docs/ARCHITECTURE.md, docs/TESTING.md)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("protocol", "testbed", "topologies", "experiments")
MAX_LINES = 500

SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def _relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=_relative)
def test_file_is_small(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= MAX_LINES, f"{_relative(path)} has {lines} lines; one subject a file, please"


@pytest.mark.parametrize("path", SOURCES, ids=_relative)
def test_no_unfinished_code(path: Path) -> None:
    found = re.findall(r"NotImplementedError|\bTODO\b|\bFIXME\b|\bXXX\b", path.read_text())
    assert not found, f"{_relative(path)} holds {found}"


@pytest.mark.parametrize("path", TESTS, ids=_relative)
def test_tests_never_sleep(path: Path) -> None:
    if path == Path(__file__).resolve():
        return
    lines = path.read_text().splitlines()
    found = [
        f"line {number}"
        for number, line in enumerate(lines, 1)
        if re.search(r"(time|asyncio)\.sleep\(", line) and "# poll" not in line
    ]
    assert not found, f"{_relative(path)}: {found}: wait for state (mark a bounded poll '# poll')"


@pytest.mark.parametrize(
    ("document", "code", "prefix"),
    [
        ("idp.md", "protocol/idp", "IDP"),
        ("mike.md", "protocol/mike", "MIKE"),
        ("mproxy.md", "protocol/mproxy", "MPROXY"),
        ("gateways.md", "protocol/gateway", "GATE"),
    ],
)
def test_every_rule_has_a_row_a_check_and_a_test(document: str, code: str, prefix: str) -> None:
    pattern = re.compile(rf"\b{prefix}-\d+\b")
    rows = set(pattern.findall((ROOT / "docs" / document).read_text()))
    checks = {r for p in (ROOT / code).rglob("*.py") for r in pattern.findall(p.read_text())}
    tested = {r for p in TESTS for r in pattern.findall(p.read_text())}
    assert rows, f"docs/{document} names no rule"
    assert rows == checks, f"in docs or in code only: {sorted(rows ^ checks)}"
    assert rows <= tested, f"rules without a test: {sorted(rows - tested)}"


def test_import_contracts_hold() -> None:
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; "
        "lint_imports_command(standalone_mode=True)",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_documents_point_at_files_that_exist() -> None:
    missing = []
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", document.read_text()):
            if not (document.parent / target).exists():
                missing.append(f"{_relative(document)} -> {target}")
    assert not missing, missing


def test_no_machine_paths_are_committed() -> None:
    done = subprocess.run(
        [
            "git",
            "grep",
            "-nIE",
            r"(^|[^A-Za-z0-9_.])/(work|home|root/\.pyenv)/",
            "--",
            ".",
            ":!*.lock",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    hits = [line for line in done.stdout.splitlines() if "tests/architecture" not in line]
    assert not hits, hits
