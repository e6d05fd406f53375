"""What every family's adapter must do, on a small real checkpoint of each."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from safetensors.torch import load_file, save_file
from torch import Tensor

import drift_env  # noqa: F401 (registers the environment)
from builders import observations
from chordflow.cli.main import main
from chordflow.couplings import BufferConfig, CouplingBuffer, CouplingConfig, DatasetConfig, open_split
from chordflow.errors import UserError
from chordflow.flow.seeds import generator
from chordflow.policies import FlowPolicy, Role, VelocityModule, load_flow_policy, save_student
from chordflow.policies.registry import own_families
from chordflow.results.schema import Results
from chordflow.training.methods import MethodConfig
from chordflow.training.methods.coupled import (
    ConsistencyMethodConfig,
    EndpointMethodConfig,
    ReflowMethodConfig,
)
from chordflow.training.methods.demonstrated import NoiseBiasedMethodConfig, SnapFlowMethodConfig
from chordflow.training.student import StudentInit, make_student
from families import CASES
from family_case import FamilyCase
from forked import forget_chordflow, forked
from small_policies import Folders
from small_runs import changed

pytestmark = pytest.mark.parametrize("case", CASES.values(), ids=CASES)

Refused = Callable[[Path], str]


@pytest.fixture
def folder(case: FamilyCase, family_folder: Folders) -> Path:
    """A checkpoint of the family; not to be written to."""
    return family_folder(case.family)


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """One that may be changed."""
    return Path(shutil.copytree(folder, tmp_path / "copied"))


@pytest.fixture
def policy(folder: Path) -> Any:
    """The checkpoint, loaded afresh."""
    return load_flow_policy(folder, device="cpu")


@pytest.fixture
def shared(case: FamilyCase, family_policy: Callable[[str], FlowPolicy]) -> Any:
    """The checkpoint, loaded once; not to be changed."""
    return family_policy(case.family)


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """What `chordflow diagnose` says of a checkpoint that it refuses."""

    def refusal(folder: Path) -> str:
        data = ["--dataset.repo_id=test/tiny", f"--output_dir={tmp_path / 'out'}"]
        assert main(["diagnose", f"--policy.path={folder}", *data]) == 2
        return capsys.readouterr().err

    return refusal


def raw(policy: FlowPolicy, batch: int) -> dict[str, Any]:
    """Observations with as many frames as the policy looks at."""
    indices = policy.observation_delta_indices
    return observations(batch, steps=None if indices is None else len(indices))


def cut_off(case: FamilyCase, role: Role) -> bool:
    """LeRobot runs that text encoder without a graph, so it cannot be trained."""
    return case.family == "multi_task_dit" and role == Role.LANGUAGE


def reached(policy: FlowPolicy) -> set[str]:
    """Parameters with a gradient."""
    return {name for name, p in policy.module.named_parameters() if p.grad is not None and p.grad.any()}


def weights(policy: FlowPolicy) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in policy.module.named_parameters()}


@torch.no_grad()
def test_contexts_are_reusable_repeat_and_join(case: FamilyCase, shared: FlowPolicy) -> None:
    items, t = raw(shared, 4), torch.tensor([1.0, 0.7, 0.3, 0.0])
    noise = shared.sample_noise(4, generator(1, "test"))
    context = shared.encode(shared.preprocess(dict(items)))
    before = [tensor.clone() for tensor in context.tensors()]
    first = shared.velocity(noise, t, context)
    assert first.dtype == torch.float32
    assert torch.equal(first, shared.velocity(noise, t, context))
    assert all(torch.equal(a, b) for a, b in zip(before, context.tensors(), strict=True))
    repeated = shared.velocity(noise.repeat_interleave(3, 0), t.repeat_interleave(3), context.repeat(3))
    torch.testing.assert_close(repeated, first.repeat_interleave(3, 0), rtol=1e-5, atol=1e-5)
    # Encoded one by one, prompts have lengths of their own; joining pads them.
    singles = [
        shared.encode(shared.preprocess({key: value[row : row + 1] for key, value in items.items()}))
        for row in range(4)
    ]
    joined = type(context).concatenate(singles)
    torch.testing.assert_close(shared.velocity(noise, t, joined), first, rtol=1e-5, atol=1e-5)
    order = torch.tensor([2, 0, 2])
    picked = shared.velocity(noise[order], t[order], joined.index(order))
    torch.testing.assert_close(picked, first[order], rtol=1e-5, atol=1e-5)
    if context.mask_field is not None:
        lengths = [getattr(single, context.mask_field).any(dim=0).sum() for single in singles]
        assert len({int(length) for length in lengths}) > 1
        assert getattr(joined.index(torch.tensor([0])), context.mask_field).shape[1] == lengths[0]
    # Observations differ, or all of the above would hold for an encoder that is blind.
    other = shared.velocity(noise, t, context.index(torch.tensor([1, 2, 3, 0])))
    assert not torch.allclose(other, first, rtol=1e-3, atol=1e-3)
    assert context.batch_size == joined.batch_size == context.detach().to("cpu").batch_size == 4
    assert context.num_bytes == sum(tensor.nbytes for tensor in context.tensors())


def test_preprocessing_and_encoding_leave_what_they_are_given_whole(
    case: FamilyCase, shared: FlowPolicy
) -> None:
    items = raw(shared, 2)
    batch = shared.preprocess(items)
    before = {key: value.clone() for key, value in batch.items() if isinstance(value, Tensor)}
    shared.encode(batch)
    assert before
    assert all(torch.equal(value, batch[key]) for key, value in before.items())
    given = raw(shared, 2)
    assert items["task"] == given["task"]
    assert all(torch.equal(given[key], items[key]) for key in given if key != "task")


# The parts of the names by which parameters have a role, the first that is found.
PARTS: dict[str, dict[Role, tuple[str, ...]]] = {
    "smolvla": {
        Role.LANGUAGE: ("text_model", "vlm.lm_head"), Role.VISION: ("vlm.model",),
        Role.PREFIX_PROJECTIONS: ("state_proj",), Role.ACTION_HEAD: ("lm_expert", "action_"),
    },
    "pi0": {
        Role.VISION: ("multi_modal_projector", "vision_tower"), Role.LANGUAGE: ("language_model", "lm_head"),
        Role.ACTION_HEAD: ("",),
    },
    "eo1": {
        Role.VISION: (".visual.",), Role.LANGUAGE: ("vlm_backbone",), Role.PREFIX_PROJECTIONS: ("state_proj",),
        Role.ACTION_HEAD: ("action_",),
    },
    "groot": {
        Role.VISION: (".visual.",), Role.LANGUAGE: ("backbone",), Role.PREFIX_PROJECTIONS: (".vl", "state_encoder"),
        Role.ACTION_HEAD: ("action_head",),
    },
    "multi_task_dit": {
        Role.VISION: ("vision_encoder",), Role.LANGUAGE: ("text_encoder.text_encoder",),
        Role.PREFIX_PROJECTIONS: ("text_encoder.projection",), Role.ACTION_HEAD: ("noise_predictor",),
    },
}  # fmt: skip
PARTS["pi05"] = PARTS["pi0"]

# What nothing that acts depends on. The heads read the last language layer's keys and values, not its output; a key's
# bias shifts all scores of a query alike.
IDLE = {
    "smolvla": ("vlm.lm_head", "text_model.norm", "text_model.layers.1"),
    "pi0": ("lm_head", "language_model.norm", "language_model.layers.1"),
    "pi05": ("lm_head", "language_model.norm", "language_model.layers.1"),
    "groot": ("language_model.norm",),
    "multi_task_dit": ("post_layernorm", "k_proj.bias"),
}


def test_roles_follow_the_parts_and_training_reaches_all_that_acts(
    case: FamilyCase, policy: FlowPolicy
) -> None:
    roles, parts = policy.parameters_by_role(), PARTS[case.family]
    assert {name: role for role, named in roles.items() for name in named} == {
        name: next(role for role, own in parts.items() if any(part in name for part in own))
        for name in weights(policy)
    }
    with pytest.raises(ValueError, match="no known role"):
        policy.role_of("model.elsewhere.weight")
    # Neither dropout nor random crops: student and teacher see the same.
    assert not any(module.training for module in policy.module.modules())
    noise, t = policy.sample_noise(2, generator(0, "g")), torch.tensor([1.0, 0.4])
    # The action head alone, on a context without a graph: as a student with a shared prefix trains.
    trainable = policy.train_roles([Role.ACTION_HEAD])
    assert trainable.keys() == roles[Role.ACTION_HEAD].keys()
    assert {n for n, p in policy.module.named_parameters() if p.requires_grad} == set(trainable)
    with torch.no_grad():
        context = policy.encode(policy.preprocess(raw(policy, 2)))
    module = VelocityModule(policy)
    module(noise, t, context=context).square().mean().backward()
    assert reached(policy) == {name for name, parameter in trainable.items() if parameter.numel()}
    # And everything that can be trained: gradients go through `encode` to the vision encoder.
    trainable = policy.train_roles([role for role in Role if not cut_off(case, role)])
    policy.module.zero_grad()
    module(noise, t, batch=policy.preprocess(raw(policy, 2))).square().mean().backward()
    without = {name for name, p in trainable.items() if p.numel()} - reached(policy)
    assert not [name for name in without if not any(part in name for part in IDLE.get(case.family, ()))]
    with pytest.raises(ValueError, match="needs a context or a batch"):
        module(noise, t)


def test_fresh_weights_repeat_and_touch_their_roles_alone(case: FamilyCase, policy: FlowPolicy) -> None:
    before, head = weights(policy), set(policy.parameters_by_role()[Role.ACTION_HEAD])
    state, prefix = torch.random.get_rng_state(), policy.prefix_hash()
    policy.fresh([Role.ACTION_HEAD], seed=3)
    after = weights(policy)
    assert torch.equal(state, torch.random.get_rng_state())
    assert prefix == policy.prefix_hash()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed <= head
    assert len(changed) > len(head) / 3
    policy.fresh([Role.ACTION_HEAD], seed=3)
    assert all(torch.equal(value, after[name]) for name, value in weights(policy).items())
    policy.fresh([Role.ACTION_HEAD], seed=4)
    assert any(not torch.equal(value, after[name]) for name, value in weights(policy).items())
    with torch.no_grad():
        vision = next(iter(policy.parameters_by_role()[Role.VISION].values()))
        vision.view(-1)[0] += 1e-3
    assert policy.prefix_hash() != prefix


def act_alone(folder: Path, observation: dict[str, Any], output: Path) -> None:
    """Two actions by LeRobot's classes, in a process that can no longer import chordflow."""
    forget_chordflow()
    config = PreTrainedConfig.from_pretrained(folder)
    config.pretrained_path = folder
    policy = get_policy_class(config.type).from_pretrained(folder, config=config, strict=True)
    before, after = make_pre_post_processors(config, pretrained_path=str(folder))
    policy.reset()
    actions = [after(policy.select_action(before(dict(observation)))) for _ in range(2)]
    torch.save(torch.stack(actions), output)
    raise SystemExit


def test_a_saved_student_runs_in_stock_lerobot_without_chordflow(
    case: FamilyCase, folder: Path, policy: Any, tmp_path: Path
) -> None:
    trained = policy.train_roles(list(policy.default_train_roles))
    with torch.no_grad():
        for index, parameter in enumerate(trained.values()):
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator(index, "student")))
    student = tmp_path / "student"
    save_student(policy, folder, student, trained, 1)
    # The teacher's keys, dtypes and frozen bytes.
    old, new = load_file(folder / "model.safetensors"), load_file(student / "model.safetensors")
    assert old.keys() == new.keys()
    assert sum(not torch.equal(old[name], new[name]) for name in old) == len(trained)
    assert all(old[name].dtype == new[name].dtype for name in old)
    # Reloaded here: the trained weights, one step.
    again = load_flow_policy(student, device="cpu")
    assert again.default_num_steps == 1
    parameters = dict(again.module.named_parameters())
    assert all(torch.equal(parameters[n], p.to(parameters[n].dtype)) for n, p in trained.items())
    # And by LeRobot alone.
    observation = {key: value[:1] for key, value in observations(1).items()}
    with forked([], lambda: act_alone(student, observation, tmp_path / "actions.pt")) as alone:
        alone.join()
    assert alone.exitcode == 0
    actions = torch.load(tmp_path / "actions.pt", weights_only=True)
    assert (actions.shape[0], actions.shape[-1], bool(actions.isfinite().all())) == (2, 2, True)


def test_the_whole_job(case: FamilyCase, folder: Path, dataset_root: Path, tmp_path: Path) -> None:
    data = ["--dataset.repo_id=test/tiny", f"--dataset.root={dataset_root}"]
    measure = [
        "--measure.num_observations=2", "--measure.latency_repeats=1", "--measure.converged_noises=1",
        "--measure.num_steps=[1]", "--measure.noises_per_observation=16",
    ]  # fmt: skip
    run, evaluation = tmp_path / "run", tmp_path / "evaluation"
    reflow = [
        "reflow", f"--teacher.path={folder}", *data, *measure, f"--output_dir={run}", "--steps=2", "--batch_size=4",
        "--optimizer.lr=1e-3", "--num_workers=0", "--buffer.num_observations=4", "--buffer.noises_per_observation=2",
        "--buffer.block_size=2", "--coupling.num_steps=2", "--save_freq=1", "--teacher.num_inference_steps=4",
    ]  # fmt: skip
    assert main(reflow) == 0
    last = run / "checkpoints" / "last"
    student, results = last / "pretrained_model", Results.load(run / "results.json")
    assert {info.family for info in results.policies} == {case.family}
    assert results.teacher_num_steps == 4
    resume = ["reflow", "--resume=true", f"--config_path={student / 'train_config.json'}", "--steps=3"]
    assert main(resume) == 0
    assert os.readlink(last) == "000003"
    evaluate = [
        "evaluate", f"--teacher.path={folder}", f"--student.path={student}", *data, *measure,
        "--teacher.num_inference_steps=2", "--env.type=drift_of_the_tests", "--eval.n_episodes=2",
        "--eval.batch_size=2", f"--output_dir={evaluation}",
    ]  # fmt: skip
    assert main(evaluate) == 0
    assert Results.load(evaluation / "results.json").success


def test_a_moved_checkpoint_is_relocated(
    case: FamilyCase, folder: Path, refused: Refused, tmp_path: Path
) -> None:
    """Checkpoint and what it was built on move together, as when a disk is copied."""
    moved = Path(shutil.copytree(folder.parent, tmp_path / "elsewhere")) / folder.name
    for file in (moved / "config.json", moved / "policy_preprocessor.json"):
        file.write_text(file.read_text().replace(str(folder.parent), str(tmp_path / "gone")))
    assert f"chordflow relocate {moved}" in refused(moved)
    assert main(["relocate", str(moved)]) == 0
    assert load_flow_policy(moved, device="cpu").family == case.family


def test_parts_that_a_family_does_not_have(case: FamilyCase, policy: FlowPolicy, folder: Path) -> None:
    """And random students are random throughout, whatever the constructor loads."""
    roles = policy.parameters_by_role()
    for role in Role:
        if not roles[role] and not cut_off(case, role):
            words = f"student.train holds {role}, of which policy type '{case.family}'"
            with pytest.raises(UserError, match=words):
                make_student(policy, folder, StudentInit.TEACHER, [role], seed=0)
    student = make_student(policy, folder, StudentInit.RANDOM, [Role.ACTION_HEAD], seed=7)
    for role, named in student.policy.parameters_by_role().items():
        # Biases and norms begin alike; matrices do not.
        same = [name for name, p in named.items() if p.dim() > 1 and torch.equal(p, roles[role][name])]
        assert not same, role


def test_no_steps_and_missing_weights_are_named(
    case: FamilyCase, copied: Path, shared: Any, refused: Refused
) -> None:
    config = (copied / "config.json").read_text()
    nothing = {shared.steps_field: 0, "n_action_steps": 0, "input_features": None, "output_features": None}
    for field, value in nothing.items():
        changed("config.json", **{field: value})(copied)
        said = refused(copied)
        assert field in said
        assert value == 0 or f" in {field}; restore it from a good copy." in said
        (copied / "config.json").write_text(config)
    # Also where LeRobot's own loader would go on with random weights.
    tensors = load_file(copied / "model.safetensors")
    name = max(tensors)
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, copied / "model.safetensors")
    said = refused(copied)
    assert "model.safetensors" in said
    assert name.removeprefix("model.") in said


def test_missing_packages_are_named(
    case: FamilyCase, folder: Path, shared: FlowPolicy, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(own_families()) == sorted(CASES)
    extra = own_families()[case.family]

    def without(*_: object, **__: object) -> None:
        raise ImportError(f"'something' is required but not installed. Please install lerobot[{extra}].")

    monkeypatch.setattr(type(shared.module), "__init__", without)
    assert f'pip install "lerobot[{extra}]==0.6.1"' in refused(folder)


def test_what_is_encoded_does_not_depend_on_the_actions_beside_it(
    case: FamilyCase, shared: FlowPolicy, dataset_root: Path
) -> None:
    config, contexts = DatasetConfig("test/tiny", root=str(dataset_root)), []
    for actions in (False, True):
        items = next(open_split(config, shared, actions=actions).train.batches([0, 4, 9], 3))
        assert ("action" in items) == actions
        with torch.no_grad():
            contexts.append(shared.encode(shared.preprocess(items)))
    for alone, beside in zip(contexts[0].tensors(), contexts[1].tensors(), strict=True):
        assert torch.equal(alone, beside)


METHODS: list[MethodConfig] = [
    NoiseBiasedMethodConfig(), SnapFlowMethodConfig(), ReflowMethodConfig(real_data_share=0.5),
    EndpointMethodConfig(), ConsistencyMethodConfig(),
]  # fmt: skip


def test_every_method_has_a_loss_and_a_gradient(
    case: FamilyCase, policy: FlowPolicy, dataset_root: Path
) -> None:
    split = open_split(DatasetConfig("test/tiny", root=str(dataset_root)), policy, actions=True)
    for config in METHODS:
        policy.module.requires_grad_(False)
        method = config.build()
        buffer = CouplingBuffer(
            policy, split.train, CouplingConfig(num_steps=2), BufferConfig(4, 2, None, 4), seed=0, batch_size=8,
            needs=method.needs,
        )  # fmt: skip
        list(buffer.fill(0))
        trainable = policy.train_roles(policy.default_train_roles)
        loss = method.loss(VelocityModule(policy), buffer.batch(0), generator(1))
        gradients = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True)
        norm = sum(float(g.square().sum()) for g in gradients if g is not None) ** 0.5
        assert 0 < float(loss.detach()) < 1e4, config
        assert 0 < norm < 1e6, config
