"""A folder as `chordflow export` makes it, by hand: its graphs compute what a line of numpy computes too."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

H, D, A, S, LENGTH = 6, 5, 2, 3, 16
STATE, TOP, TOKENS, MASK = "observation.state", "observation.images.top", "tokens", "token_mask"
Edit = Callable[[dict[str, Any]], object]


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


def sha256(file: Path) -> str:
    """The hash of a file, as a manifest has it."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _graph(nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], path: Path) -> None:
    values = [
        [helper.make_tensor_value_info(name, *kind) for name, kind in some.items()]
        for some in (inputs, outputs)
    ]
    # Weights in an initializer, so that they may lie in a file of their own.
    weights = [
        helper.make_tensor("two", TensorProto.FLOAT, [1], [2.0]),
        helper.make_tensor("from", TensorProto.INT64, [1], [0]),
        helper.make_tensor("to", TensorProto.INT64, [1], [A]),
        helper.make_tensor("axis", TensorProto.INT64, [1], [2]),
    ]
    graph = helper.make_graph(nodes, "by_hand", *values, initializer=weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def build(
    folder: Path, *, steps: int = 1, two: bool = False, resize: Any = None, edit: Edit | None = None
) -> Path:
    """A policy whose chunk is `2 * noise[..., :A] + seen`; with two graphs, whose velocity is `2 * x_t + seen * t`.

    What is seen is the sum of the graph's inputs, those of masked tokens left out.

    Args:
        folder: a new folder.
        steps: observed control steps.
        two: whether encoding and step are apart.
        resize: of the camera's images of 4x6.
        edit: changes the manifest before it is written.
    """
    folder.mkdir(parents=True)
    axis = [steps] if steps > 1 else []
    size = [resize["height"], resize["width"]] if resize else [4, 6]
    inputs = [
        {"name": "state", "kind": "state", "key": STATE, "shape": [1, *axis, S], "dtype": "float32"},
        {"name": "top", "kind": "image", "key": TOP, "shape": [1, *axis, 3, *size], "dtype": "float32"},
        {"name": TOKENS, "kind": "tokens", "key": TOKENS, "shape": [1, LENGTH], "dtype": "int64"},
        {"name": MASK, "kind": "token_mask", "key": MASK, "shape": [1, LENGTH], "dtype": "bool"},
    ]
    kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "bool": TensorProto.BOOL}
    taken = {str(item["name"]): (kinds[str(item["dtype"])], item["shape"]) for item in inputs}
    encode = [
        helper.make_node("ReduceSum", ["state"], ["a"], keepdims=0),
        helper.make_node("ReduceSum", ["top"], ["b"], keepdims=0),
        helper.make_node("Cast", [TOKENS], ["float_tokens"], to=TensorProto.FLOAT),
        helper.make_node("Cast", [MASK], ["float_mask"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float_tokens", "float_mask"], ["masked"]),
        helper.make_node("ReduceSum", ["masked"], ["c"], keepdims=0),
        helper.make_node("Sum", ["a", "b", "c"], ["context.seen"]),
    ]
    noise, seen = (TensorProto.FLOAT, [1, H, D]), (TensorProto.FLOAT, [])
    if two:
        graphs = {"kind": "two", "encode": "encode.onnx", "step": "step.onnx"}
        _graph(encode, taken, {"context.seen": seen}, folder / "encode.onnx")
        step = [
            helper.make_node("Mul", ["context.seen", "t"], ["scaled"]),
            helper.make_node("Mul", ["x_t", "two"], ["doubled"]),
            helper.make_node("Add", ["doubled", "scaled"], ["velocity"]),
        ]
        given = {"x_t": noise, "t": (TensorProto.FLOAT, [1]), "context.seen": seen}
        _graph(step, given, {"velocity": noise}, folder / "step.onnx")
    else:
        graphs = {"kind": "one", "policy": "policy.onnx"}
        whole = [
            *encode,
            helper.make_node("Slice", ["noise", "from", "to", "axis"], ["real"]),
            helper.make_node("Mul", ["real", "two"], ["doubled"]),
            helper.make_node("Add", ["doubled", "context.seen"], ["actions"]),
        ]
        chunk = {"actions": (TensorProto.FLOAT, [1, H, A])}
        _graph(whole, {"noise": noise, **taken}, chunk, folder / "policy.onnx")
    tokenizer().backend_tokenizer.save(str(folder / "tokenizer.json"))
    manifest = {
        "format": "chordflow_policy", "version": 1, "family": "by hand", "graphs": graphs, "num_steps": 2,
        "solver": "euler", "grid_power": 1.0, "times": [[1.0, -0.5], [0.5, -0.5]], "precision": "float32",
        "noise": {"input": "noise", "shape": [1, H, D], "law": "standard_normal"},
        "inputs": inputs, "output": {"name": "actions", "shape": [1, H, A], "unit": "normalised"},
        "images": {TOP: {"shape": [3, 4, 6], "resize": resize}},
        "language": {
            "tokenizer": "tokenizer.json", "max_length": LENGTH, "padding": "max_length", "padding_side": "right",
            "pad_id": 1, "truncation": True, "template": [{"kind": "ensure_newline"}],
        },
        "normalise": {STATE: {"mode": "mean_std", "a": [0.5, -0.5, 0.0], "b": [2.0, 1.0, 0.5], "eps": 1e-8}},
        "unnormalise": {"action": {"mode": "min_max", "a": [6.0, -1.0], "b": [10.0, 2.0], "eps": 1e-8}},
        "rename": {"observation.images.front": TOP},
        "chunk": {
            "horizon": H, "padded_dim": D, "action_dim": A, "num_executed": 2, "first_executed": steps - 1,
            "usable": H + 1 - steps,
        },
        "observation_steps": steps, "observation_deltas": list(range(1 - steps, 1)), "versions": {},
    }  # fmt: skip
    manifest["files"] = {file.name: sha256(file) for file in sorted(folder.iterdir())}
    if edit is not None:
        edit(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def observation(steps: int | None = None, seed: int = 0) -> dict[str, Any]:
    """What the policy sees, with LeRobot's keys; of so many control steps stacked in front."""
    generator = np.random.default_rng(seed)
    axis = () if steps is None else (steps,)
    return {
        STATE: generator.normal(size=(*axis, S)).astype(np.float32),
        TOP: generator.random((*axis, 3, 4, 6), dtype=np.float32),
        "task": "go left",
    }


def robot_units(chunk: Any) -> Any:
    """A normalised chunk in the robot's units."""
    low, high = np.array([6.0, -1.0]), np.array([10.0, 2.0])
    return (chunk + 1) / 2 * (high - low) + low
