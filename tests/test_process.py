"""Runs as a user starts them: what reaches the terminal, and what a signal leaves behind."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from rich.console import Console
from safetensors.torch import load_file

from builders import build_dataset
from chordflow import api
from chordflow.cli.main import main
from chordflow.couplings.making import BlockMaker
from chordflow.experiments import reflow as job
from chordflow.experiments import student_results
from chordflow.reporting.table import render
from chordflow.results.schema import Results
from chordflow.stopping import SIGNALS
from chordflow.training import checkpoints
from chordflow.training.loop import read_metrics
from chordflow.training.methods import ReflowMethod
from test_reflow_job import options, student_of

CHORDFLOW = str(Path(sys.executable).with_name("chordflow"))

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


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """A process of its own group, in which libraries would talk if they could."""
    silenced = (
        "TOKENIZERS_PARALLELISM",
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "TRANSFORMERS_VERBOSITY",
        "MPLBACKEND",
    )
    environment = {name: value for name, value in os.environ.items() if name not in silenced}
    environment |= {
        "PYTHONWARNINGS": "default", "PYTHONFAULTHANDLER": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "COLUMNS": "100",
    }  # fmt: skip
    return subprocess.Popen(
        [CHORDFLOW, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment, start_new_session=True,
    )  # fmt: skip


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not path.exists():
        assert process.poll() is None, process.communicate()
        if time.monotonic() > deadline:
            # Each process of the group then writes where it stands.
            os.killpg(process.pid, signal.SIGABRT)
            pytest.fail(str(process.communicate(timeout=60)))
        time.sleep(0.005)


def check_quiet(process: subprocess.Popen[str], output: Path) -> None:
    """Makes sure that every line is chordflow's own."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert err == ""
    progress, done, report = out.partition("Done in ")
    assert done
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
        f"Student: {output / 'checkpoints/000006/pretrained_model'}\n"
    )


Started = tuple[subprocess.Popen[str], Path]
LONG = ["--steps=100000", "--save_freq=100000", "--num_workers=2"]


@pytest.fixture(scope="module")
def together(
    checkpoint: Path, dataset_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Started]]:
    """Processes that start at once, since most of their time goes into imports."""
    place = tmp_path_factory.mktemp("processes") / "ein Ordner 你好"
    started = {
        name: (start(options(checkpoint, dataset_root, place / name, *more)), place / name)
        for name, more in {"quiet": ["--num_workers=2"], "SIGINT": LONG, "SIGTERM": LONG}.items()
    }
    yield started
    for process, _ in started.values():
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_a_checkpoint_and_says_how_to_go_on(together: dict[str, Started], number: int) -> None:
    process, output = together[signal.Signals(number).name]
    wait_for(output / "metrics.jsonl", process)
    # As a terminal and a cluster do: to every process of the group, the workers included.
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, (out, err)
    *waits, last = err.splitlines()
    waiting = "Stopping as soon as the step is done and saved; once more stops at once and saves nothing."
    assert waits in ([], [waiting])
    said = re.fullmatch(
        r"chordflow reflow: (interrupted|ended by SIGTERM); resume with: chordflow (.*)", last
    )
    assert said, err
    assert len(list((output / "checkpoints").iterdir())) == 2
    SmolVLAPolicy.from_pretrained(student_of(output))
    step = int((output / "checkpoints" / "last").resolve().name)
    assert step >= read_metrics(output / "metrics.jsonl")[-1]["step"]
    # The very command that was printed, with fewer steps so that it ends.
    assert main([*shlex.split(said.group(2)), f"--steps={step + 2}"]) == 0
    assert Results.load(output / "results.json").loss is not None


def test_a_good_run_prints_its_own_words_alone(together: dict[str, Started]) -> None:
    check_quiet(*together["quiet"])


@pytest.mark.slow
def test_a_run_without_workers_is_as_quiet(checkpoint: Path, dataset_root: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    check_quiet(start(options(checkpoint, dataset_root, output)), output)


@pytest.mark.slow
def test_a_run_on_videos_is_as_quiet(checkpoint: Path, tmp_path: Path) -> None:
    """Videos are decoded in spawned workers, which import everything anew."""
    root, output = tmp_path / "videos", tmp_path / "out"
    build_dataset(root, videos=True)
    check_quiet(start(options(checkpoint, root, output, "--num_workers=2")), output)


def assert_same(*files: Path) -> None:
    a, b = map(load_file, files)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_killed_at_any_moment_the_last_good_checkpoint_stands(
    checkpoint: Path, dataset_root: Path, tmp_path: Path
) -> None:
    """Killed again and again, the run ends in the bits of one that never was."""
    more = ["--steps=400", "--save_freq=7", "--ema.enable=true"]
    whole, output = tmp_path / "whole", tmp_path / "out"
    assert main(options(checkpoint, dataset_root, whole, *more)) == 0
    process = start(options(checkpoint, dataset_root, output, *more))
    rng = np.random.default_rng(0)
    last = student_of(output)
    steps = []
    for _ in range(4):
        wait_for(last, process)
        begun = os.readlink(output / "checkpoints" / "last")
        while os.readlink(output / "checkpoints" / "last") == begun:
            assert process.poll() is None, process.communicate()
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.3))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        SmolVLAPolicy.from_pretrained(last)
        steps.append(int(os.readlink(output / "checkpoints" / "last")))
        process = start(["reflow", "--resume=true", f"--config_path={last / 'train_config.json'}"])
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert steps == sorted(set(steps)), steps
    names = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (whole, output)]
    assert names[0] == names[1]
    for file in ("pretrained_model/model.safetensors", "training_state/ema_weights.safetensors"):
        assert_same(*(run / "checkpoints" / "last" / file for run in (whole, output)))
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").open()] for run in (whole, output)]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]


def on(place: str) -> tuple[Any, str]:
    """A module or class, and the name of its function, by where a signal comes."""
    return {
        "loading": (job, "open_split"),
        "filling": (BlockMaker, "_make"),
        "training": (ReflowMethod, "loss"),
        "writing": (checkpoints, "save_training_state"),
        "measuring": (student_results, "measure"),
        "pictures": (api, "save_figures"),
    }[place]  # type: ignore[return-value]


@pytest.fixture(scope="module")
def whole(checkpoint: Path, dataset_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    output = tmp_path_factory.mktemp("whole") / "out"
    assert main(options(checkpoint, dataset_root, output, "--ema.enable=true")) == 0
    return output


@pytest.mark.parametrize(
    ("place", "call", "number", "left"),
    [
        ("loading", 1, signal.SIGINT, []),
        ("filling", 2, signal.SIGTERM, []),
        # Its first call is the first step's, and the fourth looks at the weights before the third step's are saved.
        ("training", 5, signal.SIGTERM, ["000003", "000004"]),
        ("measuring", 1, signal.SIGINT, ["000003", "000006"]),
        pytest.param("training", 1, signal.SIGINT, ["000001"], marks=pytest.mark.slow),
        pytest.param("writing", 1, signal.SIGINT, ["000003"], marks=pytest.mark.slow),
        pytest.param("writing", 2, signal.SIGTERM, ["000003", "000006"], marks=pytest.mark.slow),
        pytest.param(
            "pictures",
            1,
            signal.SIGTERM,
            ["000003", "000006"],
            marks=[pytest.mark.slow, pytest.mark.pictures],
        ),
    ],
)
def test_stopped_in_any_stage_what_is_whole_stands(
    whole: Path, checkpoint: Path, dataset_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], place: str, call: int, number: int, left: list[str],
) -> None:  # fmt: skip
    """And the command that is printed ends in the bits of a run that was not stopped."""
    where, name = on(place)
    function, calls = getattr(where, name), []

    def stopped(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(number)
        return function(*arguments, **named)

    output = tmp_path / "new" / "out"
    with monkeypatch.context() as patch:
        patch.setattr(where, name, stopped)
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
        assert_same(*(run / "checkpoints" / "000006" / file for run in (whole, output)))
    results = [Results.load(run / "results.json") for run in (whole, output)]
    assert results[0].loss == results[1].loss
    assert [row.rms for row in results[0].gaps] == [row.rms for row in results[1].gaps]


@pytest.mark.slow
def test_real_signals_at_random_moments_lose_nothing(
    checkpoint: Path, dataset_root: Path, tmp_path: Path
) -> None:
    count = 100
    more = ["--steps=60", "--save_freq=25", "--log_freq=1", "--ema.enable=true", "--save_minutes=0.001"]
    given = [one for one in options(checkpoint, dataset_root, tmp_path, *more) if "output_dir" not in one]
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "killed_processes.py", str(tmp_path), str(count), *given],
        cwd=tests, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=3600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ended = json.loads((tmp_path / "ended.json").read_text())
    assert len(ended) == count
    for one in ended:
        assert one["code"] == 128 + one["signal"], one
        *_, last = one["said"].splitlines()
        assert re.match("chordflow reflow: (interrupted|ended by SIGTERM); ", last), one
        assert "Traceback" not in one["said"]
        assert one["hidden"] == []
        # Of the steps that were done none is lost.
        assert one["step"] >= max(one["before"], one["logged"]), one
        assert one["there"] or "no checkpoint was written yet" in last, one
        assert not one["there"] or "no checkpoint was written yet" not in last, one
    runs = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(runs) >= 2
    for run in runs:
        assert_same(*(student_of(one) / "model.safetensors" for one in (tmp_path / "whole", run)))
        saved = {path.name for path in (run / "checkpoints").iterdir()}
        assert saved == {"000025", "000050", "000060", "last"}
