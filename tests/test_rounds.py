"""Rounds of reflow: each student teaches the next."""

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs.train import TrainPipelineConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from safetensors.torch import load_file

from chordflow.cli.main import main
from chordflow.couplings import DatasetConfig
from chordflow.couplings.making import BlockMaker
from chordflow.experiments.provenance import lineage, teacher_may_have_seen, weights_sha256
from chordflow.experiments.rounds import round_seed
from chordflow.results.schema import Results
from chordflow.training.methods import ReflowMethod
from small_jobs import drawn
from small_runs import Capture, Refuse, cut_back, edit_json, options, refusal, signal_at, student_of
from small_runs import refuse as refuse

STATE = ("pretrained_model/model.safetensors", "training_state/master_weights.safetensors",
         "training_state/optimizer_state.safetensors")  # fmt: skip
# As the run that other tests use, too.
AVERAGED = "--ema.enable=true"
TWO = ("--rounds=2", AVERAGED)


@pytest.fixture(scope="module")
def two(checkpoint: Path, dataset_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two rounds; not to be written to."""
    output = tmp_path_factory.mktemp("rounds") / "zwei Runden"
    with drawn():
        assert main(options(checkpoint, dataset_root, output, *TWO)) == 0
    return output


def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy", symlinks=True))


def resume(run: Path, *more: str, place: str = "checkpoints/last") -> list[str]:
    config = run / place / "pretrained_model" / "train_config.json"
    return ["reflow", "--resume=true", f"--config_path={config}", *more]


def same_bits(a: Path, b: Path, files: tuple[str, ...] = STATE) -> None:
    for name in files:
        one, other = load_file(a / name), load_file(b / name)
        assert one.keys() == other.keys()
        for key in one:
            assert torch.equal(one[key], other[key]), f"{name}: {key}"


def gaps(run: Path) -> list[tuple[str, int, str, float]]:
    return [(r.policy, r.num_steps, r.reference, r.rms) for r in Results.load(run / "results.json").gaps]


def record(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "pretrained_model" / "reflow_config.json").read_text())


def last(run: Path, number: int) -> Path:
    return run / f"round_{number}" / "checkpoints" / "000006"


def test_every_round_is_laid_out_as_a_run_and_the_last_one_is_in_front(two: Path) -> None:
    names = {path.name for path in two.iterdir()}
    assert names == {"checkpoints", "round_1", "round_2", "results.json", "figures", "report.html", "table.md",
                     "model_card.md"}  # fmt: skip
    # Relative, so that the run can be moved.
    assert os.readlink(two / "checkpoints") == "round_2/checkpoints"
    for number in (1, 2):
        folder = two / f"round_{number}"
        assert {path.name for path in folder.iterdir()} == {"checkpoints", "metrics.jsonl", "results.json"}
        assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["000003", "000006", "last"]
    assert SmolVLAPolicy.from_pretrained(student_of(two)).config.num_steps == 1


def test_the_first_round_is_a_run_of_one_round(two: Path, whole_run: Path, checkpoint: Path) -> None:
    same_bits(last(two, 1), whole_run / "checkpoints" / "000006")
    assert not (whole_run / "checkpoints").is_symlink()
    alone = record(whole_run / "checkpoints" / "000006")
    assert (alone["rounds"], alone["round"], alone["round_seed"]) == (1, 1, 5)
    assert alone["lineage"] == [alone["teacher_sha256"]] == [weights_sha256(checkpoint)]


def test_the_second_round_is_a_run_taught_by_the_first_ones_student(
    two: Path, checkpoint: Path, dataset_root: Path, tmp_path: Path
) -> None:
    teacher = last(two, 1) / "pretrained_model"
    # The student that teaches is saved with one step.
    more = (f"--seed={round_seed(5, 2)}", "--coupling.num_steps=2", AVERAGED)
    assert main(options(teacher, dataset_root, tmp_path / "by hand", *more)) == 0
    same_bits(last(two, 2), tmp_path / "by hand" / "checkpoints" / "000006")
    assert gaps(two / "round_2") == gaps(tmp_path / "by hand")
    own = Results.load(two / "round_2" / "results.json")
    assert (own.couplings.num_steps, own.teacher_num_steps) == (2, 10)
    # It knows its ancestors without having been told of them.
    by_hand = lineage(tmp_path / "by hand" / "checkpoints" / "000006" / "pretrained_model")
    assert by_hand == lineage(last(two, 2) / "pretrained_model")
    assert by_hand == [weights_sha256(folder) for folder in (checkpoint, teacher, student_of(two))]


def test_the_record_names_round_and_lineage(two: Path, checkpoint: Path) -> None:
    first, second = record(last(two, 1)), record(last(two, 2))
    hashes = [weights_sha256(checkpoint), weights_sha256(last(two, 1) / "pretrained_model")]
    assert (first["round"], first["lineage"], first["round_seed"]) == (1, hashes[:1], 5)
    assert (second["round"], second["lineage"]) == (2, hashes)
    assert second["teacher_sha256"] == hashes[0]
    assert second["round_seed"] == round_seed(5, 2) not in (5, round_seed(5, 3), round_seed(6, 2))
    # The settings are the job's in every round; what LeRobot reads is the round's own.
    assert {key for key in first if first[key] != second[key]} == {"round", "round_seed", "lineage"}
    stock = TrainPipelineConfig.from_pretrained(last(two, 2) / "pretrained_model")
    assert (stock.seed, stock.steps) == (round_seed(5, 2), 6)
    assert stock.policy.pretrained_path == last(two, 1) / "pretrained_model"


def test_all_rounds_are_held_against_the_first_teacher(two: Path, checkpoint: Path) -> None:
    results, alone, second = (Results.load(two / at / "results.json") for at in ("", "round_1", "round_2"))
    names = ["teacher", "round_1", "student"]
    folders = (checkpoint, last(two, 1) / "pretrained_model", student_of(two))
    assert [info.name for info in results.policies] == names
    assert [info.weights_sha256 for info in results.policies] == [weights_sha256(at) for at in folders]
    assert results.student == "round_2/checkpoints/000006/pretrained_model"
    rows = [row for name in names if (row := results.curvature_of(name)) is not None]
    assert len({row.curvature for row in rows}) == 3
    assert sorted(rows, key=lambda row: -row.curvature) == rows

    def rms(of: Results, name: str) -> float:
        return of.gap(name, 1, "deployed").rms

    # The first round's own teacher is the first one.
    assert rms(results, "round_1") == rms(alone, "student")
    assert second.policies[0].weights_sha256 == results.policies[1].weights_sha256
    said, gap = next(f.text for f in results.findings if f.rule == "rounds"), 100 * rms(second, "student")
    assert f"{gap:.1f} % to its own teacher" in said or f"{gap:.0f} % to its own" in said
    assert results.loss.steps == [2, 4, 6, 8, 10, 12]
    assert results.training_s == pytest.approx((alone.training_s or 0) + (second.training_s or 0))
    # Held out from the student's training, but perhaps not from that of the one that taught it.
    assert second.held_out.maybe_seen_by_teacher
    assert "round_1" in (two / "report.html").read_text()


# In round 1, and in the first step of round 2 and after its checkpoint; a round here calls the loss eight times, the
# fourth before it saves. In the quick tests a run by the rule is interrupted in round 2, and one of a single round in
# every stage.
@pytest.mark.slow
@pytest.mark.parametrize(("call", "number", "step"), [(6, 1, 5), (9, 2, 1), (14, 2, 5)])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    two: Path, checkpoint: Path, dataset_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: Capture, call: int, number: int, step: int,
) -> None:  # fmt: skip
    output = tmp_path / "out"
    signal_at(monkeypatch, ReflowMethod, "loss", call)
    assert main(options(checkpoint, dataset_root, output, *TWO)) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("chordflow reflow: interrupted; resume with: chordflow reflow --resume=true"), said
    reached = output / f"round_{number}" / "checkpoints" / f"{step:06d}"
    assert (output / "checkpoints" / "last").resolve() == reached
    assert (output / "round_2").exists() == (number == 2)
    monkeypatch.undo()
    assert main(shlex.split(said.partition("chordflow reflow: interrupted; resume with: chordflow ")[2])) == 0
    for number in (1, 2):
        same_bits(last(two, number), last(output, number))
    assert gaps(two) == gaps(output)
    assert record(last(output, 2))["lineage"] == record(last(two, 2))["lineage"]
    assert os.readlink(output / "checkpoints") == "round_2/checkpoints"


def test_interrupted_before_any_checkpoint_nothing_is_left(
    checkpoint: Path, dataset_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    signal_at(monkeypatch, BlockMaker, "_make", 1)
    output = tmp_path / "new" / "out"
    assert main(options(checkpoint, dataset_root, output, *TWO)) == 130
    assert "no checkpoint was written yet, so start a new run" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_killed_in_the_second_round_it_goes_on_there(two: Path, tmp_path: Path) -> None:
    run = copied(two, tmp_path)
    cut_back(run / "round_2", 3)
    (run / "round_2" / "results.json").unlink()
    (run / "round_2" / "checkpoints" / ".000006.tmp").mkdir()
    (run / "checkpoints").unlink()
    (run / "checkpoints").symlink_to("round_1/checkpoints")
    first = (last(run, 1) / "pretrained_model" / "model.safetensors").stat().st_mtime_ns
    assert main(resume(run)) == 0
    same_bits(last(two, 2), last(run, 2))
    assert gaps(two) == gaps(run)
    assert [json.loads(line)["step"] for line in (run / "round_2" / "metrics.jsonl").open()] == [2, 4, 6]
    assert (last(run, 1) / "pretrained_model" / "model.safetensors").stat().st_mtime_ns == first
    assert not list((run / "round_2" / "checkpoints").glob(".*"))


def test_rounds_after_the_one_resumed_are_kept_while_their_teacher_is_the_same(
    two: Path, tmp_path: Path, capsys: Capture
) -> None:
    run = copied(two, tmp_path)
    weights = last(run, 2) / "pretrained_model" / "model.safetensors"
    before = weights.stat().st_ino, weights.stat().st_mtime_ns
    assert main(resume(run, place="round_1/checkpoints/000003")) == 0
    assert (weights.stat().st_ino, weights.stat().st_mtime_ns) == before
    assert gaps(two) == gaps(run)
    assert "was taught by another student" not in capsys.readouterr().out
    # Another rate makes another first student, and so another second round.
    assert main(resume(run, "--optimizer.lr=1e-2", place="round_1/checkpoints/000003")) == 0
    assert "was taught by another student, so it is made anew" in capsys.readouterr().out
    assert record(last(run, 2))["lineage"][-1] == weights_sha256(last(run, 1) / "pretrained_model")
    assert record(last(run, 2))["lineage"] != record(last(two, 2))["lineage"]
    assert weights_sha256(weights.parent) != weights_sha256(last(two, 2) / "pretrained_model")


def test_more_rounds_can_be_asked_for(two: Path, tmp_path: Path) -> None:
    run = copied(two, tmp_path)
    assert main(resume(run, "--rounds=3")) == 0
    for number in (1, 2):
        same_bits(last(two, number), last(run, number))
    assert os.readlink(run / "checkpoints") == "round_3/checkpoints"
    third = record(last(run, 3))
    assert (third["round"], third["rounds"], len(third["lineage"])) == (3, 3, 3)
    results = Results.load(run / "results.json")
    assert [info.name for info in results.policies] == ["teacher", "round_1", "round_2", "student"]
    assert results.seeds.keys() == {"training", "round 2", "round 3", "measuring"}


@pytest.mark.parametrize(("more", "message"), [
    (["--rounds=0"], "rounds=0: give at least 1"),
    (["--rounds=2", "--method.type=endpoint"], "rounds=2: a student of method.type=endpoint"),
    (["--rounds=2", "--method.type=noise_biased"], "rounds=2: method.type=noise_biased has no teacher"),
    (["--rounds=auto", "--auto_rounds.most=1"], "auto_rounds.most=1: give at least 2, or --rounds=1."),
    (["--rounds=auto", "--auto_rounds.least_gain=1"], "auto_rounds.least_gain=1.0: give a number from 0"),
    (["--rounds=2", "--auto_rounds.most=3"], "auto_rounds: these options are about rounds=auto, and rounds=2"),
    (["--rounds=always"], "rounds=always: give a whole number or auto"),
])  # fmt: skip
def test_rounds_that_cannot_be_are_refused(more: list[str], message: str, refuse: Refuse) -> None:
    assert message in refuse(*more)


def test_what_does_not_fit_a_run_of_rounds_is_refused(
    two: Path, whole_run: Path, checkpoint: Path, dataset_root: Path, tmp_path: Path, capsys: Capture
) -> None:
    run = copied(two, tmp_path)

    def refused(arguments: list[str], *words: str) -> None:
        said = refusal(arguments, capsys)
        assert all(word in said for word in words), said

    refused(resume(run, "--rounds=1"), "rounds=1: the checkpoint is of round 2 of 2; give at least 2.")
    again = options(checkpoint, dataset_root, run, *TWO)
    refused(again, "exists already; name a new folder, or resume with")
    (run / "round_2").rename(run / "second")
    refused(resume(run, place="second/checkpoints/last"), "whose folder is named round_2")
    (run / "second").rename(run / "round_2")
    shutil.copytree(last(two, 1).parent / "000003" / "pretrained_model", last(run, 1) / "pretrained_model",
                    dirs_exist_ok=True)  # fmt: skip
    refused(resume(run), "was not taught by", "resume from a checkpoint of round 1")
    shutil.rmtree(run / "round_1")
    refused(resume(run), "the student of round 1, is missing; restore it")
    # A folder of one round has no room for a second.
    refused(resume(whole_run, "--rounds=2"), "rounds=2: the run began with one round")


def test_rounds_draw_apart_and_a_seed_fits_every_library() -> None:
    seeds = [round_seed(seed, number) for seed in (0, 1, 1000) for number in range(1, 6)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert [round_seed(seed, 1) for seed in (0, 1000)] == [0, 1000]


def test_a_students_teachers_may_have_seen_what_it_has_not(
    two: Path, checkpoint: Path, tmp_path: Path
) -> None:
    dataset, student = DatasetConfig("test/tiny", eval_split=0.1), last(two, 1) / "pretrained_model"
    assert teacher_may_have_seen(student, dataset, [5])
    # With a teacher that is known to have had the same episodes held out.
    teacher = Path(shutil.copytree(checkpoint, tmp_path / "teacher"))
    copy_of = Path(shutil.copytree(student, tmp_path / "student"))
    shutil.copyfile(student / "train_config.json", teacher / "train_config.json")
    edit_json(copy_of / "reflow_config.json", lambda ours: ours["teacher"].update(path=str(teacher)))
    assert not teacher_may_have_seen(copy_of, dataset, [5])
    shutil.rmtree(teacher)
    assert teacher_may_have_seen(copy_of, dataset, [5])
