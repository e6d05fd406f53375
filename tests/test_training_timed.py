"""Training against a clock: the loop's own steps, a rate that follows the time, a watch that can be stopped."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from chordflow.couplings import BufferConfig, CouplingBatch, CouplingBuffer, CouplingConfig
from chordflow.errors import UserError
from chordflow.policies import Role
from chordflow.training.loop import LoopConfig, SchedulerConfig, read_metrics, train
from chordflow.training.methods import ReflowMethodConfig
from chordflow.training.optimizers import AdamWConfig
from chordflow.training.timed import Passed, Stopwatch, TrainingStep, rate_at, train_for
from gaussian_setup import AffineStudent, make_observations, make_policy

CPU = torch.device("cpu")
SMALL = BufferConfig(num_observations=8, noises_per_observation=4, uses_per_coupling=2, block_size=4)


class Clock:
    """Shows what it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def buffer(parts: int = 1) -> CouplingBuffer:
    return CouplingBuffer(
        make_policy(),
        make_observations(8),
        CouplingConfig(num_steps=2),
        SMALL,
        seed=3,
        batch_size=8,
        parts=parts,
    )


def student_step(lr: float = 1e-3, parts: int = 1) -> tuple[AffineStudent, TrainingStep]:
    torch.manual_seed(1)
    student = AffineStudent(copy.deepcopy(make_policy().config))
    trainable = student.train_roles([Role.ACTION_HEAD])
    method = ReflowMethodConfig().build()
    return student, TrainingStep(student, trainable, method, AdamWConfig(lr=lr), seed=3, parts=parts)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_is_the_training_loops_own(tmp_path: Path, parts: int) -> None:
    """With a second a step, a run of twenty seconds ends in the weights of a run of twenty steps."""
    clock = Clock()
    timed, step = student_step(parts=parts)

    def tick(passed: Passed) -> None:
        clock.now = 100.0 + passed.steps

    train_for(20, [20], step, buffer(parts), Stopwatch(CPU, clock), look=lambda _: None, on_step=tick)
    # The clock was behind by a step when the run looked, so one more was made, at a rate of zero.
    torch.manual_seed(1)
    looped = AffineStudent(copy.deepcopy(make_policy().config))
    config = LoopConfig(
        steps=20, batch_size=8, seed=3, log_freq=1, save_freq=0, gradient_accumulation_steps=parts,
        optimizer=AdamWConfig(lr=1e-3), scheduler=SchedulerConfig(num_warmup_steps=1),
    )  # fmt: skip
    (tmp_path / "run").mkdir()
    train(
        config, looped, looped.train_roles([Role.ACTION_HEAD]), buffer(parts), ReflowMethodConfig().build(),
        tmp_path / "run", lambda folder, weights: folder.mkdir(parents=True),
    )  # fmt: skip
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 20
    expected = dict(looped.module.named_parameters())
    torch.manual_seed(1)
    fresh = dict(AffineStudent(copy.deepcopy(make_policy().config)).module.named_parameters())
    for name, parameter in timed.module.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-6, atol=1e-8)
    assert any(not torch.equal(expected[name], fresh[name]) for name in expected)


def test_the_rate_rises_and_falls() -> None:
    assert [rate_at(share) for share in (0.0, 0.025, 0.05, 0.525, 1.0, 1.2)] == pytest.approx(
        [0.0, 0.5, 1.0, 0.5, 0.0, 0.0], abs=1e-12
    )


def test_a_stopped_watch_stands() -> None:
    clock = Clock()
    watch = Stopwatch(CPU, clock)
    clock.now += 3
    with watch.stopped():
        clock.now += 50
    clock.now += 1
    assert watch.seconds == pytest.approx(4)


class Costly:
    """A source whose filling takes time that is told, and whose steps take one second."""

    def __init__(self, clock: Clock, filling: float) -> None:
        self.clock, self.filling, self.inner = clock, filling, buffer()
        self.rates: list[float] = []

    parts, step_size, num_bytes = 1, 8, 0

    def fill(self, step: int) -> Iterator[int]:
        for done in self.inner.fill(step):
            self.clock.now += self.filling
            yield done

    def batch(self, step: int, part: int = 0) -> CouplingBatch:
        return self.inner.batch(step, part)


class Watched(TrainingStep):
    """Notes the rates that it is given."""

    clock: Clock
    rates: list[float]

    def __call__(self, source: object, step: int, rate: float) -> float:
        self.rates.append(rate)
        self.clock.now += 1
        return super().__call__(source, step, rate)  # type: ignore[arg-type]


def timed(
    clock: Clock, seconds: float, marks: list[float], filling: float
) -> tuple[list[Passed], list[float]]:
    torch.manual_seed(1)
    student = AffineStudent(copy.deepcopy(make_policy().config))
    trainable = student.train_roles([Role.ACTION_HEAD])
    step = Watched(student, trainable, ReflowMethodConfig().build(), AdamWConfig(), seed=3)
    step.clock, step.rates = clock, []
    looks: list[Passed] = []

    def look(passed: Passed) -> None:
        looks.append(passed)
        clock.now += 1000

    train_for(seconds, marks, step, Costly(clock, filling), Stopwatch(CPU, clock), look=look)
    return looks, step.rates


def test_marks_are_looked_at_while_the_watch_stands() -> None:
    looks, rates = timed(Clock(), 21.0, [5.5, 21.0, 13.0], filling=0.0)
    assert [look.mark for look in looks] == [5.5, 13.0, 21.0]
    # Eight couplings a step; a step that has begun is ended.
    assert [(look.seconds, look.steps, look.samples) for look in looks] == [
        (6, 6, 48),
        (13, 13, 104),
        (21, 21, 168),
    ]
    assert rates == pytest.approx([rate_at(step / 21) for step in range(21)])
    assert all(look.ready_s == 0 and look.loss is not None for look in looks)


def test_the_making_of_couplings_counts_but_does_not_eat_the_rate() -> None:
    # Two blocks at the start, ten seconds; blocks of 16 couplings used twice are replaced every fourth step.
    looks, rates = timed(Clock(), 30.0, [30.0], filling=5.0)
    (look,) = looks
    assert look.ready_s == 10
    assert rates[0] == 0.0
    assert rates[1] == pytest.approx(rate_at(1 / 20))
    assert look.steps == len(rates) < 20
    assert look.seconds == pytest.approx(30, abs=5)


def test_a_run_that_ends_before_the_couplings_are_made_has_trained_nothing() -> None:
    looks, rates = timed(Clock(), 4.0, [2.0, 4.0], filling=5.0)
    assert rates == []
    assert [(look.mark, look.steps, look.ready_s, look.loss) for look in looks] == [
        (2, 0, None, None),
        (4, 0, None, None),
    ]


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    _, step = student_step(lr=1e30)
    with pytest.raises(UserError, match=r"optimizer.lr=1e\+30: the loss is not finite at step"):
        train_for(60, [60], step, buffer(), Stopwatch(CPU), look=lambda _: None)
