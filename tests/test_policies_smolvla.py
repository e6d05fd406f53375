"""What is particular to SmolVLA."""

from pathlib import Path

import torch

from builders import build_checkpoint, observations
from chordflow.flow.seeds import generator
from chordflow.policies import load_flow_policy
from chordflow.policies.smolvla import SmolVLAFlowPolicy
from family_case import euler, on_path


def test_action_target_is_padded_and_masked_like_the_stock_loss(tiny_policy: SmolVLAFlowPolicy) -> None:
    items = {**observations(2), "action": torch.randn(2, 8, 2)}
    items["action_is_pad"] = torch.arange(8).expand(2, 8) >= torch.tensor([[8], [5]])
    batch = tiny_policy.preprocess(items)
    target, valid = tiny_policy.action_target(batch)
    assert target.shape == valid.shape == (2, *tiny_policy.chunk.shape)
    assert (target[..., 2:] == 0).all()
    assert not valid[..., 2:].any()
    assert not valid[1, 5:].any()
    noise, t = torch.randn(2, 8, 6), torch.tensor([0.4, 0.9])
    with torch.no_grad():
        v_t = tiny_policy.velocity(on_path(noise, target, t), t, tiny_policy.encode(batch))
        loss, _ = tiny_policy.module.forward(dict(batch), noise=noise, time=t)
    torch.testing.assert_close((v_t - (noise - target)).square()[valid].mean(), loss, rtol=1e-4, atol=1e-5)


def test_aloha_joints_are_adapted_as_in_the_stock_policy(tmp_path: Path, vlm: Path) -> None:
    sizes = {"state_dim": 14, "action_dim": 14, "max_action_dim": 16, "max_state_dim": 16}
    folder = build_checkpoint(tmp_path / "c", vlm, adapt_to_pi_aloha=True, **sizes)
    policy = load_flow_policy(folder, device="cpu")
    items = {**observations(3), "observation.state": torch.rand(3, 14)}
    noise = policy.sample_noise(3, generator(0, "aloha"))
    # The stock policy writes into the state that it is given: each gets its own.
    batch = policy.preprocess({**items, "observation.state": items["observation.state"].clone()})
    state = batch["observation.state"].clone()
    endpoint = euler(policy, batch, noise, 2)
    assert torch.equal(batch["observation.state"], state)
    policy.set_num_steps(2)
    stock = policy.module.predict_action_chunk(policy.preprocess(dict(items)), noise=noise.clone())
    torch.testing.assert_close(policy.to_action(endpoint), policy.postprocessor(stock), rtol=1e-5, atol=1e-5)
    assert not torch.equal(policy.to_action(endpoint), endpoint[..., :14])
