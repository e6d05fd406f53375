"""The scripts of benchmarks/training: they run on something small, and the documents show what they found."""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from chordflow.cli.main import main
from chordflow.couplings import BufferConfig, DatasetConfig, open_split
from chordflow.policies import Role, VelocityModule, load_flow_policy
from chordflow.training.methods import ReflowMethodConfig
from chordflow.training.optimizers import AdamWConfig
from chordflow.training.steps import LoopConfig, SchedulerConfig, Training
from gaussian_setup import AffineStudent, euler, make_observations, make_policy
from script_files import scripts_of

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks" / "training"
SMALL = {"num_observations": 8, "noises_per_observation": 2, "uses_per_coupling": 4, "block_size": 4}


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    names = ("loops", "roofline", "schedules", "time_training", "full_size", "full_size_table", "recount")
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
    counted = [scripts["roofline"].flop_per_sample(bench["roofline"], loop) for loop in bench["loops"]]
    assert counted[0] > 3 * counted[1]
    # What the buffer holds is what the roofline says of its parts.
    expected = 2 * bench["roofline"]["context_bytes"] + 4 * bench["roofline"]["coupling_bytes"]
    assert buffered["buffer_bytes"] == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("full_size", ["--output=x.json", "--uses=0"], "--uses=0: give at least 1"),
        ("full_size", ["--output=x.json", "--batch_size=6"], "--batch_size=6: give a multiple of --noises=4"),
        ("full_size", [], "--output"),
        (
            "time_training",
            ["--teacher=t", "--dataset=d", "--output=o", '--schedules={"a": {"budgets": [7]}}'],
            "'a'",
        ),
    ],
)
def test_bad_options_are_refused(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    name: str, given: list[str], words: str,
) -> None:  # fmt: skip
    with pytest.raises(SystemExit) as stopped:
        call(scripts[name], monkeypatch, *given)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_the_verb_that_has_gone_names_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "training", "--teacher.path=t"]) == 2
    assert "benchmarks/training/time_training.py" in capsys.readouterr().err


def test_the_naive_loop_uses_nothing_twice(
    scripts: dict[str, ModuleType], checkpoint: Path, dataset_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample costs an encoding by the teacher, ten passes of it, and an encoding by the student."""
    teacher, student = (load_flow_policy(checkpoint, device="cpu") for _ in range(2))
    student.train_roles([Role.ACTION_HEAD])
    counts: Counter[tuple[str, str]] = Counter()

    def count(name: str, method: str) -> None:
        policy = {"teacher": teacher, "student": student}[name]
        original = getattr(policy, method)

        def call(first: Any, *others: Any) -> Any:
            counts[name, method] += len(first if method == "velocity" else first["observation.state"])
            return original(first, *others)

        monkeypatch.setattr(policy, method, call)

    expected = {("teacher", "encode"): 12, ("teacher", "velocity"): 120, ("student", "encode"): 12,
                ("student", "velocity"): 12}  # fmt: skip
    for name, method in expected:
        count(name, method)
    split = open_split(DatasetConfig("test/tiny", root=str(dataset_root)), teacher)
    source = scripts["loops"].naive_couplings(teacher, split.train, euler(10), 3, 4)
    noises = []
    for step in range(3):
        list(source.fill(step))
        batch = source.batch(step)
        noises.append(batch.noise)
        ReflowMethodConfig().build().loss(VelocityModule(student), batch, torch.Generator()).backward()
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


@pytest.mark.parametrize(
    ("shape", "flop"),
    [
        # Four products with the basis of each side: the preconditioner's, two into the basis and one out of it.
        ((960, 720), 9_289_728_000),
        ((720, 960), 9_289_728_000),
        # A side longer than 1024 has no basis.
        ((2048, 720), 4 * 2 * 720 * 720 * 2048),
        ((2048, 1025), 0),
        ((720,), 0),
    ],
)
def test_what_a_later_step_of_soap_takes_is_counted(
    scripts: dict[str, ModuleType], shape: tuple[int, ...], flop: int
) -> None:
    count = scripts["recount"].soap_flop
    assert count([torch.Size(shape)]) == flop
    assert count([torch.Size(shape), torch.Size((32, 64))]) == flop + 8 * 32 * 64 * (32 + 64)


@pytest.mark.slow
def test_the_results_hold_what_a_later_step_takes(scripts: dict[str, ModuleType]) -> None:
    soap, adamw = load("full_smolvla_cpu_soap_4"), load("full_smolvla_cpu_adamw_4")
    recount = scripts["recount"]
    own = recount.soap_flop(recount.trained_shapes(soap["settings"]))
    assert soap["roofline"]["train"]["flop"] - adamw["roofline"]["train"]["flop"] == own


@pytest.mark.parametrize("name", ["full_smolvla_cpu_soap_4", "schedules", "variants"])
def test_the_published_counts_are_of_a_later_step(name: str) -> None:
    roofline = load(name)["roofline"]
    train = roofline["train"]
    assert train["flop"] == {"full_smolvla_cpu_soap_4": 886_137_466_880}.get(name, 4_147_642_368)
    # None is computed faster than the device's peak.
    assert train["flop"] / train["seconds"] < roofline["peak_flop_per_s"]


@pytest.mark.docs
def test_the_document_shows_the_results(scripts: dict[str, ModuleType]) -> None:
    schedules, table = scripts["schedules"], scripts["full_size_table"]
    text = schedules.DOCUMENT.read_text(encoding="utf-8")
    expected = {mark: schedules.shown(load(mark)) for mark in schedules.FILES} | {table.MARK: table.shown()}
    for mark, shown in expected.items():
        assert text.split(f"<!-- {mark} -->\n")[1].split(f"<!-- /{mark} -->")[0] == shown + "\n"
    text = (schedules.DOCUMENT.parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `--buffer.(\w+)` \| ([\d.]+) \|", text, re.MULTILINE))
    assert {name: str(getattr(BufferConfig, name)) for name in rows} == rows
    assert len(rows) == len(fields(BufferConfig)) - 1


@pytest.mark.parametrize("name", ["schedules", "variants"])
def test_the_default_schedule_is_the_one_measured(name: str) -> None:
    (loop,) = (loop for loop in load(name)["loops"] if loop["name"] == "default")
    kept = asdict(BufferConfig())
    assert {key: loop[key] for key in kept if key in loop} == {k: v for k, v in kept.items() if k in loop}
    assert (loop["batch_size"], loop["gradient_accumulation_steps"]) == (64, 1)


def bench_of(gaps: dict[str, dict[float, float]], per_s: dict[str, int]) -> dict[str, Any]:
    loops = [
        {"name": name, "batch_size": 64, "gradient_accumulation_steps": 1, "noises_per_observation": m,
         "uses_per_coupling": r, "num_observations": n, "budgets": None}
        for name, m, r, n in (("naive", 1, 1, None), ("default", 4, 12, 512))
    ]  # fmt: skip
    runs = [
        {"loop": loop, "seed": seed, "budget_s": mark, "seconds": mark, "samples": mark * per_s[loop],
         "gap": {"rms": gap * (1 + seed / 10)}}
        for loop, marks in gaps.items() for seed in range(3) for mark, gap in marks.items()
    ]  # fmt: skip
    return {"loops": loops, "runs": runs, "budgets": [10.0, 40.0], "seeds": [0, 1, 2], "device": "cpu",
            "floor": {"rms": 0.04}}  # fmt: skip


def test_what_is_said_follows_from_the_runs(scripts: dict[str, ModuleType]) -> None:
    script = scripts["schedules"]
    gaps = {"naive": {10.0: 0.4, 40.0: 0.2}, "default": {10.0: 0.4, 40.0: 0.1}}
    bench = bench_of(gaps, {"naive": 100, "default": 500})
    rows = script.table(bench).splitlines()
    assert rows[2] == "| naive | 64 | - | 1 | 1 | 44.0 %, 1.0 | 22.0 %, 1.0 | 40 s |"
    assert rows[3] == "| default | 64 | 512 | 4 | 12 | 44.0 %, 5.0 | 11.0 %, 5.0 | 20 s |"
    assert "reached after 20 s the gap that the naive loop has after 40 s" in script.said(bench)
    assert script.said(bench).endswith("the smaller one in 6 of 6 pairs of runs of the same seed and time.")
    bench["runs"][-1]["gap"]["rms"] = 0.9
    assert "in 5 of 6 pairs of runs of the same seed and time; the larger one at 40 s" in script.said(bench)
    # Two of three never get there.
    bench["runs"][-3]["gap"]["rms"] = 0.9
    assert script.time_to_naive(bench, bench["loops"][1])[0] == math.inf


def test_the_way_between_two_budgets_is_straight_in_logarithms(scripts: dict[str, ModuleType]) -> None:
    first = scripts["schedules"].first_at_most
    assert first([(10, 0.4), (40, 0.1)], 0.2) == (pytest.approx(20), False)
    assert first([(10, 0.4), (40, 0.1)], 0.5) == (10, True)
    assert first([(10, 0.4), (40, 0.1)], 0.05) == (math.inf, False)
