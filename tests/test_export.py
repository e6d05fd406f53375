"""Exported folders act as their checkpoints do; what cannot be exported leaves nothing behind."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

import chordflow
import chordflow_runtime
from builders import build_checkpoint, build_dataset, observations
from chordflow.demo.teacher import CAMERA, place_teacher
from chordflow.deploy import graphs, parity
from chordflow.errors import UserError
from chordflow.evaluation.gap import Modes
from chordflow.experiments import export as job
from chordflow.flow.seeds import generator
from chordflow.policies import load_flow_policy
from chordflow.policies.files import PREPROCESSOR
from chordflow.policies.sampling import Sampler
from chordflow.policies.smolvla import SmolVLAFlowPolicy
from chordflow_runtime import load
from families import CASES
from lerobot_env_detour import DetourEnv
from small_policies import Folders
from small_runs import Capture, contents, edit_json, refused

STEPS = 2


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fewer observations are enough for networks this small; the tracer's log is nobody's."""
    monkeypatch.setattr(job, "OBSERVATIONS", parity.MODE_OBSERVATIONS)
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


def numpy(items: dict[str, Any], row: int) -> dict[str, Any]:
    """One of a batch of observations, as a robot has it."""
    return {k: v[row].numpy() if isinstance(v, torch.Tensor) else v[row] for k, v in items.items()}


def assert_close(actual: np.ndarray, expected: torch.Tensor) -> None:
    """Within what an export in float32 may differ by."""
    reference = expected.double().numpy()
    off = np.abs(actual - reference)
    assert off.max() <= 1e-4 * np.abs(reference).max()
    assert np.sqrt((off**2).mean()) <= 1e-5 * np.sqrt((reference**2).mean())


@pytest.mark.parametrize("family", ["smolvla", "pi0", "pi05", "multi_task_dit"])
def test_a_folder_acts_as_the_stock_policy(family: str, family_folder: Folders, tmp_path: Path) -> None:
    checkpoint = family_folder(family)
    done = chordflow.export(policy=checkpoint, output_dir=tmp_path / "robot", num_steps=STEPS)
    runner, policy = load(tmp_path / "robot", threads=1), load_flow_policy(checkpoint, device="cpu")
    history = len(policy.observation_delta_indices or [0])
    items = observations(3, seed=5, steps=history if history > 1 else None)
    noise = policy.sample_noise(3, generator(0, "export"))
    policy.set_num_steps(STEPS)
    for row, drawn in enumerate(noise):
        one = {k: v[row : row + 1] for k, v in items.items()}
        endpoint = CASES[family].stock_endpoint(policy, policy.preprocess(one), drawn[None])
        assert_close(runner(numpy(items, row), drawn[None].numpy()), policy.to_action(endpoint)[0])
    assert done.manifest == json.loads((tmp_path / "robot" / "manifest.json").read_text())
    assert "differs from the checkpoint by" in done.verdict
    # Nobody learns the folders of the machine that exported it.
    assert b"/site-packages/" not in (tmp_path / "robot" / "policy.onnx").read_bytes()


def test_two_graphs_take_any_number_of_steps_on_a_datasets_frames(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if the weights were too large for a graph's own file.
    monkeypatch.setattr(graphs, "LARGEST_FILE", 0)
    data = build_dataset(tmp_path / "data", 2, 3, cameras=("front",))
    rename = {"observation.images.front": "observation.images.top"}
    options = {"policy": {"path": str(checkpoint)}, "dataset": {"repo_id": "test/tiny", "root": str(data)}}
    done = chordflow.export(
        **options, output_dir=tmp_path / "r", graphs="two", rename_map=rename, num_steps=STEPS, grid_power=1.4
    )
    assert done.manifest["parity"]["of"] == "held-out episodes of test/tiny"
    assert done.manifest["rename"] == rename
    assert {"encode.onnx.data", "step.onnx.data"} < set(done.manifest["files"])
    policy = load_flow_policy(checkpoint, device="cpu", rename_map=rename)
    items, noise = observations(1, cameras=("front",)), policy.sample_noise(1, generator(0, "two"))
    context = policy.encode(policy.preprocess(items))
    for num_steps in (STEPS, 5):
        chosen = None if num_steps == STEPS else num_steps
        actions = load(tmp_path / "r", threads=1, num_steps=chosen)(numpy(items, 0), noise.numpy())
        assert_close(actions, policy.to_action(Sampler(policy, num_steps, grid_power=1.4)(context, noise))[0])


def test_a_blank_camera_is_left_out_any_solver_baked_in_and_bfloat16_compared_in_float32(
    tmp_path: Path, vlm: Path
) -> None:
    checkpoint = build_checkpoint(tmp_path / "c", vlm, empty_cameras=1)
    way = ("adams_bashforth", 1.4)
    with pytest.MonkeyPatch.context() as patch:
        # As LeRobot loads a vision-language model whose weights it fetches.
        loaded = SmolVLAPolicy.from_pretrained
        patch.setattr(
            SmolVLAPolicy, "from_pretrained", lambda *given, **more: lowered(loaded(*given, **more))
        )
        patch.setattr("chordflow.policies.checkpoint.check_loaded", lambda *_: None)
        options = {"solver": way[0], "grid_power": way[1], "num_steps": STEPS}
        chordflow.export(policy=checkpoint, output_dir=tmp_path / "r", **options)
    runner, policy = load(tmp_path / "r", threads=1), load_flow_policy(checkpoint, device="cpu")
    found = runner.manifest["parity"]
    assert found["rms_relative"] < 1e-5 < found["as_saved"]["rms_relative"]
    assert [one["key"] for one in runner.manifest["inputs"] if one["kind"] == "image"] == policy.image_keys
    lowered(policy.module).float()
    items, noise = observations(1), policy.sample_noise(1, generator(0, "blank"))
    batch = policy.preprocess(items)
    assert len(policy.module.prepare_images(batch)[0]) == 2
    ends = Sampler(policy, STEPS, *way)(policy.encode(batch), noise)
    assert_close(runner(numpy(items, 0), noise.numpy()), policy.to_action(ends)[0])


def lowered(policy: Any) -> Any:
    """A SmolVLA whose vision-language model is in bfloat16."""
    policy.model.vlm_with_expert.vlm.to(torch.bfloat16)
    return policy


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The demo's teacher, and the folder that it is exported to."""
    folder = tmp_path_factory.mktemp("teacher")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "OBSERVATIONS", parity.MODE_OBSERVATIONS)
        chordflow.export(policy=place_teacher(folder), output_dir=folder / "robot", graphs="two")
    return folder / "teacher", folder / "robot"


def test_an_exported_teacher_keeps_both_sides(teacher: tuple[Path, Path]) -> None:
    runner, policy = load(teacher[1], threads=1, seed=0), load_flow_policy(teacher[0], device="cpu")
    env = DetourEnv(instruction="go any way")
    seen, _ = env.reset(seed=0)
    item = {CAMERA: seen["pixels"], "observation.state": seen["agent_pos"], "task": "go any way"}
    pixels = torch.from_numpy(seen["pixels"]).permute(2, 0, 1)[None].float() / 255
    batch = {CAMERA: pixels, "observation.state": torch.from_numpy(seen["agent_pos"])[None]}
    context = policy.encode(policy.preprocess({**batch, "task": [item["task"]]}))
    ends = Sampler(policy, policy.default_num_steps)(
        context.repeat(64), policy.sample_noise(64, generator(0, "sides"))
    )
    modes = Modes(ends[None], policy.chunk)
    own = np.stack([runner.endpoint(runner.prepare(item)) for _ in range(64)])
    shares = [modes.labels(some).mean() for some in (ends[None], torch.from_numpy(own)[None])]
    assert modes.counts.tolist() == [2]
    assert all(0.2 < share < 0.8 for share in shares)
    # Two shares of 64 differ by more than this once in a thousand times.
    assert abs(shares[0] - shares[1]) < 0.3


ROBOT = """
import json, sys, numpy, chordflow_runtime
policy = chordflow_runtime.load(sys.argv[1], threads=1)
assert not {"torch", "lerobot", "transformers", "chordflow"} & set(sys.modules)
for line in sys.stdin:
    item, noise, begins = json.loads(line)
    if begins:
        policy.reset()
    item["observation.images.front"] = numpy.array(item["observation.images.front"], dtype="uint8")
    print(json.dumps(policy.select_action(item, noise).tolist()), flush=True)
"""


def test_whole_episodes_of_a_robot_without_torch_are_those_of_stock_lerobot(
    teacher: tuple[Path, Path],
) -> None:
    policy = load_flow_policy(teacher[0], device="cpu")
    source = Path(chordflow_runtime.__file__).parents[1]
    robot = subprocess.Popen(
        [sys.executable, "-c", ROBOT, str(teacher[1])], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={"PYTHONPATH": str(source)},
    )  # fmt: skip
    assert robot.stdin is not None
    assert robot.stdout is not None
    outcomes = []
    with robot, robot.stdin:
        for seed in range(3):
            env, done = DetourEnv(), False
            seen, _ = env.reset(seed=seed)
            policy.module.reset()
            noises, begins = generator(seed, "episode"), True
            while not done:
                noise = policy.sample_noise(1, noises)
                item = {"observation.state": seen["agent_pos"].tolist(), "task": env.task_description}
                pixels = seen["pixels"].tolist()
                print(
                    json.dumps([item | {CAMERA: pixels}, noise.tolist(), begins]),
                    file=robot.stdin,
                )
                robot.stdin.flush()
                image = torch.from_numpy(seen["pixels"]).permute(2, 0, 1) / 255
                state = torch.from_numpy(seen["agent_pos"])
                batch = {CAMERA: image, "observation.state": state, "task": item["task"]}
                action = policy.postprocessor(
                    policy.module.select_action(policy.preprocess(batch), noise=noise)
                )[0]
                np.testing.assert_allclose(json.loads(robot.stdout.readline()), action.numpy(), atol=1e-5)
                seen, _, ended, cut, info = env.step(action.numpy())
                done, begins = ended or cut or info["outcome"] != "running", False
            outcomes.append(info["outcome"])
    assert outcomes == ["success"] * 3


@pytest.mark.parametrize(("options", "message"), [
    (["--num_steps=0"], "num_steps=0: give at least 1"),
    (["--solver=rk9"], "solver=rk9: give euler | midpoint"),
    (["--grid_power=0"], "grid_power is 0"),
    (["--graphs=three"], "graphs=three: give one | two"),
    (["--graphs=two", "--solver=heun"], "solver=heun: with graphs=two"),
])  # fmt: skip
def test_what_is_wrong_is_refused(
    options: list[str], message: str, checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    given = ["export", f"--policy.path={checkpoint}", f"--output_dir={tmp_path / 'r'}", *options]
    assert message in refused(given, capsys, tmp_path)


@pytest.mark.parametrize(("family", "why"), [("groot", "get_rope_index"), ("eo1", "get_window_index")])
def test_a_family_that_no_graph_can_hold_is_refused_by_name(
    family: str, why: str, family_folder: Folders, tmp_path: Path, capsys: Capture
) -> None:
    given = ["export", f"--policy.path={family_folder(family)}", f"--output_dir={tmp_path / 'r'}"]
    said = refused(given, capsys, tmp_path)
    assert f"policy type {family} cannot be exported" in said
    assert why in said


def test_noise_of_another_law_and_absent_packages_are_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    given = ["export", f"--policy.path={checkpoint}", f"--output_dir={tmp_path / 'r'}"]
    with monkeypatch.context() as patch:
        patch.setattr(
            SmolVLAFlowPolicy, "sample_noise", lambda self, n, source: torch.zeros(n, *self.chunk.shape)
        )
        assert "its noise is not standard normal" in refused(given, capsys, tmp_path)
    monkeypatch.setattr(job, "PACKAGES", ("onnx", "no_such_package"))
    assert 'pip install "chordflow[export]"' in refused(given, capsys, tmp_path)


def test_a_step_that_a_manifest_has_no_words_for_is_refused(
    vlm: Path, tmp_path: Path, capsys: Capture
) -> None:
    checkpoint = build_checkpoint(tmp_path / "c", vlm)
    cropping = {"registry_name": "image_crop_resize_processor", "config": {}}
    edit_json(checkpoint / PREPROCESSOR, lambda content: content["steps"].insert(0, cropping))
    given = ["export", f"--policy.path={checkpoint}", f"--output_dir={tmp_path / 'r'}"]
    assert "has a step image_crop_resize_processor" in refused(given, capsys, tmp_path)


class Runner:
    """A folder's runner, if the folder held the checkpoint itself; `off` is what it does wrong, and by how much."""

    def __init__(self, checkpoint: Path, **off: float) -> None:
        self.policy = load_flow_policy(checkpoint, device="cpu")
        self.off = off

    def prepare(self, item: dict[str, Any]) -> dict[str, Any]:
        batched = {
            k: torch.from_numpy(v)[None] if isinstance(v, np.ndarray) else [v] for k, v in item.items()
        }
        return self.policy.preprocess(batched)

    def to_action(self, endpoint: np.ndarray) -> np.ndarray:
        actions = self.policy.to_action(torch.from_numpy(endpoint)).numpy()
        return actions * np.float32(self.off.get("action", 1))

    def ends(self, inputs: dict[str, Any], noise: np.ndarray) -> torch.Tensor:
        batch = {key: torch.as_tensor(value) for key, value in inputs.items()}
        return Sampler(self.policy, 1)(self.policy.encode(batch), torch.from_numpy(noise))

    def endpoint(self, inputs: dict[str, Any], noise: np.ndarray) -> np.ndarray:
        ends = self.ends(inputs, noise)[0, :, : self.policy.chunk.action_dim].numpy()
        return ends * np.float32(self.off.get("endpoint", 1))


@pytest.mark.parametrize(
    "off", [{}, {"endpoint": 1 + 3e-5}, {"action": 1.001}, {"endpoint": np.nan}], ids=str
)
def test_a_folder_that_acts_in_another_way_never_appears(
    off: dict[str, float], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "write_graphs", lambda *_, **__: {"kind": "one", "policy": "policy.onnx"})
    monkeypatch.setattr(chordflow_runtime, "load", lambda _, **__: Runner(checkpoint, **off))
    given = {"policy": checkpoint, "output_dir": tmp_path / "r", "num_steps": 1}
    if off:
        with pytest.raises(UserError, match=r"differ from the checkpoint's .* nothing was written"):
            chordflow.export(**given)
        assert not contents(tmp_path)
    else:
        chordflow.export(**given)
        with pytest.raises(UserError, match=r"output_dir=.* exists already"):
            chordflow.export(**given)
