"""What every family's adapter must do, on a small real checkpoint of each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import drift_env  # noqa: F401 (registers the environment)
from broken_statistics import AFTER, BEFORE, drop, edit_config, edit_statistics, edit_steps
from builders import observations
from chordflow.cli.main import main
from chordflow.errors import UserError
from chordflow.flow.seeds import generator
from chordflow.policies import FlowPolicy, Role, VelocityModule, load_flow_policy, save_student
from chordflow.policies.registry import own_families
from chordflow.results.schema import Results
from chordflow.training.student import StudentInit, make_student
from families import CASES
from family_case import FamilyCase, euler
from small_policies import Folders

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


def of_another_robot(folder: Path, pipeline: str, key: str, size: int) -> None:
    def change(held: dict[str, Tensor]) -> None:
        held.update({name: torch.linspace(1, 2, size) for name in held if name.startswith(f"{key}.")})

    edit_statistics(folder, pipeline, change)


def enable(folder: Path, pipeline: str) -> None:
    """Switches steps for actions relative to the state on, and leaves `config.json` as it is."""
    edit_steps(folder, pipeline, lambda s: "enabled" in s["config"] and s["config"].update(enabled=True))


# Statistics that are gone; and what would stop when the student is measured.
UNFIT: dict[str, tuple[tuple[str, str], Callable[[Path], object], str]] = {
    "smolvla": (
        (BEFORE, "observation.state"), lambda p: of_another_robot(p, BEFORE, "action", 7), "mean of action of size 7"
    ),
    "pi0": ((AFTER, "action"), lambda p: enable(p, BEFORE), "relative_actions_processor with enabled=true"),
    "pi05": ((BEFORE, "observation.state"), lambda p: enable(p, AFTER), "absolute_actions_processor with enabled=true"),
    "multi_task_dit": (
        (BEFORE, "observation.images.top"), lambda p: of_another_robot(p, BEFORE, "observation.state", 5),
        r"the network \(config.json\) fails on a blank observation",
    ),
    "eo1": ((AFTER, "action"), lambda p: of_another_robot(p, AFTER, "action", 1), "mean of action of size 1"),
    "groot": (
        (AFTER, "action"), lambda p: of_another_robot(p, AFTER, "action", 1), "no finite min of action of size 2"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", ["without statistics", "of another robot"])
def test_processors_that_do_not_fit_are_refused_at_loading(
    case: FamilyCase, fault: str, copied: Path
) -> None:
    lacking, change, message = UNFIT[case.family]
    if fault == "of another robot":
        change(copied)
    else:
        drop(copied, *lacking)
        message = rf"(mean and std|q01 and q99|finite min) of {lacking[1]}"
    with pytest.raises(UserError, match=message):
        load_flow_policy(copied, device="cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("num_steps", [1, 2, None])
def test_euler_over_velocity_equals_the_stock_sampler(
    case: FamilyCase, num_steps: int | None, dtype: str, tmp_path: Path, family_folder: Folders
) -> None:
    if dtype == "bfloat16" and not case.has_bfloat16:
        pytest.skip("the family has no half precision of its own")
    if dtype == "float32" and num_steps is None:
        folder = family_folder(case.family)
    else:
        options = {"dtype": dtype} if dtype == "bfloat16" else {}
        folder = case.build(
            tmp_path / "c", **options, **({} if num_steps is None else {"num_steps": num_steps})
        )
    policy = load_flow_policy(folder, device="cpu")
    steps = case.default_steps if num_steps is None else num_steps
    assert policy.default_num_steps == steps
    for batch_size in (1, 3):
        batch = policy.preprocess(raw(policy, batch_size))
        noise = policy.sample_noise(batch_size, generator(0, "test"))
        endpoint = euler(policy, batch, noise, steps)
        expected = case.stock_endpoint(policy, policy.preprocess(raw(policy, batch_size)), noise).float()
        assert endpoint.shape == expected.shape == (batch_size, *policy.chunk.shape)
        # A field that does nothing, or a sampler that ignores it, would agree as well.
        assert (endpoint - noise).abs().mean() > 0.05
        if dtype == "float32":
            torch.testing.assert_close(endpoint, expected, rtol=1e-5, atol=1e-5)
        else:
            assert (endpoint - expected).norm() <= 1e-2 * expected.norm()


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


def test_noise_is_seeded_and_of_unit_variance_in_every_dimension(
    case: FamilyCase, shared: FlowPolicy
) -> None:
    noise = shared.sample_noise(600, generator(3, "noise"))
    assert noise.shape == (600, *shared.chunk.shape)
    assert noise.dtype == torch.float32
    assert torch.equal(noise[:1], shared.sample_noise(600, generator(3, "noise"))[:1])
    torch.testing.assert_close(noise.mean(dim=(0, 1)), torch.zeros(noise.shape[2]), atol=0.1, rtol=0)
    torch.testing.assert_close(noise.std(dim=(0, 1)), torch.ones(noise.shape[2]), atol=0.1, rtol=0)


def test_roles_cover_all_and_training_reaches_the_trained(case: FamilyCase, policy: FlowPolicy) -> None:
    roles = policy.parameters_by_role()
    assert sorted(name for named in roles.values() for name in named) == sorted(weights(policy))
    assert all(roles[role] for role in (Role.VISION, Role.LANGUAGE, Role.ACTION_HEAD))
    noise, t = policy.sample_noise(2, generator(0, "g")), torch.tensor([1.0, 0.4])
    # The action head alone, on a context without a graph: as a student with a shared prefix trains.
    trainable = policy.train_roles([Role.ACTION_HEAD])
    assert trainable.keys() == roles[Role.ACTION_HEAD].keys()
    assert {n for n, p in policy.module.named_parameters() if p.requires_grad} == set(trainable)
    with torch.no_grad():
        context = policy.encode(policy.preprocess(raw(policy, 2)))
    VelocityModule(policy)(noise, t, context=context).square().mean().backward()
    assert reached(policy) == {name for name, parameter in trainable.items() if parameter.numel()}
    # And everything that can be trained: gradients go through `encode` to the vision encoder.
    trained = [role for role in Role if roles[role] and not cut_off(case, role)]
    policy.train_roles(trained)
    policy.module.zero_grad()
    VelocityModule(policy)(noise, t, batch=policy.preprocess(raw(policy, 2))).square().mean().backward()
    for role in trained:
        assert reached(policy) & set(roles[role]), role


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


# Acts by each line's student, and answers with what went wrong; it cannot import chordflow. One process for all
# families: LeRobot takes longer to import than all the students to act.
STOCK = """
import json, os, sys, traceback

sys.modules["chordflow"] = None
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors

def act(folder, small, observations, output):
    if small:
        __import__(small)
    config = PreTrainedConfig.from_pretrained(folder)
    config.pretrained_path = folder
    policy = get_policy_class(config.type).from_pretrained(folder, config=config, strict=True)
    before, after = make_pre_post_processors(config, pretrained_path=folder)
    items = torch.load(observations, weights_only=True)
    torch.manual_seed(0)
    policy.reset()
    torch.save(torch.stack([after(policy.select_action(before(dict(items)))) for _ in range(2)]), output)
    assert sys.modules["chordflow"] is None

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for line in sys.stdin:
    said = ""
    try:
        act(*json.loads(line))
    except BaseException:
        said = traceback.format_exc()
    print(json.dumps(said), file=answers, flush=True)
"""


@pytest.fixture(scope="module")
def stock_lerobot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Lets LeRobot alone act by a checkpoint; gives what went wrong, or nothing."""
    with subprocess.Popen(
        [sys.executable, "-c", STOCK],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path_factory.mktemp("stock"),
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    ) as process:  # fmt: skip
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def act(*arguments: str) -> str:
            print(json.dumps(arguments), file=stdin, flush=True)
            return json.loads(stdout.readline())

        yield act
        stdin.close()


def test_a_saved_student_runs_in_stock_lerobot_without_chordflow(
    case: FamilyCase, folder: Path, policy: Any, stock_lerobot: Callable[..., str], tmp_path: Path
) -> None:
    trained = policy.train_roles(list(policy.default_train_roles))
    with torch.no_grad():
        for index, parameter in enumerate(trained.values()):
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator(index, "student")))
    config, student = (folder / "config.json").read_text(), tmp_path / "student"
    save_student(policy, folder, student, trained, 1)
    assert (folder / "config.json").read_text() == config
    # The teacher's keys, dtypes and frozen bytes; one step in the field that the family reads.
    old, new = load_file(folder / "model.safetensors"), load_file(student / "model.safetensors")
    assert old.keys() == new.keys()
    assert sum(not torch.equal(old[name], new[name]) for name in old) == len(trained)
    assert all(old[name].dtype == new[name].dtype for name in old)
    before, after = json.loads(config), json.loads((student / "config.json").read_text())
    assert {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)} == {policy.steps_field}
    assert after[policy.steps_field] == 1
    # Reloaded here: the trained weights, one step.
    again = load_flow_policy(student, device="cpu")
    assert again.default_num_steps == 1
    parameters = dict(again.module.named_parameters())
    assert all(torch.equal(parameters[n], p.to(parameters[n].dtype)) for n, p in trained.items())
    # And by LeRobot alone, in a process that has no chordflow.
    torch.save({k: v[:1] for k, v in observations(1).items()}, tmp_path / "items.pt")
    arguments = [str(student), case.small_module or "", str(tmp_path / "items.pt"), str(tmp_path / "out.pt")]
    assert stock_lerobot(*arguments) == ""
    # What goes wrong there is told here.
    (student / "config.json").rename(student / "elsewhere")
    assert "Error" in stock_lerobot(*arguments)
    actions = torch.load(tmp_path / "out.pt", weights_only=True)
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


def test_what_cannot_be_run_is_named(case: FamilyCase, copied: Path, shared: Any, refused: Refused) -> None:
    """A number of steps that is none, a field of a newer LeRobot, weights without one that is asked for."""
    config = (copied / "config.json").read_text()
    # GR00T's own null means the number of its head.
    none = [] if case.family == "groot" else [(shared.steps_field, None)]
    for name, value in [(shared.steps_field, 0), *none, ("n_action_steps", 0)]:
        edit_config(copied, lambda c, given=(name, value): c.update([given]))
        said = refused(copied)
        assert "config.json" in said
        assert name in said or value is None
        (copied / "config.json").write_text(config)
    edit_config(copied, lambda c: c.update(invented_in_2027=1))
    said = refused(copied)
    assert "invented_in_2027" in said
    assert "newer LeRobot" in said
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
