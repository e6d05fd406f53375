"""Exported folders act as their checkpoints do; what cannot be exported leaves nothing behind."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from onnx import TensorProto, helper, numpy_helper
from onnxscript import ir

import chordflow
import chordflow_runtime
from builders import build_checkpoint, build_dataset, observations
from chordflow.cli.main import main
from chordflow.demo.teacher import CAMERA, place_teacher
from chordflow.deploy import graphs, int8, parity
from chordflow.errors import UserError
from chordflow.evaluation.gap import Modes
from chordflow.experiments import export as job
from chordflow.flow.seeds import generator
from chordflow.policies import load_flow_policy
from chordflow.policies.exported import ExportedPolicy
from chordflow.policies.files import PREPROCESSOR
from chordflow.policies.sampling import Sampler
from chordflow.policies.smolvla import SmolVLAFlowPolicy
from chordflow.reporting.card import exported_card
from chordflow_runtime import RunnerError, load
from chordflow_runtime.backends import openvino_core, require_bfloat16
from families import CASES
from hub_server import Hub
from hub_server import hub as hub
from lerobot_env_detour import DetourEnv
from lerobot_policy_chordflow import ChordflowConfig
from script_files import ROOT, load_script
from small_policies import Folders
from small_runs import Capture, contents, edit_json, refused

STEPS = 2


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fewer observations are enough for networks this small; the tracer's log is nobody's."""
    monkeypatch.setattr(job, "OBSERVATIONS", 4)
    monkeypatch.setattr(parity, "MODE_OBSERVATIONS", 2)
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


def has_bfloat16() -> bool:
    try:
        require_bfloat16()
    except RunnerError:
        return False
    return True


def copies(exported: Path) -> Callable[..., dict[str, str]]:
    """Takes the place of tracing where the same has been traced before."""

    def write_graphs(sampler: Sampler, inputs: Any, folder: Path, **_: Any) -> dict[str, str]:
        for file in exported.glob("*.onnx"):
            shutil.copy(file, folder)
        return json.loads((exported / "manifest.json").read_text())["graphs"]

    return write_graphs


@pytest.mark.parametrize("family", ["pi0", "pi05", "multi_task_dit"])
def test_a_folder_acts_as_the_stock_policy_in_either_backend(
    family: str, family_folder: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = family_folder(family)
    given = {"policy": checkpoint, "num_steps": 1}
    done = chordflow.export(**given, output_dir=tmp_path / "robot")
    if family != "pi0":
        # Its times are embedded less exactly by OpenVINO where a graph takes any number of noises.
        monkeypatch.setattr(job, "write_graphs", copies(tmp_path / "robot"))
    chordflow.export(**given, output_dir=tmp_path / "fast", backend="openvino")
    if family == "multi_task_dit":
        # What OpenVINO makes of its images if nobody interferes.
        monkeypatch.setattr(graphs, "_keep_antialias", lambda _: None)
        with pytest.raises(
            UserError, match=r"differ from the checkpoint's \(max_relative=.*nothing was written"
        ):
            chordflow.export(**given, output_dir=tmp_path / "off", backend="openvino")
        assert {file.name for file in tmp_path.iterdir()} == {"robot", "fast"}
    runners = [load(tmp_path / name, threads=1) for name in ("robot", "fast")]
    assert [runner.manifest["language"]["padding"] for runner in runners] == ["longest", "max_length"]
    assert ["onnxruntime" in runner.manifest["versions"] for runner in runners] == [True, False]
    policy = load_flow_policy(checkpoint, device="cpu")
    history = len(policy.observation_delta_indices or [0])
    items = observations(3, seed=5, steps=history if history > 1 else None)
    noise = policy.sample_noise(3, generator(0, "export"))
    policy.set_num_steps(1)
    wanted = policy.to_action(CASES[family].stock_endpoint(policy, policy.preprocess(items), noise))
    for runner in runners:
        rows = [runner(numpy(items, row), drawn[None].numpy()) for row, drawn in enumerate(noise)]
        assert_close(np.stack(rows), wanted)
    prompts = [runners[0].prepare(numpy(items, row))["observation.language.tokens"] for row in range(3)]
    assert len({one.size for one in prompts}) > 1
    # Several noises of one observation go through together.
    for runner in runners:
        inputs = runner.prepare(numpy(items, 0))
        apart = np.stack([runner.endpoint(inputs, drawn[None].numpy()) for drawn in noise])
        np.testing.assert_allclose(runner.endpoints(inputs, noise.numpy()), apart, rtol=1e-4, atol=1e-5)
    # Side by side they have one length.
    exported = ExportedPolicy(tmp_path / "robot", {}, None, "student.path")
    ends = Sampler(exported, 1)(exported.encode(exported.preprocess(items)), noise)
    assert_close(exported.to_action(ends).numpy(), wanted)
    assert done.manifest == json.loads((tmp_path / "robot" / "manifest.json").read_text())
    assert "differs from the checkpoint by" in done.verdict
    # Nobody learns the folders of the machine that exported it.
    for file in ("robot/policy.onnx", "fast/policy.xml"):
        content = (tmp_path / file).read_bytes()
        assert b"/site-packages/" not in content
        assert bytes(tmp_path) not in content


def test_two_graphs_take_any_number_of_steps_on_a_datasets_frames(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if the weights were too large for a graph's own file.
    monkeypatch.setattr(graphs, "LARGEST_FILE", 0)
    data = build_dataset(tmp_path / "data", 2, 3, cameras=("front",))
    rename = {"observation.images.front": "observation.images.top"}
    options = {"policy": {"path": str(checkpoint)}, "dataset": {"repo_id": "test/tiny", "root": str(data)}}
    options |= {"graphs": "two", "backend": "openvino", "num_steps": STEPS, "grid_power": 1.4}
    done = chordflow.export(**options, output_dir=tmp_path / "r", rename_map=rename)
    assert done.manifest["parity"]["of"] == "held-out episodes of test/tiny"
    assert done.manifest["rename"] == rename
    made = {f"{name}.{kind}" for name in ("encode", "step") for kind in ("xml", "bin")}
    assert set(done.manifest["files"]) == {*made, "tokenizer.json"}
    assert {file.name for file in (tmp_path / "r").iterdir()} == {*done.manifest["files"], "manifest.json"}
    policy = load_flow_policy(checkpoint, device="cpu", rename_map=rename)
    items, noise = observations(1, cameras=("front",)), policy.sample_noise(1, generator(0, "two"))
    context = policy.encode(policy.preprocess(items))
    for num_steps in (STEPS, 5):
        chosen = None if num_steps == STEPS else num_steps
        runner = load(tmp_path / "r", threads=1, num_steps=chosen)
        actions = runner(numpy(items, 0), noise.numpy())
        ahead = runner.encode(runner.prepare(numpy(items, 0)))
        np.testing.assert_array_equal(runner.to_action(runner.endpoint(ahead, noise.numpy())), actions)
        assert_close(actions, policy.to_action(Sampler(policy, num_steps, grid_power=1.4)(context, noise))[0])


def test_blank_cameras_are_left_out_solvers_baked_in_and_a_checkpoint_in_bfloat16_is_compared_in_float32(
    tmp_path: Path, vlm: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    checkpoint = build_checkpoint(tmp_path / "c", vlm, empty_cameras=1)
    options = {"policy": checkpoint, "num_steps": 1, "solver": "midpoint"}
    with monkeypatch.context() as patch:
        # As LeRobot loads a vision-language model whose weights it fetches.
        loaded = SmolVLAPolicy.from_pretrained
        patch.setattr(
            SmolVLAPolicy, "from_pretrained", lambda *given, **more: lowered(loaded(*given, **more))
        )
        patch.setattr("chordflow.policies.checkpoint.check_loaded", lambda *_: None)
        chordflow.export(**options, output_dir=tmp_path / "r")
    runner, policy = load(tmp_path / "r", threads=1), load_flow_policy(checkpoint, device="cpu")
    found = runner.manifest["parity"]
    own = found["as_saved"]["gap_percent"]
    assert found["rms_relative"] < 1e-5 < found["as_saved"]["rms_relative"]
    assert f"the checkpoint itself differs by {own:.1g} % of the spread" in capsys.readouterr().out
    assert [one["key"] for one in runner.manifest["inputs"] if one["kind"] == "image"] == policy.image_keys
    lowered(policy.module).float()
    items, noise = observations(1), policy.sample_noise(1, generator(0, "blank"))
    batch = policy.preprocess(items)
    assert len(policy.module.prepare_images(batch)[0]) == 2
    ends = Sampler(policy, 1, "midpoint")(policy.encode(batch), noise)
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
        patch.setattr(job, "OBSERVATIONS", 4)
        patch.setattr(parity, "MODE_OBSERVATIONS", 2)
        chordflow.export(policy=place_teacher(folder), output_dir=folder / "robot", graphs="two")
    return folder / "teacher", folder / "robot"


@pytest.mark.skipif(not has_bfloat16(), reason="this processor has no arithmetic in bfloat16")
def test_bfloat16_is_bounded_beside_the_students_own_gap(
    teacher: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "write_graphs", copies(teacher[1]))
    options = {"policy": teacher[0], "graphs": "two", "backend": "openvino", "precision": "bfloat16"}
    options |= {"teacher": {"path": str(teacher[0]), "num_inference_steps": 2}}
    done = chordflow.export(**options, output_dir=tmp_path / "r")
    found = done.manifest["parity"]
    assert 1e-3 < found["gap_percent"] < 2 < found["teacher"]["gap_percent"]
    assert f"own gap to its teacher is {found['teacher']['gap_percent']:.2g} %" in done.verdict
    with pytest.raises(UserError, match=r"gap_percent=.*at most 0.001"):
        chordflow.export(**options, output_dir=tmp_path / "no", max_gap=1e-3)
    assert not (tmp_path / "no").exists()


def shown(node: Any) -> set[str]:
    """The inputs of a graph that a node depends on."""
    found, ahead = {node}, [node]
    while ahead:
        one = ahead.pop()
        sources = {value.get_source_output().get_node() for value in one.inputs()} - found
        found |= sources
        ahead += sources
    return {one.get_friendly_name() for one in found if one.get_type_name() == "Parameter"}


def test_int8_is_for_activations_of_the_vision_tower_alone(
    checkpoint: Path, dataset_root: Path, tmp_path: Path
) -> None:
    dataset = {"repo_id": "test/tiny", "root": str(dataset_root)}
    options = {"backend": "openvino", "precision": "int8", "num_steps": 1, "max_gap": 5}
    done = chordflow.export(policy=checkpoint, dataset=dataset, output_dir=tmp_path / "r", **options)
    assert 0.01 < done.manifest["parity"]["gap_percent"] < 5
    operations = openvino_core().read_model(tmp_path / "r" / "policy.xml").get_ops()
    # What goes into queries, keys and values, their output, and the two layers behind them. Whatever follows the
    # tower depends on words, state or noise too, but for the connector, which would be a fifth.
    rounded = [node for node in operations if node.get_type_name() == "FakeQuantize"]
    assert [shown(node) for node in rounded] == [{"observation.images.top"}] * 4
    constants = [node.output(0) for node in operations if node.get_type_name() == "Constant"]
    matrices = [one for one in constants if len(one.shape) == 2 and min(one.shape) > 1]
    assert {one.element_type.to_string() for one in matrices} == {"i8"}


def test_a_tower_is_found_where_its_weights_are_transposed_and_refused_where_there_is_none(
    tmp_path: Path,
) -> None:
    weight = numpy_helper.from_array(np.eye(256, dtype=np.float32), "weight")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 256]) for name in "xy")
    nodes = [
        helper.make_node("Transpose", ["weight"], ["turned"], "turn", perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["product"], "product"),
        helper.make_node("Neg", ["product"], ["y"], "turned_round"),
    ]
    graph = helper.make_graph(nodes, "tower", [x], [y], [weight])
    opset = [helper.make_opsetid("", 20)]
    traced = ir.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=10))
    given = {"x": np.linspace(-1, 1, 256, dtype=np.float32)[None]}
    ir.save(traced, tmp_path / "none.onnx")
    with pytest.raises(UserError, match="policy type other has no vision tower"):
        int8.quantize_tower(openvino_core().read_model(tmp_path / "none.onnx"), "other", [given])
    for node in traced.graph:
        node.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'module.vision_model.layers.0']"
    int8.mark_tower(traced)
    ir.save(traced, tmp_path / "one.onnx")
    model = openvino_core().read_model(tmp_path / "one.onnx")
    int8.quantize_tower(model, "other", [given])
    compiled = openvino_core().compile_model(model, "CPU")
    off = np.abs(compiled(given)[0] + given["x"]).max()
    assert 1e-4 < off < 0.01


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


def test_a_folder_is_a_policy_of_lerobot(teacher: tuple[Path, Path]) -> None:
    config = ChordflowConfig(folder=str(teacher[1]), threads=1, noise_seed=3)
    assert {key: feature.shape for key, feature in config.input_features.items()} == {
        CAMERA: (3, 64, 64), "observation.state": (2,)
    }  # fmt: skip
    policy: Any = get_policy_class("chordflow").from_pretrained(None, config=config)
    before, after = make_pre_post_processors(config)
    seen, _ = DetourEnv().reset(seed=0)
    item = {
        CAMERA: seen["pixels"].transpose(2, 0, 1) / np.float32(255),
        "observation.state": seen["agent_pos"],
    }
    batch = {key: torch.from_numpy(value) for key, value in item.items()} | {"task": "go left"}
    runner = load(teacher[1], threads=1, seed=3)
    for _ in range(9):
        action = after(policy.select_action(before(batch)))
        np.testing.assert_array_equal(action[0].numpy(), runner.select_action({**item, "task": "go left"}))
    chunk = policy.predict_action_chunk(before(batch))
    np.testing.assert_array_equal(chunk[0].numpy(), runner({**item, "task": "go left"}))
    with pytest.raises(RunnerError, match=r"a batch of 2: .* --eval.batch_size=1"):
        policy.select_action({key: torch.stack([batch[key]] * 2) for key in item})


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
    (["--precision=bfloat16"], "precision=bfloat16: ONNX Runtime has no kernels"),
    (["--precision=int8"], "precision=int8: it is made for OpenVINO alone"),
    (["--precision=int8", "--backend=openvino"], "precision=int8: its ranges are measured"),
    (["--max_gap=0"], "max_gap=0.0: give a number above 0"),
    (["--teacher.path=nowhere"], "teacher.path=nowhere"),
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


def test_an_adapter_that_acts_in_another_way_than_lerobots_class_exports_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SmolVLAFlowPolicy.velocity
    monkeypatch.setattr(SmolVLAFlowPolicy, "velocity", lambda *given: real(*given) * (1 + 3e-5))
    with pytest.raises(UserError, match=r"LeRobot's own class \(rms_relative=.*nothing was written"):
        chordflow.export(policy=checkpoint, output_dir=tmp_path / "r")
    assert not contents(tmp_path)


def test_noise_of_another_law_and_absent_packages_are_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    given = ["export", f"--policy.path={checkpoint}", f"--output_dir={tmp_path / 'r'}"]
    with monkeypatch.context() as patch:
        patch.setattr(
            SmolVLAFlowPolicy, "sample_noise", lambda self, n, source: torch.zeros(n, *self.chunk.shape)
        )
        assert "its noise is not standard normal" in refused(given, capsys, tmp_path)
    monkeypatch.setattr(job, "PACKAGES", {"onnx": ("onnx", "no_such_package")})
    assert 'pip install "chordflow[export]"' in refused(given, capsys, tmp_path)


def test_a_step_that_a_manifest_has_no_words_for_is_refused(
    vlm: Path, tmp_path: Path, capsys: Capture
) -> None:
    checkpoint = build_checkpoint(tmp_path / "c", vlm)
    cropping = {"registry_name": "image_crop_resize_processor", "config": {}}
    edit_json(checkpoint / PREPROCESSOR, lambda content: content["steps"].insert(0, cropping))
    given = ["export", f"--policy.path={checkpoint}", f"--output_dir={tmp_path / 'r'}"]
    assert "has a step image_crop_resize_processor" in refused(given, capsys, tmp_path)


def test_an_exported_folder_goes_to_the_hub(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub, capsys: Capture
) -> None:
    monkeypatch.setattr(job, "write_graphs", lambda *_, **__: {"kind": "one", "policy": "policy.onnx"})
    monkeypatch.setattr(chordflow_runtime, "load", lambda _, **__: Runner(checkpoint))
    policy = {"path": checkpoint, "push_to_hub": True, "repo_id": "me/robot"}
    done = chordflow.export(policy=policy, output_dir=tmp_path / "r", num_steps=1)
    assert f"Hub:     {hub.url}/me/robot" in capsys.readouterr().out
    assert hub.files == contents(tmp_path / "r")
    assert hub.repos == {"me/robot": None}
    card = ModelCard(hub.files["README.md"].decode())
    (gap,) = card.data.eval_results
    assert gap.metric_value == pytest.approx(done.manifest["parity"]["gap_percent"])
    assert 'snapshot_download("me/robot", local_dir="policy")' in card.text


@pytest.mark.docs
def test_the_documents_table_is_of_the_committed_results() -> None:
    script = load_script(ROOT / "benchmarks" / "parity" / "run.py")
    text = script.DOCUMENT.read_text()
    assert "| multi_task_dit | openvino | bfloat16 |" in text
    assert script.filled(text, json.loads(script.RESULTS.read_text())) == text


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

    def encode(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return inputs

    def endpoints(self, inputs: dict[str, Any], noise: np.ndarray) -> np.ndarray:
        context = self.policy.encode({key: torch.as_tensor(value) for key, value in inputs.items()})
        ends = Sampler(self.policy, 1)(context.repeat(len(noise)), torch.from_numpy(noise))
        return ends[..., : self.policy.chunk.action_dim].numpy() * np.float32(self.off.get("endpoint", 1))


LOWER = {"backend": "openvino", "precision": "bfloat16", "max_gap": 0.5}


@pytest.mark.parametrize(
    ("off", "options", "name"),
    [
        ({}, {}, None),
        ({"endpoint": 1 + 3e-5}, {}, "rms_relative"),
        ({"action": 1.001}, {}, "max_relative"),
        ({"endpoint": np.nan}, {}, "max_relative"),
        ({"endpoint": 1.001}, LOWER, None),
        ({"endpoint": 1.02}, LOWER, "gap_percent"),
        ({"action": 1.001}, LOWER, "max_relative"),
    ],
    ids=str,
)
def test_a_folder_that_acts_in_another_way_never_appears(
    off: dict[str, float], options: dict[str, Any], name: str | None, checkpoint: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    graphs = {"kind": "one", "policy": "policy.onnx"}
    monkeypatch.setattr(job, "write_graphs", lambda *_, **__: graphs)
    monkeypatch.setattr(job, "to_openvino", lambda *_: graphs)
    monkeypatch.setattr(chordflow_runtime.backends, "require_bfloat16", lambda: None)
    monkeypatch.setattr(chordflow_runtime, "load", lambda _, **__: Runner(checkpoint, **off))
    given = {"policy": checkpoint, "output_dir": tmp_path / "r", "num_steps": 1, **options}
    if name is not None:
        with pytest.raises(UserError, match=rf"differ from the checkpoint's \({name}=.* nothing was written"):
            chordflow.export(**given)
        assert not contents(tmp_path)
    else:
        done = chordflow.export(**given)
        if options:
            # Two digits, beside a bound.
            gap = f"({done.manifest['parity']['gap_percent']:.2f} % of the spread)"
            assert gap in done.verdict
            assert gap in exported_card(done.manifest, "me/robot", {})
        with pytest.raises(UserError, match=r"output_dir=.* exists already"):
            chordflow.export(**given)


def test_an_interrupted_export_says_that_nothing_was_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(job, "write_graphs", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    assert main(["export", f"--policy.path={checkpoint}", f"--output_dir={tmp_path / 'r'}"]) == 130
    assert "interrupted; nothing was written; give the same command again." in capsys.readouterr().err
    assert not contents(tmp_path)
