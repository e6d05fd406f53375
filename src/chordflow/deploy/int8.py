"""Int8 where it costs little: the activations of the vision tower alone, and the weights of all products.

One scale for the tokens of a language model, which are images, words and a state, destroys a trained policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from chordflow.errors import UserError

TOWER = ".vision_"
"""How LeRobot and transformers begin the name of an image encoder; the projector behind it is called otherwise."""

MARK = "vision_tower/"
"""How the names of the tower's nodes begin in a marked graph."""


def mark_tower(model: Any) -> None:
    """Marks the nodes of a traced `onnx_ir.Model` that come from the vision tower's modules.

    `Transpose(weight)` becomes a weight: a quantiser takes nothing else for one, and leaves its product as it is.
    """
    from onnxscript.optimizer import optimize

    for node in model.graph.all_nodes():
        if TOWER in node.metadata_props.get("pkg.torch.onnx.name_scopes", ""):
            node.name = f"{MARK}{node.name}"
    optimize(model, input_size_limit=1 << 40, output_size_limit=1 << 40)


def prepared(
    manifest: dict[str, Any], folder: Path, items: Sequence[Mapping[str, Any]]
) -> Iterable[dict[str, Any]]:
    """The inputs of the graph that encodes, as the runner makes them of observations."""
    from chordflow_runtime.observation import Observer

    observer = Observer(manifest, folder)
    for item in items:
        raw = {key: value.numpy() if isinstance(value, Tensor) else value for key, value in item.items()}
        yield observer.feed(observer.steps(raw), raw)


def quantize_tower(model: Any, family: str, inputs: Iterable[Mapping[str, Any]]) -> None:
    """Rounds what marked products of an OpenVINO model multiply weights with, in the ranges that `inputs` give.

    Raises:
        UserError: if nothing is marked.
    """
    from openvino import Model, opset13

    from chordflow_runtime.backends import has_bfloat16, openvino_core

    uses: dict[tuple[str, int], list[Any]] = {}
    for node in model.get_ordered_ops():
        weight = node.get_type_name() == "MatMul" and node.input_value(1).get_node()
        if weight and weight.get_type_name() == "Constant" and node.get_friendly_name().startswith(MARK):
            source = node.input_value(0)
            uses.setdefault((source.get_node().get_name(), source.get_index()), []).append(node.input(0))
    if not uses:
        raise UserError(
            f"policy type {family} has no vision tower that chordflow finds; choose --precision=bfloat16."
        )
    sources = [of_one[0].get_source_output() for of_one in uses.values()]
    probe = Model([opset13.result(source) for source in sources], model.get_parameters())
    precision = "bf16" if has_bfloat16() else "f32"
    compiled = openvino_core().compile_model(probe, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    low, high = np.zeros((2, len(sources)), dtype=np.float32)
    for one in inputs:
        seen = compiled(dict(one)).to_tuple()
        low = np.minimum(low, [values.min() for values in seen])
        high = np.maximum(high, [values.max() for values in seen])
    del compiled, probe
    step = np.maximum(high - low, 1e-12) / 255
    # Zero stays zero.
    low = -step * np.round(-low / step)
    for source, of_one, ends in zip(
        sources, uses.values(), zip(low, low + 255 * step, strict=True), strict=True
    ):
        bounds = [opset13.constant(np.float32(end)) for end in (*ends, *ends)]
        rounded = opset13.fake_quantize(source, *bounds, levels=256)
        for use in of_one:
            use.replace_source_output(rounded.output(0))


def compress_weights(model: Any) -> None:
    """Makes float matrices of an OpenVINO model int8, with a scale for each output: of products, and of look-ups."""
    from openvino import opset13

    for constant in model.get_ops():
        if constant.get_type_name() != "Constant" or constant.get_output_element_type(0).to_string() != "f32":
            continue
        axes = {_summed(use) for use in constant.output(0).get_target_inputs()}
        if len(constant.get_output_shape(0)) != 2 or len(axes) != 1 or (axis := axes.pop()) is None:
            continue
        weight = constant.get_data()
        scale = np.maximum(np.abs(weight).max(axis, keepdims=True), 1e-12) / 127
        whole = opset13.constant(np.round(weight / scale).astype(np.int8))
        again = opset13.multiply(opset13.convert(whole, "f32"), opset13.constant(scale))
        constant.output(0).replace(again.output(0))


def _summed(use: Any) -> int | None:
    """The axis of a matrix that what uses it sums over, or gives whole; None where that is neither."""
    node, place = use.get_node(), use.get_index()
    if node.get_type_name() == "MatMul" and place == 1:
        return int(node.get_attributes()["transpose_b"])
    return 1 if node.get_type_name() == "Gather" and place == 0 else None
