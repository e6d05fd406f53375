"""`chordflow compare` on a small SmolVLA: what it writes, how it goes on, what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

import drift_env as drift_env
from chordflow.cli.compare import parse, plan
from chordflow.cli.main import main
from chordflow.cli.options import build, options_of, read_options
from chordflow.couplings import DatasetConfig, open_split
from chordflow.errors import UserError
from chordflow.evaluation.measure import measure
from chordflow.evaluation.paired import MeasureConfig
from chordflow.experiments import compare as job
from chordflow.experiments.collect import EPISODES_OF_A_SEED
from chordflow.experiments.compare_config import COMMON, CompareConfig, Planned
from chordflow.experiments.compare_setup import begun, gone_on_with, made
from chordflow.experiments.config import ReflowJobConfig
from chordflow.experiments.recipes import RECIPES
from chordflow.policies import load_flow_policy
from chordflow.policies.base import Role
from chordflow.policies.sampling import Sampler
from chordflow.results.compare import Comparison
from chordflow.training.methods import EndpointMethodConfig, MethodConfig
from chordflow.training.optimizers import AdamWConfig, MuonConfig
from chordflow.training.timed import TrainingStep

SMALL = [
    "--batch_size=4", "--buffer.num_observations=8", "--buffer.noises_per_observation=2", "--buffer.block_size=4",
    "--num_workers=0", "--optimizer.lr=1e-3",
]  # fmt: skip
LITTLE = ["--measure.noises_per_observation=16", "--measure.num_steps=[1]", "--measure.latency_repeats=1"]
OWN = json.dumps({
    "shown": {"method": {"type": "noise_biased"}, "ema": {"enable": True}, "batch_size": 2},
    "acted": {"observations": "rollout", "collect": {"num_observations": 4, "batch_size": 2}},
})  # fmt: skip


def arguments(checkpoint: Path, root: Path, output: Path, *more: str) -> list[str]:
    return [
        "compare", f"--teacher.path={checkpoint}", "--dataset.repo_id=test/tiny", f"--dataset.root={root}",
        "--dataset.eval_split=0.4", f"--output_dir={output}", "--device=cpu", "--measure.num_observations=6",
        *SMALL, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def done(checkpoint: Path, dataset_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small comparison's folder; not to be written to."""
    output = tmp_path_factory.mktemp("compare") / "done"
    more = [
        "--methods=[one_step,shown,acted]", f"--recipes={OWN}", "--steps=3", "--seeds=[5]",
        "--env.type=drift_of_the_tests", "--eval.n_episodes=6", "--eval.batch_size=3",
    ]  # fmt: skip
    assert main(arguments(checkpoint, dataset_root, output, *more)) == 0
    return output


def test_every_method_is_trained_measured_and_run(done: Path) -> None:
    found = Comparison.load(done / "compare.json")
    assert [(entry.name, entry.origin, entry.method) for entry in found.methods] == [
        ("one_step", "recipe", "endpoint"), ("shown", "own", "noise_biased"), ("acted", "own", "reflow"),
    ]  # fmt: skip
    assert [entry.step_counts for entry in found.methods] == [[1], None, None]
    assert [(run.method, run.seed, run.steps, run.samples) for run in found.runs] == [
        ("one_step", 5, 3, 12), ("shown", 5, 3, 6), ("acted", 5, 3, 12),
    ]  # fmt: skip
    assert found.methods[1].settings["ema"]["enable"] is True
    assert found.methods[1].settings["optimizer"]["lr"] == 1e-3
    assert [run.rollouts is not None for run in found.runs] == [False, False, True]
    assert found.runs[2].rollouts is not None
    assert found.runs[2].rollouts.observations >= 4
    # Every seed collects in episodes of its own.
    about = done / "acted" / "seed_5" / "observations" / "collection_000000" / "collection.json"
    assert (
        0 < json.loads(about.read_text())["next_seed"] - (10**9 + 5 * EPISODES_OF_A_SEED) < EPISODES_OF_A_SEED
    )
    assert found.command[:2] == ["chordflow", "compare"]
    assert found.untrained is not None
    assert {row.num_steps for row in found.untrained.success} == {1, 2, 10}
    for figures in (found.untrained.figures, *(run.figures for run in found.runs)):
        assert figures is not None
        assert {(row.num_steps, row.reference) for row in figures.gaps} == {
            (n, reference) for n in (1, 2, 10) for reference in ("deployed", "converged")
        }
    for run in found.runs:
        assert run.training_s > (run.ready_s or 0) > 0
        pairs = run.success[0].versus_teacher
        assert pairs is not None
        assert pairs.episodes == run.success[0].episodes == 6
        stored = pq.read_table(done / run.method / "seed_5" / "episodes" / "episodes.parquet")
        assert sum(stored["success"].to_pylist()) == run.success[0].successes
        assert set(stored["num_steps"].to_pylist()) == {1}
    text = (done / "compare.md").read_text()
    assert [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")] == [
        "| method", "| ---", "| teacher, untrained", "| - at two steps", "| - deployed, at ten steps", "| one\\_step",
        "| shown", "| acted",
    ]  # fmt: skip


def test_figures_are_those_of_the_checkpoint_on_disk(
    checkpoint: Path, dataset_root: Path, done: Path
) -> None:
    found = Comparison.load(done / "compare.json")
    run = found.runs[0]
    teacher, student = (load_flow_policy(folder, device="cpu") for folder in (checkpoint, done / run.student))
    split = open_split(DatasetConfig("test/tiny", root=str(dataset_root), eval_split=0.4), teacher)
    config = MeasureConfig(num_observations=6, num_steps=[1, 2, 10], solvers=["euler"], latency_repeats=1)
    measures = measure(
        {"teacher": Sampler(teacher, 10), run.method: Sampler(student, 1)}, split.held_out, config
    )
    assert found.untrained is not None
    for figures, name in ((found.untrained.figures, "teacher"), (run.figures, run.method)):
        assert figures is not None
        (curvature,) = (row for row in measures.curvature if row.policy == name)
        assert (figures.s, figures.curvature) == (curvature.s, curvature.curvature)
        expected = [replace(row, ratio_to_untrained=None) for row in measures.gaps if row.policy == name]
        assert sorted(map(repr, figures.gaps)) == sorted(map(repr, expected))


def test_a_student_of_so_many_steps_is_that_of_reflow(
    checkpoint: Path, dataset_root: Path, done: Path, tmp_path: Path
) -> None:
    options = arguments(checkpoint, dataset_root, tmp_path / "alone", *LITTLE)[1:]
    # In a comparison a recipe lies over the common settings, in a job of its own under the options.
    options.remove("--buffer.noises_per_observation=2")
    assert main(["reflow", *options, "--steps=3", "--seed=5", "--recipe=one_step"]) == 0
    alone = tmp_path / "alone" / "checkpoints" / "last" / "pretrained_model"
    beside = done / "one_step" / "seed_5" / "pretrained_model"
    expected, found = (load_file(folder / "model.safetensors") for folder in (alone, beside))
    assert expected.keys() == found.keys()
    assert all(expected[name].equal(found[name]) for name in expected)
    records = [json.loads((folder / "reflow_config.json").read_text()) for folder in (alone, beside)]
    for name in (
        "recipe",
        "method",
        "optimizer",
        "buffer",
        "coupling",
        "student",
        "seed",
        "steps",
        "step_counts",
    ):
        assert records[0][name] == records[1][name], name


def resume(folder: Path, *more: str) -> list[str]:
    return ["compare", "--resume=true", f"--config_path={folder / 'compare.json'}", *more]


def test_an_interrupted_comparison_goes_on(
    checkpoint: Path, dataset_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    output, calls = tmp_path / "new folder", []
    train_student = job.train_student

    def stop_in_the_second(*given: Any, **named: Any) -> Any:
        calls.append(named["label"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train_student(*given, **named)

    monkeypatch.setattr(job, "train_student", stop_in_the_second)
    given = ["--methods=[one_step,shown]", f"--recipes={OWN}", "--seconds=0.4", "--seeds=[5]"]
    assert main(arguments(checkpoint, dataset_root, output, *given)) == 130
    said = capsys.readouterr().err
    assert f"chordflow compare --resume=true --config_path='{output / 'compare.json'}'" in said
    assert "| one\\_step" in (output / "compare.md").read_text()
    first = Comparison.load(output / "compare.json")
    assert [(run.method, run.seed) for run in first.runs] == [("one_step", 5)]
    assert first.runs[0].training_s >= 0.4

    def fail(*given: Any, **named: Any) -> Any:
        raise UserError("optimizer.lr=9: the loss is not finite at step 3; give a lower one.")

    monkeypatch.setattr(job, "train_student", fail)
    assert main(resume(output)) == 2
    said = capsys.readouterr().err
    assert (
        "methods: shown, seed 5: optimizer.lr=9: the loss is not finite at step 3; give a lower one." in said
    )
    assert f"--config_path='{output / 'compare.json'}' --methods='[one_step]'" in said
    monkeypatch.setattr(job, "train_student", stop_in_the_second)
    assert main(resume(output, "--seeds=[5,6]")) == 0
    second = Comparison.load(output / "compare.json")
    assert second.runs[0] == first.runs[0]
    assert calls[2:] == ["shown, seed 5", "one_step, seed 6", "shown, seed 6"]
    assert second.untrained == first.untrained
    assert "| - least to largest |" in (output / "compare.md").read_text()
    # What is measured stays in the table; nothing is done twice.
    assert main(resume(output, "--methods=[shown]", "--seeds=[5]")) == 0
    third = Comparison.load(output / "compare.json")
    assert ([entry.name for entry in third.methods], third.seeds) == (["shown", "one_step"], [5, 6])
    assert third.runs == second.runs
    assert len(calls) == 5
    # The command is the one that made the table: going on adds nothing to it.
    assert "--seeds=[5]" in third.command
    assert main(resume(output)) == 0
    assert Comparison.load(output / "compare.json").command == third.command


def test_a_method_that_diverges_does_not_block_the_others(
    checkpoint: Path, dataset_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    output = tmp_path / "out"
    own = json.dumps({"wild": {"optimizer": {"type": "adamw", "lr": 1e30}}})
    given = [
        "--methods=[wild,endpoint]", f"--recipes={own}", "--steps=1", "--seeds=[5]",
        "--measure.converged_noises=1",
    ]  # fmt: skip
    assert main(arguments(checkpoint, dataset_root, output, *given)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "methods: wild, seed 5: optimizer.lr=1e+30: the loss is not finite after step 1, the last" in said
    assert "To go on without it: " in said
    assert Comparison.load(output / "compare.json").runs == []
    assert not (output / "wild" / "seed_5" / "pretrained_model").exists()
    # One whose loss is finite can still be no student.
    monkeypatch.setattr(TrainingStep, "check", lambda *given: None)
    assert main(resume(output)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "methods: wild, seed 5: student=" in said
    assert "end in NaN or infinite actions" in said
    assert said.endswith("--methods='[endpoint]'")
    assert main(resume(output, "--methods=[endpoint]")) == 0
    assert "wild" not in "".join(
        line for line in (output / "compare.md").read_text().splitlines() if line.startswith("|")
    )


def test_another_comparison_is_not_gone_on_with(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(resume(done, "--steps=4", '--recipes={"shown": {"batch_size": 3}}')) == 2
    assert "steps: the comparison began with 3 and going on cannot change it" in capsys.readouterr().err
    before = Comparison.load(done / "compare.json")
    other = [replace(before.methods[0], settings={}), *before.methods[1:]]
    env = {"settings": {**before.settings, "eval": {}}}
    changes: list[tuple[dict[str, Any], str]] = [
        ({"methods": other}, "'one_step' had other settings when the comparison began"),
        ({"device": "another machine"}, "seconds of two machines"),
        ({"teacher_sha256": "0"}, "its weights are not those that the comparison began with"),
        (env, "eval: the comparison began with"),
    ]
    for change, words in changes:
        with pytest.raises(UserError, match=words):
            gone_on_with(replace(before, **change), before)
    # An environment can be added where there was none.
    without = replace(before, settings={**before.settings, "env": None}, runs=[])
    assert gone_on_with(replace(before, **env), without).runs == []


def test_an_entry_with_another_solver_is_gone_on_with(
    checkpoint: Path, dataset_root: Path, tmp_path: Path
) -> None:
    """What a solver takes by default is settled for each entry, also for those that are added."""
    own = json.dumps({"ten": {"coupling": {"solver": "euler"}}})
    given = arguments(
        checkpoint, dataset_root, tmp_path, "--methods=[reflow,ten]", f"--recipes={own}", "--steps=2"
    )
    config = parse(given[1:])
    before = begun(made(config, plan(config)), [])
    before.save(tmp_path / "compare.json")
    added = json.dumps({"ten": {"coupling": {"solver": "euler"}}, "also": {"coupling": {"solver": "euler"}}})
    config = parse(resume(tmp_path, "--methods=[reflow,ten,also]", f"--recipes={added}")[1:])
    after = gone_on_with(begun(made(config, plan(config)), []), before)
    assert [entry.settings["coupling"]["num_steps"] for entry in after.methods] == [16, 10, 10]


def test_an_unfit_method_is_named_before_anything_is_trained(
    checkpoint: Path, dataset_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    own = json.dumps({"large": {"batch_size": 64}})
    given = arguments(checkpoint, dataset_root, output, f"--recipes={own}", "--steps=2")
    assert main(given) == 2
    assert "methods: 'large' cannot be trained: batch_size=64" in capsys.readouterr().err
    assert not output.exists()
    own = json.dumps({"warm": {"scheduler": {"num_warmup_steps": 5}}})
    given = arguments(checkpoint, dataset_root, output, f"--recipes={own}", "--seconds=2")
    assert main(given) == 2
    assert "sets scheduler.num_warmup_steps=5, and the budget is in seconds" in capsys.readouterr().err
    for buffer in ({"buffer": {"path_points": 2}}, {"buffer.path_points": 2}):
        own = json.dumps({"few": {"method": {"type": "endpoint"}, **buffer}})
        given = arguments(checkpoint, dataset_root, output, f"--recipes={own}", "--steps=2")
        assert main(given) == 2
        assert "'few' sets buffer.path_points=2, and its method does not train on" in capsys.readouterr().err
    given = arguments(
        checkpoint, dataset_root, output, "--methods=[reflow]", "--buffer.path_points=2", "--steps=2"
    )
    assert main(given) == 2
    assert "buffer.path_points=2: no method that is compared trains on states" in capsys.readouterr().err
    assert not output.exists()


def test_several_processes_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["compare", "--teacher.path=t", "--dataset.repo_id=a/b", "--output_dir=o", "--steps=2"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(given) == 2
    assert "WORLD_SIZE=2: a comparison trains in one process" in capsys.readouterr().err
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert main(given) == 2
    assert "ACCELERATE_USE_FSDP=true: a comparison trains in one process" in capsys.readouterr().err


def test_a_folder_that_is_there_is_not_written_to(
    checkpoint: Path, dataset_root: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(checkpoint, dataset_root, done, "--steps=3")) == 2
    assert "go on with: chordflow compare --resume=true" in capsys.readouterr().err
    assert main(arguments(checkpoint, dataset_root, tmp_path, "--steps=3")) == 2
    assert "exists already; name a new folder." in capsys.readouterr().err


# What the options mean, without any training

BASE = ["--teacher.path=t", "--dataset.repo_id=a/b", "--output_dir=o"]


def planned(*more: str) -> dict[str, Planned]:
    return {entry.name: entry for entry in plan(parse([*BASE, *more]))}


def test_by_default_everything_is_compared() -> None:
    own = ['--recipes={"mine": {"method.path_share": 0.5, "method": {"type": "endpoint"}}}', "--steps=7"]
    found = planned(*own)
    # Of the method types one is what a recipe is.
    types = [name for name in MethodConfig.get_known_choices() if name != "reflow"]
    assert list(found) == ["mine", *RECIPES, *types]
    assert (
        found["all_steps"].config.method == planned("--steps=7", "--methods=[reflow]")["reflow"].config.method
    )
    assert [entry.origin for entry in found.values()][:2] == ["own", "recipe"]
    assert found["mine"].config.method == EndpointMethodConfig(path_share=0.5)
    assert all(entry.config.steps == 7 for entry in found.values())
    assert all(entry.about for entry in found.values() if entry.origin != "own")
    # As the student's own record will say.
    recipes = [name if name in RECIPES else None for name in found]
    assert [entry.config.recipe for entry in found.values()] == recipes


def test_observations_are_collected_where_episodes_are_run_unless_a_recipe_says_otherwise() -> None:
    own = {"here": {"observations": "rollout"},
           "there": {"observations": "rollout", "env": {"type": "drift_of_the_tests", "state_dim": 4}}}  # fmt: skip
    found = planned("--steps=2", f"--recipes={json.dumps(own)}", "--env.type=drift_of_the_tests")
    assert found["here"].config.env == drift_env.DriftEnvConfig()
    assert found["there"].config.env == drift_env.DriftEnvConfig(state_dim=4)
    assert found["all_steps"].config.env is None


def test_common_settings_are_those_of_reflow_unless_given() -> None:
    alone = build(ReflowJobConfig, read_options(BASE))
    config = parse([*BASE, "--steps=1"])
    for name in COMMON:
        assert getattr(config, name) == getattr(alone, name), name
    own = {"mine": {"optimizer": {"type": "adamw", "lr": 1e-4}, "student": {"train": ["action_head"]}}}
    found = planned(
        "--seconds=9", "--optimizer.type=muon", "--optimizer.lr=3e-3", "--buffer.block_size=8", "--batch_size=5",
        f"--recipes={json.dumps(own)}", "--methods=[snapflow,mine]",
    )  # fmt: skip
    assert list(found) == ["snapflow", "mine"]
    assert found["snapflow"].config.optimizer == MuonConfig(lr=3e-3)
    # Another type's settings are not laid over.
    assert found["mine"].config.optimizer == AdamWConfig(lr=1e-4)
    assert found["mine"].config.student.train == [Role.ACTION_HEAD]
    for entry in found.values():
        assert (entry.config.batch_size, entry.config.buffer.block_size) == (5, 8)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "steps=None and seconds=None: the budget of a run is given by one of the two"),
        (["--steps=2", "--seconds=3"], "steps=2 and seconds=3.0: the budget"),
        (["--steps=0"], "steps=0: give at least 1"),
        (["--seconds=-1"], "seconds=-1: give a number above 0"),
        (["--steps=2", "--seeds=[1,1]"], "seeds=[1, 1]: give at least one, each once"),
        (["--steps=2", "--seeds=[0,-1]"], "seeds=[0, -1]: give whole numbers from 0"),
        (["--steps=2", "--methods=[]"], "methods=[]: give at least one"),
        (["--steps=2", "--methods=[endpoint,endpoint]"], "methods=[endpoint,endpoint]: give at least one, each once"),
        (["--steps=2", "--methods=[reflo]"], "methods holds 'reflo', which is neither a recipe nor a method type; did "
         "you mean reflow"),
        (["--steps=2", "--methods=[zzz]"], "choose of all_steps, one_step, "),
        (["--steps=2", '--recipes={"reflow": {}}'], "recipes holds the name 'reflow', which is taken"),
        (["--steps=2", '--recipes={"a/b": {}}'], "recipes holds the name 'a/b', which is taken or no name"),
        (["--steps=2", '--recipes={"compare.json": {}}'], "recipes holds the name 'compare.json', which is taken"),
        (["--steps=2", '--recipes={"Compare.md": {}}'], "recipes holds the name 'Compare.md', which is taken"),
        (["--steps=2", '--recipes={"a": 3}'], "recipes: 'a' is 3; give settings of chordflow reflow"),
        (["--steps=2", '--recipes={"a": {"seed": 3}}'], "recipes: 'a' sets seed, which all entries"),
        (["--steps=2", '--recipes={"a": {"rounds": 2}}'], "recipes: 'a' sets rounds, and every run of a comparison is"),
        (["--steps=2", '--recipes={"a": {"teacher": {"path": "x"}}}'], "recipes: 'a' sets teacher, which all"),
        (["--steps=2", '--recipes={"a": {"optimizer": {"lrr": 3}}}'],
         "methods: 'a': --optimizer.lrr is not an option; did you mean --optimizer.lr"),
        (["--steps=2", '--recipes={"a": {"method": {"type": "magic"}}}'], "methods: 'a': method.type=magic: choose"),
        (["--steps=2", '--recipes={"a": {"observations": "rollout"}}'], "methods: 'a': observations=rollout needs"),
        (["--steps=2", "--batch_size=0"], "batch_size=0: give at least 1"),
        (["--steps=2", "--num_workers=-1"], "num_workers=-1: give 0 or more"),
        (["--steps=2", "--eval.n_episodes=0"], "eval.n_episodes=0: give at least 1"),
        (["--steps=2", "--eval.n_episodes=4"], "eval: these options are about episodes; give --env.type as well"),
        (["--steps=2", "--eval.n_action_steps=0"], "eval.n_action_steps=0: give at least 1"),
        (["--steps=2", "--measure.noises_per_observation=4"], "at least 16"),
        (["--steps=2", "--resume=true"], "resume=true needs --config_path=OUTPUT_DIR/compare.json"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_sentence(more: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(parse([*BASE, *more]))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_file_is_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text('{"kind": "bench training", "settings": {}}')
    with pytest.raises(UserError, match="is no file of chordflow compare"):
        parse(["--resume=true", f"--config_path={tmp_path / 'bench.json'}"])


def test_a_damaged_file_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "compare.json"
    path.write_text('{"kind": "compare", "settings": {}}')
    with pytest.raises(UserError, match=r"compare.json is no readable result of chordflow compare \("):
        parse(["--resume=true", f"--config_path={path}"])
    Comparison([], {"steps": 2}, {}, "cpu", "a/b", "0", [], [0], 2, None).save(path)
    with pytest.raises(UserError, match=r"compare.json holds settings that cannot be used \(--teacher.path"):
        parse(["--resume=true", f"--config_path={path}"])


FROZEN = Path(__file__).parent / "command_line_options_compare.txt"


def test_the_command_line_has_not_changed_unnoticed() -> None:
    """Users' scripts depend on these names: a change has to be made here as well, on purpose."""
    listed = [option for option in options_of(CompareConfig, None) if option.name != "env.type"]
    names = "".join(f"--{option.name} ({option.kind})\n" for option in listed)
    assert names == FROZEN.read_text(encoding="utf-8")
    assert all(option.text for option in options_of(CompareConfig, None))
