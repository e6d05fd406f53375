"""What every job that measures on a dataset puts into its results, in one place."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from chordflow.console import bar
from chordflow.couplings import LEAST_STEPS, DatasetConfig, Split
from chordflow.evaluation.measure import Measures
from chordflow.evaluation.paired import MeasureConfig, chosen_rows
from chordflow.experiments.config import CheckpointConfig
from chordflow.experiments.provenance import (
    teacher_may_have_seen,
    trained_method,
    trained_step_counts,
    weights_sha256,
)
from chordflow.policies import FlowPolicy
from chordflow.results.findings import findings, verdict
from chordflow.results.schema import HeldOut, PolicyInfo, PolicyName, Results


def read_beforehand(split: Split, config: MeasureConfig) -> None:
    """Reads what will be measured on, so that a broken frame stops a job before it trains or times anything.

    Args:
        split: the observations.
        config: how many of those held out are measured on.

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


def held_out(
    split: Split, observations: int, noises: int, *, dataset: DatasetConfig, teacher_dir: Path
) -> HeldOut:
    """What was measured on.

    Args:
        split: the observations.
        observations: how many of those held out.
        noises: of each.
        dataset: where they are from.
        teacher_dir: the teacher's checkpoint, which tells what it may have seen.
    """
    seen = split.whole_tasks > 0 or teacher_may_have_seen(teacher_dir, dataset, split.held_out_episodes)
    return HeldOut(split.held_out_episodes, observations, noises, seen, split.whole_tasks)


def with_measures(
    results: Results,
    measures: Measures,
    split: Split,
    *,
    dataset: DatasetConfig,
    config: MeasureConfig,
    teacher_dir: Path,
) -> Results:
    """The results with what was measured on a split's held-out observations.

    Args:
        results: of the job so far.
        measures: what was measured.
        split: the observations.
        dataset: where they are from.
        config: how much was measured.
        teacher_dir: the teacher's checkpoint, which tells what it may have seen.
    """
    return dataclasses.replace(
        results,
        held_out=held_out(
            split,
            len(measures.spreads),
            config.noises_per_observation,
            dataset=dataset,
            teacher_dir=teacher_dir,
        ),
        curvature=measures.curvature,
        gaps=measures.gaps,
        free=measures.free,
        latency=measures.latency,
        trajectories=measures.trajectories,
        trajectory_axes=measures.trajectory_axes,
        spreads=measures.spreads,
        widest=measures.widest,
    )


def concluded(results: Results) -> Results:
    """The results with what they say, in findings and in one sentence."""
    return dataclasses.replace(results, findings=findings(results), verdict=verdict(results))


def policy_info(name: PolicyName, policy: FlowPolicy, path: str, folder: Path, num_steps: int) -> PolicyInfo:
    """What results say of a policy.

    Args:
        name: as rows call it.
        policy: the loaded policy.
        path: as the user gave it.
        folder: its checkpoint.
        num_steps: Euler steps at which it is evaluated as deployed.
    """
    return PolicyInfo(
        name=name,
        path=path,
        family=policy.family,
        num_steps=num_steps,
        parameters=sum(p.numel() for p in policy.module.parameters()),
        weights_sha256=weights_sha256(folder),
        step_counts=trained_step_counts(folder),
        method=trained_method(folder),
        saved_num_steps=policy.default_num_steps,
    )


def deployed_steps(config: CheckpointConfig, teacher: FlowPolicy) -> int:
    """The teacher's steps as deployed: what the user says, or what the checkpoint is saved with.

    A teacher that is itself a student saved with a single step is measured at ten, unless the user says otherwise.
    """
    if config.num_inference_steps is not None:
        return config.num_inference_steps
    return teacher.default_num_steps if teacher.default_num_steps > 1 else LEAST_STEPS
