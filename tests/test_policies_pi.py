"""The adapters of pi0 and pi0.5 against the stock policies, in what is particular to them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import family_pi
from builders import observations
from chordflow.errors import UserError
from chordflow.flow.seeds import generator
from chordflow.policies import FlowPolicy, Role, VelocityModule, load_flow_policy, save_student
from chordflow.policies.pi0 import PI0Context
from chordflow.quiet import quiet_stdout
from family_case import euler, on_path
from small_policies import Folders

LM_HEAD = "model.paligemma_with_expert.paligemma.lm_head.weight"
EMBEDDING = "model.paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"


@pytest.fixture(params=family_pi.CASES)
def family(request: pytest.FixtureRequest) -> str:
    """pi0, then pi0.5."""
    return request.param


@pytest.fixture
def build(family: str, tmp_path: Path) -> Callable[..., Any]:
    """Builds and loads a checkpoint of the family."""
    return lambda **options: load(family_pi.build(family, tmp_path / "c", **options))


@pytest.fixture
def checkpoint(family: str, family_folder: Folders) -> Path:
    """A stock checkpoint; not to be written to."""
    return family_folder(family)


def load(folder: Path) -> Any:
    return load_flow_policy(folder, device="cpu")


@pytest.fixture
def policy(checkpoint: Path) -> Any:
    """The checkpoint, loaded afresh."""
    return load(checkpoint)


@pytest.fixture
def shared(family: str, family_policy: Callable[[str], FlowPolicy]) -> Any:
    """The checkpoint, loaded once; not to be changed."""
    return family_policy(family)


def stock_loss(policy: Any, batch: dict[str, Any], noise: Tensor, t: Tensor) -> Tensor:
    """What the stock policy's `forward` averages, at a noise and time of ours; it draws its own."""
    stock = policy.policy
    images, masks = stock._preprocess_images(batch)
    prompt = batch["observation.language.tokens"], batch["observation.language.attention_mask"]
    state = (stock.prepare_state(batch),) if policy.family == "pi0" else ()
    losses = stock.model.forward(images, masks, *prompt, *state, stock.prepare_action(batch), noise, t)
    return losses[..., : policy.chunk.action_dim].mean()


def test_cameras_without_the_blank_ones(build: Callable[..., Any]) -> None:
    policy = build(cameras=("top", "left", "right"), empty_cameras=1)
    assert policy.image_keys == [f"observation.images.{name}" for name in ("top", "left", "right")]
    assert len(policy.config.image_features) == 4
    assert not policy.needs_every_camera
    policy.encode(policy.preprocess(observations(1, ("left",))))
    with pytest.raises(ValueError, match="All image features are missing"):
        policy.encode(policy.preprocess(observations(1, ())))


def test_contexts_are_cut_to_the_prompt(shared: Any) -> None:
    context = shared.encode(shared.preprocess(observations(3)))
    singles = [context.index(torch.tensor([row])) for row in range(3)]
    assert max(single.mask.shape[1] for single in singles) < context.mask.shape[1]


def test_the_state_is_in_the_context(shared: Any) -> None:
    items = observations(2)
    other = {**items, "observation.state": items["observation.state"] + 0.5}
    noise, t = shared.sample_noise(2, generator(0, "test")), torch.ones(2)
    with torch.no_grad():
        context, moved = (shared.encode(shared.preprocess(given)) for given in (items, other))
        difference = shared.velocity(noise, t, context) - shared.velocity(noise, t, moved)
    assert difference.abs().mean() > 1e-2
    if shared.family == "pi0":
        assert isinstance(context, PI0Context)
        assert context.state.shape == (2, 8)
        assert torch.equal(context.keys_values, moved.keys_values)
    else:
        assert not torch.equal(context.keys_values, moved.keys_values)


def test_roles(shared: Any) -> None:
    roles = shared.parameters_by_role()
    assert not roles[Role.PREFIX_PROJECTIONS]
    assert any("multi_modal_projector" in name for name in roles[Role.VISION])
    assert ("model.state_proj.weight" in roles[Role.ACTION_HEAD]) == (shared.family == "pi0")
    # Read by nothing that acts.
    assert {name for name in roles[Role.LANGUAGE] if "lm_head" in name} == {
        LM_HEAD,
        "model.paligemma_with_expert.gemma_expert.lm_head.weight",
    }
    with pytest.raises(ValueError, match="no known role"):
        shared.role_of("model.paligemma_with_expert.gemma_expert.extra.weight")


def test_gradients_reach_all_that_acts(policy: Any) -> None:
    trainable = policy.train_roles(list(Role))
    batch = policy.preprocess(observations(2))
    noise = policy.sample_noise(2, generator(0, "test"))
    VelocityModule(policy)(noise, torch.full((2,), 0.5), batch=batch).square().mean().backward()
    without = {name for name, parameter in trainable.items() if parameter.grad is None}
    # The expert reads the last language layer's keys and values, not its output.
    assert all(
        "lm_head" in n or "language_model.norm" in n or "language_model.layers.1" in n for n in without
    )
    head = policy.parameters_by_role()[Role.ACTION_HEAD]
    assert not without & set(head)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.values())


def test_action_target_is_that_of_the_stock_loss_which_counts_padding(shared: Any) -> None:
    items = {**observations(2), "action": torch.randn(2, 8, 2, generator=generator(0, "action"))}
    items["action_is_pad"] = torch.arange(8).expand(2, 8) >= torch.tensor([[8], [5]])
    batch = shared.preprocess(items)
    assert batch["action_is_pad"].any()
    target, valid = shared.action_target(batch)
    assert (target[..., 2:] == 0).all()
    assert valid[..., :2].all()
    assert not valid[..., 2:].any()
    noise, t = shared.sample_noise(2, generator(1, "noise")), torch.tensor([0.4, 0.9])
    with torch.no_grad():
        v_t = shared.velocity(on_path(noise, target, t), t, shared.encode(batch))
        expected = stock_loss(shared, batch, noise, t)
    torch.testing.assert_close(
        (v_t - (noise - target)).square()[valid].mean(), expected, rtol=1e-4, atol=1e-5
    )


def test_actions_come_back_in_the_robots_units(shared: Any) -> None:
    endpoint = shared.sample_noise(2, generator(0, "test"))
    stats = family_pi.stats()["action"]
    if shared.family == "pi0":
        expected = endpoint[..., :2] * stats["std"] + stats["mean"]
    else:
        expected = (endpoint[..., :2] + 1) / 2 * (stats["q99"] - stats["q01"]) + stats["q01"]
    torch.testing.assert_close(shared.to_action(endpoint), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_steps", [1, 10])
def test_bfloat16_trunk_with_a_float32_head(build: Callable[..., Any], family: str, num_steps: int) -> None:
    policy = build(dtype="bfloat16", num_steps=num_steps)
    dtypes = {parameter.dtype for parameter in policy.module.parameters()}
    assert dtypes == {torch.bfloat16, torch.float32}
    batch = policy.preprocess(observations(2))
    noise = policy.sample_noise(2, generator(0, "test"))
    expected = family_pi.stock_endpoint(policy, batch, noise)
    endpoint = euler(policy, batch, noise, num_steps)
    assert (endpoint - expected).norm() <= 1e-2 * expected.norm()

    trainable = policy.train_roles([Role.ACTION_HEAD])
    assert {parameter.dtype for parameter in trainable.values()} == {torch.float32}
    with torch.no_grad():
        context = policy.encode(batch)
    assert getattr(context, "keys_values").dtype == torch.bfloat16  # noqa: B009
    masters = euler(policy, batch, noise, num_steps)
    assert (masters - expected).norm() <= 3e-2 * expected.norm()
    v_t = VelocityModule(policy)(noise, torch.full((2,), 0.5), context)
    assert v_t.dtype == torch.float32
    v_t.square().mean().backward()
    for name, parameter in trainable.items():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def older_names(policy: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under openpi's keys, the time layers named as in the other family."""
    renamed = {}
    for name, tensor in tensors.items():
        key = name.removeprefix("model.")
        for old, new in policy.legacy_names.items():
            key = old + key.removeprefix(new) if key.startswith(new) else key
        renamed[key] = tensor
    return renamed


def test_files_with_openpis_keys_load_and_students_keep_them(
    tmp_path: Path, family: str, checkpoint: Path
) -> None:
    folder = tmp_path / "older"
    shutil.copytree(checkpoint, folder)
    tensors = load_file(checkpoint / "model.safetensors")
    # Saved as one with the output layer.
    tensors[LM_HEAD] = tensors.pop(EMBEDDING)
    tensors = older_names(load(checkpoint), tensors)
    save_file(tensors, folder / "model.safetensors")
    policy, reference = load(folder), load(checkpoint)
    assert {policy.parameter_name(key) for key in tensors} == set(policy.module.state_dict()) - {EMBEDDING}
    batch = policy.preprocess(observations(2))
    noise = policy.sample_noise(2, generator(0, "test"))
    assert torch.equal(euler(policy, batch, noise, 2), euler(reference, batch, noise, 2))

    trained = {
        name: p.detach() + 0.125 for name, p in policy.train_roles([Role.LANGUAGE, Role.ACTION_HEAD]).items()
    }
    trained[LM_HEAD] = trained[LM_HEAD] - 0.125  # no gradient reaches it
    save_student(policy, folder, tmp_path / "student", trained, 1)
    saved = load_file(tmp_path / "student" / "model.safetensors")
    assert set(saved) == set(tensors)
    with quiet_stdout():
        student: Any = family_pi.STOCK[family][1].from_pretrained(tmp_path / "student")
    assert student.config.num_inference_steps == 1
    for name, parameter in student.named_parameters():
        if name != LM_HEAD:
            assert torch.equal(parameter, trained.get(name, reference.module.get_parameter(name))), name


def test_a_missing_embedding_is_not_filled_from_a_missing_layer(
    tmp_path: Path, family: str, checkpoint: Path
) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(checkpoint, folder)
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors[LM_HEAD], tensors[EMBEDDING]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"lacks .*lm_head\.weight' and 1 more; give complete weights"):
        load(folder)


def test_gradient_checkpointing_changes_nothing(build: Callable[..., Any], policy: Any) -> None:
    other = build(gradient_checkpointing=True)
    assert not other.module.training
    other.module.train()
    batch = policy.preprocess(observations(2))
    noise, t = policy.sample_noise(2, generator(0, "test")), torch.full((2,), 0.5)
    gradients = []
    for each in (policy, other):
        trainable = each.train_roles(list(Role))
        v_t = VelocityModule(each)(noise, t, batch=batch)
        v_t.square().mean().backward()
        gradients.append((v_t, {name: p.grad for name, p in trainable.items() if p.grad is not None}))
    (plain_v, plain), (checkpointed_v, checkpointed) = gradients
    torch.testing.assert_close(checkpointed_v, plain_v, rtol=1e-5, atol=1e-6)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.fixture
def matmul_precision() -> Iterator[None]:
    """A compiled policy's constructor sets the precision for the whole process."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("matmul_precision")
def test_a_compiled_policys_field_is_the_uncompiled_one(build: Callable[..., Any], policy: Any) -> None:
    """LeRobot compiles its sampler and its loss, which the adapter does not call."""
    other = build(compile_model=True)
    assert hasattr(other.policy.model.sample_actions, "get_compiler_config")
    batch = policy.preprocess(observations(2))
    noise = policy.sample_noise(2, generator(0, "test"))
    assert torch.equal(euler(other, batch, noise, 2), euler(policy, batch, noise, 2))
    other.fresh([Role.ACTION_HEAD], seed=1)
    assert not torch.equal(euler(other, batch, noise, 2), euler(policy, batch, noise, 2))
