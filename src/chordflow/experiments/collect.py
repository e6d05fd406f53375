"""The observations of a training: those of its dataset, or mixed with those of episodes that are run meanwhile.

    OUTPUT_DIR/observations/collection_000000/    see `couplings.collected`

The first episodes are the teacher's, all others the student's as it is at that step, so a collection is made when the
first block that takes observations from it is. A resumed run reads those that its checkpoint had seen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from chordflow.console import bar
from chordflow.couplings import Observations
from chordflow.couplings.collected import (
    About,
    Collection,
    MixedObservations,
    as_recorded,
    check_finite,
    frames_of,
    known_collections,
    write_collection,
)
from chordflow.errors import UserError
from chordflow.experiments.config import ReflowJobConfig
from chordflow.experiments.run_folder import OBSERVATIONS_DIR
from chordflow.policies import FlowPolicy
from chordflow.results.schema import RolloutObservations
from chordflow.results.wording import percent, plural, steps
from chordflow.rollouts.acting import Actor
from chordflow.rollouts.collecting import Observed, collect
from chordflow.rollouts.workers import Host, open_host
from chordflow.training.distributed import current

EPISODES_OF_A_SEED = 100_000
"""By how much the seeds of collecting episodes lie apart between runs whose seeds follow one another."""

SEEDS_APART = 100
"""Seeds of runs after which the episodes repeat: seeds of environments are small, and a round's have an end."""


@dataclasses.dataclass
class RunObservations:
    """What a run's buffer reads.

    Attributes:
        train: the observations.
        described: who acts where, for the user; empty for a dataset alone.
        step: optimiser steps of the student; the training updates it.
    """

    train: Observations
    step: int = 0
    described: str = ""

    def check_complete(self, blocks: int, block_size: int) -> None:
        """Makes sure that what the first `blocks` blocks were made of is still there."""

    def summary(self) -> RolloutObservations | None:
        """What was collected; None for a dataset alone."""
        return None

    def ranges(self) -> list[dict[str, Any]]:
        """The episodes that observations were collected in; see `couplings.collected.About`."""
        return []


@contextlib.contextmanager
def run_observations(
    config: ReflowJobConfig, recorded: Observations, teacher: FlowPolicy, student: FlowPolicy, start: int = 0
) -> Iterator[RunObservations]:
    """The observations that a job's settings ask for; environments stay open until the end.

    Args:
        config: of the job. Collections are written into its folder; those in it that were made before `start` are
            used again.
        recorded: the dataset's, to train on.
        teacher: who acts before the first training step.
        student: who acts afterwards, with the weights that it then has.
        start: the optimiser step that the training begins with.

    Raises:
        UserError: for a collection that cannot be read, or more than one process; while collections are made, if the
            environment or the disk fails.
    """
    if config.observations == "dataset":
        yield RunObservations(recorded, start)
        return
    if current().count > 1:
        raise UserError(
            f"observations=rollout: {current().count} processes train together, and episodes are run by one alone; "
            "start chordflow without a launcher, or leave the option out."
        )
    with contextlib.ExitStack() as stack:
        yield _Collecting(config, recorded, teacher, student, start, stack)


def collected(rollouts: RolloutObservations) -> str:
    """What a run has collected, for the user."""
    times = plural(rollouts.collections, "time")
    return (
        f"{rollouts.observations:,} observations of {rollouts.episodes:,} episodes, collected {times} in "
        f"{rollouts.seconds:.0f} s"
    )


class _Collecting(RunObservations):
    """Observations of a dataset mixed with those of episodes."""

    def __init__(
        self,
        config: ReflowJobConfig,
        recorded: Observations,
        teacher: FlowPolicy,
        student: FlowPolicy,
        start: int,
        stack: contextlib.ExitStack,
    ) -> None:
        assert config.env is not None
        self.env, self.config, self.folder = config.env, config.collect, config.output_dir / OBSERVATIONS_DIR
        # The first collection's alone: every later one begins where the one before it on disk has ended.
        self.first_seed = config.collect.seed + config.seed % SEEDS_APART * EPISODES_OF_A_SEED
        self.recorded = recorded
        self.teacher, self.teacher_steps = teacher, config.teacher.deployed_steps(teacher)
        self.student, self.student_steps = student, config.num_inference_steps
        self._stack = stack
        self._host: Host | None = None
        self.mixed = MixedObservations(
            recorded,
            self.config.share,
            self.config.num_observations,
            self.config.passes,
            self._collect,
            known_collections(self.folder, start),
        )
        super().__init__(self.mixed, start)
        self.described = (
            f"env.type={self.env.type}, {percent(self.config.share)} of the observations, "
            f"{self.config.num_observations:,} at a time: by the teacher at {steps(self.teacher_steps)} to begin with, "
            f"then by the student at {steps(self.student_steps)}"
        )

    def check_complete(self, blocks: int, block_size: int) -> None:
        """Makes sure that what the first `blocks` blocks were made of is still there."""
        needed, found = self.mixed.num_collections(blocks, block_size), len(self.mixed.collections)
        if found < needed:
            raise UserError(
                f"config_path: the checkpoint was trained with {needed} collections of observations, of which "
                f"{self.folder} holds {found}; restore them, or start a new run."
            )

    def summary(self) -> RolloutObservations:
        """What was collected."""
        about = [collection.about for collection in self.mixed.collections]
        return RolloutObservations(
            env=str(self.env.type),
            share=self.config.share,
            collections=len(about),
            observations=sum(one.observations for one in about),
            episodes=sum(one.episodes for one in about),
            seconds=sum(one.seconds for one in about),
        )

    def ranges(self) -> list[dict[str, Any]]:
        """The episodes that observations were collected in."""
        return [run for collection in self.mixed.collections for run in collection.about.ranges]

    def _collect(self, number: int) -> Collection:
        began, config, student = time.perf_counter(), self.config, self.step > 0
        policy = self.student if student else self.teacher
        num_steps = self.student_steps if student else self.teacher_steps
        if self._host is None:
            self._host = self._stack.enter_context(open_host(self.env, config.batch_size, config.num_workers))
        before = self.mixed.collections
        indices = self.teacher.observation_delta_indices
        history = len(indices) if indices is not None else None
        frames: list[dict[str, Any]] = []
        item, name = self.recorded[0], f"env.type={self.env.type}"
        with bar("episodes") as progress:
            ranges = collect(
                self._host,
                Actor(policy, self.env, num_steps),
                config.num_observations,
                first_seed=before[-1].about.next_seed if before else self.first_seed,
                batch_size=config.batch_size,
                between_share=config.between_share,
                take=lambda observed: frames.extend(
                    frames_of(*_taken(observed, item, policy, name), history)
                ),
                progress=lambda done, total: progress.update(done, total, "observations"),
            )
        about = About(
            step=self.step,
            acted_by="student" if student else "teacher",
            num_steps=num_steps,
            episodes=sum(run.stop - run.first for run in ranges),
            next_seed=ranges[-1].stop,
            seconds=time.perf_counter() - began,
            observations=config.num_observations,
            history=history,
            ranges=[dataclasses.asdict(run) for run in ranges],
        )
        return write_collection(self.folder, number, frames, self.recorded.dataset.meta.fps, about)


def _taken(
    observed: Observed, item: dict[str, Any], policy: FlowPolicy, name: str
) -> tuple[dict[str, Tensor], list[str]]:
    """From observations of episodes to those of a dataset, which are like `item`."""
    values = {key: value for key, value in observed.observation.items() if isinstance(value, Tensor)}
    found = as_recorded(values, item, policy, name)
    check_finite(found, observed.seeds, name)
    found["episode_index"] = torch.tensor(observed.seeds)
    found["frame_index"] = torch.tensor(observed.steps)
    return found, list(observed.observation["task"])
