"""Real-time chunking: the same as stock LeRobot's, and right at few steps."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lerobot.configs import PreTrainedConfig, RTCAttentionSchedule
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.policies.rtc.modeling_rtc import RTCProcessor
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from torch import Tensor

from builders import build_checkpoint, observations
from chordflow.errors import UserError
from chordflow.flow.seeds import generator
from chordflow.policies import Context, load_flow_policy, save_student
from chordflow.policies.sampling import RealTimeSampler, Sampler, guidance_weight
from chordflow.policies.smolvla import SmolVLAFlowPolicy
from chordflow.quiet import quiet_stdout
from families import CASES
from gaussian_policy import GaussianConfig, GaussianFlowPolicy
from gaussian_setup import make_policy


class ConstantField(GaussianFlowPolicy):
    """v = noise - m wherever it is asked: the endpoint is m, and an endpoint that is foreseen moves with x."""

    def __init__(self, config: GaussianConfig, noise: Tensor) -> None:
        super().__init__(config)
        self.noise = noise

    def velocity(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        return self.noise - self.mixture(context).means[:, 0]


class TestWeight:
    def test_follows_the_steps(self) -> None:
        assert [guidance_weight(n) for n in (1, 2, 5, 10, 20)] == [1.0, 2.0, 5.0, 10.0, 20.0]
        assert guidance_weight(1, 5.0, 10) == 0.5
        assert guidance_weight(1, 1.0, 1) == 1.0
        with pytest.raises(UserError, match="num_steps is 0"):
            guidance_weight(0)

    @given(num_steps=st.integers(1, 100), left=st.integers(1, 8))
    def test_no_step_of_lerobots_processor_overshoots(self, num_steps: int, left: int) -> None:
        """On its own formula: by how much each step moves x, as a share of the error."""
        shares = []
        processor = RTCProcessor(RTCConfig(max_guidance_weight=guidance_weight(num_steps)))
        for step in range(num_steps):
            v = processor.denoise_step(
                x_t=torch.zeros(1, 8, 2),
                prev_chunk_left_over=torch.ones(1, left, 2),
                inference_delay=left,
                time=1 - step / num_steps,
                original_denoise_step_partial=torch.zeros_like,
            )
            shares.append(float(-v[0, 0, 0]) / num_steps)
        assert shares[0] == pytest.approx(1.0)
        assert max(shares) <= 1.0 + 1e-6


class TestSampler:
    @pytest.mark.parametrize("family", ["smolvla", "pi0", "pi05"])
    def test_equals_the_stock_policy_bit_for_bit(self, family: str, tmp_path: Path) -> None:
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
            for chunk, delay, horizon in (
                (left_over, 2, 6),
                (left_over, 0, 6),
                (None, 0, 6),
                (left_over, 1, 3),
            ):
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

    def test_without_a_previous_chunk_it_is_the_plain_sampler(self, tiny_policy: SmolVLAFlowPolicy) -> None:
        batch = tiny_policy.preprocess(observations(2))
        noise = tiny_policy.sample_noise(2, generator(0, "test"))
        with torch.no_grad():
            context = tiny_policy.encode(batch)
        guided, plain = RealTimeSampler(tiny_policy, 3), Sampler(tiny_policy, 3)
        assert torch.equal(guided(context, noise), plain(context, noise))

    @pytest.mark.parametrize("num_steps", [1, 2, 10])
    def test_lands_on_what_is_left_over_and_lerobots_weight_overshoots(self, num_steps: int) -> None:
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

    def test_a_family_without_real_time_chunking_is_guided_all_the_same(self) -> None:
        policy = make_policy(horizon=6)
        assert not policy.supports_real_time_chunking
        assert policy.rtc_config is None
        context = policy.encode({"observation.state": torch.ones(1, 2)})
        noise = policy.sample_noise(1, generator(0, "test"))
        left_over = torch.full((1, 3, 2), 0.3)
        endpoint = RealTimeSampler(policy, 1)(context, noise, left_over, 3)
        torch.testing.assert_close(endpoint[:, :3, :2], left_over)

    def test_says_what_does_not_fit(self) -> None:
        policy = make_policy()
        weight = "max_guidance_weight"
        for option, value in (("num_steps", 0), (weight, 0.0), (weight, math.nan), ("execution_horizon", 0)):
            with pytest.raises(UserError, match=f"{option} is {value}"):
                RealTimeSampler(policy, **{"num_steps": 1, option: value})


class TestSavedStudent:
    def save(self, teacher_dir: Path, output: Path, num_steps: int) -> dict[str, Any]:
        policy = load_flow_policy(teacher_dir, device="cpu")
        before = str(policy.config)
        save_student(policy, teacher_dir, output, {}, num_steps)
        assert str(policy.config) == before
        return json.loads((output / "config.json").read_text())

    @pytest.mark.parametrize(
        ("teacher_steps", "teacher_weight", "num_steps", "weight"),
        [(10, 10.0, 1, 1.0), (10, 10.0, 2, 2.0), (10, 5.0, 1, 0.5), (1, 1.0, 1, 1.0), (4, 4.0, 2, 2.0)],
    )
    def test_weight_follows_the_steps_and_nothing_else_changes(
        self,
        vlm: Path,
        tmp_path: Path,
        teacher_steps: int,
        teacher_weight: float,
        num_steps: int,
        weight: float,
    ) -> None:
        rtc = RTCConfig(
            prefix_attention_schedule=RTCAttentionSchedule.ONES,
            max_guidance_weight=teacher_weight,
            execution_horizon=7,
        )
        teacher = build_checkpoint(tmp_path / "teacher", vlm, num_steps=teacher_steps, rtc_config=rtc)
        saved = self.save(teacher, tmp_path / "student", num_steps)
        expected = json.loads((teacher / "config.json").read_text())
        expected["num_steps"] = num_steps
        expected["rtc_config"]["max_guidance_weight"] = weight
        assert saved == expected
        # By LeRobot's own reader, and again: a second round from the student has the ratio 1.
        config = PreTrainedConfig.from_pretrained(tmp_path / "student")
        assert config.rtc_config.max_guidance_weight == weight
        assert config.rtc_config.execution_horizon == 7
        again = self.save(tmp_path / "student", tmp_path / "again", num_steps)
        assert again["rtc_config"]["max_guidance_weight"] == weight

    def test_none_stays_none(self, checkpoint: Path, tmp_path: Path) -> None:
        assert self.save(checkpoint, tmp_path / "student", 1)["rtc_config"] is None

    def test_stock_lerobot_lands_on_the_prefix_with_it(self, vlm: Path, tmp_path: Path) -> None:
        teacher = build_checkpoint(tmp_path / "teacher", vlm, rtc_config=RTCConfig())
        self.save(teacher, tmp_path / "student", 1)
        batch = load_flow_policy(teacher, device="cpu").preprocess(observations(2))
        noise = torch.randn(2, 8, 6, generator=generator(0, "test"))
        left_over = torch.randn(2, 4, 2, generator=generator(1, "test"))
        ends = {}
        for name in ("teacher", "student"):
            with quiet_stdout():
                policy = SmolVLAPolicy.from_pretrained(tmp_path / name)
            # What a student would be with the teacher's weight.
            policy.config.num_steps = 1
            rtc = {"inference_delay": 4, "prev_chunk_left_over": left_over}
            ends[name] = policy.predict_action_chunk(dict(batch), noise=noise, **rtc)
            free = policy.predict_action_chunk(dict(batch), noise=noise, inference_delay=0)
        torch.testing.assert_close(ends["student"][:, :4], left_over, rtol=0, atol=1e-5)
        needed = (left_over - free[:, :4]).abs().mean()
        missed = (ends["teacher"][:, :4] - left_over).abs().mean()
        assert float(missed / needed) == pytest.approx(9.0, rel=1e-3)
