"""What is particular to GR00T: buckets of time, its own processors, the base model beneath."""

import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from broken_statistics import AFTER, BEFORE, drop, edit_statistics, edit_steps
from builders import observations
from chordflow.errors import UserError
from chordflow.flow.seeds import generator
from chordflow.flow.solvers import Euler
from chordflow.policies.registry import adapter_for
from family_case import euler, load, on_path
from family_groot import HORIZON, PADDED_DIM, build, stock_batch, stock_endpoint
from small_policies import Folders
from small_runs import changed, edit_json

ONE_TASK = ["go left"]


def alike(batch: int, **options: Any) -> dict[str, Any]:
    """Observations whose prompts have one length."""
    return {**observations(batch, **options), "task": ONE_TASK * batch}


@pytest.fixture(scope="module")
def checkpoint(family_folder: Folders) -> Path:
    """A float32 checkpoint; not to be written to."""
    return family_folder("groot")


@pytest.fixture(scope="module")
def shared(checkpoint: Path) -> Any:
    """The checkpoint, loaded once; not to be changed."""
    return load(checkpoint)


def test_every_grid_meets_the_buckets_of_the_stock_sampler(shared: Any) -> None:
    times, expected = [], []
    x = torch.zeros(1, 1, 1)
    for n in range(1, 101):
        Euler().integrate(lambda x, t: times.append(t) or x, x, n)  # type: ignore[func-returns-value]
        expected += [int(step / float(n) * 1000) for step in range(n)]
    assert shared._buckets(torch.cat(times)).tolist() == expected


def test_prompts_of_one_length_equal_the_stock_batch(shared: Any) -> None:
    batch, noise = shared.preprocess(alike(3)), shared.sample_noise(3, generator(0, "p"))
    endpoint = euler(shared, batch, noise, 4)
    torch.testing.assert_close(endpoint, stock_batch(shared, batch, noise), rtol=1e-6, atol=1e-6)
    # And what LeRobot's `predict_action_chunk` cuts out of it.
    torch.manual_seed(5)
    actions = shared.module.predict_action_chunk(dict(batch))
    noise = torch.randn((3, *shared.chunk.shape), generator=torch.Generator().manual_seed(5))
    predicted = euler(shared, batch, noise, 4)[:, : actions.shape[1], : shared.chunk.action_dim]
    torch.testing.assert_close(predicted, actions, rtol=1e-5, atol=1e-5)


GROUPS = {
    "x": {"min": [2.0], "max": [14.0], "mean": [8.0], "std": [2.0]},
    "gripper": {"min": [0.0], "max": [1.0], "mean": [0.5], "std": [0.2]},
}
STATES = {**GROUPS, "rest": {"min": [-1.0], "max": [4.0], "mean": [1.0], "std": [1.0]}}


def libero(relative: bool = False) -> dict[str, Any]:
    """Options of a base model that brings the statistics and groups of an embodiment of its own."""
    rep = "RELATIVE" if relative else "ABSOLUTE"
    config = {"rep": rep, "type": "NON_EEF", "format": "DEFAULT", "state_key": None}
    groups = {
        "state": {"modality_keys": list(STATES)},
        "action": {
            "modality_keys": list(GROUPS), "action_configs": [config, config], "delta_indices": list(range(6)),
        },
        "video": {"modality_keys": ["top"], "delta_indices": [0]},
    }  # fmt: skip
    processor = {
        "modality_configs": {"libero_sim": groups}, "use_relative_action": relative, "max_action_horizon": HORIZON
    }  # fmt: skip
    held = {"state": STATES, "action": GROUPS, **({"relative_action": GROUPS} if relative else {})}
    return {
        "base": {"processor": processor}, "statistics": {"libero_sim": held}, "embodiment_tag": "libero_sim"
    }  # fmt: skip


def test_actions_of_an_embodiment_of_the_base_model(tmp_path: Path) -> None:
    policy = load(build(tmp_path / "c", n_action_steps=8, **libero()))
    endpoint = 1.5 * torch.randn(3, *policy.chunk.shape)
    actions = policy.to_action(endpoint)
    assert actions.shape == (3, HORIZON, 2)
    clipped = endpoint[..., :2].clamp(-1, 1)
    torch.testing.assert_close(actions[..., 0], 8 + 6 * clipped[..., 0], rtol=1e-5, atol=1e-5)
    # LIBERO's gripper closes at -1 and opens at 1, `action_decode_transform` sees to it.
    assert torch.equal(actions[..., 1], -torch.sign(clipped[..., 1]))
    # The whole chunk at once, as LeRobot's asynchronous inference decodes it: the first six are the embodiment's.
    assert torch.equal(policy.postprocessor(endpoint[..., :2].clone()), actions[:, :6])
    # And the network's own: the embodiment's weights, the order of its cameras.
    batch, noise = policy.preprocess(observations(2)), policy.sample_noise(2, generator(0, "e"))
    assert set(batch["embodiment_id"].tolist()) == {2}
    expected = stock_endpoint(policy, batch, noise)
    torch.testing.assert_close(euler(policy, batch, noise, 4), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "executed"),
    [({}, 4), ({"n_action_steps": 8}, 8), ({"n_action_steps": 8, **libero()}, 6)],
    ids=["four", "whole chunk", "cut by the embodiment"],
)
def test_as_many_actions_are_executed_as_the_stock_policy_queues(
    tmp_path: Path, options: dict[str, Any], executed: int
) -> None:
    policy = load(build(tmp_path / "c", **options))
    assert policy.chunk.shape == (HORIZON, PADDED_DIM)
    assert policy.chunk.num_executed == executed
    batch = policy.preprocess(observations(1))
    counts, predict = [], policy.module.predict_action_chunk
    with patch.object(policy.module, "predict_action_chunk", wraps=predict) as asked:
        for _ in range(2 * executed + 1):
            policy.module.select_action(batch)
            counts.append(asked.call_count)
    assert counts == [1] * executed + [2] * executed + [3]


@pytest.mark.parametrize("use_bf16", [False, True])
def test_action_target_is_padded_and_masked_like_the_stock_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_bf16: bool
) -> None:
    policy = load(build(tmp_path / "c", use_bf16=use_bf16))
    items = {**alike(2), "action": torch.tensor([8.0, -2.0]) + torch.randn(2, HORIZON, 2)}
    items["action_is_pad"] = torch.arange(HORIZON) >= torch.tensor([[HORIZON], [5]])
    batch = policy.preprocess(items)
    target, valid = policy.action_target(batch)
    assert target.shape == valid.shape == (2, *policy.chunk.shape)
    assert valid[0, :, :2].all()
    assert not valid[..., 2:].any()
    assert not valid[1, 5:].any()
    assert (target[~valid] == 0).all()
    torch.testing.assert_close(target[0, :, 0], ((items["action"][0, :, 0] - 2) / 6 - 1).clamp(-1, 1))
    noise, t = torch.randn(target.shape), torch.tensor([0.4, 0.9])
    head: Any = policy.module.get_submodule("_groot_model.action_head")
    monkeypatch.setattr(head, "sample_time", lambda batch_size, device, dtype: (1 - t).to(device, dtype))
    with torch.no_grad():
        v_t = policy.velocity(on_path(noise, target, t), t, policy.encode(batch))
        monkeypatch.setattr(torch, "randn", lambda *shape, **options: noise)
        loss, _ = policy.module.forward(dict(batch))
    rtol, atol = (1e-2, 1e-2) if use_bf16 else (1e-4, 1e-5)
    torch.testing.assert_close((v_t - (noise - target)).square()[valid].mean(), loss, rtol=rtol, atol=atol)


def test_shorter_demonstrations_are_padded_to_the_samplers_chunk(tmp_path: Path) -> None:
    policy = load(build(tmp_path / "c", chunk_size=5))
    assert policy.chunk.horizon == HORIZON
    assert policy.chunk.num_usable == 5
    items = {**alike(2), "action": torch.full((2, 5, 2), 3.0)}
    target, valid = policy.action_target(policy.preprocess(items))
    assert target.shape == valid.shape == (2, *policy.chunk.shape)
    assert valid[:, :5, :2].all()
    assert valid.sum() == 2 * 5 * 2
    assert (target[:, 5:] == 0).all()


def test_the_base_model_has_the_number_of_steps_unless_the_config_has(tmp_path: Path) -> None:
    folder = build(tmp_path / "c", base={"num_inference_timesteps": 6})
    policy = load(folder)
    assert policy.config.num_inference_timesteps is None
    assert policy.default_num_steps == 6
    policy.set_num_steps(2)
    assert policy.default_num_steps == 2
    batch, noise = policy.preprocess(alike(1)), policy.sample_noise(1, generator(0, "n"))
    # The stock policy in memory follows.
    endpoint = euler(policy, batch, noise, 2)
    torch.testing.assert_close(stock_batch(policy, batch, noise), endpoint, rtol=1e-5, atol=1e-5)
    policy.config.save_pretrained(folder)
    assert load(folder).module.get_submodule("_groot_model.action_head").num_inference_timesteps == 2


def as_it_is(step: dict[str, Any]) -> None:
    """Has a step that scales pass numbers on."""
    step["config"].update({"normalize_min_max": False} if "normalize_min_max" in step["config"] else {})


UNFIT: dict[str, tuple[dict[str, Any], Callable[[Path], object], list[str]]] = {
    "a transformer without mask": (
        {"base": {"use_alternate_vl_dit": False}}, bool, ["use_alternate_vl_dit=False", "base_model_path", "null"]
    ),
    "positions that count padding": (
        {"base": {"vl_self_attention_cfg": {"num_layers": 1, "num_attention_heads": 4, "attention_head_dim": 8}}}, bool,
        ["vl_self_attention_cfg", "positional_embeddings", "base_model_path"],
    ),
    "relative actions": (
        libero(relative=True), bool, ["use_relative_action=true", "policy_postprocessor.json", "absolute"]
    ),
    "no statistics of the state": (
        {}, lambda p: drop(p, BEFORE, "observation.state"),
        ["teacher.path=", "GrootN17PackInputsStep", "no finite min of observation.state, "],
    ),
    "no statistics of the base model": (
        libero(), lambda p: edit_steps(p, AFTER, lambda step: step["config"].pop("raw_stats", None)),
        ["GrootN17ActionDecodeStep", "no raw_stats"],
    ),
    "no step that unnormalises": (
        {}, lambda p: edit_json(p / f"{AFTER}.json", lambda c: c["steps"].pop(0)),
        ["teacher.path=", f"{AFTER}.json has no step that unnormalises action"],
    ),
    "actions that leave on another scale": (
        {}, lambda p: edit_statistics(p, AFTER, lambda held: held["action.max"].mul_(3)),
        ["teacher.path=", "normalises action by a max of 14 in dimension 0", "unnormalises it by one of 42"],
    ),
    **{
        f"{side} without its minima and maxima": (
            {}, partial(edit_steps, pipeline=side, change=as_it_is), [step, "no normalize_min_max=true"],
        )
        for side, step in ((BEFORE, "GrootN17PackInputsStep"), (AFTER, "GrootActionUnpackUnnormalizeStep"))
    },
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_what_cannot_be_reflowed_is_refused(tmp_path: Path, case: str) -> None:
    options, change, words = UNFIT[case]
    folder = build(tmp_path / "c", **options)
    change(folder)
    with pytest.raises(UserError) as refused:
        load(folder)
    assert all(word in str(refused.value) for word in words)


@pytest.mark.parametrize("fields", [
    {"base_model_path": "nvidia/GR00T-N1.5-3B"},
    # As LeRobot 0.5 saved one that was fine-tuned from a copy of another name.
    {"base_model_path": "/moved/base", "tokenizer_assets_repo": "lerobot/eagle2hg-processor-groot-n1p5"},
])  # fmt: skip
def test_the_version_before_is_named_before_its_base_is_asked_for(
    fields: dict[str, Any], checkpoint: Path, tmp_path: Path
) -> None:
    old = Path(shutil.copytree(checkpoint, tmp_path / "old"))
    changed("config.json", **fields)(old)
    with pytest.raises(UserError) as refused:
        load(old)
    said = str(refused.value)
    assert f"config.json is of a GR00T N1.5 (base_model_path={fields['base_model_path']})" in said
    assert "give a checkpoint of GR00T N1.7" in said
    assert "relocate" not in said


def test_lerobots_own_normaliser_is_not_asked_for(checkpoint: Path, tmp_path: Path) -> None:
    """Whatever the config says of it: GR00T's own steps normalise."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "c"))
    changed("config.json", normalization_mapping={"STATE": "MEAN_STD", "ACTION": "MEAN_STD"})(folder)
    assert load(folder).config.normalization_mapping["ACTION"] == "MEAN_STD"


def test_a_package_that_is_asked_for_late_is_missed_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tree", None)
    words = r'packages are not all installed.*pip install "lerobot\[groot\]==0\.6\.1"'
    with pytest.raises(UserError, match=words):
        adapter_for("groot")


def test_lerobots_own_rollout_executes_as_many_actions_as_it_is_told(tmp_path: Path) -> None:
    """As `lerobot-eval --policy.n_action_steps=7` would, which sets the field before the policy is built."""
    policy = load(build(tmp_path / "c"))
    policy.set_num_executed(7)
    policy.policy.reset()
    assert policy.policy._action_queue.maxlen == policy.chunk.num_executed == 7
    with pytest.raises(UserError, match="n_action_steps is 9"):
        policy.set_num_executed(9)
