"""Command lines of small runs, what a refused one prints and leaves on disk, and ways to break what it is given."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from chordflow.cli.main import main

Capture = pytest.CaptureFixture[str]
Refuse = Callable[..., str]
Break = Callable[[Path], object]

SMALL = [
    "--steps=6", "--save_freq=3", "--log_freq=2", "--batch_size=8", "--optimizer.lr=1e-3", "--num_workers=0",
    "--seed=5", "--buffer.num_observations=16", "--buffer.noises_per_observation=2", "--buffer.block_size=4",
    "--buffer.uses_per_coupling=1", "--coupling.num_steps=2", "--measure.num_observations=3",
    "--measure.latency_repeats=2", "--measure.converged_noises=1", "--measure.num_steps=[1,2]",
]  # fmt: skip
QUICK = "--optimizer.type=adamw"
"""Where the optimiser is not what is tested: the default takes seconds to import, and looks on for a step."""


def options(teacher: Path, dataset: Path, output: Path, *more: str, optimizer: str = QUICK) -> list[str]:
    """A command line; later options replace earlier ones of the same name, and nothing replaces those left empty."""
    chosen = {}
    for option in [f"--teacher.path={teacher}", "--dataset.repo_id=test/tiny", f"--dataset.root={dataset}",
                   f"--output_dir={output}", *SMALL, *filter(None, [optimizer]), *more]:  # fmt: skip
        chosen[option.split("=")[0]] = option
    return ["reflow", *chosen.values()]


def student_of(output: Path) -> Path:
    return output / "checkpoints" / "last" / "pretrained_model"


def resume(run: Path, step: int, *more: str) -> list[str]:
    return ["reflow", "--resume=true", f"--config_path={run}/checkpoints/{step:06d}/pretrained_model", *more]


def cut_back(run: Path, step: int) -> Path:
    """Takes a run back to an earlier checkpoint, as if it had been killed some steps after it."""
    last = run / "checkpoints" / "last"
    shutil.rmtree(last.resolve())
    last.unlink()
    last.symlink_to(f"{step:06d}")
    return run


def contents(folder: Path) -> dict[str, bytes | str]:
    """Everything below a folder, by relative path."""

    def content(path: Path) -> bytes | str:
        return os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else "folder"

    return {str(path.relative_to(folder)): content(path) for path in sorted(folder.rglob("*"))}


def refusal(arguments: list[str], capsys: Capture) -> str:
    """The one line that a refused command prints."""
    capsys.readouterr()
    code = main(arguments)
    said = capsys.readouterr().err
    assert code == 2, said
    assert said.startswith(f"chordflow {arguments[0]}: ")
    assert said.endswith("\n")
    assert said.count("\n") == 1, said
    assert "Traceback" not in said
    assert len(said) < 700, said
    return said


def refused(arguments: list[str], capsys: Capture, tmp_path: Path) -> str:
    """The same, making sure that nothing on disk has changed."""
    before = contents(tmp_path)
    said = refusal(arguments, capsys)
    assert contents(tmp_path) == before
    return said


@pytest.fixture
def refuse(checkpoint: Path, dataset_root: Path, tmp_path: Path, capsys: Capture) -> Refuse:
    """Runs `reflow` with another teacher, another dataset or more options; gives the line that it is refused with."""

    def run(*more: str, teacher: Any = checkpoint, data: Path = dataset_root, out: str = "out") -> str:
        return refused(options(teacher, data, tmp_path / out, *more), capsys, tmp_path)

    return run


def signal_at(
    patch: pytest.MonkeyPatch, where: Any, name: str, call: int, number: int = signal.SIGINT
) -> None:
    """Has this process sent a signal where a function is called for that time."""
    function, calls = getattr(where, name), []

    def signalled(*given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(number)
        return function(*given, **named)

    patch.setattr(where, name, signalled)


def edit_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def first(folder: Path, pattern: str) -> Path:
    return next(iter(sorted(folder.glob(pattern))))


def gone(pattern: str) -> Break:
    return lambda p: first(p, pattern).unlink()


def half(pattern: str) -> Break:
    def cut(folder: Path) -> None:
        file = first(folder, pattern)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return cut


def written(name: str, content: str | bytes) -> Break:
    return lambda p: (p / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def changed(name: str, **changes: Any) -> Break:
    return lambda p: edit_json(p / name, lambda c: c.update(changes))


def weights(change: Callable[[dict[str, torch.Tensor]], object], name: str = "model.safetensors") -> Break:
    """Changes a file of tensors in place."""

    def edit(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name)

    return edit


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes real file systems of a given size in KiB; skips where that is not allowed."""
    mounted: list[Path] = []

    def mount(kibibytes: int) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "none", str(place)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting is not allowed here")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)
