"""The closed-form policy answers the interface as an adapter does, and its flow is the one it says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chordflow.couplings import CouplingConfig
from chordflow.couplings.observations import check_fits
from chordflow.errors import UserError
from chordflow.flow.seeds import generator
from chordflow.policies import Role, VelocityModule
from chordflow.policies.sampling import Sampler, seeded_noise
from gaussian_policy import GaussianContext, GaussianFlowPolicy
from gaussian_setup import euler_factor, make_observations, make_policy


def encode(policy: GaussianFlowPolicy, count: int, seed: int = 0) -> GaussianContext:
    items = next(make_observations(count, policy.config.state_dim, seed).batches(range(count), count))
    return policy.encode(policy.preprocess(items))


@given(st.integers(1, 12), st.floats(0.1, 2.0), st.integers(1, 3))
def test_endpoints_of_one_mode_are_known(num_steps: int, std: float, seed: int) -> None:
    policy = make_policy(std=std, seed=seed)
    context, noise = encode(policy, 5), policy.sample_noise(5, generator(seed))
    mean, square = policy.flow(context).mean, policy.std**2
    # Two Euler steps by hand.
    for steps, factor in ((num_steps, euler_factor(policy.std, num_steps)), (2, square / (1 + square))):
        found = Sampler(policy, steps)(context, noise)
        torch.testing.assert_close(found, mean + factor * noise, rtol=1e-4, atol=1e-5)


def test_many_steps_reach_the_exact_endpoint_and_one_step_the_mean() -> None:
    policy = make_policy(std=0.7)
    context, noise = encode(policy, 6), policy.sample_noise(6, generator(1))
    exact = policy.flow(context).endpoint(noise)
    torch.testing.assert_close(exact, policy.flow(context).mean + 0.7 * noise)
    fine = Sampler(policy, 100, "midpoint")(context, noise)
    torch.testing.assert_close(fine, exact, rtol=1e-3, atol=1e-3)
    one = Sampler(policy, 1)(context, noise)
    torch.testing.assert_close(one, policy.flow(context).mean, rtol=1e-5, atol=1e-5)


def test_two_modes_are_apart_in_the_real_dimensions_only_and_noise_chooses() -> None:
    policy = make_policy(num_modes=2, separation=4.0, std=0.3)
    context = encode(policy, 1)
    gap = context.means[0, 1] - context.means[0, 0]
    assert (gap[:, :2] == 4.0).all()
    assert (gap[:, 2:] == 0.0).all()
    noise = policy.sample_noise(400, generator(0))
    repeated = context.repeat(400)
    ends = Sampler(policy, 100)(repeated, noise)
    mode = policy.mixture(repeated).mode_of(ends)
    # By symmetry the summed noise of the real dimensions decides.
    assert torch.equal(mode == 1, noise[..., :2].sum(dim=(1, 2)) > 0)
    assert 150 < int(mode.sum()) < 250
    residual = ends - repeated.means[torch.arange(400), mode]
    assert float(residual.std()) == pytest.approx(0.3, rel=0.05)
    with pytest.raises(ValueError, match="num_modes is 2"):
        policy.flow(context)


def test_contexts_repeat_join_and_stay_as_they_are() -> None:
    policy = make_policy(num_modes=2)
    context, noise, t = encode(policy, 3), policy.sample_noise(3, generator(0)), torch.full((3,), 0.4)
    first = policy.velocity(noise, t, context)
    assert torch.equal(first, policy.velocity(noise, t, context))
    joined = GaussianContext.concatenate([context.index(torch.tensor([2])), context])
    assert torch.equal(policy.velocity(noise, t, joined.index(torch.arange(1, 4))), first)
    twice = policy.velocity(noise.repeat_interleave(2, 0), t.repeat_interleave(2), context.repeat(2))
    assert torch.equal(twice, first.repeat_interleave(2, 0))
    alone = policy.velocity(noise[1:2], t[1:2], context.index(torch.tensor([1])))
    torch.testing.assert_close(first[1:2], alone)
    assert not torch.allclose(context.means[0], context.means[1])


def test_noise_fills_all_padded_dimensions_and_follows_its_seed() -> None:
    policy = make_policy(padded_dim=8, action_dim=2)
    noise = policy.sample_noise(500, generator(0))
    assert noise.shape == (500, *policy.chunk.shape) == (500, 4, 8)
    assert (noise.std(dim=(0, 1)) - 1).abs().max() < 0.1
    assert not torch.equal(noise, policy.sample_noise(500, generator(1)))
    assert torch.equal(seeded_noise(policy, 1, "a"), seeded_noise(policy, 1, "a"))


def test_couplings_never_take_the_saved_step_count() -> None:
    policy = make_policy()
    context, noise = encode(policy, 3), policy.sample_noise(3, generator(0))
    ten = CouplingConfig(num_steps=10).sampler(policy)(context, noise)
    policy.set_num_steps(1)
    assert policy.default_num_steps == 1
    assert torch.equal(CouplingConfig(num_steps=10).sampler(policy)(context, noise), ten)
    assert not torch.allclose(CouplingConfig(num_steps=1).sampler(policy)(context, noise), ten)


def test_roles_and_fresh_weights() -> None:
    policy = make_policy(std=0.5)
    by_role = policy.parameters_by_role()
    assert set(by_role[Role.PREFIX_PROJECTIONS]) == {"state_proj.weight", "state_proj.bias"}
    assert set(policy.train_roles([Role.ACTION_HEAD])) == set(by_role[Role.ACTION_HEAD]) == {"log_std"}
    with torch.no_grad():
        policy.module.get_parameter("log_std").fill_(1.0)
    prefix = policy.prefix_hash()
    policy.fresh([Role.ACTION_HEAD], seed=3)
    torch.testing.assert_close(policy.std, torch.full((4, 4), 0.5))
    assert policy.prefix_hash() == prefix
    policy.fresh([Role.PREFIX_PROJECTIONS], seed=3)
    assert policy.prefix_hash() != prefix


def test_gradients_reach_head_and_prefix() -> None:
    policy = make_policy()
    trainable = policy.train_roles(Role)
    batch = policy.preprocess({"observation.state": torch.ones(2, 2)})
    noise, t = policy.sample_noise(2, generator(0)), torch.full((2,), 0.5)
    module = VelocityModule(policy)
    module(noise, t, batch=batch).square().mean().backward()
    assert all(p.grad is not None and (p.grad != 0).any() for p in trainable.values())
    with pytest.raises(ValueError, match="needs a context or a batch"):
        module(noise, t)


def test_actions_are_scaled_and_targets_padded() -> None:
    policy = make_policy(action_scale=3.0)
    endpoint = torch.randn(2, 4, 4, generator=generator(0))
    assert torch.equal(policy.to_action(endpoint), 3.0 * endpoint[..., :2])
    is_pad = torch.tensor([[False] * 4, [False, False, True, True]])
    batch = policy.preprocess({"observation.state": torch.zeros(2, 2), "action": torch.ones(2, 4, 2),
                               "action_is_pad": is_pad})  # fmt: skip
    target, valid = policy.action_target(batch)
    assert target.shape == valid.shape == (2, 4, 4)
    assert (target[..., :2] == 1).all()
    assert (target[..., 2:] == 0).all()
    assert int(valid.sum()) == (4 + 2) * 2


def test_a_policy_without_cameras_fits_a_dataset_without_cameras() -> None:
    shape, policy = SimpleNamespace(shape=(2,)), make_policy()
    of_config = {
        "action_feature": shape,
        "robot_state_feature": shape,
        "image_features": {},
        "input_features": {},
    }
    policy.config = SimpleNamespace(**of_config)  # type: ignore[assignment]
    features = {"observation.state": {"shape": (2,)}, "action": {"shape": (2,)}}
    metadata = SimpleNamespace(repo_id="test/states", features=features, camera_keys=[])
    check_fits(metadata, policy)  # type: ignore[arg-type]
    features["action"] = {"shape": (3,)}
    with pytest.raises(UserError, match="action has shape"):
        check_fits(metadata, policy)  # type: ignore[arg-type]
