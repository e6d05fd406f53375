"""What stock LeRobot runs on the data of another robot, chordflow runs, with the same actions."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import get_policy_class, make_policy, make_pre_post_processors
from torch import Tensor
from torch.utils.data import default_collate

import family_multi_task_dit
from builders import build_dataset
from chordflow.cli.main import main
from chordflow.couplings.observations import DatasetConfig, open_split
from chordflow.policies import load_flow_policy
from chordflow.quiet import quiet_stdout
from chordflow.rollouts.acting import Actor
from chordflow.rollouts.runner import run_episodes
from drift_env import DriftEnvConfig
from families import CASES
from family_case import euler
from small_runs import edit_json, options, student_of

BASE_CAMERAS = ("camera1", "camera2", "camera3")
BASE_STATE = 6
SEED = 7


Build = Callable[[Path], tuple[Path, Path]]


def names(**cameras: str) -> dict[str, str]:
    """A rename map of cameras."""
    return {f"observation.images.{key}": f"observation.images.{target}" for key, target in cameras.items()}


def other_robot(
    family: str, cameras: Sequence[str], state_dim: int = 3, own: dict[str, str] | None = None,
    of: tuple[str, ...] = BASE_CAMERAS, **options: Any,
) -> Build:  # fmt: skip
    """A base of cameras `of` and a state of 6, fine-tuned on another robot with a rename map of its `own`."""

    def build(folder: Path) -> tuple[Path, Path]:
        base = CASES[family].build(folder / "base", cameras=of, **options)
        state = {"shape": [BASE_STATE]}
        edit_json(base / "config.json", lambda c: c["input_features"]["observation.state"].update(state))
        dataset = build_dataset(folder / "data", 2, 2, cameras=tuple(cameras), state_dim=state_dim)
        return fine_tuned(base, dataset, folder / "pretrained_model", own), dataset

    return build


def unnormalised(family: str) -> Build:
    """A fine-tuned checkpoint that normalises neither states nor actions, and so keeps no statistics of them."""

    def build(folder: Path) -> tuple[Path, Path]:
        checkpoint, dataset = other_robot(family, ["camera1"], of=("camera1",))(folder)
        identity = dict.fromkeys(("STATE", "ACTION", "VISUAL"), "IDENTITY")
        edit_json(checkpoint / "config.json", lambda c: c.update(normalization_mapping=identity))
        for side in ("pre", "post"):

            def edit(file: dict[str, Any]) -> None:
                for step in file["steps"]:
                    if "norm_map" in step["config"]:
                        step["config"]["norm_map"] = identity
                        del step["state_file"]

            edit_json(checkpoint / f"policy_{side}processor.json", edit)
        return checkpoint, dataset

    return build


def more_cameras(folder: Path) -> tuple[Path, Path]:
    """A policy that needs all of its cameras, and a dataset that has one besides."""
    dataset = build_dataset(folder / "data", 2, 2, cameras=("hand", "top"))
    return family_multi_task_dit.build(folder / "pretrained_model", num_steps=10), dataset


# How a checkpoint and a dataset are made, and what is given as --rename_map.
SITUATIONS: dict[str, tuple[Build, dict[str, str]]] = {
    "smolvla, one of three cameras": (other_robot("smolvla", ["camera2"]), {}),
    "smolvla, two of three cameras and a blank one": (
        other_robot("smolvla", ["camera1", "camera3"], state_dim=1, empty_cameras=1), {}),
    "smolvla, its own rename_map and a camera left over": (
        other_robot("smolvla", ["front", "hand"], state_dim=8, own=names(front="camera2")), {}),
    "smolvla, --rename_map in place of its own": (
        other_robot("smolvla", ["front", "hand"], own=names(front="camera2", hand="camera1")),
        names(front="camera1", hand="camera2")),
    "pi0, two of three cameras": (other_robot("pi0", ["camera1", "camera3"]), {}),
    "pi0, its own rename_map onto a blank camera": (
        other_robot("pi0", ["front", "hand"], own=names(front="camera3", hand="empty_camera_0"), empty_cameras=1), {}),
    "pi05, one of three cameras": (other_robot("pi05", ["camera3"], state_dim=2), {}),
    "eo1, its own rename_map": (
        other_robot("eo1", ["front"], own=names(front="camera1"), of=("camera1",)), {}),
    "groot, one of three cameras": (other_robot("groot", ["camera2"], state_dim=5), {}),
    "multi_task_dit, more cameras": (more_cameras, {}),
    **{f"{family}, nothing normalised": (unnormalised(family), {}) for family in ("smolvla", "pi0", "pi05", "eo1")},
}  # fmt: skip


@pytest.mark.parametrize("situation", SITUATIONS)
def test_what_stock_lerobot_runs_chordflow_runs_with_the_same_actions(situation: str, tmp_path: Path) -> None:
    build, rename_map = SITUATIONS[situation]
    checkpoint, dataset = build(tmp_path)
    frames, expected = stock_actions(checkpoint, dataset, rename_map)
    assert expected.isfinite().all()
    ours_of, actual = our_actions(checkpoint, dataset, rename_map)
    assert ours_of == frames
    torch.testing.assert_close(actual[:, : expected.shape[1]], expected, rtol=1e-5, atol=1e-5)


def test_every_job_runs_on_a_checkpoint_of_another_robot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With stale `input_features` and a rename map of its own: dataset, environment and student."""
    build = other_robot("smolvla", ["front", "hand"], own=names(front="camera2"))
    teacher, dataset = build(tmp_path)
    data = ["--dataset.repo_id=test/tiny", f"--dataset.root={dataset}", "--device=cpu"]
    measure = [
        "--measure.num_observations=2", "--measure.latency_repeats=1", "--measure.converged_noises=1",
        "--measure.num_steps=[1]",
    ]  # fmt: skip
    diagnose = ["diagnose", f"--policy.path={teacher}", *data, *measure, f"--output_dir={tmp_path / 'd'}"]
    assert main(diagnose) == 0
    assert main(options(teacher, dataset, tmp_path / "r", "--steps=1", *measure)) == 0
    assert "rename_map" not in capsys.readouterr().out
    assert main([*diagnose[:-1], f"--output_dir={tmp_path / 'n'}", "--rename_map={}"]) == 2
    assert "lacks the checkpoint's camera(s)" in capsys.readouterr().err
    student = student_of(tmp_path / "r")
    run_episodes(Actor(load_flow_policy(student), DriftEnvConfig(cameras=("front", "hand")), 1), [0])
    evaluate = [
        "evaluate", f"--teacher.path={teacher}", f"--student.path={student}", "--env.type=drift_of_the_tests",
        "--env.cameras=[hand]", f"--rename_map={json.dumps(names(hand='camera1'))}", "--eval.n_episodes=1",
        "--eval.num_clips=0", "--device=cpu", f"--output_dir={tmp_path / 'e'}",
    ]  # fmt: skip
    assert main(evaluate) == 0
    said, own = " ".join(capsys.readouterr().out.split()), json.dumps(names(front="camera2"))
    assert f"--rename_map replaces the checkpoint's own rename_map, {own}" in said


def stock_actions(checkpoint: Path, dataset: Path, rename_map: dict[str, str]) -> tuple[list[int], Tensor]:
    """The chunks that LeRobot's own classes predict for the first episode's frames, and these frames."""
    config = PreTrainedConfig.from_pretrained(checkpoint)
    metadata = LeRobotDatasetMetadata("test/tiny", root=dataset)
    times = resolve_delta_timestamps(config, metadata) or {}
    times.pop("action", None)
    data = LeRobotDataset("test/tiny", root=dataset, delta_timestamps=times or None)
    frames = [i for i in range(len(data)) if data[i]["episode_index"] == 0]
    config.pretrained_path = checkpoint
    overrides = {"rename_observations_processor": {"rename_map": rename_map}} if rename_map else {}
    with quiet_stdout():
        policy = get_policy_class(config.type).from_pretrained(checkpoint, config=config)
        before, after = make_pre_post_processors(
            config, pretrained_path=str(checkpoint), preprocessor_overrides=overrides
        )
    policy.eval()
    batch = before(default_collate([data[frame] for frame in frames]))
    torch.manual_seed(SEED)
    if hasattr(policy, "_generate_actions"):
        # Its `predict_action_chunk` wants the queues of an episode that goes on.
        with torch.no_grad():
            chunk = policy._generate_actions(policy._prepare_batch(batch))
    else:
        chunk = policy.predict_action_chunk(batch)
    return frames, after(chunk.flatten(0, 1)).unflatten(0, chunk.shape[:2])


def our_actions(checkpoint: Path, dataset: Path, rename_map: dict[str, str]) -> tuple[list[int], Tensor]:
    """Chordflow's, of the observations to train on, from its own noise at the same seed."""
    policy = load_flow_policy(checkpoint, device="cpu", rename_map=rename_map)
    train = open_split(DatasetConfig("test/tiny", root=str(dataset), eval_split=0.5), policy).train
    items = next(train.batches(range(len(train)), len(train)))
    noise = policy.sample_noise(len(train), torch.Generator().manual_seed(SEED))
    endpoint = euler(policy, policy.preprocess(items), noise, policy.default_num_steps)
    return train.frames, policy.to_action(endpoint)[:, policy.chunk.first_executed :]


def fine_tuned(base: Path, dataset: Path, folder: Path, rename_map: dict[str, str] | None = None) -> Path:
    """What `lerobot-train --policy.path=BASE` saves, before its first step."""
    metadata = LeRobotDatasetMetadata("test/tiny", root=dataset)
    config = PreTrainedConfig.from_pretrained(base)
    config.pretrained_path = base
    with quiet_stdout():
        policy = make_policy(config, ds_meta=metadata, rename_map=rename_map)
    shared = {"norm_map": config.normalization_mapping, "stats": metadata.stats}
    before = {**shared, "features": {**config.input_features, **config.output_features}}
    processors = make_pre_post_processors(
        config, pretrained_path=str(base), dataset_stats=metadata.stats, dataset_meta=metadata,
        preprocessor_overrides={
            "device_processor": {"device": "cpu"}, "normalizer_processor": before,
            "rename_observations_processor": {"rename_map": rename_map or {}},
        },
        postprocessor_overrides={"unnormalizer_processor": {**shared, "features": config.output_features}},
    )  # fmt: skip
    policy.save_pretrained(folder)
    for pipeline in processors:
        pipeline.save_pretrained(folder)
    return folder
