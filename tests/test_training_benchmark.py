"""The scripts of benchmarks/training: they run on something small, and the documents show what they found."""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from chordflow.cli.main import main
from chordflow.couplings import BufferConfig
from chordflow.policies import Role, VelocityModule
from chordflow.training.methods import ReflowMethodConfig
from chordflow.training.optimizers import AdamWConfig
from chordflow.training.steps import LoopConfig, SchedulerConfig, Training
from gaussian_policy import GaussianConfig
from gaussian_setup import AffineStudent, euler, make_observations, make_policy
from script_files import scripts_of

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks" / "training"
SMALL = {"num_observations": 8, "noises_per_observation": 2, "uses_per_coupling": 4, "block_size": 4}


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    names = ("loops", "roofline", "schedules", "time_training", "full_size", "full_size_table", "recount",
             "coupling_solvers")  # fmt: skip
    with scripts_of(FOLDER) as import_script:
        yield {name: import_script(name) for name in names}


def load(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / "results" / f"{name}.json").read_text(encoding="utf-8"))


def call(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", [script.__name__, *options])
    script.main()


def test_loops_are_timed_and_their_students_measured(
    scripts: dict[str, ModuleType], checkpoint: Path, dataset_root: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(scripts["roofline"].PEAK_SIZE, "cpu", 128)
    schedules = {
        "small": {"batch_size": 4, "buffer": SMALL},
        "other": {"batch_size": 2, "buffer": SMALL, "budgets": [0.8]},
    }
    call(
        scripts["time_training"], monkeypatch, f"--teacher={checkpoint}", "--dataset=test/tiny",
        f"--root={dataset_root}", f"--output={tmp_path / 'bench.json'}", "--budgets=[0.8,0.4]", "--seeds=[0]",
        f"--schedules={json.dumps(schedules)}", "--naive_batch_size=4", "--observations=6", "--repeats=1",
    )  # fmt: skip
    bench = json.loads((tmp_path / "bench.json").read_text())
    assert [(run["loop"], run["budget_s"]) for run in bench["runs"]] == [
        ("naive", 0.4), ("small", 0.4), ("naive", 0.8), ("small", 0.8), ("other", 0.8),
    ]  # fmt: skip
    for run in bench["runs"]:
        assert run["budget_s"] <= run["seconds"] < run["budget_s"] + 2
        assert run["samples"] == (2 if run["loop"] == "other" else 4) * run["steps"]
        assert (run["loss"] is None) == (run["ready_s"] is None) == (run["steps"] == 0)
        # The first step of SOAP moves nothing, and neither does one at the rate 0.
        assert run["steps"] > 1 or run["gap"] == bench["untrained"]
        assert run["steps"] < 4 or run["gap"] != bench["untrained"]
    assert bench["floor"]["deployed_rms"] == pytest.approx(0, abs=1e-6)
    assert 0 < bench["floor"]["rms"] < bench["untrained"]["rms"]
    assert bench["roofline"]["naive_nfe"] == 10 < bench["roofline"]["solver_nfe"]
    assert set(load("schedules")) - {"teacher_sha256", "pairs"} == set(bench)
    said = capsys.readouterr().out
    assert "| small | 4 | 8 | 2 | 4 |" in said
    assert "small: " in said


@pytest.mark.slow
def test_a_reduced_size_is_measured(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "result.json"
    call(
        scripts["full_size"], monkeypatch, "--size=reduced",
        # Its steps cost little; by the default they outweigh the couplings of so small a policy.
        "--optimizer=adamw", f"--output={path}", "--batch_size=4", "--noises=2", "--uses=6", "--naive_steps=2",
        "--lives=2",
    )  # fmt: skip
    bench = json.loads(path.read_text())
    naive, buffered = bench["speeds"]
    assert (naive["samples"], naive["steps"]) == (8, 2)
    # Two lives of two observations with two noises, each of them used six times.
    assert (buffered["samples"], buffered["steps"]) == (2 * 2 * 2 * 6, 12)
    assert buffered["samples"] / buffered["seconds"] > naive["samples"] / naive["seconds"]
    # What the buffer holds is what the roofline says of its parts.
    expected = 2 * bench["roofline"]["context_bytes"] + 4 * bench["roofline"]["coupling_bytes"]
    assert buffered["buffer_bytes"] == pytest.approx(expected, rel=0.01)


def test_the_verb_that_has_gone_names_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "training", "--teacher.path=t"]) == 2
    assert "benchmarks/training/time_training.py" in capsys.readouterr().err


def test_the_naive_loop_uses_nothing_twice(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample costs an encoding by the teacher, ten passes of it, and an encoding by the student."""
    policies = {"teacher": make_policy(), "student": AffineStudent(GaussianConfig())}
    counts: Counter[tuple[str, str]] = Counter()

    def count(name: str, method: str) -> None:
        original = getattr(policies[name], method)

        def call(first: Any, *others: Any) -> Any:
            counts[name, method] += len(first if method == "velocity" else first["observation.state"])
            return original(first, *others)

        monkeypatch.setattr(policies[name], method, call)

    expected = {("teacher", "encode"): 12, ("teacher", "velocity"): 120, ("student", "encode"): 12,
                ("student", "velocity"): 12}  # fmt: skip
    for name, method in expected:
        count(name, method)
    observations = make_observations(16)
    source = scripts["loops"].naive_couplings(policies["teacher"], observations, euler(10), 3, 4)
    noises = []
    for step in range(3):
        list(source.fill(step))
        batch = source.batch(step)
        noises.append(batch.noise)
        ReflowMethodConfig().build().loss(VelocityModule(policies["student"]), batch, torch.Generator())
    assert counts == expected
    assert len(torch.cat(noises).flatten(1).unique(dim=0)) == 12


def test_a_step_is_the_training_loops_own(scripts: dict[str, ModuleType]) -> None:
    loops = scripts["loops"]

    def student() -> tuple[AffineStudent, dict[str, Any]]:
        torch.manual_seed(1)
        made = AffineStudent(make_policy().config)
        return made, made.train_roles([Role.ACTION_HEAD])

    def source() -> Any:
        return loops.naive_couplings(make_policy(), make_observations(8), euler(2), 3, 8)

    (mine, own), (looped, expected), (_, fresh) = student(), student(), student()
    adamw, couplings = AdamWConfig(lr=1e-3), source()
    step = loops.TrainingStep(mine, own, adamw, seed=3)
    config = LoopConfig(20, seed=3, optimizer=adamw, scheduler=SchedulerConfig(1))
    for passed in Training(config, looped, expected, source(), ReflowMethodConfig().build()).run():
        list(couplings.fill(passed.step - 1))
        assert step(couplings, passed.step - 1, passed.lr / 1e-3) == pytest.approx(passed.loss, rel=1e-5)
    for name, parameter in own.items():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-6, atol=1e-8)
    assert any(not torch.equal(own[name], fresh[name]) for name in own)


@pytest.mark.slow
def test_the_results_hold_what_a_later_step_takes(scripts: dict[str, ModuleType]) -> None:
    soap, adamw = load("full_smolvla_cpu_soap_4"), load("full_smolvla_cpu_adamw_4")
    recount = scripts["recount"]
    own = recount.soap_flop(recount.trained_shapes(soap["settings"]))
    assert soap["roofline"]["train"]["flop"] - adamw["roofline"]["train"]["flop"] == own


@pytest.mark.docs
def test_the_document_shows_the_results(scripts: dict[str, ModuleType]) -> None:
    schedules, table = scripts["schedules"], scripts["full_size_table"]
    text = schedules.DOCUMENT.read_text(encoding="utf-8")
    expected = {mark: schedules.shown(load(mark)) for mark in schedules.FILES} | {table.MARK: table.shown()}
    for mark, shown in expected.items():
        assert text.split(f"<!-- {mark} -->\n")[1].split(f"<!-- /{mark} -->")[0] == shown + "\n"
    text = (schedules.DOCUMENT.parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    shown = text.split("<!-- coupling_solvers -->\n")[1].split("\n<!-- /coupling_solvers -->")[0]
    assert shown == scripts["coupling_solvers"].table(load("coupling_solvers"))
    rows = dict(re.findall(r"^\| `--buffer.(\w+)` \| ([\d.]+) \|", text, re.MULTILINE))
    assert {name: str(getattr(BufferConfig, name)) for name in rows} == rows
    assert len(rows) == len(fields(BufferConfig)) - 1


def test_the_solvers_of_couplings_are_those_of_the_script_and_what_the_document_says_of_them(
    scripts: dict[str, ModuleType],
) -> None:
    rows = load("coupling_solvers")["rows"]
    found = [(row["solver"], row["num_steps"], row["grid_power"], row["nfe"]) for row in rows]
    ways = scripts["coupling_solvers"].WAYS
    assert found == [(way.solver, way.num_steps, way.grid_power, way.nfe) for way in ways]
    rms = {(row["solver"], row["num_steps"], row["grid_power"]): row["rms"] for row in rows}
    default, sixteen = rms["euler", 10, 1.0], rms["adams_bashforth", 16, 1.4]
    assert 3.5 < default / rms["adams_bashforth", 9, 1.4] < 4.0
    assert default / sixteen > 7
    assert sixteen < min(rms["midpoint", 10, 1.0], rms["midpoint", 10, 1.4])
    assert 0.85 * default < rms["adams_bashforth", 9, 1.0] < default
    assert rms["heun", 10, 1.0] > rms["midpoint", 10, 1.0]
