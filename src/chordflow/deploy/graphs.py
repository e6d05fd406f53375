"""A policy as graphs of ONNX or OpenVINO: the adapter's `encode` and `velocity`, traced as they are.

Shapes: K noises of one observation, H chunk size, D padded action dimension, A real action dimension.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from chordflow.deploy.int8 import compress_weights, mark_tower, quantize_tower
from chordflow.errors import UserError, machine_refuses, ran_out_of_memory, reason
from chordflow.policies import Context, FlowPolicy
from chordflow.policies.sampling import Sampler
from chordflow.quiet import quiet_stdout

POLICY, ENCODE, STEP = "policy.onnx", "encode.onnx", "step.onnx"
"""Names of the graphs in a folder."""

NOISE = "noise"
"""The name of a whole graph's first input."""

CONTEXT = "context."
"""How the names of the context's tensors begin, between two graphs."""

LARGEST_FILE = 200_000_000
"""Bytes of weights that go into the graph's own file, whole copies of which are made on the way; more lie beside it."""


class _Encode(nn.Module):
    """From prepared observations to the context's tensors."""

    def __init__(self, policy: FlowPolicy, keys: Sequence[str]) -> None:
        super().__init__()
        self.policy = policy
        self.module = policy.module
        self.keys = keys

    def context(self, observation: Sequence[Tensor]) -> Context:
        """What the adapter makes of an observation, whose values follow `keys`."""
        return self.policy.encode(dict(zip(self.keys, observation, strict=True)))

    def forward(self, *observation: Tensor) -> tuple[Tensor, ...]:
        """The tensors of the context."""
        # A copy of its own for each: an input that is passed on is no output of a graph.
        return tuple(tensor.clone() for tensor in self.context(observation).tensors())


class _Step(nn.Module):
    """The velocity for the context's tensors."""

    def __init__(self, policy: FlowPolicy, kind: type[Context]) -> None:
        super().__init__()
        self.policy = policy
        self.module = policy.module
        self.kind = kind

    def forward(self, x_t: Tensor, t: Tensor, *context: Tensor) -> Tensor:
        """The velocity (1, H, D) at `x_t` (1, H, D) and `t` (1,)."""
        return self.policy.velocity(x_t, t, self.kind(*context))


class _Whole(nn.Module):
    """From noise and a prepared observation to the endpoint, all steps in one."""

    def __init__(self, sampler: Sampler, keys: Sequence[str]) -> None:
        super().__init__()
        self.policy = sampler.policy
        self.encode = _Encode(sampler.policy, keys)
        self.sampler = sampler

    def forward(self, noise: Tensor, *observation: Tensor) -> Tensor:
        """The real dimensions of the endpoints, (K, H, A), of noise (K, H, D) and one observation."""
        # `len` would fix the number in the graph.
        draws = noise.shape[0]
        context = self.encode.context(observation).map(lambda one: one.expand(draws, *one.shape[1:]))
        return self.sampler(context, noise)[..., : self.policy.chunk.action_dim]


@torch.no_grad()
def write_graphs(
    sampler: Sampler,
    inputs: Mapping[str, Tensor],
    folder: Path,
    *,
    two: bool,
    int8: bool = False,
    free: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, str]:
    """Traces a policy on inputs by name, and writes its graphs; says what they are called, as the manifest does.

    Args:
        sampler: of the policy.
        inputs: what it is traced on.
        folder: where the graphs go.
        two: whether encoding and step are apart.
        int8: marks the graphs as `quantize_tower` reads them.
        free: by input, the axis that may have any size: the first of noise, the second of what is as long as the
            prompt, the same from 2 on in all of these.

    Raises:
        UserError: if the family's code cannot be traced.
    """
    keys, values = list(inputs), tuple(inputs.values())
    if not two:
        whole = _Whole(sampler, keys)
        # The tracer takes an axis of one for fixed.
        noise = torch.randn(2 if NOISE in free else 1, *sampler.policy.chunk.shape)
        _write(whole, (noise, *values), [NOISE, *keys], ["actions"], folder / POLICY, int8, free)
        return {"kind": "one", "policy": POLICY}
    encode = _Encode(sampler.policy, keys)
    context = encode.context(values)
    names = [CONTEXT + name for name in context.names()]
    _write(encode, values, keys, names, folder / ENCODE, int8, free)
    step = _Step(sampler.policy, type(context))
    given = (torch.randn(1, *sampler.policy.chunk.shape), torch.ones(1), *context.tensors())
    # With the prompt varies whatever is as long as the prefix.
    prefix = {CONTEXT + name: axis for name, axis in type(context).growing.items() if free}
    _write(step, given, ["x_t", "t", *names], ["velocity"], folder / STEP, int8, prefix)
    return {"kind": "two", "encode": ENCODE, "step": STEP}


def to_openvino(
    graphs: Mapping[str, str],
    folder: Path,
    family: str = "",
    frames: Iterable[Mapping[str, Any]] | None = None,
) -> dict[str, str]:
    """Replaces ONNX graphs, named as `write_graphs` does, with OpenVINO's: an XML file and its weights each.

    Args:
        graphs: of which family, and by which names.
        folder: where they are.
        family: for messages.
        frames: inputs of the graph that encodes, for int8: they give the ranges of the vision tower.

    Raises:
        UserError: if OpenVINO cannot read one, int8 finds no vision tower, or the disk is full.
    """
    from chordflow_runtime.backends import import_engine, openvino_core

    openvino = import_engine("openvino")
    made = dict(graphs)
    for name, file in graphs.items():
        if name == "kind":
            continue
        made[name] = str(Path(file).with_suffix(".xml"))
        try:
            # `convert_model` would write this machine's paths into the graph.
            model = openvino_core().read_model(folder / file)
        except RuntimeError as error:
            raise UserError(
                f"OpenVINO cannot read its graph ({reason(error)}); export with --backend=onnx."
            ) from error
        for node in model.get_ops():
            if node.get_type_name() == "Interpolate":
                _keep_antialias(node)
        if frames is not None:
            if name != "step":
                quantize_tower(model, family, frames)
            compress_weights(model)
        try:
            openvino.serialize(model, folder / made[name])
        except RuntimeError as error:
            raise UserError(
                f"OpenVINO cannot write its graph ({reason(error)}); make room on the disk."
            ) from error
        del model
        for old in folder.glob(f"{file}*"):
            old.unlink()
    return made


def _keep_antialias(node: Any) -> None:
    """OpenVINO reads ONNX's resizing in a mode that ignores `antialias`; Pillow's is the same as torch's."""
    known = node.get_attributes()
    if known["antialias"] and known["mode"] == "linear_onnx":
        node.set_attribute("mode", "bilinear_pillow")


def _write(
    module: nn.Module,
    values: tuple[Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    path: Path,
    int8: bool,
    free: Mapping[str, int],
) -> None:
    module.eval()
    shapes: Any = torch.export.ShapesCollection()
    for name, value in zip(inputs, values, strict=True):
        if name in free:
            shapes[value] = {free[name]: torch.export.Dim.DYNAMIC}
    try:
        # What the tracer says to those who write networks.
        with quiet_stdout(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, values, strict=False, dynamic_shapes=shapes)
            graph: Any = torch.onnx.export(
                program, (), dynamo=True, verbose=False, input_names=inputs, output_names=outputs
            )
    except Exception as error:
        if machine_refuses(error) or ran_out_of_memory(error):
            raise
        raise UserError(
            f"it cannot be made an ONNX graph with torch {torch.__version__} ({reason(error)}); run the checkpoint in "
            "LeRobot."
        ) from error
    if int8:
        mark_tower(graph.model)
    for node in graph.model.graph.all_nodes():
        # Traces of the exporting machine's stack, with its paths.
        node.metadata_props.clear()
    weights = [value.const_value for value in graph.model.graph.initializers.values()]
    size = sum(tensor.nbytes for tensor in weights if tensor is not None)
    graph.save(path, external_data=size > LARGEST_FILE)
