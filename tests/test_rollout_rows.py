"""Measures of episodes, pairs, and rows of success by instruction, task and suite."""

import numpy as np
import pytest

from chordflow.errors import UserError
from chordflow.rollouts.episodes import Episode, jerk, jump, paired
from chordflow.rollouts.summaries import success_rows
from rollout_checks import episode


def test_jerk_of_polynomials() -> None:
    t = np.arange(8.0)[:, None]
    assert jerk(np.hstack([t**2, 3 * t])) == pytest.approx(0.0, abs=1e-12)
    assert jerk(t**3) == pytest.approx(36.0)
    assert jerk(np.hstack([t**3, t])) == pytest.approx(18.0)
    assert jerk(t[:3]) is None


def test_jump_is_at_boundaries_only() -> None:
    actions = np.array([[0.0], [9.0], [10.0], [4.0], [5.0], [7.0]])
    assert jump(actions, [0, 2, 5]) == pytest.approx((1.0 + 2.0) / 2)
    assert jump(actions, [0]) is None


def test_a_path_is_as_long_as_its_steps() -> None:
    assert episode(0, actions=np.array([[0, 0], [3, 4], [3, 4], [3, 5]], np.float32)).path_length == 6.0


def test_success_by_instruction() -> None:
    student = [episode(0, True, "left"), episode(1, False, "right"), episode(2, True, "left")]
    teacher = [episode(2, True, "left"), episode(0, False, "left"), episode(1, False, "right")]
    rows = success_rows(student, "student", teacher)
    counts = [(row.group, row.successes, row.episodes) for row in rows]
    assert counts == [("all", 2, 3), ("left", 2, 2), ("right", 0, 1)]
    versus = [row.versus_teacher for row in rows if row.versus_teacher is not None]
    assert [(pairs.only_first, pairs.only_second) for pairs in versus] == [(1, 0), (1, 0), (0, 0)]
    assert [row.group for row in success_rows([episode(0)], "teacher")] == ["all"]


def test_success_by_suite_and_task() -> None:
    student = [
        episode(seed, success, task, task_group=group, task_id=number)
        for group, number, seed, success, task in (
            ("spatial", 0, 0, True, "lift"), ("spatial", 0, 1, False, "lift"), ("spatial", 10, 0, True, "put"),
            ("spatial", 2, 0, True, "turn"), ("goal", 0, 0, False, "lift"), ("goal", 0, 1, True, "drop"),
        )
    ]  # fmt: skip
    teacher = [
        episode(e.seed, True, e.task, task_group=e.task_group, task_id=e.task_id) for e in student[::-1]
    ]
    rows = success_rows(student, "student", teacher)
    assert [(row.group, row.successes, row.episodes) for row in rows] == [
        ("all", 4, 6), ("goal", 1, 2), ("spatial", 3, 4), ("goal/0", 1, 2), ("spatial/0: lift", 1, 2),
        ("spatial/2: turn", 1, 1), ("spatial/10: put", 1, 1),
    ]  # fmt: skip
    assert [row.versus_teacher.only_second for row in rows if row.versus_teacher] == [2, 1, 1, 1, 1, 0, 0]
    # One suite of several tasks: its row would repeat the first.
    groups = [row.group for row in success_rows(student[:3], "student")]
    assert groups == ["all", "spatial/0: lift", "spatial/10: put"]


def test_pairs_are_by_task_and_seed() -> None:
    first, second = (
        [episode(seed, task_group="a", task_id=i) for seed, i in keys]
        for keys in (((3, 0), (1, 1), (1, 0)), ((1, 0), (3, 0), (1, 1)))
    )
    keys = [(a.key, b.key) for a, b in paired(first, second)]
    assert keys == [(key, key) for key in (("a", 0, 1), ("a", 0, 3), ("a", 1, 1))]


@pytest.mark.parametrize(("first", "second", "words"), [
    ([episode(0)], [episode(0), episode(4)], "seed 4 of /0 .* 0 times in the first"),
    ([episode(0)] * 2, [episode(0)], "seed 0 .* 2 times in the first run, 1 times .* each once"),
    ([episode(0, task="left")], [episode(0, task="right")], "instruction 'left' is 1 .* same environment"),
])  # fmt: skip
def test_what_cannot_be_paired(first: list[Episode], second: list[Episode], words: str) -> None:
    with pytest.raises(UserError, match=words):
        paired(first, second)
