"""What training methods share: losses by hand, and laws of the training time as settings."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from chordflow.flow import times as laws
from chordflow.flow.seeds import generator
from chordflow.training.objective import (
    BetaTimes,
    ExponentialTimes,
    LogitNormalTimes,
    MeanSquaredError,
    PseudoHuber,
    TimesConfig,
    UniformTimes,
    UShapedTimes,
)


def errors() -> tuple[Tensor, Tensor, Tensor]:
    prediction, target = torch.randn(2, 5, 4, 3, generator=generator(0)).unbind()
    valid = torch.rand(5, 4, 3, generator=generator(1)) < 0.6
    return prediction.requires_grad_(), target, valid


def test_squares_are_a_mean_over_samples_of_what_counts_of_each() -> None:
    prediction, target, valid = errors()
    by_hand = [(p - t)[v].square().mean() for p, t, v in zip(prediction, target, valid, strict=True)]
    loss, close = MeanSquaredError(), torch.testing.assert_close
    close(loss(prediction, target, valid), torch.stack(by_hand).mean())
    close(loss(prediction, target), (prediction - target).square().mean())
    # A mask of the chunk alone serves every sample.
    close(loss(prediction, target, valid[0]), loss(prediction, target, valid[:1].expand(5, -1, -1)))


def test_a_sample_of_which_nothing_counts_adds_nothing() -> None:
    prediction, target, valid = errors()
    valid[2] = False
    for loss in (MeanSquaredError(), PseudoHuber()):
        (gradient,) = torch.autograd.grad(loss(prediction, target, valid), prediction)
        assert (gradient[2] == 0).all()
        assert (gradient[1] != 0).any()


@pytest.mark.parametrize("c", [0.00054, 0.5])
def test_pseudo_huber_is_the_distance_of_a_sample_as_a_vector(c: float) -> None:
    prediction, target, valid = errors()
    by_hand = []
    for p, t, v in zip(prediction, target, valid, strict=True):
        size = int(v.sum())
        bend = c * size
        by_hand.append((((p - t)[v].square().sum() + bend**2).sqrt() - bend) / size)
    torch.testing.assert_close(PseudoHuber(c=c)(prediction, target, valid), torch.stack(by_hand).mean())


def test_equal_weights_change_gradients_and_not_what_is_logged() -> None:
    prediction, target, valid = errors()
    prediction.data[0] *= 30  # one sample that would drown the others
    plain, equal = MeanSquaredError(), MeanSquaredError(equal_weights=True)
    torch.testing.assert_close(equal(prediction, target, valid), plain(prediction, target, valid))
    (gradient,) = torch.autograd.grad(equal(prediction, target, valid), prediction)
    error = (prediction - target).detach() * valid
    size = valid.sum(dim=(1, 2))[:, None, None]
    own_loss = error.square().sum(dim=(1, 2), keepdim=True) / size
    torch.testing.assert_close(gradient, 2 * error / size / own_loss / 5)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("config", "law"), [
    (BetaTimes(alpha=2.0, beta=3.0), laws.Beta(alpha=2.0, beta=3.0)),
    (LogitNormalTimes(mean=0.5, std=2.0), laws.LogitNormal(mean=0.5, std=2.0)),
    (UShapedTimes(a=2.0), laws.UShaped(a=2.0)),
    (ExponentialTimes(ratio=3.0), laws.Exponential(ratio=3.0)),
    (UniformTimes(), laws.Uniform()),
])  # fmt: skip
def test_each_law_is_the_one_it_names_but_for_the_share_at_noise(
    config: TimesConfig, law: laws.TimeDistribution, share: float
) -> None:
    mixture = laws.PointMassMixture(weight=share, at=1.0, base=law)
    assert replace(config, at_noise=share).build() == (mixture if share else law)
