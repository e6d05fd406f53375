"""Int8 where it costs little: the activations of the vision tower alone, and the weights of all products.

One scale for the tokens of a language model, which are images, words and a state, destroys a trained policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
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


def quantize_tower(graph: Path, family: str, inputs: Iterable[Mapping[str, Any]]) -> None:
    """Puts products of marked nodes with weights into int8, in an ONNX file, by the ranges that `inputs` give.

    Raises:
        UserError: if nothing is marked.
    """
    from chordflow_runtime.backends import import_engine

    import_engine("onnxruntime")
    import onnx
    from onnx.utils import Extractor
    from onnxruntime.quantization import QuantType, quantize_static

    model = onnx.load(graph)
    weights = {weight.name for weight in model.graph.initializer}
    tower = [
        node
        for node in model.graph.node
        if node.name.startswith(MARK) and node.op_type == "MatMul" and node.input[1] in weights
    ]
    if not tower:
        raise UserError(
            f"policy type {family} has no vision tower that chordflow finds; choose --precision=bfloat16."
        )
    frames = list(inputs)
    # Of a whole model the quantiser would hold many copies.
    cut = Extractor(model).extract_model(list(frames[0]), [node.output[0] for node in tower])
    left = iter(frames)
    with TemporaryDirectory(dir=graph.parent) as name:
        made = Path(name) / "tower.onnx"
        onnx.save(cut, made)
        quantize_static(
            made,
            made,
            SimpleNamespace(get_next=lambda: next(left, None)),
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=[node.name for node in tower],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )
        rounded = onnx.load(made).graph
    done = {node.name for node in cut.graph.node}
    rest = [node for node in model.graph.node if node.name not in done]
    del model.graph.node[:]
    model.graph.node.extend([*rounded.node, *rest])
    used = {name for node in model.graph.node for name in node.input}
    kept = [weight for weight in model.graph.initializer if weight.name in used]
    new = [weight for weight in rounded.initializer if weight.name not in weights]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, *new])
    for old in graph.parent.glob(f"{graph.name}*"):
        old.unlink()
    onnx.save(model, graph, save_as_external_data=True, location=f"{graph.name}.data")


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
