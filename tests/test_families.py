"""What every family's adapter must do, on a small real checkpoint of each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import drift_env  # noqa: F401 (registers the environment)
import family_eo1
import family_groot
import family_multi_task_dit
import family_pi0
import family_pi05
from broken_statistics import AFTER, BEFORE, drop, edit_statistics, edit_steps
from builders import build_checkpoint, build_vlm, observations
from chordflow.cli.main import main
from chordflow.errors import UserError
from chordflow.flow.seeds import generator
from chordflow.flow.solvers import Euler
from chordflow.policies import FlowPolicy, Role, VelocityModule, load_flow_policy, save_student
from chordflow.policies.registry import own_families
from chordflow.results.schema import Results
from chordflow.training.student import StudentInit, make_student
from family_case import FamilyCase
from test_policies_smolvla import whole_chunk_of_stock


def _build_smolvla(
    folder: Path, *, num_steps: int | None = None, dtype: str = "float32", seed: int = 0
) -> Path:
    assert dtype == "float32"
    vlm = build_vlm(folder.parent / "tiny-smolvlm")
    return build_checkpoint(folder, vlm, seed=seed, **({} if num_steps is None else {"num_steps": num_steps}))


SMOLVLA = FamilyCase(
    family="smolvla",
    build=_build_smolvla,
    default_steps=10,
    stock_endpoint=lambda policy, batch, noise: whole_chunk_of_stock(policy.module, batch, noise),
)
CASES = {
    case.family: case
    for case in (
        SMOLVLA,
        family_pi0.CASE,
        family_pi05.CASE,
        family_multi_task_dit.CASE,
        family_eo1.CASE,
        family_groot.CASE,
    )
}

pytestmark = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[FamilyCase], Path]:
    """A checkpoint of each family, built once; not to be written to."""
    built: dict[str, Path] = {}

    def folder(case: FamilyCase) -> Path:
        if case.family not in built:
            root = tmp_path_factory.mktemp(case.family)
            built[case.family] = case.build(root / "pretrained_model")
        return built[case.family]

    return folder


@pytest.fixture
def policy(case: FamilyCase, folders: Callable[[FamilyCase], Path]) -> FlowPolicy:
    """The checkpoint, loaded afresh."""
    return load_flow_policy(folders(case), device="cpu")


def raw(policy: FlowPolicy, batch: int, seed: int = 0) -> dict:
    """Observations with as many frames as the policy looks at."""
    indices = policy.observation_delta_indices
    return observations(batch, seed=seed, **({} if indices is None else {"steps": len(indices)}))


def of_another_robot(folder: Path, pipeline: str, key: str, size: int) -> None:
    def change(held: dict[str, Tensor]) -> None:
        held.update({name: torch.linspace(1, 2, size) for name in list(held) if name.startswith(f"{key}.")})

    edit_statistics(folder, pipeline, change)


def enable(folder: Path, pipeline: str) -> None:
    """Switches steps for actions relative to the state on, and leaves `config.json` as it is."""
    edit_steps(
        folder, pipeline, lambda step: "enabled" in step["config"] and step["config"].update(enabled=True)
    )


@pytest.mark.parametrize("fault", ["without statistics", "of another robot"])
def test_processors_that_do_not_fit_are_refused_at_loading(
    case: FamilyCase, fault: str, folders: Callable[[FamilyCase], Path], tmp_path: Path
) -> None:
    """One that is not normalised at all, and one that would stop when the student is measured."""
    lacking = {
        "smolvla": (BEFORE, "observation.state"),
        "pi0": (AFTER, "action"),
        "pi05": (BEFORE, "observation.state"),
        "multi_task_dit": (BEFORE, "observation.images.top"),
        "eo1": (AFTER, "action"),
        "groot": (AFTER, "action"),
    }[case.family]
    another: dict[str, tuple[Callable[[Path], object], str]] = {
        "smolvla": (lambda p: of_another_robot(p, BEFORE, "action", 7), "mean of action of size 7"),
        "pi0": (lambda p: enable(p, BEFORE), "relative_actions_processor with enabled=true"),
        "pi05": (lambda p: enable(p, AFTER), "absolute_actions_processor with enabled=true"),
        "multi_task_dit": (
            lambda p: of_another_robot(p, BEFORE, "observation.state", 5),
            r"the network \(config.json\) fails on a blank observation",
        ),
        "eo1": (lambda p: of_another_robot(p, AFTER, "action", 1), "mean of action of size 1"),
        "groot": (lambda p: of_another_robot(p, AFTER, "action", 1), "no finite min of action of size 2"),
    }
    folder = Path(shutil.copytree(folders(case), tmp_path / "c"))
    if fault == "without statistics":
        drop(folder, *lacking)
        message = rf"(mean and std|q01 and q99|finite min) of {lacking[1]}"
    else:
        change, message = another[case.family]
        change(folder)
    with pytest.raises(UserError, match=message):
        load_flow_policy(folder, device="cpu")


def test_the_families_under_test_are_those_that_the_registry_has(case: FamilyCase) -> None:
    assert list(own_families()) == sorted(CASES)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("num_steps", [1, 2, None])
def test_euler_over_velocity_equals_the_stock_sampler(
    case: FamilyCase, num_steps: int | None, dtype: str, tmp_path: Path
) -> None:
    if dtype == "bfloat16" and not case.has_bfloat16:
        pytest.skip("the family has no half precision of its own")
    policy = load_flow_policy(case.build(tmp_path / "c", num_steps=num_steps, dtype=dtype), device="cpu")
    steps = case.default_steps if num_steps is None else num_steps
    assert policy.default_num_steps == steps
    for batch_size in (1, 3):
        batch = policy.preprocess(raw(policy, batch_size))
        noise = policy.sample_noise(batch_size, generator(0, "test"))
        with torch.no_grad():
            context = policy.encode(batch)
            endpoint = Euler().integrate(lambda x, t, c=context: policy.velocity(x, t, c), noise, steps)
        expected = case.stock_endpoint(policy, policy.preprocess(raw(policy, batch_size)), noise).float()
        assert endpoint.shape == expected.shape == (batch_size, *policy.chunk.shape)
        # A field that does nothing, or a sampler that ignores it, would agree as well.
        assert (endpoint - noise).abs().mean() > 0.05
        if dtype == "float32":
            torch.testing.assert_close(endpoint, expected, rtol=1e-5, atol=1e-5)
        else:
            assert (endpoint - expected).norm() <= 1e-2 * expected.norm()


def test_contexts_are_reusable_repeat_and_join(case: FamilyCase, policy: FlowPolicy) -> None:
    items = raw(policy, 4)
    noise = policy.sample_noise(4, generator(1, "test"))
    t = torch.tensor([1.0, 0.7, 0.3, 0.05])
    with torch.no_grad():
        context = policy.encode(policy.preprocess(dict(items)))
        before = [tensor.clone() for tensor in context.tensors()]
        first = policy.velocity(noise, t, context)
        assert first.dtype == torch.float32
        assert torch.equal(first, policy.velocity(noise, t, context))
        assert all(torch.equal(a, b) for a, b in zip(before, context.tensors(), strict=True))
        repeated = policy.velocity(noise.repeat_interleave(3, 0), t.repeat_interleave(3), context.repeat(3))
        torch.testing.assert_close(repeated, first.repeat_interleave(3, 0), rtol=1e-5, atol=1e-5)
        # Encoded one by one, prompts have lengths of their own; joining pads them.
        singles = [
            policy.encode(policy.preprocess({key: value[row : row + 1] for key, value in items.items()}))
            for row in range(4)
        ]
        joined = type(context).concatenate(singles)
        torch.testing.assert_close(policy.velocity(noise, t, joined), first, rtol=1e-4, atol=1e-5)
        order = torch.tensor([2, 0, 2])
        picked = policy.velocity(noise[order], t[order], joined.index(order))
        torch.testing.assert_close(picked, first[order], rtol=1e-4, atol=1e-5)
        # Observations differ, or all of the above would hold for an encoder that is blind.
        other = policy.velocity(noise, t, context.index(torch.tensor([1, 2, 3, 0])))
        assert not torch.allclose(other, first, rtol=1e-3, atol=1e-3)
    assert context.batch_size == joined.batch_size == 4


def test_encoding_leaves_the_batch_whole(case: FamilyCase, policy: FlowPolicy) -> None:
    batch = policy.preprocess(raw(policy, 2))
    before = {key: value.clone() for key, value in batch.items() if isinstance(value, Tensor)}
    policy.encode(batch)
    assert before
    assert all(torch.equal(value, batch[key]) for key, value in before.items())


def test_noise_is_seeded_and_of_unit_variance_in_every_dimension(
    case: FamilyCase, policy: FlowPolicy
) -> None:
    noise = policy.sample_noise(600, generator(3, "noise"))
    assert noise.shape == (600, *policy.chunk.shape)
    assert noise.dtype == torch.float32
    assert torch.equal(noise[:1], policy.sample_noise(600, generator(3, "noise"))[:1])
    torch.testing.assert_close(noise.mean(dim=(0, 1)), torch.zeros(noise.shape[2]), atol=0.1, rtol=0)
    torch.testing.assert_close(noise.std(dim=(0, 1)), torch.ones(noise.shape[2]), atol=0.1, rtol=0)


def test_roles_cover_all_and_training_reaches_the_trained(case: FamilyCase, policy: FlowPolicy) -> None:
    roles = policy.parameters_by_role()
    assert sorted(n for named in roles.values() for n in named) == sorted(
        name for name, _ in policy.module.named_parameters()
    )
    assert all(roles[role] for role in (Role.VISION, Role.LANGUAGE, Role.ACTION_HEAD))
    noise = policy.sample_noise(2, generator(0, "g"))
    t = torch.tensor([1.0, 0.4])
    # The action head alone, on a context without a graph: as a student with a shared prefix trains.
    trainable = policy.train_roles([Role.ACTION_HEAD])
    assert trainable.keys() == roles[Role.ACTION_HEAD].keys()
    with torch.no_grad():
        context = policy.encode(policy.preprocess(raw(policy, 2)))
    VelocityModule(policy)(noise, t, context=context).square().mean().backward()
    moved = {name for name, p in policy.module.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == set(trainable) - {name for name in trainable if trainable[name].numel() == 0}
    # And everything that can be trained: gradients go through `encode` to the vision encoder.
    roles_with_gradients = [role for role in Role if roles[role] and not _cut_off(case, role)]
    policy.train_roles(roles_with_gradients)
    policy.module.zero_grad()
    VelocityModule(policy)(noise, t, batch=policy.preprocess(raw(policy, 2))).square().mean().backward()
    for role in roles_with_gradients:
        reached = [
            n for n, p in policy.parameters_by_role()[role].items() if p.grad is not None and p.grad.any()
        ]
        assert reached, role


def _cut_off(case: FamilyCase, role: Role) -> bool:
    # LeRobot runs that text encoder without a graph, so it cannot be trained.
    return case.family == "multi_task_dit" and role == Role.LANGUAGE


def test_fresh_weights_repeat_and_touch_their_roles_alone(case: FamilyCase, policy: FlowPolicy) -> None:
    def snapshot() -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in policy.module.named_parameters()}

    before, head = snapshot(), set(policy.parameters_by_role()[Role.ACTION_HEAD])
    state, prefix = torch.random.get_rng_state(), policy.prefix_hash()
    policy.fresh([Role.ACTION_HEAD], seed=3)
    after = snapshot()
    assert torch.equal(state, torch.random.get_rng_state())
    assert prefix == policy.prefix_hash()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed <= head
    assert len(changed) > len(head) / 3
    policy.fresh([Role.ACTION_HEAD], seed=3)
    assert all(torch.equal(value, after[name]) for name, value in snapshot().items())
    policy.fresh([Role.ACTION_HEAD], seed=4)
    assert any(not torch.equal(value, after[name]) for name, value in snapshot().items())


# Runs each line's student in a process of its own, forked from this one, which has LeRobot loaded (that takes longer
# than all the students together) and cannot import chordflow.
STOCK = """
import importlib.abc, json, os, sys, traceback

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "chordflow":
            raise ImportError("chordflow is not here")

sys.meta_path.insert(0, Refuse())
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
    actions = [after(policy.select_action(before(dict(items)))) for _ in range(2)]
    torch.save(torch.stack(actions), output)

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for line in sys.stdin:
    reading, writing = os.pipe()
    if not (child := os.fork()):
        said = ""
        try:
            act(*json.loads(line))
        except BaseException:
            said = traceback.format_exc()
        os.write(writing, said[-4000:].encode())
        os._exit(0)
    os.close(writing)
    said = os.fdopen(reading).read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps(said or (f"exit code {code}" if code else "")), file=answers, flush=True)
"""


@pytest.fixture(scope="module")
def stock_lerobot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Lets LeRobot alone act by a checkpoint; gives what went wrong, or nothing."""
    with subprocess.Popen(
        [sys.executable, "-c", STOCK],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path_factory.mktemp("stock"),
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    ) as process:  # fmt: skip

        def act(*arguments: str) -> str:
            assert process.stdin is not None
            assert process.stdout is not None
            print(json.dumps(arguments), file=process.stdin, flush=True)
            said: str = json.loads(process.stdout.readline())
            return said

        yield act
        assert process.stdin is not None
        process.stdin.close()


def test_a_saved_student_runs_in_stock_lerobot_without_chordflow(
    case: FamilyCase,
    folders: Callable[[FamilyCase], Path],
    stock_lerobot: Callable[..., str],
    tmp_path: Path,
) -> None:
    teacher = folders(case)
    policy = load_flow_policy(teacher, device="cpu")
    trained = policy.train_roles(list(policy.default_train_roles))
    with torch.no_grad():
        for index, parameter in enumerate(trained.values()):
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator(index, "student")))
    config = (teacher / "config.json").read_text()
    student = tmp_path / "student"
    save_student(policy, teacher, student, trained, 1)
    assert (teacher / "config.json").read_text() == config
    # The teacher's keys, dtypes and frozen bytes; one step in the field that the family reads.
    old, new = load_file(teacher / "model.safetensors"), load_file(student / "model.safetensors")
    assert old.keys() == new.keys()
    different = {name for name in old if not torch.equal(old[name], new[name])}
    assert len(different) == len(trained)
    assert all(old[name].dtype == new[name].dtype for name in old)
    before, after = json.loads(config), json.loads((student / "config.json").read_text())
    assert {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)} == {policy.steps_field}  # type: ignore[attr-defined]
    assert after[policy.steps_field] == 1  # type: ignore[attr-defined]
    # Reloaded here: the trained weights, one step.
    again = load_flow_policy(student, device="cpu")
    assert again.default_num_steps == 1
    parameters = dict(again.module.named_parameters())
    assert all(torch.equal(parameters[n], p.to(parameters[n].dtype)) for n, p in trained.items())
    # And by LeRobot alone, in a process that has no chordflow.
    items = {k: v[:1] for k, v in observations(1).items()}
    torch.save(items, tmp_path / "items.pt")
    arguments = [str(student), case.small_module or "", str(tmp_path / "items.pt"), str(tmp_path / "out.pt")]
    assert stock_lerobot(*arguments) == ""
    # What goes wrong there is told here.
    (student / "config.json").rename(student / "elsewhere")
    assert "Error" in stock_lerobot(*arguments)
    actions = torch.load(tmp_path / "out.pt", weights_only=True)
    assert actions.shape[0] == 2
    assert actions.shape[-1] == 2
    assert actions.isfinite().all()


def test_the_whole_job(
    case: FamilyCase, folders: Callable[[FamilyCase], Path], dataset_root: Path, tmp_path: Path
) -> None:
    teacher = folders(case)
    data = ["--dataset.repo_id=test/tiny", f"--dataset.root={dataset_root}"]
    measure = [
        "--measure.num_observations=3", "--measure.latency_repeats=2", "--measure.converged_noises=1",
        "--measure.num_steps=[1,2]", "--measure.noises_per_observation=16",
    ]  # fmt: skip
    run, diagnosis, evaluation = (tmp_path / name for name in ("run", "diagnosis", "evaluation"))
    reflow = [
        "reflow", f"--teacher.path={teacher}", *data, *measure, f"--output_dir={run}", "--steps=3",
        "--batch_size=4", "--optimizer.lr=1e-3", "--num_workers=0", "--buffer.num_observations=4",
        "--buffer.noises_per_observation=2", "--buffer.block_size=2", "--coupling.num_steps=2",
        "--save_freq=2", "--teacher.num_inference_steps=4",
    ]  # fmt: skip
    assert main(reflow) == 0
    student = run / "checkpoints" / "last" / "pretrained_model"
    results = Results.load(run / "results.json")
    assert {info.family for info in results.policies} == {case.family}
    assert results.teacher_num_steps == 4
    assert (
        main(["reflow", "--resume=true", f"--config_path={student / 'train_config.json'}", "--steps=4"]) == 0
    )
    assert os.readlink(run / "checkpoints" / "last") == "000004"
    assert main(
        ["diagnose", f"--policy.path={teacher}", *data, *measure, "--policy.num_inference_steps=3",
         f"--output_dir={diagnosis}"]
    ) == 0  # fmt: skip
    assert (diagnosis / "report.html").is_file()
    assert main(
        ["evaluate", f"--teacher.path={teacher}", f"--student.path={student}", *data, *measure,
         "--teacher.num_inference_steps=2", "--env.type=drift_of_the_tests", "--eval.n_episodes=2",
         "--eval.batch_size=2", f"--output_dir={evaluation}"]
    ) == 0  # fmt: skip
    assert Results.load(evaluation / "results.json").success


def test_a_moved_checkpoint_is_relocated(
    case: FamilyCase,
    folders: Callable[[FamilyCase], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Checkpoint and what it was built on move together, as when a disk is copied."""
    moved = tmp_path / "elsewhere"
    source = folders(case)
    shutil.copytree(source.parent, moved)
    for name in ("config.json", "policy_preprocessor.json"):
        file = moved / source.name / name
        file.write_text(file.read_text().replace(str(source.parent), str(tmp_path / "gone")))
    data = ["--dataset.repo_id=test/tiny", f"--output_dir={tmp_path / 'out'}"]
    assert main(["diagnose", f"--policy.path={moved / source.name}", *data]) == 2
    assert f"chordflow relocate {moved / source.name}" in capsys.readouterr().err
    assert main(["relocate", str(moved / source.name)]) == 0
    assert load_flow_policy(moved / source.name, device="cpu").family == case.family


def test_parts_that_a_family_does_not_have(
    case: FamilyCase, policy: FlowPolicy, folders: Callable[[FamilyCase], Path]
) -> None:
    """And random students are random throughout, whatever the constructor loads."""
    roles = policy.parameters_by_role()
    for role in Role:
        if roles[role] or _cut_off(case, role):
            continue
        with pytest.raises(
            UserError, match=f"student.train holds {role}, of which policy type '{case.family}'"
        ):
            make_student(policy, folders(case), StudentInit.TEACHER, [role], seed=0)
    student = make_student(policy, folders(case), StudentInit.RANDOM, [Role.ACTION_HEAD], seed=7)
    for role, named in student.policy.parameters_by_role().items():
        # Biases and norms begin alike; matrices do not.
        same = [name for name, p in named.items() if p.dim() > 1 and torch.equal(p, roles[role][name])]
        assert not same, role


def test_a_number_of_steps_that_is_none(
    case: FamilyCase,
    folders: Callable[[FamilyCase], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong = Path(shutil.copytree(folders(case), tmp_path / "wrong"))
    field = load_flow_policy(folders(case), device="cpu").steps_field  # type: ignore[attr-defined]
    config = json.loads((wrong / "config.json").read_text())
    data = ["--dataset.repo_id=test/tiny", f"--output_dir={tmp_path / 'out'}"]
    # GR00T's own null means the number of its head.
    none = [] if config["type"] == "groot" else [(field, None)]
    for name, value in [(field, 0), *none, ("n_action_steps", 0)]:
        (wrong / "config.json").write_text(json.dumps({**config, name: value}))
        assert main(["diagnose", f"--policy.path={wrong}", *data]) == 2
        said = capsys.readouterr().err
        assert "config.json" in said
        assert name in said or value is None


def test_a_config_of_a_newer_lerobot(
    case: FamilyCase,
    folders: Callable[[FamilyCase], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    newer = Path(shutil.copytree(folders(case), tmp_path / "newer"))
    config = json.loads((newer / "config.json").read_text())
    (newer / "config.json").write_text(json.dumps({**config, "invented_in_2027": 1}))
    data = ["--dataset.repo_id=test/tiny", f"--output_dir={tmp_path / 'out'}"]
    assert main(["diagnose", f"--policy.path={newer}", *data]) == 2
    said = capsys.readouterr().err
    assert "invented_in_2027" in said
    assert "newer LeRobot" in said


def test_weights_that_do_not_fit_are_refused(
    case: FamilyCase,
    folders: Callable[[FamilyCase], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also where LeRobot's own loader would go on with random weights."""
    from safetensors.torch import save_file

    broken = Path(shutil.copytree(folders(case), tmp_path / "broken"))
    tensors = load_file(broken / "model.safetensors")
    name = max(tensors)
    del tensors[name]
    save_file(tensors, broken / "model.safetensors")
    data = ["--dataset.repo_id=test/tiny", f"--output_dir={tmp_path / 'out'}"]
    assert main(["diagnose", f"--policy.path={broken}", *data]) == 2
    said = capsys.readouterr().err
    assert "model.safetensors" in said
    assert name in said or name.removeprefix("model.") in said


def test_missing_packages_are_named(
    case: FamilyCase, folders: Callable[[FamilyCase], Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    extra = own_families()[case.family]
    policy_class = type(load_flow_policy(folders(case), device="cpu").module)

    def without(*_: object, **__: object) -> None:
        raise ImportError(f"'something' is required but not installed. Please install lerobot[{extra}].")

    monkeypatch.setattr(policy_class, "__init__", without)
    data = ["--dataset.repo_id=test/tiny", f"--output_dir={tmp_path / 'out'}"]
    assert main(["diagnose", f"--policy.path={folders(case)}", *data]) == 2
    assert f'pip install "lerobot[{extra}]==0.6.1"' in capsys.readouterr().err
