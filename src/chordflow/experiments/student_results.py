"""Students, as saved, measured against a teacher: the results of a training job."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from chordflow.console import bar
from chordflow.couplings.memory import enough_memory_at
from chordflow.evaluation.measure import measure
from chordflow.experiments.measured import concluded, deployed_steps, policy_info, with_measures
from chordflow.experiments.plain import plain
from chordflow.experiments.provenance import device_name
from chordflow.experiments.run_folder import resumable
from chordflow.experiments.train import Job
from chordflow.policies import load_flow_policy
from chordflow.policies.sampling import Sampler
from chordflow.results.schema import (
    STUDENT,
    TEACHER,
    CouplingSummary,
    LossCurve,
    PolicyName,
    Results,
    installed_versions,
)


@dataclass(frozen=True)
class History:
    """How the students came about, as results tell it.

    Attributes:
        couplings: what the last one was trained on.
        loss: over all steps.
        training_s: seconds of training, couplings included.
        seeds: of each random part of training, by name.
    """

    couplings: CouplingSummary | None
    loss: LossCurve | None
    training_s: float | None
    seeds: dict[str, int]


def measured_students(job: Job, students: Mapping[PolicyName, Path], history: History) -> Results:
    """Measures checkpoints as stock LeRobot reloads them, never weights in memory.

    Args:
        job: whose held-out observations are measured on.
        students: their `pretrained_model` folders by name; `student` is the one in question.
        history: of the training.
    """
    config, teacher = job.config, job.teacher
    with resumable(config.output_dir):
        loaded = {
            name: load_flow_policy(
                folder, device=config.device, rename_map=config.rename_map, field="student"
            )
            for name, folder in students.items()
        }
        teacher_steps, steps = deployed_steps(config.teacher, teacher), config.num_inference_steps
        size = config.measure.batch_size
        samplers = {name: Sampler(student, steps) for name, student in loaded.items()}
        with (
            bar("measuring") as progress,
            enough_memory_at("measure.batch_size", size, "noises were measured", teacher.device),
        ):
            measures = measure(
                {TEACHER: Sampler(teacher, teacher_steps), **samplers},
                job.split.held_out,
                config.measure,
                on_progress=progress.update,
            )
    relative = {name: os.path.relpath(folder, config.output_dir) for name, folder in students.items()}
    results = Results(
        command=job.command,
        settings=plain(config),
        versions=installed_versions(),
        device=device_name(teacher.device),
        seeds={**history.seeds, "measuring": config.measure.seed},
        teacher=config.teacher.path,
        student=relative[STUDENT],
        teacher_num_steps=teacher_steps,
        couplings=history.couplings,
        loss=history.loss,
        training_s=history.training_s,
        policies=[
            policy_info(TEACHER, teacher, config.teacher.path, job.teacher_dir, teacher_steps),
            *(
                policy_info(name, student, relative[name], students[name], steps)
                for name, student in loaded.items()
            ),
        ],
    )
    split, measured_by = job.split, config.measure
    results = with_measures(
        results, measures, split, dataset=config.dataset, config=measured_by, teacher_dir=job.teacher_dir
    )
    return concluded(results)
