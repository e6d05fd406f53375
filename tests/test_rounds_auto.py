"""`chordflow reflow --rounds=auto`: as many rounds as pay, by a rule that is written down."""

import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from builders import parse_reflow as parse
from chordflow.cli.main import main
from chordflow.couplings import DatasetConfig, open_split
from chordflow.evaluation.measure import Yardstick
from chordflow.experiments.config import AutoRoundsConfig
from chordflow.experiments.provenance import weights_sha256
from chordflow.experiments.rounds import Judge, reflow_rounds
from chordflow.policies import load_flow_policy
from chordflow.results.paying import Gain, Standing, gain, paying_rounds
from chordflow.results.schema import STUDENT, TEACHER, Results
from chordflow.training.methods import ReflowMethod
from small_jobs import FewSteps, drawn
from small_runs import Capture, edit_json, options, signal_at, student_of
from test_rounds import copied, record, resume, same_bits

QUICK = ["--steps=2", "--save_freq=1", "--coupling.num_steps=null", "--teacher.num_inference_steps=17"]
GAP = "the gap to the first teacher's converged ODE"
PAYS, LITTLE, DRIFTS = Gain(0.5, 0.2, 0.1), Gain(0.05, 0.02, 0.1), Gain(0.5, -0.02, 0.1)


def judged(monkeypatch: pytest.MonkeyPatch, *gains: Gain) -> None:
    """What each round, by its number, is found to have brought."""
    monkeypatch.setattr(Judge, "_gain", lambda self, students: gains[len(students) - 1])


@pytest.mark.parametrize(("after", "pays", "reason"), [
    (Standing(0.1, 0.19), True, f"curvature fell by 50 % and {GAP} fell by 5.0 %"),
    (Standing(0.3, 0.1), True, f"curvature grew by 50 % and {GAP} fell by 50 %"),
    (Standing(0.19, 0.19), False, "where 10 % of either is needed"),
    (Standing(0.01, 0.202), False, f"{GAP} grew by 1.0 %"),
])  # fmt: skip
def test_a_round_pays_where_it_straightens_or_nears_and_does_not_drift(
    after: Standing, pays: bool, reason: str
) -> None:
    found = gain(Standing(0.2, 0.2), after, 0.1)
    assert found.pays == pays
    assert found.reason.endswith(reason)


def test_rounds_are_counted_until_one_does_not_pay() -> None:
    bent, straight, far = Standing(0.3, 0.3), Standing(0.05, 0.1), Standing(0, 0.2)
    assert paying_rounds([bent, straight, Standing(0.01, 0.1)]) == 2
    assert paying_rounds([bent, straight, far, straight]) == 1
    # A drop of exactly the least gain is enough, and nothing that is zero can be reduced further.
    assert gain(Standing(1.0, 1.0), Standing(0.75, 1.0), 0.25).pays
    assert not gain(Standing(0.0, 0.0), Standing(0.0, 0.0), 0.1).pays
    drifted = gain(Standing(0.1, 0.0), Standing(0.1, 0.1))
    assert drifted.gap == -math.inf
    assert "grew from nothing" in drifted.reason


@pytest.mark.parametrize(("gains", "most", "kept", "words"), [
    ([PAYS, LITTLE], 4, 2, "took two rounds and stopped because in round 2 curvature fell by 5.0 % and the gap"),
    ([LITTLE], 4, 1, "took one round and stopped because in round 1 curvature fell by 5.0 %"),
    ([DRIFTS], 4, 1, f"took one round and stopped because in round 1 {GAP} grew by 2.0 %"),
    ([PAYS, PAYS, DRIFTS], 4, 2, f"in round 3 {GAP} grew by 2.0 %"),
    ([PAYS, PAYS], 2, 2, "auto_rounds.most=2 allows no more, though in round 2 curvature fell by 50 %"),
])  # fmt: skip
def test_why_it_stops_and_which_student_it_keeps(
    monkeypatch: pytest.MonkeyPatch, gains: list[Gain], most: int, kept: int, words: str
) -> None:
    judged(monkeypatch, *gains)
    job: Any = SimpleNamespace(config=SimpleNamespace(auto_rounds=AutoRoundsConfig(most=most)))
    judge, students = Judge(job), [Path(str(number)) for number in range(len(gains))]
    for taken in range(1, len(gains)):
        assert judge.after(students[:taken]) is None
    stopped = judge.after(students)
    assert stopped[0] == kept
    assert words in stopped[1].text
    assert stopped[1].text.endswith(f"; the student is that of round {kept}.")


def last_of(run: Path, number: int) -> Path:
    return run / f"round_{number}" / "checkpoints" / "000002"


def go_on(run: Path) -> Results:
    """Without the pictures and the page, which take longer than the rounds."""
    command = resume(run)
    config, checkpoint = parse(command[1:])
    return reflow_rounds(config, command, checkpoint).results


@pytest.fixture(scope="module")
def auto(checkpoint: Path, dataset_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run by the rule's own measuring; not to be written to."""
    output = tmp_path_factory.mktemp("auto") / "run"
    more = ("--rounds=auto", "--auto_rounds.most=2", "--auto_rounds.least_gain=0", *QUICK)
    with drawn():
        assert main(options(checkpoint, dataset_root, output, *more)) == 0
    return output


def test_it_stops_by_the_rule_on_episodes_that_are_neither_trained_nor_reported_on(
    auto: Path, checkpoint: Path, dataset_root: Path
) -> None:
    results = Results.load(auto / "results.json")
    taken = len(list(auto.glob("round_*")))
    kept = int(os.readlink(auto / "checkpoints").split("/")[0].removeprefix("round_"))
    names = [STUDENT if number == kept else f"round_{number}" for number in range(1, taken + 1)]
    assert [info.name for info in results.policies] == [TEACHER, *names]
    left_out = record(last_of(auto, 1))
    assert left_out["held_out_episodes"] == results.held_out.episodes
    teacher = load_flow_policy(checkpoint, device="cpu")
    dataset = DatasetConfig("test/tiny", root=str(dataset_root), eval_split=0.4)
    split = open_split(dataset, teacher, judged=left_out["judged_episodes"])
    trained = {int(split.train[index]["episode_index"]) for index in range(len(split.train))}
    apart = [trained, set(split.judged_episodes), set(split.held_out_episodes)]
    assert all(apart)
    assert len(set.union(*apart)) == sum(map(len, apart))
    measure = replace(parse(resume(auto, place="round_1/checkpoints/last")[1:])[0].measure, num_steps=[1])
    yardstick = Yardstick(teacher, split.judged, FewSteps(**vars(measure)), 17)
    students = [load_flow_policy(last_of(auto, n) / "pretrained_model") for n in range(1, taken + 1)]
    found = [yardstick.teacher, *(yardstick.of(STUDENT, student) for student in students)]
    rows = [(one, row) for one in found for row in one.gaps if row.reference == "converged"]
    standings = [Standing(one.curvature, row.rms) for one, row in rows if row.num_steps == 1]
    assert taken == min(paying_rounds(standings, 0.0) + 1, 2)
    drifted = standings[-1].gap > standings[-2].gap
    assert kept == (taken - 1 if drifted and taken > 1 else taken)
    assert results.student == f"round_{kept}/checkpoints/000002/pretrained_model"
    said = results.findings[0]
    assert said.rule == "rounds_auto"
    words = f"took {'one round' if taken == 1 else 'two rounds'} and stopped because"
    assert said.text.startswith(f"--rounds=auto {words} ")
    for file in ("model_card.md", "table.md", "report.html"):
        assert words in (auto / file).read_text(), file
    assert record(last_of(auto, 1))["rounds"] == "auto"


def test_stopped_inside_a_round_it_goes_on_to_the_same_bits(
    auto: Path, checkpoint: Path, dataset_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second round, between its two steps; then once more, when all is done."""
    output = tmp_path / "out"
    judged(monkeypatch, PAYS, DRIFTS)
    with monkeypatch.context() as patch:
        # A round calls the loss twice in every step, as it looks at the weights that it saves.
        signal_at(patch, ReflowMethod, "loss", 5)
        assert main(options(checkpoint, dataset_root, output, "--rounds=auto", *QUICK)) == 130
    assert os.readlink(output / "checkpoints") == "round_2/checkpoints"
    assert os.readlink(output / "round_2" / "checkpoints" / "last") == "000001"
    results = go_on(output)
    assert results.findings[0].text == (
        f"--rounds=auto took two rounds and stopped because in round 2 {GAP} grew by 2.0 %; the student is that of "
        "round 1."
    )
    same_bits(last_of(auto, 1), last_of(output, 1))
    if (auto / "round_2").exists():
        same_bits(last_of(auto, 2), last_of(output, 2))
    # Both rounds take the steps that the first teacher asks for; as a teacher, a student is measured at ten.
    for number, measured_at in ((1, 17), (2, 10)):
        assert record(last_of(output, number))["coupling"]["num_steps"] == 17
        own = Results.load(output / f"round_{number}" / "results.json")
        assert (own.couplings.num_steps, own.teacher_num_steps) == (17, measured_at)
    # The student of the round that drifted away is measured, and the one before is the run's.
    assert os.readlink(output / "checkpoints") == "round_1/checkpoints"
    assert [info.name for info in results.policies] == [TEACHER, STUDENT, "round_2"]
    assert results.policies[1].weights_sha256 == weights_sha256(student_of(output))
    weights = sorted(output.glob("round_*/checkpoints/*/*/model.*"))
    before = [path.stat().st_mtime_ns for path in weights]
    assert go_on(output).findings[0] == results.findings[0]
    assert [path.stat().st_mtime_ns for path in weights] == before


def test_a_run_by_the_rule_goes_on_by_a_number_or_by_another_rule(
    auto: Path, tmp_path: Path, capsys: Capture
) -> None:
    given = parse(resume(auto, "--rounds=2", place="round_1/checkpoints/last")[1:])[0]
    assert (given.rounds, given.auto_rounds) == (2, AutoRoundsConfig())
    other = parse(resume(auto, "--auto_rounds.most=5", place="round_1/checkpoints/last")[1:])[0]
    assert (other.rounds, other.auto_rounds) == ("auto", AutoRoundsConfig(5, 0.0))
    # The record of such a run serves as settings of a new one as well.
    record_of = last_of(auto, 1) / "pretrained_model" / "reflow_config.json"
    new = parse([f"--config_path={record_of}", "--rounds=3", f"--output_dir={tmp_path / 'new'}"])[0]
    assert (new.rounds, new.auto_rounds) == (3, AutoRoundsConfig())
    run = copied(auto, tmp_path)
    third = Path(shutil.copytree(run / "round_1", run / "round_3", symlinks=True))
    file = third / "checkpoints" / "000002" / "pretrained_model" / "reflow_config.json"
    edit_json(file, lambda record: record.update(round=3))
    for more, words in (
        (
            "--auto_rounds.most=2",
            "auto_rounds.most=2: the checkpoint is of round 3; give at least that many.",
        ),
        ("--rounds=2", "rounds=2: the checkpoint is of round 3; give at least 3."),
    ):
        assert main(resume(run, more, place="round_3/checkpoints/last")) == 2
        assert words in capsys.readouterr().err
