"""Runs as a user starts them: what reaches the terminal, and what a signal leaves behind."""

import gc
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from builders import build_dataset
from chordflow.cli import main as cli_main
from chordflow.cli.main import main
from chordflow.couplings.making import BlockMaker
from chordflow.experiments import measured
from chordflow.experiments import reflow as job
from chordflow.reporting import pictures
from chordflow.reporting.table import render
from chordflow.results.schema import Results
from chordflow.training.loop import read_metrics
from chordflow.training.methods import ReflowMethod
from small_runs import options, signal_at, student_of

PROGRESS = [
    r"(Loading|Reading) .* \.\.\.",
    r"  \w+ \.\.\.",
    r"  held-out frames: \d+ %(, \d+ s left)?",
    r"Teacher: .* \(smolvla, [\d.]+ M parameters, on cpu, 1 threads\).*",
    r"Data:    test/tiny, \d+ observations to train on, \d+ episodes held out",
    r"Method:  reflow, .*",
    r"  couplings: \d+ %, \d+ MB in memory(, \d+ s left)?",
    r"Buffer:  .* in memory",
    r"  training: \d+ %, loss [\d.]+, lr [\d.e-]+, [\d,]+ samples/s(, \d+ s left)?",
    r"Student: .*/checkpoints/\d{6}/pretrained_model",
    r"  measuring: \d+ %(, \d+ s left)?",
    r"Done in \d+ s\.",
]


def started(command: list[str]) -> subprocess.CompletedProcess[str]:
    """A real process, in which libraries would talk if they could."""
    tests = Path(__file__).parent
    silenced = {"TOKENIZERS_PARALLELISM", "HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_VERBOSITY"}
    environment = {name: value for name, value in os.environ.items() if name not in silenced}
    path = os.pathsep.join([str(tests), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment |= {"PYTHONPATH": path, "PYTHONWARNINGS": "default", "COLUMNS": "100"}
    # The threads of a GPU would not survive a fork.
    environment["CUDA_VISIBLE_DEVICES"] = ""
    return subprocess.run(command, cwd=tests, env=environment, capture_output=True, text=True, timeout=3600)


def check_quiet(done: subprocess.CompletedProcess[str], output: Path) -> None:
    """Makes sure that every line is chordflow's own."""
    out, err = done.stdout, done.stderr
    assert (done.returncode, err) == (0, "")
    progress, ended, report = out.partition("Done in ")
    assert ended
    for line in progress.splitlines():
        assert any(re.fullmatch(pattern, line) for pattern in PROGRESS), line
    # What takes longer than some seconds is named.
    report = re.sub(r"^(Drawing|Writing) .* \.\.\.\n", "", report, flags=re.MULTILINE)
    buffer = io.StringIO()
    Console(file=buffer, highlight=False, width=100).print(render(Results.load(output / "results.json")))
    first, _, rest = report.partition("\n")
    assert re.fullmatch(r"\d+ s\.", first)
    assert rest == (
        f"{buffer.getvalue()}Results: {output / 'results.json'}, 3 pictures in {output / 'figures'}\n"
        f"Report:  {output / 'report.html'}\n"
        f"Student: {student_of(output).resolve()}\n"
    )


@pytest.mark.slow
def test_a_run_on_videos_is_as_quiet(checkpoint: Path, tmp_path: Path) -> None:
    """Videos are decoded in spawned workers, which import everything anew."""
    root, output = tmp_path / "videos", tmp_path / "out"
    build_dataset(root, videos=True)
    command = str(Path(sys.executable).with_name("chordflow"))
    check_quiet(started([command, *options(checkpoint, root, output, "--num_workers=2")]), output)


Killed = tuple[subprocess.CompletedProcess[str], Path]


@pytest.fixture(scope="module", params=[3, pytest.param(100, marks=pytest.mark.slow)])
def killed(
    request: pytest.FixtureRequest, checkpoint: Path, dataset_root: Path, tmp_path_factory: pytest.TempPathFactory,
) -> Killed:  # fmt: skip
    """A process that ran well, and forks of it that were stopped; see `killed_processes`."""
    place = tmp_path_factory.mktemp("processes") / "ein Ordner 你好"
    place.mkdir()
    more = ["--steps=30", "--save_freq=12", "--log_freq=1", "--save_minutes=0.001", "--num_workers=2"]
    given = [one for one in options(checkpoint, dataset_root, place, *more) if "output_dir" not in one]
    return started([sys.executable, "killed_processes.py", str(place), str(request.param), *given]), place


def test_a_good_run_prints_its_own_words_alone(killed: Killed) -> None:
    check_quiet(killed[0], killed[1] / "whole")


@pytest.mark.parametrize(("where", "name", "call", "number", "left"), [
    (job, "open_split", 1, signal.SIGINT, []),
    (BlockMaker, "_make", 2, signal.SIGTERM, []),
    # Its first call is the first step's, and the fourth looks at the weights before the third step's are saved.
    (ReflowMethod, "loss", 5, signal.SIGTERM, ["000003", "000004"]),
    (measured, "measure", 1, signal.SIGINT, ["000003", "000006"]),
    pytest.param(pictures, "save_figures", 1, signal.SIGTERM, ["000003", "000006"],
                 marks=[pytest.mark.slow, pytest.mark.pictures]),
], ids=["loading", "filling", "training", "measuring", "pictures"])  # fmt: skip
def test_stopped_in_any_stage_what_is_whole_stands(
    whole_run: Path, checkpoint: Path, dataset_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], where: Any, name: str, call: int, number: int, left: list[str],
) -> None:  # fmt: skip
    """And the command that is printed ends in the bits of a run that was not stopped."""
    output = tmp_path / "new" / "out"
    with monkeypatch.context() as patch:
        signal_at(patch, where, name, call, number)
        code = main(options(checkpoint, dataset_root, output, "--ema.enable=true"))
    assert code == 128 + number
    said = capsys.readouterr().err.splitlines()[-1]
    how = "interrupted" if number == signal.SIGINT else "ended by SIGTERM"
    found = re.fullmatch(f"chordflow reflow: {how}; (.*)", said)
    assert found, said
    if not left:
        assert found[1] == "no checkpoint was written yet, so start a new run."
        assert not (tmp_path / "new").exists()
        return
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == [*left, "last"]
    before = student_of(output).resolve()
    weights = (before / "model.safetensors").stat().st_mtime_ns
    assert main(shlex.split(found[1].removeprefix("resume with: chordflow "))) == 0
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == ["000003", "000006", "last"]
    if before.parent.name == "000006":
        # It was measured, and not trained again.
        assert (before / "model.safetensors").stat().st_mtime_ns == weights
    for file in ("pretrained_model/model.safetensors", "training_state/optimizer_state.safetensors"):
        one, other = (run / "checkpoints" / "000006" / file for run in (whole_run, output))
        assert one.read_bytes() == other.read_bytes(), file
    results = [Results.load(run / "results.json") for run in (whole_run, output)]
    assert results[0].loss == results[1].loss
    assert [row.rms for row in results[0].gaps] == [row.rms for row in results[1].gaps]


def test_real_signals_at_random_moments_lose_nothing(killed: Killed) -> None:
    place = killed[1]
    ended = json.loads((place / "ended.json").read_text())
    assert len(ended) in (3, 100)
    for one in ended:
        assert "Traceback" not in one["said"], one
        assert one["step"] >= one["before"], one
        if one["signal"] == signal.SIGKILL:
            assert one["code"] == -signal.SIGKILL, one
            continue
        assert one["code"] == 128 + one["signal"], one
        *waits, last = one["said"].splitlines()
        waiting = "Stopping as soon as the step is done and saved; once more stops at once and saves nothing."
        assert waits in ([], [waiting])
        assert re.match("chordflow reflow: (interrupted|ended by SIGTERM); ", last), one
        assert one["hidden"] == []
        if last.endswith("give the same command again."):
            # Nothing was begun; a log may be longer than the checkpoint where the process before was killed outright.
            assert (one["step"], one["logged"]) == (one["before"], one["logged_before"]), one
            continue
        # Of the steps that were done none is lost.
        assert one["step"] >= one["logged"] or one["logged"] == one["logged_before"], one
        assert one["there"] != ("no checkpoint was written yet" in last), one
    runs = [path for path in place.iterdir() if path.is_dir()]
    assert len(runs) >= 2
    for run in runs:
        one, other = (student_of(at) / "model.safetensors" for at in (place / "whole", run))
        assert one.read_bytes() == other.read_bytes(), run
        saved = {path.name for path in (run / "checkpoints").iterdir()}
        assert saved == {"000012", "000024", "000030", "last"}
        assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == list(range(1, 31))


def test_what_an_interrupt_leaves_half_made_ends_in_silence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class HalfMade:
        def __init__(self) -> None:
            raise KeyboardInterrupt

        def __del__(self) -> None:
            self.workers.clear()

    heard: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", heard.append)
    monkeypatch.setattr(cli_main, "_run", lambda verb, options: HalfMade())
    assert main(["diagnose"]) == 130
    gc.collect()
    assert heard == []
    told = "chordflow diagnose: interrupted; what was saved stands; give the same command again.\n"
    assert capsys.readouterr().err == told
