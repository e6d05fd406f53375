"""A checkpoint as a folder that a robot runs without PyTorch, proven equal to it before it appears."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lerobot.utils.constants import OBS_PREFIX
from torch import Tensor

from chordflow.checks import check_fields
from chordflow.console import doing, say
from chordflow.couplings import TOLERANCE_S, DatasetConfig, Observations, open_split
from chordflow.deploy.graphs import NOISE, to_openvino, write_graphs
from chordflow.deploy.int8 import prepared
from chordflow.deploy.parity import Difference, check_stock, endpoints, noises, receipt
from chordflow.deploy.preparation import (
    PROMPT,
    TOKENIZER,
    check_steps,
    example,
    preparation,
    random_observations,
    write_tokenizer,
)
from chordflow.disk import whole_folder, write_json
from chordflow.errors import UserError, named
from chordflow.evaluation.gap import check_same_units
from chordflow.experiments.config import CheckpointConfig, SourceConfig
from chordflow.experiments.evaluate import check_comparable
from chordflow.experiments.provenance import file_sha256, weights_sha256
from chordflow.experiments.run_folder import REFLOW_CONFIG, refuse_existing
from chordflow.experiments.share import HubConfig
from chordflow.flow.seeds import generator
from chordflow.flow.solvers import SolverName, require_grid_power, time_grid
from chordflow.policies import FlowPolicy, load_flow_policy, resolve_checkpoint
from chordflow.policies.exported import FORMAT, MANIFEST, ExportedPolicy
from chordflow.policies.sampling import Sampler
from chordflow.results.schema import installed_versions
from chordflow.results.wording import plural, steps

VERSION = 1
OBSERVATIONS = 32
"""How many the exported folder is compared with its checkpoint on."""

PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
"""What each backend needs; the extra `export` brings all."""


class Backend(StrEnum):
    """What runs the graph on the robot."""

    ONNX = "onnx"
    OPENVINO = "openvino"


class Precision(StrEnum):
    """What the graph computes in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"


class Graphs(StrEnum):
    """Whether encoding and steps are one graph or two."""

    ONE = "one"
    TWO = "two"


@dataclass
class ExportedPolicyConfig(HubConfig, SourceConfig):
    """The checkpoint to export, and where on the Hub the exported folder goes."""


@dataclass
class ExportConfig:
    """Export a policy to a folder that a robot runs without PyTorch, proven equal to the checkpoint.

    Attributes:
        policy: the checkpoint to export, and where on the Hub the folder goes.
        output_dir: new folder.
        num_steps: solver steps from noise to action; by default what the checkpoint is saved with.
        solver: of the ODE; euler is what LeRobot runs.
        grid_power: how the steps are graded; 1 is LeRobot's even grid, above 1 they are smaller near the action.
        graphs: one, or two for encoding and step apart, so that the number of steps can be chosen on the robot.
        backend: what runs the folder; onnx is ONNX Runtime, on any machine, and openvino is faster on x86 CPUs.
        precision: what it computes in; bfloat16 is faster on a processor that has it, and asks for openvino, as does
            int8 (the vision tower and all weights), which is faster again and measures its ranges on the dataset.
        max_gap: largest gap of a lower precision to the checkpoint in float32, in percent of the actions' spread.
        teacher: of a student, whose own gap to it is then printed too.
        dataset: LeRobot dataset on whose held-out observations folder and checkpoint are compared; by default random
            observations, but for int8.
        tolerance_s: seconds by which a video's frame may miss its timestamp, as in LeRobot.
        rename_map: observation keys of the robot to keys of the policy, as JSON; replaces the checkpoint's own.
    """

    policy: ExportedPolicyConfig
    output_dir: Path
    num_steps: int | None = None
    solver: SolverName = "euler"
    grid_power: float = 1.0
    graphs: Graphs = Graphs.ONE
    backend: Backend = Backend.ONNX
    precision: Precision = Precision.FLOAT32
    max_gap: float = 2.0
    teacher: CheckpointConfig | None = None
    dataset: DatasetConfig | None = None
    tolerance_s: float = TOLERANCE_S
    rename_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, "", "num_steps", at_least=1)
        check_fields(self, "", "max_gap", above=0)
        if self.teacher is not None:
            self.teacher.check("teacher")
        require_grid_power(self.grid_power)
        if self.graphs == Graphs.TWO and self.solver != "euler":
            raise UserError(
                f"solver={self.solver}: with graphs=two the robot takes Euler steps; choose euler, or graphs=one."
            )
        if self.precision != Precision.FLOAT32 and self.backend == Backend.ONNX:
            bfloat16 = "ONNX Runtime has no kernels for it on a CPU"
            why = bfloat16 if self.precision == Precision.BFLOAT16 else "it is made for OpenVINO alone"
            raise UserError(f"precision={self.precision}: {why}; add --backend=openvino.")
        if self.precision == Precision.INT8 and self.dataset is None:
            raise UserError(
                "precision=int8: its ranges are measured on the pictures of a dataset; add --dataset.repo_id=..."
            )


def export(config: ExportConfig) -> dict[str, Any]:
    """Writes the folder; gives its manifest.

    Raises:
        UserError: for a policy that cannot be exported, or whose exported form acts in another way. Nothing is left.
    """
    if missing := [name for name in PACKAGES[config.backend] if find_spec(name) is None]:
        raise UserError(f'{", ".join(missing)} not installed; install with: pip install "chordflow[export]"')
    from chordflow_runtime import RunnerError
    from chordflow_runtime.backends import require_bfloat16
    from chordflow_runtime.manifest import content_sha256

    refuse_existing(config.output_dir, "")
    if config.precision == Precision.BFLOAT16:
        with named(f"precision={config.precision}", RunnerError):
            require_bfloat16()
    if config.teacher is not None:
        resolve_checkpoint(config.teacher.path, config.teacher.revision, "teacher.path")
    where = f"policy.path={config.policy.path}"
    checkpoint = resolve_checkpoint(config.policy.path, config.policy.revision, "policy.path")
    policy = load_flow_policy(checkpoint, device="cpu", rename_map=config.rename_map, field="policy.path")
    policy.module.requires_grad_(False)
    with named(where):
        if obstacle := policy.graph_obstacle:
            raise UserError(
                f"policy type {policy.family} cannot be exported: {obstacle}; run the checkpoint in LeRobot."
            )
        check_steps(policy)
    sampler = Sampler(policy, config.num_steps or policy.default_num_steps, config.solver, config.grid_power)
    items, measured, parts, of = _observations(config, policy)
    say(f"Policy: {config.policy.path} ({policy.family}), {steps(sampler.num_steps)} by {config.solver}")
    say(f"Compared on {plural(len(items), 'observation')} ({of})")
    noise = noises(policy, len(items))
    as_saved = None
    if any(
        value.is_floating_point() and value.dtype != torch.float32 for value in policy.module.parameters()
    ):
        as_saved = endpoints(sampler, items, noise)
        policy.module.float()
    with doing("Comparing with LeRobot's own class"), named(where):
        stock = check_stock(policy, items, sampler.num_steps)
    reference = endpoints(sampler, items, noise)
    taught = {}
    if config.teacher is not None:
        taught["teacher"] = _gap_to(config.teacher, policy, where, items, noise, reference)
    manifest = _manifest(config, sampler, parts, checkpoint)
    int8 = config.precision == Precision.INT8
    with named(where, RunnerError), whole_folder(config.output_dir) as folder:
        with doing("Tracing the policy"):
            two = config.graphs == Graphs.TWO
            free = {one["name"]: 1 for one in parts["inputs"] if PROMPT in one["shape"]}
            free |= {NOISE: 0} if manifest["noise"]["shape"][0] != 1 else {}
            graphs = write_graphs(sampler, example(parts), folder, two=two, int8=int8, free=free)
            manifest["graphs"] = graphs
            write_tokenizer(policy, folder)
            if config.backend == Backend.OPENVINO:
                frames = prepared(manifest | {"files": [TOKENIZER]}, folder, measured) if int8 else None
                manifest["graphs"] = to_openvino(graphs, folder, policy.family, frames)
            if (checkpoint / REFLOW_CONFIG).is_file():
                shutil.copyfile(checkpoint / REFLOW_CONFIG, folder / REFLOW_CONFIG)
        manifest["files"] = {file.name: file_sha256(file) for file in sorted(folder.iterdir())}
        write_json(folder / MANIFEST, manifest | {"sha256": content_sha256(manifest)})
        exported = ExportedPolicy(folder, {}, None, "output_dir")
        bound = None if config.precision == Precision.FLOAT32 else config.max_gap
        found = receipt(policy, exported, items, noise, reference, bound)
        manifest["parity"] = {"of": of, **found, "stock": asdict(stock), **taught}
        if as_saved is not None:
            far = Difference.of(as_saved, reference)
            manifest["parity"]["as_saved"] = asdict(far)
            say(
                f"As saved, not in float32, the checkpoint itself differs by {far.gap_percent:.1g} % of the spread"
            )
        manifest["sha256"] = content_sha256(manifest)
        write_json(folder / MANIFEST, manifest)
    return manifest


def _gap_to(
    config: CheckpointConfig,
    student: FlowPolicy,
    where: str,
    items: Sequence[dict[str, Any]],
    noise: Sequence[Tensor],
    reference: Sequence[Tensor],
) -> dict[str, Any]:
    """How far a student's endpoints (K, H, A) of every observation lie from its teacher's, as deployed."""
    teacher = load_flow_policy(
        resolve_checkpoint(config.path, config.revision, "teacher.path"),
        device="cpu",
        rename_map=student.rename_map,
        field="teacher.path",
    )
    check_comparable(teacher, student, where)
    check_same_units(teacher, student, where)
    if teacher.config.input_features != student.config.input_features:
        raise UserError(
            f"{where} sees other input_features than teacher.path={config.path}; give its own teacher."
        )
    teacher.module.float()
    num_steps = config.deployed_steps(teacher)
    ends = endpoints(Sampler(teacher, num_steps), items, noise)
    gap = Difference.of(reference, ends).gap_percent
    return {"path": config.path, "num_steps": num_steps, "gap_percent": gap}


def _observations(
    config: ExportConfig, policy: FlowPolicy
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any], str]:
    """What folder and checkpoint are compared on, what int8 is measured on, the graph's inputs; the first's name."""
    # In OpenVINO a free length would take half as long again in the demo's student.
    free = config.backend == Backend.ONNX
    if config.dataset is None:
        features = policy.config.input_features
        shown = [key for key in policy.image_keys if key in policy.statistics] or policy.image_keys
        shapes = {key: _channels_first(features[key].shape) for key in shown}
        parts = preparation(policy, shapes, free_prompt=free)
        return random_observations(policy, parts, OBSERVATIONS), [], parts, "random"
    split = open_split(config.dataset, policy, tolerance_s=config.tolerance_s)
    items = _some(split.held_out, policy)
    measured = _some(split.train, policy) if config.precision == Precision.INT8 else []
    known = policy.config.image_features
    shapes = {
        own: tuple(items[0][key].shape[-3:]) for key in items[0] if (own := policy.own_name(key)) in known
    }
    ordered = {key: shapes[key] for key in known if key in shapes}
    of = f"held-out episodes of {config.dataset.repo_id}"
    return items, measured, preparation(policy, ordered, free_prompt=free), of


def _some(observations: Observations, policy: FlowPolicy) -> list[dict[str, Any]]:
    """Some of a dataset, always the same, as a robot gives them."""
    count = len(observations)
    order = torch.randperm(count, generator=generator(0, "export")).tolist()
    # A short dataset shows its frames again, with other noises.
    items = [observations[order[i % count]] for i in range(OBSERVATIONS)]
    if len(policy.observation_delta_indices or []) == 1:
        # Data bring an axis of steps where a policy asks for this one by name; a robot does not.
        items = [{k: v[-1] if k.startswith(OBS_PREFIX) else v for k, v in item.items()} for item in items]
    return items


def _channels_first(shape: Sequence[int]) -> tuple[int, ...]:
    """A camera's shape as data bring it, in whatever order the config lists it."""
    height_first = shape[-1] <= 4 < shape[0]
    return (shape[-1], *shape[:-1]) if height_first else tuple(shape)


def _manifest(
    config: ExportConfig, sampler: Sampler, parts: dict[str, Any], checkpoint: Path
) -> dict[str, Any]:
    """All of the manifest that is known before the graphs are."""
    chunk = sampler.policy.chunk
    # OpenVINO computes what depends on a free number of noises less exactly, such as the embedding of times.
    free = config.graphs == Graphs.ONE and config.backend == Backend.ONNX
    draws = "draws" if free else 1
    packages = (*PACKAGES[config.backend], "numpy", "tokenizers")
    return {
        "format": FORMAT,
        "version": VERSION,
        "family": sampler.policy.family,
        "graphs": {},
        "num_steps": sampler.num_steps,
        "solver": sampler.solver,
        "grid_power": sampler.grid_power,
        "times": time_grid(sampler.num_steps, sampler.grid_power) if config.graphs == Graphs.TWO else [],
        "backend": config.backend,
        "precision": config.precision,
        "noise": {"input": NOISE, "shape": [draws, *chunk.shape], "law": "standard_normal"},
        "output": {
            "name": "actions",
            "shape": [draws, chunk.horizon, chunk.action_dim],
            "unit": "normalised",
        },
        **parts,
        "chunk": {
            "horizon": chunk.horizon,
            "padded_dim": chunk.padded_dim,
            "action_dim": chunk.action_dim,
            "num_executed": chunk.num_executed,
            "first_executed": chunk.first_executed,
            "usable": chunk.num_usable,
        },
        "checkpoint": {
            "path": config.policy.path,
            "sha256": weights_sha256(checkpoint),
            "parameters": sum(value.numel() for value in sampler.policy.module.parameters()),
        },
        "files": {},
        "versions": {**installed_versions(), **{name: version(name) for name in packages}},
    }
