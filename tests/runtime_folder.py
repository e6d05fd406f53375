"""A folder as `chordflow export` makes it, by hand: its graph computes what a line of numpy computes too."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

H, D, A, S, LENGTH = 6, 5, 2, 3, 16
STATE, TOP = "observation.state", "observation.images.top"
SEES = """
    a = ReduceSum <keepdims = 0> (state) b = ReduceSum <keepdims = 0> (top) t1 = Cast <to = 1> (tokens)
    m = Cast <to = 1> (mask) masked = Mul (t1, m) c = ReduceSum <keepdims = 0> (masked) seen = Sum (a, b, c)
"""
ENDS = "real = Slice (noise, start, end, axis) doubled = Mul (real, two) actions = Add (doubled, seen)"
# Weights as bytes, so that they may lie in a file of their own.
WEIGHTS = f"<float[1] two = {{2}}, int64[1] start = {{0}}, int64[1] end = {{{A}}}, int64[1] axis = {{2}}>"


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
    (folder / "manifest.json").write_text(json.dumps({"files": hashes} | manifest))


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
        "normalise": {STATE: {"mode": "mean_std", "a": [0.5, -0.5, 0.0], "b": [2.0, 1.0, 0.5], "eps": 1e-8}},
        "unnormalise": {"action": {"mode": "min_max", "a": [6.0, -1.0], "b": [10.0, 2.0], "eps": 1e-8}},
        "rename": {"observation.images.front": TOP},
        "chunk": {"action_dim": A, "num_executed": 2, "first_executed": steps - 1},
        "observation_steps": steps, "observation_deltas": list(range(1 - steps, 1)), "versions": {},
    }  # fmt: skip
    write_manifest(folder, manifest | changes)
    return folder


def robot_units(chunk: Any) -> Any:
    """A normalised chunk in the robot's units."""
    return (chunk + 1) / 2 * np.array([4.0, 3.0]) + np.array([6.0, -1.0])


def observation(seed: int = 0) -> dict[str, Any]:
    """What the policy sees, with LeRobot's keys."""
    generator = np.random.default_rng(seed)
    state, top = generator.normal(size=S).astype(np.float32), generator.random((3, 4, 6), dtype=np.float32)
    return {STATE: state, TOP: top, "task": "go left"}
