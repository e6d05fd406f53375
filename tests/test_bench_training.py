"""`chordflow bench training` on a small SmolVLA: what it writes, how it goes on, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chordflow.cli.bench import parse
from chordflow.cli.main import main
from chordflow.cli.options import options_of
from chordflow.couplings import BufferConfig, CouplingBuffer, CouplingConfig, DatasetConfig, open_split
from chordflow.errors import UserError
from chordflow.evaluation.measure import measure
from chordflow.evaluation.paired import MeasureConfig
from chordflow.experiments import bench as job
from chordflow.experiments import roofline
from chordflow.experiments.bench_config import Anneal, BenchMeasureConfig, Schedule, TrainingBenchConfig
from chordflow.experiments.bench_gap import HeldOutGap
from chordflow.experiments.bench_plan import planned
from chordflow.experiments.roofline import measure_roofline, peak_flop_per_s
from chordflow.policies import Role, load_flow_policy
from chordflow.policies.sampling import Sampler
from chordflow.policies.smolvla import SmolVLAFlowPolicy
from chordflow.results.bench import NAIVE, TrainingBench
from chordflow.training.methods import ReflowMethodConfig
from chordflow.training.optimizers import AdamWConfig, SOAPConfig
from chordflow.training.timed import TrainingStep

SMALL = {"num_observations": 8, "noises_per_observation": 2, "uses_per_coupling": 4, "block_size": 4}
SCHEDULES = json.dumps({"small": {"batch_size": 4, "buffer": SMALL}})


def arguments(
    checkpoint: Path, root: Path, output: Path, *more: str, budgets: str = "[0.4,0.8]"
) -> list[str]:
    return [
        "bench", "training", f"--teacher.path={checkpoint}", "--dataset.repo_id=test/tiny",
        f"--dataset.root={root}", "--dataset.eval_split=0.4", f"--output_dir={output}", "--device=cpu",
        f"--budgets={budgets}", "--seeds=[0]", f"--schedules={SCHEDULES}", "--naive_batch_size=4",
        "--optimizer.lr=1e-3", "--measure.num_observations=6", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def a_roofline_that_is_soon_found() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(roofline, "PEAK_SIZE", 128)
        patched.setattr(job, "ROOFLINE_REPEATS", 1)
        yield


@pytest.fixture(scope="module")
def done(checkpoint: Path, dataset_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small benchmark's folder; not to be written to."""
    output = tmp_path_factory.mktemp("bench") / "done"
    assert main(arguments(checkpoint, dataset_root, output)) == 0
    return output


def test_every_loop_is_measured_at_every_budget(done: Path) -> None:
    bench = TrainingBench.load(done / "bench.json")
    assert [(run.loop, run.seed, run.budget_s) for run in bench.runs] == [
        (NAIVE, 0, 0.4), ("small", 0, 0.4), (NAIVE, 0, 0.8), ("small", 0, 0.8),
    ]  # fmt: skip
    for run in bench.runs:
        (look,) = run.looks
        assert look.mark_s == run.budget_s <= look.seconds < run.budget_s + 2
        assert look.samples == 4 * look.steps
        assert run.cpu_s > 0
        assert run.peak_bytes is not None
        assert run.peak_bytes > 10e6
        assert (run.loss is None) == (look.steps == 0)
    assert all(run.looks[0].steps > 0 for run in bench.runs if run.budget_s == 0.8)
    by_loop = {run.loop: run for run in bench.runs}
    assert by_loop["small"].buffer_bytes > by_loop[NAIVE].buffer_bytes > 0
    text = (done / "bench.md").read_text()
    assert "| naive |" in text
    assert "| small |" in text
    assert sorted(path.name for path in done.iterdir()) == ["bench.json", "bench.md"]


def test_the_gap_is_the_one_that_reflow_reports(checkpoint: Path, dataset_root: Path, done: Path) -> None:
    bench = TrainingBench.load(done / "bench.json")
    teacher = load_flow_policy(checkpoint, device="cpu")
    split = open_split(DatasetConfig("test/tiny", root=str(dataset_root), eval_split=0.4), teacher)
    config = MeasureConfig(num_observations=6, num_steps=[1, 10], latency_repeats=1)
    measures = measure({"teacher": Sampler(teacher, 10)}, split.held_out, config)
    rows = {(row.num_steps, row.reference): row for row in measures.gaps if row.solver == "euler"}
    assert bench.floor is not None
    assert bench.untrained is not None
    one, floor = rows[1, "converged"], rows[10, "converged"]
    assert (bench.untrained.rms, bench.untrained.median, bench.untrained.flip_rate) == pytest.approx(
        (one.rms, one.median, one.flip_rate), rel=1e-4
    )
    assert (bench.floor.rms, bench.floor.median) == pytest.approx((floor.rms, floor.median), rel=1e-4)
    assert bench.floor.deployed_rms == pytest.approx(0, abs=1e-6)
    assert bench.pairs == 24


def test_a_students_gap_is_that_of_its_present_weights(checkpoint: Path, dataset_root: Path) -> None:
    teacher, student = (load_flow_policy(checkpoint, device="cpu") for _ in range(2))
    split = open_split(DatasetConfig("test/tiny", root=str(dataset_root), eval_split=0.4), teacher)
    gap = HeldOutGap(teacher, split.held_out, BenchMeasureConfig(num_observations=4), 10)
    assert gap.of(student, shares_prefix=True) == gap.untrained == gap.of(student, shares_prefix=False)
    with torch.no_grad():
        for parameter in student.parameters_by_role()[Role.ACTION_HEAD].values():
            parameter.mul_(1.3)
    changed = gap.of(student, shares_prefix=True)
    assert changed.rms != gap.untrained.rms
    assert gap.of(student, shares_prefix=False) == changed
    with torch.no_grad():
        for parameter in student.parameters_by_role()[Role.PREFIX_PROJECTIONS].values():
            parameter.mul_(3.0)
    assert gap.of(student, shares_prefix=True) == changed != gap.of(student, shares_prefix=False)


def resume(folder: Path, *more: str) -> list[str]:
    return ["bench", "training", "--resume=true", f"--config_path={folder / 'bench.json'}", *more]


def test_an_interrupted_benchmark_goes_on(
    checkpoint: Path, dataset_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    output = tmp_path / "new folder"
    trained, calls = job._trained, []

    def stop_in_the_third(*given: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return trained(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(job, "_trained", stop_in_the_third)
    assert main(arguments(checkpoint, dataset_root, output, budgets="[0.2,0.4]")) == 130
    said = capsys.readouterr().err
    assert f"chordflow bench training --resume=true --config_path='{output / 'bench.json'}'" in said
    first = TrainingBench.load(output / "bench.json")
    assert len(first.runs) == 2
    # The same, and a budget, a seed and a schedule more.
    more = json.dumps({"other": {"batch_size": 2, "buffer": SMALL}})
    assert main(resume(output, "--budgets=[0.1,0.2,0.4]", f"--schedules={more}")) == 0
    second = TrainingBench.load(output / "bench.json")
    assert second.runs[:2] == first.runs
    assert len(second.runs) == 9
    assert second.roofline == first.roofline
    assert [loop.name for loop in second.loops] == [NAIVE, "small", "other"]
    assert main(resume(output)) == 0
    assert TrainingBench.load(output / "bench.json").runs == second.runs


def test_a_benchmark_stopped_before_its_first_run_leaves_nothing(
    checkpoint: Path, dataset_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "_trained", stop)
    assert main(arguments(checkpoint, dataset_root, tmp_path / "out")) == 130
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (['--schedules={"small": {"batch_size": 8}}'], "'small' was another schedule"),
        (["--optimizer.lr=2e-3"], "optimizer: the benchmark began with"),
        (["--anneal=last"], "anneal: the benchmark began with each"),
    ],
)
def test_another_benchmark_is_not_gone_on_with(
    done: Path, more: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(resume(done, *more)) == 2
    assert words in capsys.readouterr().err


def test_times_of_two_machines_are_not_mixed(
    done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job, "device_name", lambda device: "another machine")
    assert main(resume(done)) == 2
    assert "another machine" in capsys.readouterr().err


def test_a_schedule_that_does_not_fit_is_named_before_any_run(
    checkpoint: Path, dataset_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(job, "_run", lambda *given: pytest.fail("it has begun"))
    large = json.dumps({"small": {"batch_size": 4, "buffer": SMALL}, "large": {"buffer": SMALL}})
    given = [o for o in arguments(checkpoint, dataset_root, tmp_path / "out") if "--schedules" not in o]
    assert main([*given, f"--schedules={large}"]) == 2
    said = capsys.readouterr().err
    assert (
        "schedules: 'large' cannot be trained by: batch_size=64 is larger than the buffer's 16 coupl" in said
    )
    assert not (tmp_path / "out").exists()


def test_a_schedule_that_was_not_run_may_be_another(
    checkpoint: Path, dataset_root: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = TrainingBench.load(done / "bench.json")
    (tmp_path / "out").mkdir()
    replace(bench, runs=[run for run in bench.runs if run.loop == NAIVE]).save(
        tmp_path / "out" / "bench.json"
    )
    begun = []
    monkeypatch.setattr(job, "_run", lambda bed, bench: begun.append(bench) or bench)
    assert main(resume(tmp_path / "out", '--schedules={"small": {"batch_size": 8}}')) == 0
    assert [loop.batch_size for loop in begun[0].loops] == [4, 8]


@pytest.mark.parametrize(
    ("place", "name", "words"),
    [
        ("chordflow.training.naive", "endpoints", "or trained on at a time; give --naive_batch_size=2."),
        (
            "chordflow.couplings.making",
            "endpoints",
            """give the schedule 'small' these settings: {"batch_size": 2, """,
        ),
        ("chordflow.experiments.bench", "HeldOutGap", "measured at a time; give --measure.batch_size=32."),
        ("torch.optim.AdamW", "step", "for the state of the optimiser adamw; train less"),
    ],
)
def test_out_of_memory_names_what_to_halve(
    checkpoint: Path, dataset_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], place: str, name: str, words: str,
) -> None:  # fmt: skip
    def endpoints(*_: object) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")

    # Without a roofline, and the schedule's run alone where it is what memory runs out in.
    monkeypatch.setattr(job, "_roofline", lambda bed: None)
    if place == "chordflow.couplings.making":
        monkeypatch.setattr(job, "planned", lambda config: planned(config)[1:2])
    monkeypatch.setattr(f"{place}.{name}", endpoints)
    more = ["--optimizer.type=adamw", "--measure.batch_size=64"]
    assert main(arguments(checkpoint, dataset_root, tmp_path / "out", *more, budgets="[5]")) == 2
    assert words in capsys.readouterr().err


def test_several_processes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(arguments(tmp_path, tmp_path, tmp_path / "out")) == 2
    assert "WORLD_SIZE=2: a benchmark trains in one process" in capsys.readouterr().err


def test_one_run_can_be_looked_at_as_it_passes(checkpoint: Path, dataset_root: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert main(arguments(checkpoint, dataset_root, output, "--anneal=last", "--clock=own")) == 0
    bench = TrainingBench.load(output / "bench.json")
    assert [(run.loop, run.budget_s, [look.mark_s for look in run.looks]) for run in bench.runs] == [
        (NAIVE, 0.8, [0.4, 0.8]), ("small", 0.8, [0.4, 0.8]),
    ]  # fmt: skip
    assert all(run.looks[0].samples < run.looks[1].samples for run in bench.runs)
    # What is looked at does not count, and neither does what others do.
    assert all(run.cpu_s == pytest.approx(run.looks[-1].seconds, abs=0.3) for run in bench.runs)
    assert "processor time" in (output / "bench.md").read_text()


def test_runs_alternate_between_the_loops() -> None:
    config = parse([
        "--teacher.path=t", "--dataset.repo_id=a/b", "--output_dir=o", "--budgets=[20,10,20]", "--seeds=[4,5]",
        '--schedules={"a": {}, "b": {}}',
    ])  # fmt: skip
    parts = [(p.loop, p.seed, p.budget_s, p.marks) for p in job.planned(config)]
    assert parts[:4] == [(NAIVE, 4, 10, [10]), ("a", 4, 10, [10]), ("b", 4, 10, [10]), (NAIVE, 4, 20, [20])]
    assert len(parts) == 12
    config.anneal = Anneal.LAST
    assert [(p.loop, p.budget_s, p.marks) for p in job.planned(config)][:2] == [
        (NAIVE, 20, [10, 20]),
        ("a", 20, [10, 20]),
    ]
    config.schedules["a"].budgets = [10]
    assert [(p.loop, p.budget_s) for p in job.planned(config)][:3] == [(NAIVE, 20), ("a", 10), ("b", 20)]
    config.anneal = Anneal.EACH
    assert [(p.loop, p.budget_s) for p in job.planned(config)][:5] == [
        (NAIVE, 10), ("a", 10), ("b", 10), (NAIVE, 20), ("b", 20),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--budgets=[]"], "budgets=[]: give seconds above 0"),
        (["--budgets=[0,3]"], "budgets=[0.0, 3.0]: give seconds above 0"),
        (["--seeds=[1,1]"], "seeds=[1, 1]: give at least one, each once"),
        (['--schedules={"naive": {}}'], "the name 'naive', which is taken"),
        (['--schedules={"a": {"batch_size": 0}}'], "batch_size=0: give at least 1"),
        (
            ['--schedules={"a": {"buffer": {"uses_per_coupling": -1}}}'],
            "uses_per_coupling=-1: give at least 1, or null",
        ),
        (['--schedules={"a": {"batch": 3}}'], "The fields `batch` are not valid"),
        (['--schedules={"a": {"budgets": [7]}}'], "'a' has budgets=[7.0]; give some of [30.0, 60.0,"),
        (["--naive_batch_size=0"], "naive_batch_size=0: give at least 1"),
        (["--num_workers=-1"], "num_workers=-1: give 0 or more"),
        (["--clock=own", "--num_workers=1"], "num_workers=1: clock=own"),
        (["--method.real_data_share=0.1"], "method.type=reflow: with these settings it looks at more"),
        (["--measure.noises_per_observation=4"], "at least 16"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(more: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(["--teacher.path=t", "--dataset.repo_id=a/b", "--output_dir=o", *more])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["bench"], "say what to measure"),
        (["bench", "latency"], "'latency' is nothing to measure"),
        (["bench", "training", "--resume=true"], "resume=true needs --config_path"),
    ],
)
def test_what_is_missing_is_named(given: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(given) == 2
    assert words in capsys.readouterr().err


def test_a_folder_that_is_there_is_not_written_to(
    checkpoint: Path, dataset_root: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(checkpoint, dataset_root, done)) == 2
    assert "go on with: chordflow bench training --resume=true" in capsys.readouterr().err
    assert main(arguments(checkpoint, dataset_root, tmp_path)) == 2
    assert "exists already; name a new folder." in capsys.readouterr().err


def test_defaults_are_those_of_reflow() -> None:
    config = parse(["--teacher.path=t", "--dataset.repo_id=a/b", "--output_dir=o"])
    assert config.schedules == {"default": Schedule()}
    assert config.schedules["default"].buffer == BufferConfig()
    assert (config.budgets, config.seeds) == ([30, 60, 120, 180], [0, 1, 2])


# The roofline


def test_operations_are_those_of_the_networks_products(
    tiny_policy: SmolVLAFlowPolicy, checkpoint: Path, dataset_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roofline, "PEAK_SIZE", 64)
    teacher = tiny_policy
    teacher.module.requires_grad_(False)
    student = load_flow_policy(checkpoint, device="cpu")
    trainable = student.train_roles([Role.ACTION_HEAD])
    before = {name: parameter.detach().clone() for name, parameter in trainable.items()}
    split = open_split(DatasetConfig("test/tiny", root=str(dataset_root)), teacher)
    found = {}
    for size in (2, 4):
        step = TrainingStep(student, trainable, ReflowMethodConfig().build(), AdamWConfig(), seed=0)
        source = CouplingBuffer(
            teacher,
            split.train,
            CouplingConfig(num_steps=1),
            BufferConfig(size, 1, None, size),
            seed=0,
            batch_size=size,
        )
        list(source.fill(0))
        items = next(split.train.batches(range(size), size))
        found[size] = measure_roofline(
            teacher,
            items,
            CouplingConfig("midpoint", 3),
            CouplingConfig("euler", 4),
            step,
            source,
            repeats=1,
        )
    measured = found[4]
    assert (measured.solver_nfe, measured.naive_nfe) == (6, 4)
    # Every matrix of the expert meets every action of the chunk once: two operations for each weight.
    head = teacher.parameters_by_role()[Role.ACTION_HEAD]
    products = sum(p.numel() for name, p in head.items() if p.dim() == 2)
    velocity = measured.velocity.flop_each
    assert products * 2 < velocity
    assert velocity < 2.5 * products * teacher.chunk.horizon
    # Forward, and backward to weights and to what comes in.
    assert 2.3 < measured.train.flop_each / velocity < 3.3
    for work in ("encode", "velocity", "train"):
        assert getattr(found[4], work).flop == pytest.approx(2 * getattr(found[2], work).flop, rel=0.02)
    assert measured.context_bytes > 0
    assert measured.coupling_bytes == 2 * 4 * teacher.chunk.horizon * teacher.chunk.padded_dim
    # The student's weights stay.
    assert all(torch.equal(before[name], parameter) for name, parameter in trainable.items())
    assert teacher.velocity.__func__ is SmolVLAFlowPolicy.velocity


def test_the_peak_is_of_this_device() -> None:
    small = peak_flop_per_s(torch.device("cpu"), torch.float32, size=256)
    assert 1e8 < small < 1e14


FROZEN = Path(__file__).parent / "command_line_options_bench.txt"


def test_the_command_line_has_not_changed_unnoticed() -> None:
    """Users' scripts depend on these names: a change has to be made here as well, on purpose."""
    names = "".join(f"--{option.name} ({option.kind})\n" for option in options_of(TrainingBenchConfig, None))
    assert names == FROZEN.read_text(encoding="utf-8")
    assert all(option.text for option in options_of(TrainingBenchConfig, None))


@pytest.mark.parametrize("longest", [1024, 40])
def test_a_step_of_soap_is_counted_after_its_first(
    tiny_policy: SmolVLAFlowPolicy,
    checkpoint: Path,
    dataset_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    longest: int,
) -> None:
    """Its first call looks for a basis and moves nothing, at a quarter of a later one's operations."""
    monkeypatch.setattr(roofline, "PEAK_SIZE", 64)
    tiny_policy.module.requires_grad_(False)
    student = load_flow_policy(checkpoint, device="cpu")
    trainable = student.train_roles([Role.ACTION_HEAD])
    split = open_split(DatasetConfig("test/tiny", root=str(dataset_root)), tiny_policy)
    solver = CouplingConfig("euler", 1)
    source = CouplingBuffer(
        tiny_policy, split.train, solver, BufferConfig(2, 1, None, 2), seed=0, batch_size=2
    )
    list(source.fill(0))
    items = next(split.train.batches(range(2), 2))
    counted = []
    for optimizer in (AdamWConfig(), SOAPConfig(max_precondition_dim=longest)):
        step = TrainingStep(student, trainable, ReflowMethodConfig().build(), optimizer, seed=0)
        found = measure_roofline(tiny_policy, items, solver, solver, step, source, repeats=1)
        counted.append(found.train.flop)
    expected = 0
    for parameter in trainable.values():
        if parameter.dim() == 2:
            sides = sum(side for side in parameter.shape if side <= longest)
            expected += 4 * 2 * parameter.numel() * sides
    assert counted[1] - counted[0] == expected > 0
