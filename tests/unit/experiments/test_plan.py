from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments import commands
from experiments.errors import PlanError
from experiments.plan import CATALOG, Overrides, Plan, load

NAMES = sorted(path.stem for path in CATALOG.glob("*.toml"))


def broken(tmp_path: Path, text: str) -> str:
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(PlanError) as caught:
        load("x", catalog=tmp_path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


HEAD = 'title = "x"\ntopology = "measurement"\ndevices = 4\nseed = 1\n[[campaigns]]\n'


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("quick", [False, True])
def test_catalog_is_valid_and_survives_a_manifest(name: str, quick: bool) -> None:
    plan = load(name, Overrides(quick=quick))
    assert Plan.from_json(json.loads(json.dumps(plan.as_json()))) == plan


def test_the_main_job_is_the_papers_measurement() -> None:
    plan = load("experiment")
    assert plan.devices == 10
    joins = [r for r in plan.repetitions() if r.campaign.kind == "join"]
    for variant in ("command+paper", "netlink+per-sender"):
        steps = [s for r in joins if r.variant.name == variant for s in r.steps]
        assert len(steps) == 80
        assert {s.group_size for s in steps} == set(range(3, 11))
    assert all(s.subject not in (1, 2) for r in plan.repetitions() for s in r.steps)


def test_quick_means_fewer_repetitions() -> None:
    full, quick = load("experiment"), load("experiment", Overrides(quick=True))
    assert len(quick.repetitions()) * 3 < len(full.repetitions())


def test_the_seed_decides_everything() -> None:
    one, same = load("experiment", Overrides(seed=5)), load("experiment", Overrides(seed=5))
    other = load("experiment", Overrides(seed=6))
    assert one.repetitions() == same.repetitions()
    jitters = [[s.jitter_ns for r in plan.repetitions() for s in r.steps] for plan in (one, other)]
    assert jitters[0] != jitters[1]
    limit = one.campaigns[1].jitter_ms * 1_000_000
    assert all(0 <= jitter <= limit for jitter in jitters[0])


def test_a_variants_draw_does_not_depend_on_the_others() -> None:
    both = {r.key: r.steps for r in load("experiment").repetitions()}
    alone = load("join").repetitions()
    assert all(both[r.key] == r.steps for r in alone)


def test_every_group_size_is_left_by_both_methods() -> None:
    seen: dict[int, list[str]] = {}
    for repetition in load("leave").repetitions():
        for step in repetition.steps:
            seen.setdefault(step.group_size, []).append(step.method)
    assert set(seen) == set(range(2, 10))
    assert all(sorted(set(m)) == ["cut", "shutdown"] for m in seen.values())
    assert all(m.count("cut") == 5 for m in seen.values())


def test_abba_mirrors_the_variants() -> None:
    plan = load("experiment")
    campaign = replace(plan.campaigns[1], order="abba", repetitions=4)
    names = [r.variant.name for r in replace(plan, campaigns=(campaign,)).repetitions()]
    assert names == names[::-1]
    assert len(set(names)) == 2


def test_options_replace_the_catalogs_values() -> None:
    plan = load("join", Overrides(devices=4, repetitions=3, sa_mode="paper", hello_interval_ms=200))
    variant = plan.campaigns[0].variants[0]
    assert (plan.devices, plan.campaigns[0].repetitions) == (4, 3)
    assert variant.name == "netlink+paper"
    assert variant.suite == "3des-sha1"
    assert variant.hello_interval_ms == 200


def test_mikes_mode_is_part_of_the_variant_its_name_and_the_daemons_settings() -> None:
    for name in ("join", "leave", "rekey-loss"):
        (first, *_) = load(name, Overrides(mike_mode="kd")).campaigns[0].variants
        assert first.name == "netlink+per-sender+kd"
        assert commands._mike(first)["mode"] == "kd"
        assert first.daemons() != replace(first, mike_mode="ka").daemons()
    both = load("mike-delay").campaigns[0].variants
    assert [(one.name, one.mike_mode) for one in both] == [("memory", "ka"), ("memory+kd", "kd")]
    # Both stay when another backend is asked for, and keep names of their own.
    kept = load("mike-delay", Overrides(sa_backend="memory")).campaigns[0].variants
    assert [one.name for one in kept] == ["memory+per-sender", "memory+per-sender+kd"]
    with pytest.raises(PlanError, match="unknown mike_mode 'kx'"):
        load("join", Overrides(mike_mode="kx"))


def test_memory_marks_the_plan_and_leaves_out_sa_writes() -> None:
    plan = load("experiment", Overrides(sa_backend="memory"))
    assert plan.memory
    assert plan.sa_write() is None
    assert not load("experiment").memory


def test_repetitions_do_not_touch_the_rounds_of_sa_writes_beside_joins() -> None:
    writes = load("experiment", Overrides(repetitions=1)).sa_write()
    assert writes is not None
    assert writes.repetitions == 50


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("devices = ", "x.toml"),
        (HEAD + 'kind = "jion"\nrepetitions = 1', "unknown campaign kind 'jion'"),
        (HEAD + 'kind = "join"\nrepetitions = 1', "at least one variant"),
        (HEAD + 'kind = "join"\nrepetitions = 0', "repetitions must be at least 1"),
        (HEAD + 'kind = "join"\nrepetitions = "1"', "expected int"),
        (HEAD + 'kind = "join"\nrepetitions = true', "expected int"),
        (HEAD + 'kind = "join"\nrepetition = 1', "unknown key 'repetition'"),
        (HEAD + 'kind = "join"', "repetitions"),
        (
            HEAD + 'kind = "join"\nrepetitions = 1\n[[campaigns.variants]]\nname = "a/b"',
            "variant name",
        ),
        (
            HEAD
            + 'kind = "join"\nrepetitions = 1\n[[campaigns.variants]]\nname = "a"\n'
            + 'sa_mode = "paper"',
            "AES-GCM",
        ),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    assert says in broken(tmp_path, text)


def test_an_unknown_experiment_names_the_known() -> None:
    with pytest.raises(
        PlanError, match=r"experiment, faults, .*join, leave, mike-delay, rekey-loss, sa-write"
    ):
        load("jion")


@pytest.mark.parametrize("options", [{"devices": 2}, {"sa_mode": "paper", "suite": "aes-gcm-128"}])
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        load("join", Overrides(**options))
