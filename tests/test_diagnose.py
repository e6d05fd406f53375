"""`chordflow diagnose` end to end: a small policy, input that cannot be used, and the demo's own figures."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from chordflow.cli.main import main
from chordflow.demo.teacher import place_teacher, record_demonstrations
from chordflow.policies import load_flow_policy
from chordflow.results.findings import findings, verdict
from chordflow.results.schema import HeldOut, Results
from small_jobs import drawn, measured_in_full
from small_runs import Capture, refusal

SMALL = ["--measure.num_observations=3", "--measure.converged_noises=1", "--measure.latency_repeats=2"]


def arguments(checkpoint: Path, root: Path, output: Path, *more: str) -> list[str]:
    return [
        "diagnose", f"--policy.path={checkpoint}", "--dataset.repo_id=test/tiny", f"--dataset.root={root}",
        f"--output_dir={output}", "--device=cpu", *SMALL, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def diagnosed(checkpoint: Path, dataset_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("diagnose") / "out"
    with measured_in_full(), drawn():
        assert main(arguments(checkpoint, dataset_root, output)) == 0
    return output


def test_the_results_hold_all_that_is_promised(diagnosed: Path, checkpoint: Path) -> None:
    results = Results.load(diagnosed / "results.json")
    assert (results.kind, results.student, results.teacher_num_steps) == ("diagnose", None, 10)
    assert {(r.solver, r.num_steps) for r in results.gaps} == {
        *(("euler", n) for n in (1, 2, 3, 4, 5, 8, 10)),
        *((solver, n) for solver in ("midpoint", "heun") for n in (1, 2, 4, 5)),
    }
    assert {r.reference for r in results.gaps} == {"deployed", "converged"}
    assert results.floor.rms > 0
    # One of two episodes for each of three tasks.
    assert results.held_out == HeldOut([3, 4, 5], 3, 16, maybe_seen_by_teacher=True)
    assert len(results.spreads) == len(results.widest) == 3
    assert {name for wide in results.widest for name in wide.pictures} == {"top"}
    assert np.shape(results.curvature[0].s_by_time_and_dim) == (100, 2)
    assert [c.num_steps for c in results.latency.chunks] == [1, 2, 10]
    assert results.latency.memory is not None
    policy = results.policies[0]
    assert (policy.name, policy.path, policy.family) == ("teacher", str(checkpoint), "smolvla")
    assert len(policy.weights_sha256) == 64
    loaded = load_flow_policy(checkpoint, device="cpu")
    assert policy.parameters == sum(p.numel() for p in loaded.module.parameters())
    assert results.findings == findings(results) != []
    assert results.verdict == verdict(results)
    assert results.settings["measure"]["num_steps"] == [1, 2, 3, 4, 5, 8, 10]
    assert (diagnosed / "figures" / "gap.png").stat().st_size > 1000
    assert "<html" in (diagnosed / "report.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("full_measures")
def test_the_same_figures_come_again_in_batches_of_another_size(
    diagnosed: Path, checkpoint: Path, dataset_root: Path, tmp_path: Path
) -> None:
    more = ["--measure.batch_size=16", "--measure.num_steps=[1,4]", "--measure.solvers=[euler]"]
    assert main(arguments(checkpoint, dataset_root, tmp_path / "again", *more)) == 0
    before, again = (Results.load(folder / "results.json") for folder in (diagnosed, tmp_path / "again"))
    for b in again.gaps:
        a = before.gap(b.policy, b.num_steps, b.reference, b.solver)
        assert (a.rms, a.median, a.max_abs) == pytest.approx((b.rms, b.median, b.max_abs), rel=1e-4)
    assert len(again.gaps) >= 4
    assert before.curvature[0].s == pytest.approx(again.curvature[0].s, rel=1e-4)


def test_without_a_folder_one_is_dated(
    checkpoint: Path, dataset_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [a for a in arguments(checkpoint, dataset_root, Path("unused")) if "output_dir" not in a]
    assert main([*given, "--policy.num_inference_steps=1", "--measure.num_steps=[1]"]) == 0
    (found,) = tmp_path.glob("outputs/diagnose/????-??-??/??-??-??/results.json")
    results = Results.load(found)
    assert results.verdict.startswith("No: the policy acts in one step already")


def test_what_is_wrong_is_one_sentence_and_nothing_is_written(
    checkpoint: Path, dataset_root: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    given = arguments(checkpoint, dataset_root, out)
    without = [a for a in given if "repo_id" not in a]
    for wrong, message in (
        (without, "--dataset.repo_id is missing"),
        (arguments(tmp_path / "none", dataset_root, out), "policy.path"),
        (arguments(checkpoint, tmp_path / "none", out), "dataset.root"),
        ([*given, "--policy.num_inference_steps=0"], "policy.num_inference_steps=0"),
        ([*given, "--measure.solvers=[rk4]"], "measure.solvers=[rk4]: give a list of [euler"),
        ([*given, "--policy.pth=x"], "did you mean --policy.path"),
    ):
        assert message in refusal(wrong, capsys)
    assert not out.exists()
    out.mkdir()
    assert "exists already" in refusal(given, capsys)


def test_a_student_of_one_step_is_warned_of(
    checkpoint: Path, dataset_root: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = Path(shutil.copytree(checkpoint, tmp_path / "student"))
    (student / "reflow_config.json").write_text('{"step_counts": [1]}')
    measured = "chordflow.experiments.diagnose.measured"
    monkeypatch.setattr(measured, lambda *_, **__: signal.raise_signal(signal.SIGINT))
    assert main(arguments(student, dataset_root, tmp_path / "out")) == 130
    heard = capsys.readouterr()
    said = heard.out.replace("\n", " ")
    assert f"Warning: policy.path={student} is a student that was trained for one step only" in said
    assert heard.err.endswith("interrupted; nothing was written; give the same command again.\n")


@pytest.mark.slow
@pytest.mark.usefixtures("full_measures")
def test_the_demos_figures_are_reproduced(tmp_path: Path) -> None:
    """Same teacher, observations and noises as in docs/demo: every figure of the untrained policy agrees."""
    teacher = place_teacher(tmp_path)
    record_demonstrations(tmp_path / "dataset", 400)
    given = [
        "diagnose", f"--policy.path={teacher}", "--dataset.repo_id=chordflow/detour",
        f"--dataset.root={tmp_path / 'dataset'}", "--device=cpu",
    ]  # fmt: skip
    # As the demo measures.
    same = ["--measure.gap_noises=16", "--measure.converged_noises=2"]
    assert main([*given, f"--output_dir={tmp_path / 'out'}", *same]) == 0
    committed = json.loads((Path(__file__).parents[1] / "docs/demo/results.json").read_text(encoding="utf-8"))
    results = Results.load(tmp_path / "out" / "results.json")
    compared = 0
    for row in committed["gaps"]:
        own = results.gap(row["policy"], row["num_steps"], row["reference"], row["solver"])
        if own is None:
            continue
        compared += 1
        for name in ("rms", "median", "max_abs", "mean_abs"):
            # To the printed digit, on any CPU.
            assert getattr(own, name) == pytest.approx(row[name], rel=1e-3, abs=1e-6), (row, name)
        assert own.flip_rate == pytest.approx(row["flip_rate"], abs=1 / own.pairs)
        assert (own.pairs, own.observations) == (row["pairs"], row["observations"])
    assert compared == 14
    (curvature,), first = results.curvature, committed["curvature"][0]
    for name in ("s", "curvature", "s_all_dims", "curvature_all_dims"):
        assert getattr(curvature, name) == pytest.approx(first[name], rel=1e-3)
    assert curvature.s_by_time == pytest.approx(first["s_by_time"], rel=1e-2)
    assert curvature.s_by_dim == pytest.approx(first["s_by_dim"], rel=1e-3)
    assert results.held_out.episodes == committed["held_out"]["episodes"]
