"""The benchmark of training at full size: its reduced size runs, and counts what it says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from chordflow.results.bench import NAIVE, TrainingBench
from script_files import load_script, scripts_of

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "training" / "full_size.py"


RESULTS = SCRIPT.parent / "results"


@pytest.fixture(scope="module")
def recount() -> Iterator[ModuleType]:
    with scripts_of(SCRIPT.parent) as import_script:
        yield import_script("recount")


@pytest.fixture
def script() -> Iterator[ModuleType]:
    with scripts_of(SCRIPT.parent) as import_script:
        yield import_script(SCRIPT.stem)


def call(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *options], capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_a_reduced_size_is_measured(tmp_path: Path) -> None:
    output = tmp_path / "new" / "result.json"
    done = call(
        "--size=reduced",
        # Its steps cost little; by the default they outweigh the couplings of so small a policy.
        "--optimizer=adamw",
        f"--output={output}",
        "--batch_size=4",
        "--noises=2",
        "--uses=6",
        "--naive_steps=2",
        "--lives=2",
    )
    assert done.returncode == 0, done.stderr
    bench = TrainingBench.load(output)
    naive, buffered = bench.speeds
    assert (naive.loop, naive.samples, naive.steps) == (NAIVE, 8, 2)
    # Two lives of two observations with two noises, each of them used six times.
    assert (buffered.samples, buffered.steps) == (2 * 2 * 2 * 6, 12)
    assert buffered.samples_per_s > naive.samples_per_s
    assert bench.roofline is not None
    counted = [bench.roofline.flop_per_sample(loop) for loop in bench.loops]
    assert counted[0] > 3 * counted[1]
    # What the buffer holds is what the roofline says of its parts.
    expected = 2 * bench.roofline.context_bytes + 4 * bench.roofline.coupling_bytes
    assert buffered.buffer_bytes == pytest.approx(expected, rel=0.01)
    assert "times naive" in done.stdout


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--output=x.json", "--uses=0"], "--uses=0: give at least 1"),
        (["--output=x.json", "--batch_size=6"], "--batch_size=6: give a multiple of --noises=4"),
        ([], "--output"),
    ],
)
def test_bad_options_are_refused(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    words: str,
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *given])
    with pytest.raises(SystemExit) as stopped:
        script.main()
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


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
    recount: ModuleType, shape: tuple[int, ...], flop: int
) -> None:
    assert recount.soap_flop([torch.Size(shape)]) == flop
    assert recount.soap_flop([torch.Size(shape), torch.Size((32, 64))]) == flop + 8 * 32 * 64 * (32 + 64)


@pytest.mark.slow
def test_the_results_hold_what_a_later_step_takes(recount: ModuleType) -> None:
    count = 0
    for path in RESULTS.glob("full_*_soap_*.json"):
        soap, adamw = (
            TrainingBench.load(path.with_name(path.name.replace("soap", name))).roofline
            for name in ("soap", "adamw")
        )
        assert soap is not None
        assert adamw is not None
        shapes = recount.trained_shapes(TrainingBench.load(path).settings)
        assert soap.train.flop - adamw.train.flop == recount.soap_flop(shapes)
        count += 1
    assert count == 1


@pytest.mark.parametrize("name", ["full_smolvla_cpu_soap_4", "schedules", "variants"])
def test_the_published_counts_are_of_a_later_step(name: str) -> None:
    roofline = TrainingBench.load(RESULTS / f"{name}.json").roofline
    assert roofline is not None
    assert roofline.train.flop == {"full_smolvla_cpu_soap_4": 886_137_466_880}.get(name, 4_147_642_368)
    # None is computed faster than the device's peak.
    assert roofline.train.flop_per_s < roofline.peak_flop_per_s


@pytest.mark.docs
def test_the_document_shows_the_results() -> None:
    table = load_script(SCRIPT.with_name("full_size_table.py"))
    text = table.DOCUMENT.read_text(encoding="utf-8")
    shown = text.split(f"<!-- {table.MARK} -->\n")[1].split(f"<!-- /{table.MARK} -->")[0]
    assert shown == table.shown() + "\n"
    # A line for every result, and the ratio in it is that of the samples a second.
    results = [TrainingBench.load(path) for path in sorted(table.RESULTS.glob("full_*.json"))]
    assert len(shown.splitlines()) == 2 + len(results) > 2
    naive, buffered = results[0].speeds
    ratio = buffered.samples * naive.seconds / (buffered.seconds * naive.samples)
    assert f" {ratio:.1f} |" in shown.splitlines()[2]
