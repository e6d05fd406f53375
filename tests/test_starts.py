"""Starts that repeat, as LIBERO's do: what they depend on, how they are counted, which were trained on."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import stored_starts_env
from chordflow.cli.main import main
from chordflow.errors import UserError
from chordflow.experiments.provenance import collected_in
from chordflow.policies.sampling import seeded_noise
from chordflow.policies.smolvla import SmolVLAFlowPolicy
from chordflow.results.schema import Results
from chordflow.results.statistics import compare_success
from chordflow.results.wording import REPEATED_STARTS, STARTS_NOT_TRAINED_ON, STARTS_TRAINED_ON
from chordflow.rollouts.acting import NOISE_KEY, Actor, chunk_noise
from chordflow.rollouts.episodes import Episode, SeedRange, Starts
from chordflow.rollouts.runner import open_runner
from chordflow.rollouts.store import EpisodeStore, arm_settings
from chordflow.rollouts.summaries import delay_row, motion_rows, success_rows
from drift_env import DriftEnvConfig
from gaussian_setup import make_policy
from rollout_checks import episode as make_episode
from rollout_checks import run
from small_runs import edit_json, options, student_of
from stored_starts_env import StoredStartsConfig, StoredStartsEnv


def episode(seed: int, success: bool = True, task: int = 0, jump: float = 0.0) -> Episode:
    actions = np.zeros((5, 2), np.float32)
    return make_episode(
        seed, success, "", length=5, jerk=jump, jump=jump, actions=actions, task_group="stored", task_id=task
    )


def ends(estimate: Any) -> list[float]:
    return [estimate.interval.low, estimate.interval.high]


@pytest.mark.parametrize(("config", "expected"), [
    (StoredStartsConfig(starts=5), {("stored", 0): 5, ("stored", 1): 5}),
    (StoredStartsConfig(starts=0), {("stored", 0): None, ("stored", 1): None}),
    (DriftEnvConfig(), {("drift_of_the_tests", 0): None}),
])  # fmt: skip
def test_an_environment_tells_how_many_starts_it_has(
    config: Any, expected: dict[tuple[str, int], int | None]
) -> None:
    with open_runner(config, 1) as runner:
        assert runner.tasks() == expected


@pytest.mark.parametrize("starts", [1, 3, 50])
def test_a_start_depends_neither_on_the_policy_nor_on_when_it_succeeds(
    starts: int, tiny_policy: SmolVLAFlowPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds, lengths = [7, 0, 4, 12, 5], set()
    for num_steps, batch_size in ((1, 1), (1, 3), (4, 2)):
        monkeypatch.setattr(StoredStartsEnv, "begun", begun := [])
        config = StoredStartsConfig(starts=starts, tasks=1)
        found = run(tiny_policy, seeds, num_steps, env=config, batch_size=batch_size)
        assert sorted(begun) == sorted((0, seed, 1000 + seed % starts) for seed in seeds)
        lengths.add(tuple(one.length for one in found))
    # Episodes do end at other times.
    assert len(lengths) > 1


@given(
    seed=st.integers(0, 10**6), chunk=st.integers(0, 50), group=st.text(max_size=5), task=st.integers(0, 90)
)
def test_no_two_chunks_share_noises(seed: int, chunk: int, group: str, task: int) -> None:
    policy = make_policy()
    assert torch.equal(chunk_noise(policy, seed, chunk), seeded_noise(policy, seed, "rollout", chunk))
    keys = [
        (seed, chunk, None), (seed + 1, chunk, None), (seed, chunk + 1, None), (seed, chunk, (group, task)),
        (seed, chunk, (group, task + 1)), (seed, chunk, (group + "x", task)),
    ]  # fmt: skip
    assert len({chunk_noise(policy, *key).numpy().tobytes() for key in keys}) == len(keys)


def test_stores_record_what_noise_is_a_function_of(tiny_policy: SmolVLAFlowPolicy, tmp_path: Path) -> None:
    settings = arm_settings(Actor(tiny_policy, StoredStartsConfig(), 1))
    assert settings["noise_key"] == NOISE_KEY == 2
    # As an older version left them, which gave all tasks the same noises.
    store = EpisodeStore(tmp_path, {name: value for name, value in settings.items() if name != "noise_key"})
    store.save([episode(0, True), episode(1, False)])
    store.flush()
    with pytest.raises(UserError, match=r"noise_key=null.*noise_key=2"):
        EpisodeStore(tmp_path, settings)


@given(
    pairs=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60),
    repeats=st.integers(1, 4),
)
def test_pairs_that_repeat_say_no_more_than_once(pairs: list[tuple[bool, bool]], repeats: int) -> None:
    """Interval and test of pairs that are each there several times are those of the pairs."""
    once, many = (compare_success(*zip(*some, strict=True)) for some in (pairs, pairs * repeats))
    counted = compare_success(*zip(*(pairs * repeats), strict=True), starts=len(pairs))
    assert counted.episodes == many.episodes
    assert counted.difference.value == once.difference.value == many.difference.value
    assert counted.p_value == pytest.approx(once.p_value)
    assert ends(counted.difference) == pytest.approx(ends(once.difference), abs=1e-12)


def test_rows_of_repeated_episodes_have_the_intervals_of_these_once() -> None:
    outcomes = [True, True, False, True, False, True, True]
    single = [episode(seed, won, jump=0.1 * seed) for seed, won in enumerate(outcomes)]
    teacher = [episode(seed, jump=0.2) for seed in range(7)]
    again = [episode(one.seed + 7 * i, one.success, jump=one.jump or 0.0) for i in range(3) for one in single]
    taught = [episode(seed, jump=0.2) for seed in range(21)]
    starts = Starts({("stored", 0): 7})
    one = success_rows(single, "student", teacher, Starts())[0]
    many = success_rows(again, "student", taught, starts)[0]
    assert (many.episodes, many.starts, one.starts) == (21, 7, None)
    assert many.versus_teacher.starts == 7
    assert ends(many) == pytest.approx(ends(one))
    plain = motion_rows(single, "student", teacher, 0)
    repeated = motion_rows(again, "student", taught, 0, starts)
    for a, b in zip(plain, repeated, strict=True):
        # Sums round in another order; of three times as many starts an interval would be .06 shorter a side.
        assert ends(b.mean) == pytest.approx(ends(a.mean), abs=0.03)
        assert ends(b.difference) == pytest.approx(ends(a.difference), abs=0.03)
    delays = [
        delay_row(episodes, "student", None, guidance_weight=None, seed=0, starts=of)
        for episodes, of in ((single, Starts()), (again, starts))
    ]
    assert [row.starts for row in delays] == [None, 7]
    assert delays[1].interval.low == pytest.approx(delays[0].interval.low)


@pytest.mark.parametrize(("number", "ranges", "expected"), [
    (None, [(0, 5, 8)], {5, 6, 7}), (10, [(0, 1_000_000_005, 1_000_000_008)], {5, 6, 7}), (10, [], set()),
    (4, [(0, 10, 99)], {0, 1, 2, 3}), (10, [(0, 8, 12)], {8, 9, 0, 1}), (10, [(1, 0, 5)], set()),
    (10, [(0, 3, 4), (0, 13, 14)], {3}),
])  # fmt: skip
def test_a_start_was_trained_on_where_its_remainder_was(
    number: int | None, ranges: list[tuple[int, int, int]], expected: set[int]
) -> None:
    runs = [SeedRange("stored_starts_of_the_tests", "stored", *run) for run in ranges]
    starts = Starts.known({("stored", 0): number, ("stored", 1): number}, runs)
    assert {seed for seed in range(10) if starts.trained_on(episode(seed, True))} & set(
        range(number or 10)
    ) == expected


@pytest.fixture(scope="module")
def student(checkpoint: Path, dataset_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on observations of episodes in the first two of five starts of each task, and more as it went on."""
    output = tmp_path_factory.mktemp("student") / "run"
    more = [
        "--observations=rollout", "--env.type=stored_starts_of_the_tests", "--env.starts=100000", "--steps=2",
        "--collect.num_observations=4", "--collect.batch_size=1", "--collect.between_share=0",
        "--buffer.num_observations=8",
    ]  # fmt: skip
    assert main(options(checkpoint, dataset_root, output, *more)) == 0
    return student_of(output)


def test_a_students_record_says_in_which_episodes_observations_were_collected(student: Path) -> None:
    ranges = collected_in(student)
    assert {(run.env, run.group, run.number) for run in ranges} == {
        ("stored_starts_of_the_tests", "stored", 0), ("stored_starts_of_the_tests", "stored", 1),
    }  # fmt: skip
    folder = student.parents[2] / "observations"
    about = [json.loads(file.read_text()) for file in sorted(folder.glob("*/collection.json"))]
    assert sum(run.stop - run.first for run in ranges) == sum(one["episodes"] for one in about)
    assert max(run.stop for run in ranges) == about[-1]["next_seed"]
    assert min(run.first for run in ranges) >= 1_000_000_000


def evaluated(teacher: Path, student: Path, output: Path, **others: Any) -> Results:
    given = {
        "teacher.path": teacher, "student.path": student, "output_dir": output, "seed": 0, "device": "cpu",
        "env.type": "stored_starts_of_the_tests", "env.starts": 6, "eval.n_episodes": 9, "eval.batch_size": 3,
        "eval.num_clips": 0, "teacher.num_inference_steps": 2, **others,
    }  # fmt: skip
    assert main(["evaluate", *(f"--{name}={value}" for name, value in given.items())]) == 0
    return Results.load(output / "results.json")


def with_record(student: Path, folder: Path, ranges: list[dict[str, Any]]) -> Path:
    """A copy of a student whose record says something else."""
    shutil.copytree(student, folder)
    edit_json(folder / "reflow_config.json", lambda record: record.update(collected=ranges))
    return folder


def test_an_evaluation_counts_starts_once_and_marks_those_trained_on(
    checkpoint: Path, student: Path, tmp_path: Path
) -> None:
    here = {"env": "stored_starts_of_the_tests", "group": "stored", "number": 1, "first": 10, "stop": 12}
    known = with_record(student, tmp_path / "known", [here, {**here, "env": "another", "number": 0}])
    results = evaluated(checkpoint, known, tmp_path / "run")
    rows = {row.group: row for row in results.success if (row.policy, row.num_steps) == ("student", 1)}
    # Nine seeds go through six starts of two tasks.
    assert (rows["all"].episodes, rows["all"].starts) == (18, 12)
    # Seeds 10 and 11 have the starts 4 and 5 of six, which among 0 to 8 no other seed has.
    assert (rows[STARTS_TRAINED_ON].episodes, rows[STARTS_TRAINED_ON].starts) == (2, None)
    assert (rows[STARTS_NOT_TRAINED_ON].episodes, rows[STARTS_NOT_TRAINED_ON].starts) == (16, 10)
    parts = [rows[name] for name in (STARTS_TRAINED_ON, STARTS_NOT_TRAINED_ON)]
    assert sum(row.successes for row in parts) == rows["all"].successes
    assert STARTS_TRAINED_ON in {row.group for row in results.success if row.policy == "teacher"}
    text = (tmp_path / "run" / "table.md").read_text(encoding="utf-8")
    assert REPEATED_STARTS in text
    assert STARTS_TRAINED_ON in text


NOWHERE = {"env": "another", "group": "stored", "number": 0, "first": 0, "stop": 9}


@pytest.mark.parametrize(("ranges", "expected"), [
    (None, []), ([{"nonsense": 1}], []), (["text"], []), (7, []), ([{**NOWHERE, "first": "x"}], []),
    ([NOWHERE], [SeedRange(**NOWHERE)]),
])  # fmt: skip
def test_a_record_that_says_nothing_of_collecting_marks_nothing(
    ranges: Any, expected: list[SeedRange], tmp_path: Path
) -> None:
    (tmp_path / "reflow_config.json").write_text(json.dumps({} if ranges is None else {"collected": ranges}))
    assert collected_in(tmp_path) == expected


def test_a_sequential_run_ends_with_the_last_new_start(
    checkpoint: Path, student: Path, tmp_path: Path
) -> None:
    more = {"sequential.enable": "true", "sequential.min_episodes": 2, "eval.n_episodes": 50, "margin": 0.5}
    known = with_record(student, tmp_path / "known", [NOWHERE])
    results = evaluated(checkpoint, known, tmp_path / "run", **more)
    assert {row.decision.episodes for row in results.sequential} <= set(range(13))
    assert max(row.episodes for row in results.success) <= 12
    assert {row.starts for row in results.success} == {None}


@pytest.mark.slow
def test_what_a_teacher_was_trained_on_its_student_was_too(
    checkpoint: Path, student: Path, dataset_root: Path, tmp_path: Path
) -> None:
    folder = with_record(student, tmp_path / "teacher", [
        {"env": "stored_starts_of_the_tests", "group": "stored", "number": 0, "first": 1, "stop": 3}
    ])  # fmt: skip
    assert main(options(folder, dataset_root, tmp_path / "run", "--steps=1")) == 0
    assert collected_in(student_of(tmp_path / "run")) == collected_in(folder)


def test_lerobots_own_starts_are_counted_but_not_told_apart(
    checkpoint: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_starts_env.StoredStartsEnv, "lenient", True)
    results = evaluated(checkpoint, student, tmp_path / "run", **{"noise": "lerobot", "env.tasks": 1})
    everything = [row for row in results.success if row.group == "all"]
    assert {(row.episodes, row.starts) for row in everything} == {(9, 6)}
    assert STARTS_TRAINED_ON not in {row.group for row in results.success}
