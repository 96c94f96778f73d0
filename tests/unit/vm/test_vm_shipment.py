"""What travels to the guest at each boot."""

import io
import marshal
import tarfile
from pathlib import Path

import pytest

from testbed.vm import agent
from testbed.vm.shipment import Job, job_files, project_files, write_shipment

JOB = Job(["sh", "-c", "a b"], "/some dir", {"A": "1=2"}, {"share0": "/some dir/out"})


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    for name in ("pkg/code.py", "pkg/broken.py", ".git/x", ".venv/x", "results/run/x", "a_cache/x"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("answer = 42\n")
    (root / "pkg" / "broken.py").write_text("def (:\n")
    (root / "dangling").symlink_to("nowhere")
    return root


def names_in(archive: Path) -> list[str]:
    with tarfile.open(archive) as tar:
        return tar.getnames()


def test_history_caches_and_results_stay_at_home(project: Path) -> None:
    names = {str(path.relative_to(project)) for path in project_files(project)}
    assert names == {"pkg/code.py", "pkg/broken.py", "dangling"}


def test_code_travels_with_its_compiled_form(project: Path, tmp_path: Path) -> None:
    target = tmp_path / "shipment.tar"
    write_shipment(target, JOB, project, tmp_path / "cache")
    code = [name for name in names_in(target) if "/code." in name]
    assert len(code) == 2
    with tarfile.open(target) as tar:
        member = tar.extractfile(next(name for name in code if name.endswith(".pyc")))
        assert member is not None
        compiled = marshal.loads(member.read()[16:])
    assert compiled.co_filename == str(project / "pkg" / "code.py")


def test_a_syntax_error_does_not_stop_the_boot(project: Path, tmp_path: Path) -> None:
    target = tmp_path / "shipment.tar"
    write_shipment(target, JOB, project, tmp_path / "cache")
    broken = [name for name in names_in(target) if "/broken." in name]
    assert len(broken) == 1
    assert broken[0].endswith("broken.py")


def test_compiled_code_is_kept_and_forgotten_with_its_source(project: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    write_shipment(tmp_path / "a.tar", JOB, project, cache)
    first = set(cache.iterdir())
    write_shipment(tmp_path / "b.tar", JOB, project, cache)
    assert set(cache.iterdir()) == first
    (project / "pkg" / "code.py").write_text("answer = 43\n")
    write_shipment(tmp_path / "c.tar", JOB, project, cache)
    assert len(list(cache.iterdir())) == len(first)
    assert set(cache.iterdir()) != first


def test_the_agent_reads_what_the_host_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in job_files(JOB).items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(agent, "JOB", str(tmp_path))
    assert agent.read_fields("command") == [JOB.cwd, *JOB.argv]
    assert agent.read_fields("environment") == ["A=1=2"]
    lines = io.StringIO((tmp_path / "shares").read_text()).readlines()
    assert [line.rstrip("\n").split(" ", 1) for line in lines] == [["share0", "/some dir/out"]]
