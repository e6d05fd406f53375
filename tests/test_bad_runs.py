"""Folders, disks and runs that cannot be used: one sentence, exit code 2, nothing half-written, nothing lost."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

from broken_statistics import AFTER, BEFORE, edit_statistics
from builders import build_checkpoint
from chordflow import api
from chordflow.cli.main import main
from small_runs import Break, Capture, Refuse, gone, half, options, refusal, refused, student_of, weights
from small_runs import refuse as refuse
from small_runs import small_disk as small_disk


def test_an_existing_output_folder_is_left_alone(tmp_path: Path, refuse: Refuse) -> None:
    (tmp_path / "out").mkdir()
    said = refuse()
    assert f"output_dir={tmp_path / 'out'} exists already; name a new folder" in said
    assert "resume" not in said
    (tmp_path / "file").write_text("precious")
    assert f"output_dir={tmp_path / 'file'} exists already" in refuse(out="file")
    assert "cannot be made (Not a directory)" in refuse(out="file/out")


def test_a_full_disk(
    checkpoint: Path, dataset_root: Path, whole_run: Path, capsys: Capture, small_disk: Callable[[int], Path]
) -> None:
    """Rooms that end in the log, in the first checkpoint, and in the second."""

    def size(folder: Path) -> int:
        """In KiB as a file system of 4 KiB pages sees it."""
        return sum(-(-path.stat().st_size // 4096) * 4 for path in folder.rglob("*") if path.is_file())

    one = size(whole_run / "checkpoints" / "000003")
    for kibibytes, left, message in (
        (4, [], "no checkpoint was written yet"),
        (one // 2, [], "no checkpoint was written yet"),
        (one + one // 2, ["000003", "last"], "000003; make room"),
    ):
        disk = small_disk(kibibytes)
        output = disk / "out"
        said = refusal(options(checkpoint, dataset_root, output, "--ema.enable=true"), capsys)
        assert message in said
        assert "No space left on device" in said
        if left:
            assert sorted(path.name for path in (output / "checkpoints").iterdir()) == left
            assert sorted(path.name for path in output.iterdir()) == ["checkpoints", "metrics.jsonl"]
            SmolVLAPolicy.from_pretrained(student_of(output))
        elif output.exists():
            assert [path.name for path in output.iterdir()] == ["metrics.jsonl"]


@pytest.mark.pictures
def test_a_disk_that_is_full_when_results_are_saved_can_be_resumed(
    checkpoint: Path, dataset_root: Path, whole_run: Path, tmp_path: Path, capsys: Capture
) -> None:
    """The log fails as soon as it is opened for writing, the results of a resumed run likewise, and then a picture."""
    new, opened = tmp_path / "new", Path.open
    output = Path(shutil.copytree(whole_run, tmp_path / "out", symlinks=True))
    shutil.rmtree(output / "figures")
    (output / "results.json").unlink()
    resume = ["reflow", "--resume=true", f"--config_path={student_of(output)}"]
    whole = "the checkpoints are whole: make room and resume with: chordflow reflow --resume=true"
    for target, command, message in (
        ("metrics.jsonl", options(checkpoint, dataset_root, new), "no checkpoint was written yet"),
        ("results.json", resume, whole),
    ):

        def full(self: Path, mode: str = "r", *arguments: Any, target: str = target, **named: Any) -> Any:
            if target in self.name and mode[0] in "wa":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
            return opened(self, mode, *arguments, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "open", full)
            said = refusal(command, capsys)
        assert message in said
        assert "No space left on device" in said
    assert not new.exists()
    assert sorted(path.name for path in output.iterdir()) == ["checkpoints", "metrics.jsonl"]
    with pytest.MonkeyPatch.context() as patch:

        def fail(_results: Any, folder: Path) -> None:
            (folder / "gap.png").touch()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr("chordflow.reporting.pictures.save_figures", fail)
        assert "pictures cannot be written" in refusal(resume, capsys)
        left = sorted(path.name for path in output.iterdir())
        assert left == ["checkpoints", "metrics.jsonl", "results.json"]
        patch.setattr(api, "_illustrate", lambda *_: (Path(),))
        assert main(resume) == 0


STATE, STUDENT = "checkpoints/000003/training_state", "checkpoints/000003/pretrained_model"

BROKEN_RUNS: dict[str, tuple[Break, str]] = {
    "no run": (shutil.rmtree, "there is no such file"),
    "a stock run": (gone(f"{STUDENT}/reflow_config.json"), "no reflow_config.json is beside it"),
    "settings not JSON": (half(f"{STUDENT}/reflow_config.json"), "neither JSON nor YAML"),
    "cut optimizer": (half(f"{STATE}/optimizer_state.safetensors"), "cannot be resumed"),
    "cut masters": (half(f"{STATE}/master_weights.safetensors"), "cannot be resumed"),
    "masters of other shapes": (
        weights(lambda t: t.update({n: torch.zeros(1) for n in t}), f"{STATE}/master_weights.safetensors"),
        "cannot be resumed"),
    "no averages": (gone(f"{STATE}/ema_weights.safetensors"), "cannot be resumed"),
    "no generators": (gone(f"{STATE}/rng_state.safetensors"), "cannot be resumed"),
    "cut step": (half(f"{STATE}/training_step.json"), "cannot be resumed"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_RUNS)
def test_a_run_that_cannot_be_resumed(case: str, whole_run: Path, tmp_path: Path, capsys: Capture) -> None:
    breaks, message = BROKEN_RUNS[case]
    run = Path(shutil.copytree(whole_run, tmp_path / "run", symlinks=True))
    breaks(run)
    said = refused(["reflow", "--resume=true", f"--config_path={run / STUDENT}"], capsys, tmp_path)
    assert message in said
    assert "config_path" in said


def test_resuming_with_another_teacher_or_fewer_steps(
    whole_run: Path, checkpoint: Path, vlm: Path, tmp_path: Path, capsys: Capture
) -> None:
    run = Path(shutil.copytree(whole_run, tmp_path / "run", symlinks=True))
    resume = ["reflow", "--resume=true", f"--config_path={run / STUDENT}"]
    other = build_checkpoint(tmp_path / "other", vlm, seed=9)
    said = refused([*resume, f"--teacher.path={other}"], capsys, tmp_path)
    assert f"teacher.path={other}: its weights are not those that the run began with" in said
    scaled = Path(shutil.copytree(checkpoint, tmp_path / "scaled"))
    for side in (BEFORE, AFTER):
        edit_statistics(scaled, side, lambda held: held["action.std"].mul_(20))
    said = refused([*resume, f"--teacher.path={scaled}"], capsys, tmp_path)
    assert f"teacher.path={scaled}: its processors are not those that the run began with" in said
    said = refused([*resume, "--steps=2"], capsys, tmp_path)
    assert "steps=2: the run has done 3 already" in said
    said = refused([*resume, "--student.train=[action_head,prefix_projections]"], capsys, tmp_path)
    assert "student.train=[action_head,prefix_projections]: the run began with [action_head] and" in said
