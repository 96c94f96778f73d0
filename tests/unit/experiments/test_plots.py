from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from experiments import paper, summarytext
from experiments.analysis import read_run
from experiments.commands import plot, run
from experiments.plots import draw_all, fig7_mike_delay, style
from experiments.record import MEMORY_SUFFIX, RunDirectory
from experiments.summary import summarise
from tests.unit.experiments.fake_fleet import World
from tests.unit.experiments.support import make_run, small_plan

FIGURES = {
    "fig6_join_latency",
    "fig8_phases",
    "fig9_sa_write",
    "leave_latency_command-paper",
    "leave_latency_netlink-per-sender",
    "dispersal",
    "fig7_mike_delay",
}


def synthetic(path: Path, plan_name: str = "experiment", **options: object) -> RunDirectory:
    made = make_run(path, small_plan(plan_name, **options), World(faults={"sad_fail_at": 3}))
    made.manifest["synthetic"] = True
    made.save_manifest()
    return made


def test_every_figure_is_drawn_as_png_and_pdf_from_files_alone(tmp_path: Path) -> None:
    made = synthetic(tmp_path / "run")
    files = draw_all(made.path)
    assert {f.stem for f in files} == FIGURES
    assert {f.suffix for f in files} == {".png", ".pdf"}
    assert all(f.stat().st_size > 5000 for f in files)


def test_figures_without_kernel_sas_carry_it_in_their_names(tmp_path: Path) -> None:
    made = synthetic(tmp_path / "run", "join", sa_backend="memory")
    files = draw_all(made.path)
    assert files
    assert all(f.stem.endswith(MEMORY_SUFFIX) for f in files)


def test_mikes_delay_says_memory_and_covers_all_sizes(tmp_path: Path) -> None:
    made = synthetic(tmp_path / "run", "mike-delay", devices=12, repetitions=1)
    (png,) = [f for f in draw_all(made.path) if f.stem.startswith("fig7") and f.suffix == ".png"]
    assert png.stem == f"fig7_mike_delay{MEMORY_SUFFIX}"
    found = summarise(read_run(made.path))
    assert list(found["mike"]) == ["memory", "memory+kd"]
    for sizes in found["mike"].values():
        assert list(sizes["joiner"]) == [str(size) for size in range(3, 13)]
    text = summarytext.text(found)
    for name in ("memory ", "memory+kd "):
        assert f"MIKE alone, joining device, 10 members, {name}" in text
    assert "about 50 ms" in text


@pytest.mark.parametrize(
    ("largest", "points"), [(9, []), (20, [(10, 50.0)]), (100, [(10, 50.0), (50, 80.0)])]
)
def test_the_papers_points_of_mikes_delay_stand_at_their_sizes(
    largest: int, points: list[tuple[int, float]]
) -> None:
    made, (axis,) = style.figure(1)
    fig7_mike_delay.draw_paper(axis, largest)
    drawn = [tuple(xy) for collection in axis.collections for xy in collection.get_offsets()]
    assert drawn == points
    assert len(axis.lines) == (not points)
    style.plt.close(made)


def test_a_run_that_failed_throughout_can_still_be_drawn(tmp_path: Path) -> None:
    made = make_run(tmp_path / "run", small_plan(), World(faults={"no_group": True}))
    assert {f.stem for f in draw_all(made.path)} >= {"fig6_join_latency"}


def test_plot_command_redraws(tmp_path: Path) -> None:
    made = synthetic(tmp_path / "run", "join")
    found = CliRunner().invoke(plot, [str(made.path), "--output", str(tmp_path / "out")])
    assert found.exit_code == 0, found.output
    assert (tmp_path / "out" / "fig6_join_latency.png").exists()
    assert "the paper's" in found.output


@pytest.mark.parametrize("arguments", [[], ["/nowhere"], ["/nowhere", "--latest"]])
def test_plot_command_refuses_in_one_line(arguments: list[str]) -> None:
    found = CliRunner().invoke(plot, arguments)
    assert found.exit_code != 0
    assert "Traceback" not in found.output


def test_run_command_refuses_nonsense_in_one_line(tmp_path: Path) -> None:
    found = CliRunner().invoke(run, ["join", "--resume", str(tmp_path), "--seed", "3"])
    assert found.exit_code == 1
    assert "no other plan options" in found.output
    found = CliRunner().invoke(run, ["join", "--resume", str(tmp_path)])
    assert found.exit_code == 1
    assert "is not a run" in found.output


def test_plots_and_analysis_import_nothing_of_what_they_measure() -> None:
    code = (
        "import sys, experiments.plots, experiments.plots.style, experiments.plots.fig8_phases; "
        "bad = {m.split('.')[0] for m in sys.modules} & {'protocol', 'testbed', 'topologies'}; "
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_measuring_needs_no_plotting_library() -> None:
    code = (
        "import sys, experiments.commands, experiments.runner, experiments.sa_write; "
        "sys.exit(bool({'pandas', 'matplotlib', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_papers_values_name_their_source() -> None:
    for name, entry in paper.values().items():
        assert set(entry) == {"value", "source", "text"}, name
        assert entry["source"].startswith("section")
    assert paper.value("join_latency_ms") == 400
    assert paper.value("sa_write_ms") == 201


def test_the_bars_of_fig_8_sum_to_the_median(tmp_path: Path) -> None:
    from experiments.analysis import read_run, select
    from experiments.plots.fig8_phases import _bars

    made = make_run(tmp_path / "run", small_plan(repetitions=4))
    found = read_run(made.path)
    joins = select(found.latencies, "join", "netlink+per-sender", role="monitor")
    medians = joins.groupby("group_size")["total_ms"].median()
    bars = _bars(found, "netlink+per-sender")
    assert [bar.size for bar in bars] == [3, 4]
    assert [bar.total for bar in bars] == pytest.approx([medians[3], medians[4]], abs=1e-3)
