"""Real-time chunking: the same as stock LeRobot's, and right at few steps."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import PreTrainedConfig, RTCAttentionSchedule
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from torch import Tensor

from builders import build_checkpoint, observations
from chordflow.flow.seeds import generator
from chordflow.policies import Context, load_flow_policy, save_student
from chordflow.policies.sampling import RealTimeSampler
from families import CASES
from gaussian_policy import GaussianConfig, GaussianFlowPolicy


class ConstantField(GaussianFlowPolicy):
    """v = noise - m wherever it is asked: the endpoint is m, and an endpoint that is foreseen moves with x."""

    def __init__(self, config: GaussianConfig, noise: Tensor) -> None:
        super().__init__(config)
        self.noise = noise

    def velocity(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        return self.noise - self.mixture(context).means[:, 0]


@pytest.mark.parametrize("family", ["smolvla", "pi0", "pi05"])
def test_equals_the_stock_policy_bit_for_bit(family: str, tmp_path: Path) -> None:
    # The weight is LeRobot's own default here: the sampler is the same at any.
    own = RTCConfig(prefix_attention_schedule=RTCAttentionSchedule.EXP, execution_horizon=6)
    folder = CASES[family].build(tmp_path / "checkpoint", rtc_config=own)
    policy: Any = load_flow_policy(folder, device="cpu")
    assert policy.supports_real_time_chunking
    assert policy.rtc_config == own
    for batch_size, num_steps in itertools.product((1, 3), (1, 2, 10)):
        policy.set_num_steps(num_steps)
        batch = policy.preprocess(observations(batch_size))
        noise = policy.sample_noise(batch_size, generator(0, "test"))
        left_over = torch.randn(batch_size, 5, 2, generator=generator(0, "left over"))
        with torch.no_grad():
            context = policy.encode(batch)
        # An argument of the call wins over the config, in LeRobot as here.
        for chunk, delay, horizon in ((left_over, 2, 6), (left_over, 0, 6), (None, 0, 6), (left_over, 1, 3)):
            sampler = RealTimeSampler(policy, num_steps, 10.0, horizon, RTCAttentionSchedule.EXP)
            rtc = {"inference_delay": delay, "prev_chunk_left_over": chunk, "execution_horizon": horizon}
            expected = policy.module.predict_action_chunk(dict(batch), noise=noise, **rtc)
            endpoint = sampler(context, noise, chunk, delay)
            assert endpoint.shape == noise.shape
            assert torch.equal(endpoint[..., :2], expected)
        sampler = RealTimeSampler(policy, num_steps, 10.0, 6, RTCAttentionSchedule.EXP)
        guided, free = sampler(context, noise, left_over, 2), sampler(context, noise)
        # Beyond the horizon only what flows back through the network can differ, and at one step nothing does.
        assert not torch.equal(guided[:, :5], free[:, :5])
        assert torch.equal(guided[:, 5:], free[:, 5:]) == (num_steps == 1)


@pytest.mark.parametrize("num_steps", [1, 2, 10])
def test_lands_on_what_is_left_over_and_lerobots_weight_overshoots(num_steps: int) -> None:
    config = GaussianConfig(horizon=8, padded_dim=4, action_dim=2)
    noise = torch.randn(3, 8, 4, generator=generator(0, "test"))
    policy = ConstantField(config, noise)
    context = policy.encode({"observation.state": torch.randn(3, 2, generator=generator(1, "test"))})
    free = RealTimeSampler(policy, num_steps)(context, noise)
    left_over = torch.randn(3, 4, 2, generator=generator(2, "test"))
    # A delay of 4 fixes all that is left over.
    right = RealTimeSampler(policy, num_steps)(context, noise, left_over, 4)
    torch.testing.assert_close(right[:, :4, :2], left_over, rtol=0, atol=1e-5)
    # Zeros for the padded dimensions: as LeRobot pads.
    torch.testing.assert_close(right[:, :4, 2:], torch.zeros(3, 4, 2), rtol=0, atol=1e-5)
    torch.testing.assert_close(right[:, 4:], free[:, 4:], rtol=0, atol=1e-5)
    if num_steps == 1:
        far = RealTimeSampler(policy, 1, max_guidance_weight=10.0)(context, noise, left_over, 4)
        needed, moved = left_over - free[:, :4, :2], (far - free)[:, :4, :2]
        torch.testing.assert_close(moved, 10 * needed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("teacher_steps", "teacher_weight", "num_steps", "weight"),
    [(10, 10.0, 2, 2.0), (10, 5.0, 1, 0.5), (4, 4.0, 2, 2.0)],
)
def test_a_saved_students_weight_follows_its_steps(
    vlm: Path, tmp_path: Path, teacher_steps: int, teacher_weight: float, num_steps: int, weight: float
) -> None:
    rtc = RTCConfig(max_guidance_weight=teacher_weight, execution_horizon=7)
    folder = build_checkpoint(tmp_path / "teacher", vlm, num_steps=teacher_steps, rtc_config=rtc)
    # A second round begins with the student: the ratio is 1.
    for name in ("student", "again"):
        policy = load_flow_policy(folder, device="cpu")
        before = str(policy.config)
        save_student(policy, folder, tmp_path / name, {}, num_steps)
        assert str(policy.config) == before
        folder = tmp_path / name
        saved: Any = PreTrainedConfig.from_pretrained(folder)
        assert (saved.rtc_config.max_guidance_weight, saved.rtc_config.execution_horizon) == (weight, 7)
