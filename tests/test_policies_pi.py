"""The adapters of pi0 and pi0.5 against the stock policies, in what is particular to them."""

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
from chordflow.policies import FlowPolicy, Role, VelocityModule, save_student
from chordflow.quiet import quiet_stdout
from family_case import euler, load, on_path
from small_policies import Folders
from small_runs import weights

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
    folder = Path(shutil.copytree(checkpoint, tmp_path / "older"))
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


def test_a_missing_embedding_is_not_filled_from_a_missing_layer(tmp_path: Path, checkpoint: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "cut"))
    weights(lambda tensors: [tensors.pop(name) for name in (LM_HEAD, EMBEDDING)])(folder)
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
