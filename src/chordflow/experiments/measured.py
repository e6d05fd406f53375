"""What every job that measures on a dataset puts into its results, in one place."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from chordflow.couplings import DatasetConfig, Split
from chordflow.evaluation.measure import Measures
from chordflow.evaluation.paired import MeasureConfig
from chordflow.experiments.provenance import (
    teacher_may_have_seen,
    trained_method,
    trained_step_counts,
    weights_sha256,
)
from chordflow.policies import FlowPolicy
from chordflow.results.findings import findings
from chordflow.results.schema import HeldOut, PolicyInfo, PolicyName, Results
from chordflow.results.verdict import verdict


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
        held_out=HeldOut(
            episodes=split.held_out_episodes,
            observations=measures.num_observations,
            noises=config.noises_per_observation,
            maybe_seen_by_teacher=teacher_may_have_seen(teacher_dir, dataset, split.held_out_episodes),
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
