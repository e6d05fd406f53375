"""Every family's adapter against the stock sampler, over what a config may ask of it."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from builders import observations
from chordflow.flow.seeds import generator
from chordflow.policies import Role, VelocityModule, load_flow_policy
from families import CASES
from family_case import euler

AS_BUILT: dict[str, Any] = {}
TWO = {"cameras": ("top", "wrist")}
PI: dict[str, dict[str, Any]] = {
    "as built": AS_BUILT,
    "two cameras": TWO,
    "the second camera missing": {**TWO, "shown": ("top",)},
    "the first camera missing": {**TWO, "shown": ("wrist",)},
    "empty cameras": {"empty_cameras": 2},
    "resized images": {"image_resolution": (48, 48)},
    "prompts cut short": {"tokenizer_max_length": 4},
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "smolvla": {
        "as built": AS_BUILT,
        "two cameras": TWO,
        "one camera missing": {**TWO, "empty_cameras": 1, "shown": ("top",)},
        "self attention": {"attention_mode": "self_attn"},
        "prefix length": {"prefix_length": 40},
        "special tokens, one camera missing, fewer expert layers": {
            **TWO,
            "empty_cameras": 1,
            "shown": ("top",),
            "add_image_special_tokens": True,
            "num_expert_layers": 1,
        },
    },
    "pi0": PI,
    "pi05": PI,
    "eo1": {
        "as built": AS_BUILT,
        "two cameras": TWO,
        "eager attention": {"attn_implementation": "eager"},
        "deeper head, language head of its own": {"num_action_layers": 3, "backbone": {"tied": False}},
        "bfloat16": {"dtype": "bfloat16"},
        "the backbone's own dtype": {"dtype": "auto", "force_fp32_autocast": False},
    },
    "groot": {
        "as built": AS_BUILT,
        "two cameras": TWO,
        "no positions": {"base": {"add_pos_embed": False}},
        "no projection of features": {
            "base": {"use_vlln": False, "vl_self_attention_cfg": {"num_layers": 0}}
        },
        "norm alone": {"base": {"vl_self_attention_cfg": None}},
        "fewer buckets": {"base": {"num_timestep_buckets": 30}},
        "images attended to at every second block": {"base": {"attend_text_every_n_blocks": 1}},
        "another embodiment": {"embodiment_tag": "simpler_env_widowx"},
    },
    "multi_task_dit": {
        "as built": AS_BUILT,
        "two cameras": TWO,
        "an encoder for each camera": {**TWO, "use_separate_rgb_encoder_per_camera": True},
        "three steps": {"n_obs_steps": 3},
        "one step": {"n_obs_steps": 1},
        "positions that are added": {"use_rope": False, "use_positional_encoding": True},
        "prompts of their own lengths": {"tokenizer_padding": "longest"},
        "paths that end near demonstrations": {"sigma_min": 0.1},
    },
}


@pytest.mark.parametrize(
    ("family", "variant"), [(family, name) for family, of_one in VARIANTS.items() for name in of_one]
)
def test_variants_equal_the_stock_sampler(family: str, variant: str, tmp_path: Path) -> None:
    options = dict(VARIANTS[family][variant])
    shown = options.pop("shown", options.get("cameras", ("top",)))
    policy: Any = load_flow_policy(CASES[family].build(tmp_path / "c", **options), device="cpu")
    frames = policy.observation_delta_indices
    for count, steps in ((1, 1), (5, 2), (5, 10)):
        policy.set_num_steps(steps)
        items = observations(count, shown, steps=None if frames is None else len(frames))
        batch, noise = policy.preprocess(items), policy.sample_noise(count, generator(0, "v"))
        endpoint = euler(policy, batch, noise, steps)
        expected = CASES[family].stock_endpoint(policy, batch, noise)
        torch.testing.assert_close(endpoint, expected, rtol=1e-5, atol=1e-5)
        # Padded dimensions move too.
        assert (endpoint - noise).abs().mean(dim=(0, 1)).min() > 0.05
        if family in ("smolvla", "pi0", "pi05"):
            actions = policy.policy.predict_action_chunk(dict(batch), noise=noise)
            real = endpoint[..., : policy.chunk.action_dim]
            torch.testing.assert_close(real, actions, rtol=1e-5, atol=1e-5)
    if family in ("smolvla", "pi0", "pi05") and "special" not in variant:
        # No blank image goes through the tower.
        model = policy.module.model
        tower = model.vlm_with_expert if family == "smolvla" else model.paligemma_with_expert
        with patch.object(tower, "embed_image", wraps=tower.embed_image) as looked_at:
            policy.encode(batch)
        assert looked_at.call_count == len(shown)


# How weights in half precision are asked for, and how far from the stock endpoint float32 masters may lead.
GROOT_HALF: dict[str, Any] = {"base": {"model_dtype": "bfloat16"}, "model_params_fp32": False}
HALF: list[tuple[str, dict[str, Any], float]] = [
    ("smolvla", {}, 3e-2),
    ("pi0", {"dtype": "bfloat16"}, 3e-2),
    ("pi05", {"dtype": "bfloat16"}, 3e-2),
    ("eo1", {"dtype": "bfloat16"}, 5e-2),
    ("groot", {"dtype": "bfloat16"}, 5e-2),
    ("groot", {**GROOT_HALF, "use_bf16": False}, 5e-2),
    ("groot", {**GROOT_HALF, "use_bf16": True}, 5e-2),
]


@pytest.mark.parametrize(("family", "options", "bound"), HALF)
def test_half_precision_equals_the_stock_sampler_and_trains_with_float32_masters(
    family: str, options: dict[str, Any], bound: float, tmp_path: Path
) -> None:
    policy: Any = load_flow_policy(CASES[family].build(tmp_path / "c", **options), device="cpu")
    if family == "smolvla":
        policy.module.model.vlm_with_expert.to(torch.bfloat16)
    batch, noise = policy.preprocess(observations(3)), policy.sample_noise(3, generator(0, "b"))
    for steps in (1, 10):
        policy.set_num_steps(steps)
        expected = CASES[family].stock_endpoint(policy, batch, noise).float()
        endpoint = euler(policy, batch, noise, steps)
        assert endpoint.dtype == torch.float32
        # Without autocast GR00T rounds the state to bfloat16 between its steps, which the solver does not.
        assert (endpoint - expected).norm() <= 1e-2 * expected.norm()
    roles = [role for role, named in policy.parameters_by_role().items() if named]
    alone = {"eo1": Role.VISION, "groot": Role.PREFIX_PROJECTIONS}.get(family, Role.ACTION_HEAD)
    for trained in ([alone], [Role.ACTION_HEAD], list(policy.default_train_roles), roles):
        trainable = policy.train_roles(trained)
        assert {parameter.dtype for parameter in trainable.values()} == {torch.float32}
        policy.module.zero_grad()
        v_t = VelocityModule(policy)(noise, torch.tensor([1.0, 0.5, 0.1]), batch=batch)
        assert v_t.dtype == torch.float32
        v_t.square().mean().backward()
        for role in trained:
            named = policy.parameters_by_role()[role].values()
            assert any(p.grad is not None and p.grad.any() for p in named), role
    assert (euler(policy, batch, noise, 10) - expected).norm() <= bound * expected.norm()
