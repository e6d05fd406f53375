"""The runner against LeRobot's own processors and a graph that numpy can follow; what it refuses."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.common.vla_utils import resize_with_pad, resize_with_pad_torch
from lerobot.policies.pi05.processor_pi05 import Pi05PrepareStateTokenizerProcessorStep
from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    NewLineTaskProcessorStep,
    NormalizerProcessorStep,
    PolicyProcessorPipeline,
    TokenizerProcessorStep,
    UnnormalizerProcessorStep,
)
from onnx.external_data_helper import set_external_data
from packaging.requirements import Requirement
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

import chordflow_runtime
from chordflow.deploy.graphs import to_openvino
from chordflow_runtime import RunnerError, backends
from chordflow_runtime.images import Camera, Scale
from chordflow_runtime.language import Language
from chordflow_runtime.manifest import content_sha256

H, D, A, S, LENGTH = 6, 5, 2, 3, 16
STATE, TOP = "observation.state", "observation.images.top"
SEES = """
    a = ReduceSum <keepdims = 0> (state) b = ReduceSum <keepdims = 0> (top) t1 = Cast <to = 1> (tokens)
    m = Cast <to = 1> (mask) masked = Mul (t1, m) c = ReduceSum <keepdims = 0> (masked) seen = Sum (a, b, c)
"""
ENDS = "real = Slice (noise, start, end, axis) doubled = Mul (real, two) actions = Add (doubled, seen)"
# Weights as bytes, so that they may lie in a file of their own.
WEIGHTS = f"<float[1] two = {{2}}, int64[1] start = {{0}}, int64[1] end = {{{A}}}, int64[1] axis = {{2}}>"
PACKAGE = Path(__file__).parents[1] / "packages" / "chordflow_runtime"
SIZES = st.integers(2, 90)
NUMBERS = st.integers(-500, 500).map(lambda number: number / 7)
NOISE = np.random.default_rng(7).normal(size=(1, H, D)).astype(np.float32)


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with marks at both ends; its padding is no zero."""
    bpe = ByteLevelBPETokenizer()
    marks = ["<start>", "<pad>", "<end>"]
    bpe.train_from_iterator(
        ["go left", "go right"], vocab_size=300, special_tokens=marks, show_progress=False
    )
    bpe._tokenizer.post_processor = TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, pad_token="<pad>")


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes a manifest that lists what is in the folder."""
    files = [file for file in sorted(folder.iterdir()) if file.suffix != ".json" or file.stem == "tokenizer"]
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    whole = {"files": hashes} | manifest
    (folder / "manifest.json").write_text(json.dumps(whole | {"sha256": content_sha256(whole)}))


def build(folder: Path, *, steps: int = 1, **changes: Any) -> Path:
    """A policy whose chunk is `2 * noise[..., :A] + seen`, the sum of the graph's inputs without masked tokens.

    `steps` are the observed control steps, and `changes` those of the manifest.
    """
    folder.mkdir(parents=True)
    axis = [steps] if steps > 1 else []
    shapes = {"state": [1, *axis, S], "top": [1, *axis, 3, 4, 6], "tokens": [1, LENGTH], "mask": [1, LENGTH]}
    kinds = {"state": "float", "top": "float", "tokens": "int64", "mask": "bool"}
    sees = ", ".join(f"{kinds[name]}[{', '.join(map(str, shape))}] {name}" for name, shape in shapes.items())
    text = f"(float[1, {H}, {D}] noise, {sees}) => (float[1, {H}, {A}] actions) {WEIGHTS} {{{SEES} {ENDS}}}"
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 18]> policy {text}')
    onnx.checker.check_model(model)
    onnx.save(model, folder / "policy.onnx")
    tokenizer().backend_tokenizer.save(str(folder / "tokenizer.json"))
    inputs = (("state", "state", STATE, "float32"), ("top", "image", TOP, "float32"))
    prompt = (("tokens", "tokens", "tokens", "int64"), ("mask", "token_mask", "mask", "bool"))
    manifest = {
        "format": "chordflow_policy", "version": 1, "num_steps": 2,
        "graphs": {"kind": "one", "policy": "policy.onnx"},
        "noise": {"input": "noise", "shape": [1, H, D], "law": "standard_normal"},
        "inputs": [
            {"name": name, "kind": kind, "key": key, "shape": shapes[name], "dtype": dtype}
            for name, kind, key, dtype in (*inputs, *prompt)
        ],
        "images": {TOP: {"shape": [3, 4, 6], "resize": None}},
        "language": {
            "tokenizer": "tokenizer.json", "max_length": LENGTH, "padding": "max_length", "padding_side": "right",
            "pad_id": 1, "truncation": True, "template": [{"kind": "ensure_newline"}],
        },
        "normalise": {}, "unnormalise": {}, "rename": {"observation.images.front": TOP}, "versions": {},
        "chunk": {"action_dim": A, "num_executed": 2, "first_executed": steps - 1},
        "observation_steps": steps, "observation_deltas": list(range(1 - steps, 1)),
    }  # fmt: skip
    write_manifest(folder, manifest | changes)
    return folder


def observation(seed: int = 0) -> dict[str, Any]:
    """What the policy sees, with LeRobot's keys."""
    generator = np.random.default_rng(seed)
    state, top = generator.normal(size=S).astype(np.float32), generator.random((3, 4, 6), dtype=np.float32)
    return {STATE: state, TOP: top, "task": "go left"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("runtime") / "one")


def in_openvino(folder: Path, made: Path, **changes: Any) -> Path:
    """The same policy as OpenVINO's graph."""
    shutil.copytree(folder, made)
    manifest = json.loads((made / "manifest.json").read_text())
    del manifest["files"]
    graphs = to_openvino(manifest["graphs"], made)
    write_manifest(
        made, manifest | {"graphs": graphs, "backend": "openvino", "precision": "float32"} | changes
    )
    return made


def test_bytes_renamed_cameras_and_batched_tasks_mean_the_same(folder: Path) -> None:
    policy = chordflow_runtime.load(folder)
    picture = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    floats = observation() | {TOP: torch.from_numpy(picture).permute(2, 0, 1) / 255}
    other = observation() | {"observation.images.front": picture, "task": ["go left"]}
    del other[TOP]
    np.testing.assert_array_equal(policy(other, NOISE), policy(floats, NOISE))


def test_noise_is_drawn_anew_and_repeats_from_its_seed(folder: Path) -> None:
    def chunks(seed: int | None) -> Any:
        policy = chordflow_runtime.load(folder, seed=seed)
        policy.warm_up()
        return np.stack([policy(observation()) for _ in range(2)])

    first = chunks(3)
    assert np.ptp(first[0], axis=0).min() > 0.1
    assert (first[0] != first[1]).all()
    np.testing.assert_array_equal(chunks(3), first)
    assert (chunks(None) != chunks(None)).all()


def test_actions_are_queued_and_forgotten_at_a_reset(folder: Path) -> None:
    policy = chordflow_runtime.load(folder, seed=0)
    chunk = policy(observation(), NOISE)
    np.testing.assert_array_equal(policy.select_action(observation(), NOISE), chunk[0])
    # The second action is of the chunk that there is, whatever is seen meanwhile.
    np.testing.assert_array_equal(policy.select_action(observation(seed=1)), chunk[1])
    assert (policy.select_action(observation(seed=1), NOISE) != chunk[0]).all()
    policy.reset()
    np.testing.assert_array_equal(policy.select_action(observation(), NOISE), chunk[0])


def test_a_policy_that_looks_back_keeps_what_it_saw(tmp_path: Path) -> None:
    policy = chordflow_runtime.load(build(tmp_path / "back", steps=2))
    now = [observation(seed=seed) for seed in range(3)]

    def together(*parts: dict[str, Any]) -> dict[str, Any]:
        return parts[0] | {key: np.stack([part[key] for part in parts]) for key in (STATE, TOP)}

    # As in LeRobot: the first observation stands for the one before it, and actions of the past are never run.
    first, second = policy(together(now[0], now[0]), NOISE), policy(together(now[1], now[2]), NOISE)
    np.testing.assert_array_equal(policy(now[0], NOISE), first)
    acted = [policy.select_action(item, NOISE) for item in now]
    np.testing.assert_array_equal(acted, [first[1], first[2], second[1]])
    with pytest.raises(RunnerError, match=r"shape \(3, 3\).* 2 control steps"):
        policy(together(*now))


@given(SIZES, SIZES, st.booleans(), st.booleans(), st.integers(0, 9))
def test_images_are_resized_as_lerobot_does(
    height: int, width: int, centred: bool, as_bytes: bool, seed: int
) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    floats = torch.from_numpy(picture).permute(2, 0, 1) / 255
    place = {"place": "centre", "clamp": True} if centred else {"place": "bottom_right", "clamp": False}
    resize = {"height": 32, "width": 48, "mode": "bilinear", "fill": 0.0, **place}
    camera = Camera("top", (3, height, width), Scale({"mode": "identity"}), resize)
    image: Any = picture if as_bytes else floats
    try:
        if centred:
            # Channels last, as pi0 calls it.
            wanted = resize_with_pad_torch(floats.permute(1, 2, 0)[None], 32, 48)[0].permute(2, 0, 1)
        else:
            wanted = resize_with_pad(floats[None], 32, 48, pad_value=0.0)[0]
    except RuntimeError:
        with pytest.raises(RunnerError, match="too narrow"):
            camera(image)
        return
    np.testing.assert_allclose(camera(image), wanted.numpy(), rtol=0, atol=1e-6)


@given(
    st.sampled_from([mode for mode in NormalizationMode if mode is not NormalizationMode.IDENTITY]),
    st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=4),
)
def test_normalisation_is_lerobots_to_the_bit(
    mode: NormalizationMode, rows: list[tuple[float, float, float]]
) -> None:
    a, b, value = (np.array(column, dtype=np.float32) for column in zip(*rows, strict=True))
    scale = Scale({"mode": mode.value.lower(), "a": a.tolist(), "b": b.tolist(), "eps": 1e-8})
    names = {"MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99")}
    stats = dict(zip(names.get(mode.value, ("q10", "q90")), map(torch.from_numpy, (a, b)), strict=True))
    state, action = (PolicyFeature(kind, a.shape) for kind in (FeatureType.STATE, FeatureType.ACTION))
    before = NormalizerProcessorStep({STATE: state}, {FeatureType.STATE: mode}, {STATE: stats})
    after = UnnormalizerProcessorStep({"action": action}, {FeatureType.ACTION: mode}, {"action": stats})
    tensor = torch.from_numpy(value)
    wanted = before._normalize_observation({STATE: tensor}, inverse=False)[STATE]
    np.testing.assert_array_equal(scale.apply(value), wanted)
    np.testing.assert_array_equal(scale.invert(value), after._normalize_action(tensor, inverse=True))


@pytest.mark.filterwarnings("ignore:task has more")
@pytest.mark.parametrize(
    ("kind", "step"),
    [("ensure_newline", NewLineTaskProcessorStep), ("pi05_state", Pi05PrepareStateTokenizerProcessorStep)],
)
@pytest.mark.parametrize("side", ["right", "left"])
def test_instructions_are_lerobots_tokens(folder: Path, kind: str, step: Any, side: str) -> None:
    known = tokenizer()

    @given(
        st.text(max_size=40) | st.just(" 把_杯子\n放好 é\n"),
        st.lists(st.floats(-1.5, 1.5, width=32), min_size=S, max_size=S),
        st.integers(3, 60),
        st.sampled_from(["max_length", "longest"]),
    )
    def same(text: str, numbers: list[float], length: int, padding: str) -> None:
        options: dict[str, Any] = {"max_length": length, "padding": padding, "padding_side": side}
        steps = [AddBatchDimensionProcessorStep(), step(), TokenizerProcessorStep(tokenizer=known, **options)]
        state = torch.tensor(numbers)
        wanted = PolicyProcessorPipeline(steps)({STATE: state, "task": text})
        entry = options | {"pad_id": 1, "truncation": True, "template": [{"kind": kind}]}
        tokens, mask = Language(entry, folder / "tokenizer.json")(text, {STATE: state.numpy()})
        np.testing.assert_array_equal(tokens, wanted["observation.language.tokens"][0])
        np.testing.assert_array_equal(mask, wanted["observation.language.attention_mask"][0])

    same()


def test_a_long_instruction_is_cut_with_one_warning(folder: Path) -> None:
    policy = chordflow_runtime.load(folder)
    long = observation() | {"task": "go left " * LENGTH}
    with pytest.warns(UserWarning, match=f"more than the policy's {LENGTH} tokens"):
        first = policy(long, NOISE)
    # A second warning would be an error.
    np.testing.assert_array_equal(policy(long, NOISE), first)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({TOP: None}, f"no {TOP}; it has {STATE}, task"),
        ({STATE: None}, f"no {STATE}"),
        ({"task": None}, "no task"),
        ({"task": 3}, "task is 3"),
        ({"task": "go \udcff"}, r"task is 'go \\udcff'"),
        ({TOP: np.zeros((0, 0, 3), dtype=np.uint8)}, r"\(0, 0, 3\); give"),
        ({STATE: np.zeros(S + 1)}, rf"{STATE} .* shape \(4,\); give 3"),
        ({STATE: np.array([0, np.nan, 0])}, f"{STATE} .*nan"),
        ({STATE: "left"}, f"{STATE} is 'left'"),
        ({TOP: np.zeros((3, 4, 8))}, rf"{TOP} has shape \(3, 4, 8\).*\(3, 4, 6\)"),
        ({TOP: np.zeros((1, 3, 4, 6))}, rf"{TOP} is float64 of shape \(1, 3, 4, 6\)"),
        ({TOP: np.zeros((4, 6, 3))}, r"\(4, 6, 3\); give"),
        ({TOP: np.zeros((3, 4, 6), dtype=np.uint8)}, "uint8 of shape"),
        ({TOP: np.zeros((3, 4, 6), dtype=np.int64)}, "int64 of shape"),
        ({TOP: np.full((3, 4, 6), 200.0)}, r"200.* in \[0, 1\]"),
        ({TOP: np.full((3, 4, 6), np.nan)}, r"nan.* in \[0, 1\]"),
    ],
)
def test_an_observation_that_does_not_fit_is_refused(folder: Path, change: dict[str, Any], says: str) -> None:
    changed = {key: value for key, value in (observation() | change).items() if value is not None}
    with pytest.raises(RunnerError, match=says):
        chordflow_runtime.load(folder)(changed)


def test_noise_of_another_shape_and_actions_that_are_no_numbers_are_refused(folder: Path) -> None:
    policy = chordflow_runtime.load(folder)
    with pytest.raises(RunnerError, match=rf"noise has shape \(1, {H}, {A}\).*\(1, {H}, {D}\)"):
        policy(observation(), NOISE[..., :A])
    with pytest.raises(RunnerError, match="noise is 'x'; give numbers"):
        policy(observation(), "x")
    with pytest.raises(RunnerError, match="observation is None; give a dict"):
        policy(None)  # type: ignore[arg-type]
    with pytest.raises(RunnerError, match="graph gave NaN"):
        policy(observation(), np.full_like(NOISE, 3e38))


def overwrite(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def rescaled(folder: Path) -> None:
    """As if somebody had written into the manifest."""
    file = folder / "manifest.json"
    file.write_text(file.read_text().replace('"unnormalise": {}', '"unnormalise": {"action": 2}'))


@pytest.mark.parametrize(
    ("change", "manifest", "options", "says"),
    [
        (overwrite("policy.onnx", b""), {}, {}, "policy.onnx was changed"),
        (lambda folder: (folder / "policy.onnx").unlink(), {}, {}, "policy.onnx is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), {}, {}, "no manifest.json"),
        (overwrite("manifest.json", b"{"), {}, {}, "cannot be followed"),
        (rescaled, {}, {}, "manifest.json was changed"),
        (None, {"version": 2}, {}, "version 2.*up to 1"),
        (None, {"format": "package"}, {}, "format 'package'"),
        (None, {"files": {"../x": ""}}, {}, "lists '../x'"),
        (None, {"files": {}}, {}, "not list the file 'tokenizer.json'"),
        (None, {"graphs": {"kind": "one", "policy": "/tmp/x.onnx"}}, {}, "not list the file '/tmp/x"),
        (None, {"unnormalise": {"action": {"mode": "log"}}}, {}, "cannot be followed .*log"),
        (None, {"chunk": {}}, {}, "cannot be followed .*action_dim"),
        (None, {}, {"num_steps": 3}, "num_steps is 3"),
        (None, {}, {"num_steps": 0}, "num_steps is 0"),
        (None, {}, {"threads": 0}, "threads is 0"),
        (None, {}, {"threads": 1.5}, "threads is 1.5"),
        (None, {}, {"seed": -1}, "seed is -1"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_trusted_or_followed_is_refused(
    tmp_path: Path, change: Any, manifest: dict[str, Any], options: dict[str, Any], says: str
) -> None:
    folder = build(tmp_path / "one", **manifest)
    if change is not None:
        change(folder)
    with pytest.raises(RunnerError, match=says):
        chordflow_runtime.load(folder, **options)


def test_openvino_takes_its_own_two_files_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    made = in_openvino(folder, tmp_path / "made")
    manifest = json.loads((made / "manifest.json").read_text())
    assert set(manifest["files"]) == {"policy.bin", "policy.xml", "tokenizer.json"}
    wanted = chordflow_runtime.load(folder)(observation(), NOISE)
    np.testing.assert_allclose(
        chordflow_runtime.load(made, threads=1)(observation(), NOISE), wanted, rtol=1e-6
    )
    weights = manifest["files"].pop("policy.bin")
    for content, listed, says in (
        (None, {}, "does not list the file 'policy.bin'"),
        # OpenVINO would know ONNX by its content, which may name any file.
        ((folder / "policy.onnx").read_bytes(), {"policy.bin": weights}, "policy.xml is no OpenVINO graph"),
        (b"<?xml version='1.0'?><net", {"policy.bin": weights}, "policy.xml cannot be loaded by openvino"),
    ):
        if content is not None:
            (made / "policy.xml").write_bytes(content)
            listed |= {"policy.xml": hashlib.sha256(content).hexdigest()}
        write_manifest(made, manifest | {"files": manifest["files"] | listed})
        with pytest.raises(RunnerError, match=says):
            chordflow_runtime.load(made)


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of this process")
def test_signals_find_their_stack_after_openvino_has_gone(folder: Path, tmp_path: Path) -> None:
    class Stack(ctypes.Structure):
        _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

    made, stack = in_openvino(folder, tmp_path / "made"), Stack()
    first, second = chordflow_runtime.load(made), chordflow_runtime.load(made)
    for policy in (first, second):
        policy(observation(), NOISE)
    del policy, first
    gc.collect()
    del second
    gc.collect()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    maps = [line.split("-", 1) for line in Path("/proc/self/maps").read_text().splitlines()]
    held = [(int(start, 16), int(rest.split()[0], 16)) for start, rest in maps]
    off = stack.flags == 2
    assert off or any(start <= stack.start and stack.start + stack.size <= end for start, end in held)


def test_what_is_absent_here_is_said(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = in_openvino(folder, tmp_path / "half", precision="bfloat16")
    (tmp_path / "cpuinfo").write_text("flags : avx2 avx512f\n")
    for info in (tmp_path / "cpuinfo", tmp_path / "none"):
        with monkeypatch.context() as patch:
            patch.setattr(backends, "CPU_INFO", info)
            patch.setattr(backends.import_engine("openvino").Core, "get_property", lambda *_: ["FP32"])
            with pytest.raises(RunnerError, match="no arithmetic in bfloat16"):
                chordflow_runtime.load(half)
    given: dict[str, Any] = {}
    eighth = in_openvino(folder, tmp_path / "eighth", precision="int8")
    monkeypatch.setattr(backends, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(
        backends.import_engine("openvino").Core, "compile_model", lambda *options: given.update(options[3])
    )
    for has, wanted in (("avx2", "f32"), ("avx512_bf16", "bf16")):
        (tmp_path / "cpuinfo").write_text(f"flags : {has}\n")
        chordflow_runtime.load(eighth)
        assert given == {"INFERENCE_PRECISION_HINT": wanted, "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    for path, package in ((folder, "onnxruntime"), (half, "openvino")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(RunnerError, match=f"{package} cannot be imported .*pip install {package}"):
            chordflow_runtime.load(path)


@pytest.mark.parametrize("place", ["weights", "../weights", "/proc/version", "*/_ORT_MEM_ADDR_/*"])
@pytest.mark.parametrize("holder", ["initializer", "node"])
def test_weights_outside_the_listed_files_are_refused(tmp_path: Path, place: str, holder: str) -> None:
    folder = build(tmp_path / "one")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]
    wanted = chordflow_runtime.load(folder)(observation(), NOISE)
    model = onnx.load(folder / "policy.onnx")
    (two,) = (tensor for tensor in model.graph.initializer if tensor.name == "two")
    two.ClearField("float_data")
    two.raw_data = np.array([2], dtype="<f4").tobytes()
    set_external_data(two, place)
    two.ClearField("raw_data")
    if holder == "node":
        model.graph.initializer.remove(two)
        model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["two"], value=two))
    (folder / "policy.onnx").write_bytes(model.SerializeToString())
    write_manifest(folder, manifest)
    with pytest.raises(RunnerError, match=re.escape(f"does not list the file {place!r}")):
        chordflow_runtime.load(folder)
    if place == "weights" and holder == "initializer":
        (folder / "weights").write_bytes(np.array([2], dtype="<f4").tobytes())
        write_manifest(folder, manifest)
        np.testing.assert_array_equal(chordflow_runtime.load(folder)(observation(), NOISE), wanted)


ALONE = """
import sys, chordflow_runtime
chordflow_runtime.load(sys.argv[1], seed=0).warm_up()
heavy = {"torch", "lerobot", "transformers", "chordflow", "onnx"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_the_runner_needs_what_it_declares_alone_and_under_300_mb(
    backend: str, folder: Path, tmp_path: Path
) -> None:
    if backend == "openvino":
        folder = in_openvino(folder, tmp_path / "policy")
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    waiting, found = [*project["dependencies"], *project["optional-dependencies"][backend]], {}
    while waiting:
        needed = Requirement(waiting.pop())
        if needed.name not in found and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
            found[needed.name] = distribution(needed.name)
            waiting += found[needed.name].requires or []
    # As an empty environment that holds these alone; links stand for copies.
    place = tmp_path / "packages"
    place.mkdir()
    files = [(one, file) for one in found.values() for file in one.files or [] if ".." not in file.parts]
    for one, file in files:
        if not (place / file.parts[0]).exists():
            (place / file.parts[0]).symlink_to(one.locate_file(file.parts[0]))
    assert sum(Path(str(one.locate_file(file))).stat().st_size for one, file in files) < 300e6
    (tmp_path / "home").mkdir()
    paths = {"PYTHONPATH": f"{place}:{PACKAGE / 'src'}", "HOME": str(tmp_path / "home")}
    command = [sys.executable, "-S", "-c", ALONE, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=paths)
    assert done.returncode == 0, done.stderr
    # No caches of its own, nor what libraries tell their makers.
    assert not list((tmp_path / "home").rglob("*"))
