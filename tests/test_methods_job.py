"""Every method through the command line on a real, shrunken policy: run, resume, record, load with stock LeRobot."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lerobot.configs.default import DatasetConfig as LeRobotDatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets.factory import make_train_eval_datasets
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from safetensors.torch import load_file

from builders import build_checkpoint, edit_column
from chordflow.cli.main import main
from chordflow.couplings import BufferConfig, CouplingBuffer, CouplingConfig, DatasetConfig, Needs, open_split
from chordflow.errors import UserError
from chordflow.experiments.provenance import trained_step_counts
from chordflow.flow import times as laws
from chordflow.flow.seeds import generator
from chordflow.policies import VelocityModule
from chordflow.policies.smolvla import SmolVLAFlowPolicy
from chordflow.results.schema import Results
from chordflow.training.methods import MethodConfig
from chordflow.training.methods.demonstrated import NoiseBiasedMethodConfig
from chordflow.training.objective import BetaTimes
from small_runs import Refuse, cut_back, options, refusal, resume, student_of, weights
from small_runs import refuse as refuse

# Measures are not what is tested here.
LITTLE = ["--measure.num_observations=2", "--measure.num_steps=[1]", "--measure.solvers=[]"]
RUNS = {
    "endpoint": ["--method.type=endpoint"],
    "endpoint with paths": ["--method.type=endpoint", "--method.path_share=0.5"],
    "noise_biased": ["--method.type=noise_biased"],
    "snapflow": ["--method.type=snapflow"],
    "consistency": ["--method.type=consistency", "--method.loss.type=pseudo_huber"],
    "reflow with real data": ["--method.real_data_share=0.25", "--method.loss.equal_weights=true"],
}
QUICK = ("endpoint", "snapflow", "consistency")
"""One for each kind of batch: couplings, demonstrations, paths."""


@pytest.fixture(scope="module")
def run_of(
    checkpoint: Path, dataset_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The folder of a method's run, made once; not to be written to."""

    @functools.cache
    def run(name: str) -> Path:
        output = tmp_path_factory.mktemp("run") / "out"
        assert main(options(checkpoint, dataset_root, output, *LITTLE, *RUNS[name])) == 0
        return output

    return run


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in RUNS]
)
def test_a_run_and_what_it_leaves(
    name: str, checkpoint: Path, run_of: Callable[[str], Path], tmp_path: Path
) -> None:
    output, method = run_of(name), RUNS[name]

    # A stock checkpoint with the teacher's keys, of which stock LeRobot knows no more than of any other.
    student, teacher = (load_file(at / "model.safetensors") for at in (student_of(output), checkpoint))
    assert student.keys() == teacher.keys()
    assert any(not torch.equal(student[key], teacher[key]) for key in teacher)
    SmolVLAPolicy.from_pretrained(student_of(output))

    # Both records say what was done.
    kind = method[0].partition("type=")[2] or "reflow"
    record = json.loads((student_of(output) / "reflow_config.json").read_text())
    results = Results.load(output / "results.json")
    assert record["method"] == results.settings["method"]
    assert record["method"]["type"] == kind
    trained_for = [1] if name == "endpoint" else None
    assert record["step_counts"] == trained_for == trained_step_counts(student_of(output))
    assert [info.step_counts for info in results.policies] == [None, trained_for]
    assert [(info.method, info.saved_num_steps) for info in results.policies] == [(None, 10), (kind, 1)]
    without = MethodConfig.get_choice_class(kind)().build().needs.couplings
    assert (results.couplings is not None) == without
    told = [finding.rule for finding in results.findings]
    assert ("trained_for_other_steps" in told) == (name == "endpoint")

    # Killed after the third step and resumed: the same bits.
    cut = cut_back(Path(shutil.copytree(output, tmp_path / "cut", symlinks=True)), 3)
    assert main(resume(cut, 3)) == 0
    state = Path("..", "training_state", "optimizer_state.safetensors")
    for file in (Path("model.safetensors"), state):
        assert (student_of(cut) / file).read_bytes() == (student_of(output) / file).read_bytes()


@pytest.mark.parametrize(("more", "message"), [
    (["--method.type=endpoint", "--num_inference_steps=2"],
     "num_inference_steps=2: with these settings method endpoint trains for one step alone"),
    (["--student.init_path=x", "--student.init=random"], "student.init_path=x: student.init=random"),
    (["--student.init_path=nowhere"], "student.init_path=nowhere"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(more: list[str], message: str, refuse: Refuse) -> None:
    assert message in refuse(*more)


def test_evaluating_a_student_of_one_step_at_others_warns(
    run_of: Callable[[str], Path], checkpoint: Path, dataset_root: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    student = student_of(run_of("endpoint"))
    given = [
        "evaluate", f"--teacher.path={checkpoint}", f"--student.path={student}", f"--output_dir={tmp_path}/out",
        "--dataset.repo_id=test/tiny", f"--dataset.root={dataset_root}", "--measure.num_observations=3",
        "--measure.latency_repeats=2", "--measure.converged_noises=1", "--measure.num_steps=[1,2,5]",
        "--student.num_inference_steps=3",
    ]  # fmt: skip
    assert main(given) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Warning:")]
    assert said == [
        f"Warning: student.path={student} was trained for one step only; what it does at 2, 3 and 5 steps is measured "
        "all the same, and is not what it is for."
    ]
    results = Results.load(tmp_path / "out" / "results.json")
    (told,) = (finding.text for finding in results.findings if finding.rule == "trained_for_other_steps")
    assert "student was trained for one step only" in told
    assert "**It was trained for one step only**" in (tmp_path / "out" / "model_card.md").read_text()


def test_the_split_and_the_actions_are_lerobots_own(
    tiny_policy: SmolVLAFlowPolicy, dataset_root: Path
) -> None:
    config = DatasetConfig("test/tiny", root=str(dataset_root), eval_split=0.4)
    split = open_split(config, tiny_policy, actions=True)
    dataset = LeRobotDatasetConfig("test/tiny", root=str(dataset_root), eval_split=0.4)
    stock, held_out = make_train_eval_datasets(TrainPipelineConfig(dataset, policy=tiny_policy.config))
    assert len(stock) == len(split.train)
    assert sorted(held_out.episodes) == sorted(split.held_out_episodes)
    theirs = {(int(item["episode_index"]), int(item["frame_index"])): item for item in stock}
    padded = 0
    for item in (split.train[index] for index in range(len(split.train))):
        other = theirs[int(item["episode_index"]), int(item["frame_index"])]
        assert torch.equal(item["action"], other["action"])
        assert torch.equal(item["action_is_pad"], other["action_is_pad"])
        padded += int(item["action_is_pad"].sum())
    # Episodes of five frames are shorter than a chunk of eight.
    assert padded > 0
    assert not any(key.startswith("action") for key in split.held_out[0])
    assert not any(key.startswith("action") for key in open_split(config, tiny_policy).train[0])


def test_the_loss_on_demonstrations_is_lerobots_own(
    tiny_policy: SmolVLAFlowPolicy, dataset_root: Path
) -> None:
    split = open_split(DatasetConfig("test/tiny", root=str(dataset_root)), tiny_policy, actions=True)
    buffer = CouplingBuffer(
        tiny_policy, split.train, CouplingConfig(), BufferConfig(8, 1, None, 8), seed=0, batch_size=8,
        needs=Needs(couplings=False, actions=True),
    )  # fmt: skip
    list(buffer.fill(0))
    batch = buffer.batch(0)
    with torch.no_grad():
        method = NoiseBiasedMethodConfig(times=BetaTimes(at_noise=0.0)).build()
        loss = method.loss(VelocityModule(tiny_policy), batch, generator(2))
        order = torch.randperm(8, generator=generator(0, "batch", 0)).sort().values.tolist()
        indices = buffer.observation_indices(0)
        items = tiny_policy.preprocess(next(split.train.batches([indices[row] for row in order], 8)))
        noise, time = batch.demonstrated().noise, laws.Beta().sample(8, generator(2))
        theirs, _ = tiny_policy.policy.forward(items, noise=noise, time=time, reduction="none")
    torch.testing.assert_close(loss, theirs.mean(), rtol=1e-5, atol=1e-6)


def test_actions_that_are_not_numbers_stop_only_those_who_need_them(
    tiny_policy: SmolVLAFlowPolicy, dataset_root: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(dataset_root, tmp_path / "data"))

    def spoil(actions: list[list[float]]) -> list[list[float]]:
        actions[3][0] = float("nan")
        return actions

    edit_column(next((root / "data").rglob("*.parquet")), "action", spoil)
    config = DatasetConfig("test/tiny", root=str(root))
    with pytest.raises(UserError, match="action is NaN or infinite in episode 0, frame 3"):
        open_split(config, tiny_policy, actions=True)
    open_split(config, tiny_policy)


@pytest.fixture(scope="module")
def first_run(checkpoint: Path, dataset_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("first") / "out"
    more = [*LITTLE, "--student.train=[action_head,language]"]
    assert main(options(checkpoint, dataset_root, output, *more)) == 0
    return output


def test_a_student_can_begin_with_another_checkpoint(
    first_run: Path, checkpoint: Path, dataset_root: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    more = ["--method.type=endpoint", f"--student.init_path={student_of(first_run)}", "--optimizer.lr=1e-12"]
    assert main(options(checkpoint, dataset_root, output, *LITTLE, *more)) == 0
    folders = (student_of(first_run), student_of(output), checkpoint)
    began, ended, teacher = (load_file(folder / "model.safetensors") for folder in folders)
    changed = [key for key in teacher if not torch.equal(began[key], teacher[key])]
    # Frozen and trained parts alike: what the first run trained of the language model is kept, though frozen now.
    assert any("text_model" in key for key in changed)
    assert any("lm_expert" in key for key in changed)
    for key in teacher:
        torch.testing.assert_close(ended[key], began[key], rtol=0, atol=1e-8)
    record = json.loads((student_of(output) / "reflow_config.json").read_text())
    assert record["student"]["init_path"] == str(student_of(first_run).resolve())
    # Gone on with, from the same beginning, in the same bits.
    before = (student_of(output) / "model.safetensors").read_bytes()
    assert main(resume(output, 3)) == 0
    assert (student_of(output) / "model.safetensors").read_bytes() == before


def test_a_beginning_that_does_not_fit_or_has_changed_is_refused(
    first_run: Path, checkpoint: Path, vlm: Path, dataset_root: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def begin(path: Path) -> list[str]:
        more = [*LITTLE, f"--student.init_path={path}"]
        return options(checkpoint, dataset_root, tmp_path / "out", *more)

    other = build_checkpoint(tmp_path / "other", vlm, chunk_size=4)
    assert "made from this teacher" in refusal(begin(other), capsys)
    moved = Path(shutil.copytree(student_of(first_run), tmp_path / "moved"))
    assert main(begin(moved)) == 0
    weights(lambda held: held[min(key for key in held if "lm_expert" in key)].add_(1))(moved)
    said = refusal(resume(tmp_path / "out", 3), capsys)
    assert f"student.init_path={moved}: its weights are not those" in said
