"""The policies that are measured on a dataset, and the results of a job."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from chordflow.console import bar
from chordflow.couplings import Split
from chordflow.couplings.memory import enough_memory_at
from chordflow.evaluation.measure import measure
from chordflow.evaluation.paired import MeasureConfig, chosen_rows
from chordflow.experiments.config import CheckpointConfig
from chordflow.experiments.provenance import (
    device_name,
    load_frozen,
    processors_sha256,
    teacher_may_have_seen,
    trained_method,
    trained_step_counts,
    weights_sha256,
)
from chordflow.experiments.run_folder import resumable
from chordflow.experiments.train import Job
from chordflow.options import plain
from chordflow.policies import FlowPolicy, resolve_checkpoint
from chordflow.policies.exported import ExportedPolicy, manifest_of
from chordflow.policies.sampling import Sampler
from chordflow.results.findings import findings, verdict
from chordflow.results.schema import (
    STUDENT,
    TEACHER,
    CouplingSummary,
    ExportedInfo,
    HeldOut,
    LossCurve,
    PolicyInfo,
    PolicyName,
    Results,
    installed_versions,
)


@dataclass(frozen=True)
class Entrant:
    """A loaded policy under the name that rows give it.

    Attributes:
        folder: its checkpoint, or the exported folder, which holds the checkpoint's record.
        path: as the user gave it.
        num_steps: steps at which it is evaluated as deployed, by Euler but for an exported folder.
        field: the option that it came from.
    """

    name: PolicyName
    policy: FlowPolicy
    folder: Path
    path: str
    num_steps: int
    field: str = "teacher.path"

    @property
    def exported(self) -> ExportedPolicy | None:
        """The policy, where it is an exported folder."""
        return self.policy if isinstance(self.policy, ExportedPolicy) else None

    @property
    def info(self) -> PolicyInfo:
        """The policy as results name it."""
        made_of, exported = {}, None
        if self.exported is not None:
            own = self.exported.manifest
            made_of, backend = own["checkpoint"], own.get("backend", "onnx")
            exported = ExportedInfo(
                made_of["path"], own["solver"], own["grid_power"], own["precision"], backend
            )
        return PolicyInfo(
            name=self.name,
            path=self.path,
            family=self.policy.family,
            num_steps=self.num_steps,
            parameters=made_of.get("parameters") or sum(p.numel() for p in self.policy.module.parameters()),
            weights_sha256=made_of.get("sha256") or weights_sha256(self.folder),
            step_counts=trained_step_counts(self.folder),
            method=trained_method(self.folder),
            saved_num_steps=self.policy.default_num_steps,
            graph_obstacle=self.policy.graph_obstacle,
            exported=exported,
            processors_sha256=processors_sha256(self.folder),
        )


def load_entrant(name: PolicyName, checkpoint: CheckpointConfig, config: Any, field: str) -> Entrant:
    """Loads a policy, which is not trained, as a job's `device` and `rename_map` say.

    Raises:
        UserError: if it cannot be loaded; `field` is the option that it came from.
    """
    if name != TEACHER and manifest_of(checkpoint.path):
        own = ExportedPolicy(checkpoint.path, config.rename_map, checkpoint.num_inference_steps, field)
        return Entrant(name, own, Path(checkpoint.path), checkpoint.path, own.default_num_steps, field)
    folder = resolve_checkpoint(checkpoint.path, checkpoint.revision, field)
    policy = load_frozen(folder, config.device, config.rename_map, field)
    steps = checkpoint.num_inference_steps or policy.default_num_steps
    return Entrant(name, policy, folder, checkpoint.path, steps, field)


def read_beforehand(split: Split, config: MeasureConfig) -> None:
    """Reads what will be measured on, so that a broken frame stops a job before it trains or times anything.

    Raises:
        UserError: for a frame that cannot be read.
    """
    # The first one is what speed is measured on.
    rows = sorted({0, *chosen_rows(split.held_out, config)})
    done = 0
    with bar("held-out frames") as progress:
        for items in split.held_out.batches(rows, min(config.batch_size, 64)):
            done += len(items["task"])
            progress.update(done, len(rows))


def held_out(split: Split, observations: int, noises: int, teacher_dir: Path) -> HeldOut:
    """What was measured on: so many held-out observations and noises of each, and whether the teacher saw them."""
    seen = split.whole_tasks > 0 or teacher_may_have_seen(teacher_dir, split.dataset, split.held_out_episodes)
    return HeldOut(split.held_out_episodes, observations, noises, seen, split.whole_tasks)


def unmeasured(
    kind: Literal["reflow", "diagnose", "evaluate"],
    config: Any,
    command: list[str],
    entrants: Mapping[PolicyName, Entrant],
    seeds: dict[str, int],
) -> Results:
    """Results of a job in which nothing is measured yet; `seeds` are of random parts other than measuring."""
    teacher, student = entrants[TEACHER], entrants.get(STUDENT)
    return Results(
        kind=kind,
        command=command,
        settings=plain(config),
        versions=installed_versions(),
        device=device_name(teacher.policy.device),
        seeds={**seeds, "measuring": config.measure.seed},
        teacher=teacher.path,
        student=student.path if student is not None else None,
        teacher_num_steps=teacher.num_steps,
        policies=[entrant.info for entrant in entrants.values()],
    )


def measured(
    results: Results, entrants: Mapping[PolicyName, Entrant], split: Split, config: MeasureConfig
) -> Results:
    """The results with what is measured on a split's held-out observations, findings included.

    Raises:
        UserError: for observations that cannot be read, or actions that are not finite.
    """
    teacher, size = entrants[TEACHER], config.batch_size
    samplers = {
        name: Sampler(entrant.policy, entrant.num_steps, entrant.policy.solver, entrant.policy.grid_power)
        for name, entrant in entrants.items()
    }
    with (
        bar("measuring") as progress,
        enough_memory_at("measure.batch_size", size, "noises were measured", teacher.policy.device),
    ):
        found = measure(samplers, split.held_out, config, on_progress=progress.update)
    noises = config.noises_per_observation
    results = replace(
        results, held_out=held_out(split, len(found.spreads), noises, teacher.folder), **vars(found)
    )
    return with_findings(results)


def with_findings(results: Results) -> Results:
    """The results with their findings and their verdict."""
    return replace(results, findings=findings(results), verdict=verdict(results))


def measured_students(
    job: Job,
    students: Mapping[PolicyName, Path],
    *,
    seeds: dict[str, int],
    couplings: CouplingSummary | None,
    loss: LossCurve | None,
    training_s: float | None,
) -> Results:
    """Measures checkpoints as stock LeRobot reloads them, never weights in memory.

    Args:
        job: whose held-out observations are measured on.
        students: their `pretrained_model` folders by name; `student` is the one in question.
        seeds: of each random part of training, by name.
        couplings: what the student was trained on.
        loss: over all steps.
        training_s: seconds of training, couplings included.
    """
    config = job.config
    steps = config.teacher.deployed_steps(job.teacher)
    entrants = {TEACHER: Entrant(TEACHER, job.teacher, job.teacher_dir, config.teacher.path, steps)}
    with resumable(config.output_dir):
        for name, folder in students.items():
            policy = load_frozen(folder, config.device, config.rename_map, STUDENT)
            path = os.path.relpath(folder, config.output_dir)
            entrants[name] = Entrant(name, policy, folder, path, config.num_inference_steps)
        results = unmeasured("reflow", config, job.command, entrants, seeds)
        results = replace(results, couplings=couplings, loss=loss, training_s=training_s)
        results = measured(results, entrants, job.split, config.measure)
        if job.log is not None:
            job.log.measured(results)
        return results
