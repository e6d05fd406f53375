"""A budget in seconds: the loop's own steps, a rate that follows the time, a watch that can be stopped."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from chordflow.couplings import BufferConfig, CouplingBuffer, CouplingConfig
from chordflow.experiments.train import _curve
from chordflow.policies import Role
from chordflow.training.loop import read_metrics, train
from chordflow.training.methods import ReflowMethodConfig
from chordflow.training.optimizers import AdamWConfig
from chordflow.training.steps import LoopConfig, SchedulerConfig, Stopwatch, Training, rate_at
from gaussian_setup import AffineStudent, make_observations, make_policy

SMALL = BufferConfig(num_observations=8, noises_per_observation=4, uses_per_coupling=2, block_size=4)


@dataclass
class Clock:
    """Shows what it is told to."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def buffer(parts: int = 1) -> CouplingBuffer:
    teacher, observations = make_policy(), make_observations(8)
    return CouplingBuffer(
        teacher, observations, CouplingConfig(num_steps=2), SMALL, seed=3, batch_size=8, parts=parts
    )


def student() -> AffineStudent:
    torch.manual_seed(1)
    return AffineStudent(copy.deepcopy(make_policy().config))


def timed(
    clock: Clock, seconds: float, *, parts: int = 1, filling: float = 0.0, lr: float = 1e-3
) -> tuple[AffineStudent, Training]:
    """A training whose steps take one second each, and a piece of whose couplings takes `filling`."""
    trained, source = student(), buffer(parts)
    trainable, fill = trained.train_roles([Role.ACTION_HEAD]), source.fill
    config = LoopConfig(None, seed=3, seconds=seconds, optimizer=AdamWConfig(lr=lr))

    def costly(step: int, last: int) -> Iterator[int]:
        for done in fill(step, last):
            clock.now += filling
            yield done

    def tick(_: object) -> None:
        clock.now += 1 / parts

    source.fill = costly  # type: ignore[method-assign]
    method, watch = ReflowMethodConfig().build(), Stopwatch(clock=clock)
    return trained, Training(config, trained, trainable, source, method, watch=watch, on_batch=tick)


@pytest.mark.parametrize("parts", [1, 2])
def test_seconds_train_as_steps_do(tmp_path: Path, parts: int) -> None:
    """With a second a step, a run of twenty seconds ends in the weights of a run of twenty steps."""
    trained, training = timed(Clock(), 20, parts=parts)
    passed = list(training.run())
    assert [(one.step, one.seconds, one.samples) for one in passed[::19]] == [
        (1, 1, 8 * parts), (20, 20, 160 * parts),
    ]  # fmt: skip
    looped = student()
    config = LoopConfig(
        20, seed=3, log_freq=1, optimizer=AdamWConfig(lr=1e-3),
        scheduler=SchedulerConfig(num_warmup_steps=1),
    )  # fmt: skip
    (tmp_path / "run").mkdir()
    train(
        config, looped, looped.train_roles([Role.ACTION_HEAD]), buffer(parts), ReflowMethodConfig().build(),
        tmp_path / "run", lambda folder, weights: folder.mkdir(parents=True),
    )  # fmt: skip
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 20
    expected, fresh = (dict(one.module.named_parameters()) for one in (looped, student()))
    for name, parameter in trained.module.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-6, atol=1e-8)
    assert any(not torch.equal(expected[name], fresh[name]) for name in expected)


def test_the_rate_rises_and_falls() -> None:
    assert [rate_at(share) for share in (0.0, 0.025, 0.05, 0.525, 1.0, 1.2)] == pytest.approx(
        [0.0, 0.5, 1.0, 0.5, 0.0, 0.0], abs=1e-12
    )
    _, training = timed(Clock(), 21)
    assert [one.lr for one in training.run()] == pytest.approx(
        [1e-3 * rate_at(step / 21) for step in range(21)]
    )


def test_a_stopped_watch_stands() -> None:
    clock = Clock()
    watch = Stopwatch(clock=clock)
    clock.now += 3
    with watch.stopped():
        clock.now += 50
    clock.now += 1
    assert watch.seconds == pytest.approx(4)


def test_the_making_of_couplings_counts_but_does_not_eat_the_rate() -> None:
    # Two blocks at the start, ten seconds; blocks of 16 couplings used twice are replaced every fourth step.
    _, training = timed(Clock(), 30.0, filling=5.0)
    passed = list(training.run())
    assert passed[-1].ready_s == 10
    assert passed[0].lr == 0.0
    assert passed[1].lr == pytest.approx(1e-3 * rate_at(1 / 20))
    assert training.passed.step == len(passed) < 20
    assert training.passed.seconds == pytest.approx(30, abs=5)


def test_a_run_that_ends_before_the_couplings_are_made_has_trained_nothing() -> None:
    _, training = timed(Clock(), 4.0, filling=5.0)
    assert list(training.run()) == []
    passed = training.passed
    assert (passed.step, passed.seconds, passed.ready_s, passed.loss) == (0, 5, None, None)


def test_the_loss_is_logged_by_step() -> None:
    losses = [9.0, 1.0, 3.0, 4.0, 6.0, 8.0, 5.0, 7.0]
    found = [_curve(losses, 3, ends=ends) for ends in (True, False)]
    assert [curve.steps for curve in found] == [[1, 3, 6, 8], [1, 3, 6]]
    assert found[0].losses == [9.0, 2.0, 6.0, 6.0]
