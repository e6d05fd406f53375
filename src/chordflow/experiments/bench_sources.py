"""Where the loops of a benchmark of training get their couplings from, and what fits into memory."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chordflow.couplings import CouplingBuffer, CouplingConfig, Split
from chordflow.errors import UserError
from chordflow.experiments.bench_config import TrainingBenchConfig
from chordflow.experiments.bench_plan import Part
from chordflow.experiments.student_results import deployed_steps
from chordflow.policies import FlowPolicy
from chordflow.policies.base import PREFIX_ROLES
from chordflow.results.bench import NAIVE
from chordflow.training.memory import enough_memory, enough_memory_at
from chordflow.training.naive import NaiveCouplings
from chordflow.training.student import Student
from chordflow.training.timed import Source


@dataclass(frozen=True)
class Bed:
    """What all runs share."""

    config: TrainingBenchConfig
    teacher: FlowPolicy
    teacher_dir: Path
    split: Split

    @property
    def naive_coupling(self) -> CouplingConfig:
        """How the loop without reuse takes endpoints: as the teacher acts when deployed.

        More evaluations, which pay where an endpoint is used many times, would make that loop slower than anyone's.
        """
        return CouplingConfig("euler", deployed_steps(self.config.teacher, self.teacher), grid_power=1.0)


def check_schedules(bed: Bed) -> None:
    """Makes sure that every schedule can be trained by, before the others have been for hours.

    Raises:
        UserError: if not.
    """
    for name in bed.config.schedules:
        try:
            _buffer(bed, name)
        except UserError as error:
            raise UserError(f"schedules: {name!r} cannot be trained by: {error}") from error


@contextlib.contextmanager
def source_of(bed: Bed, part: Part, student: Student, shared: bool) -> Iterator[Source]:
    """Where the couplings of a run come from.

    Args:
        bed: what all runs share.
        part: the run.
        student: that it trains.
        shared: whether the student shares the teacher's prefix.
    """
    config = bed.config
    common: dict[str, Any] = {"seed": part.seed, "num_workers": config.num_workers}
    if part.loop != NAIVE:
        yield _buffer(bed, part.loop, student_encode=None if shared else student.policy.encode, **common)
        return
    with contextlib.closing(
        NaiveCouplings(
            bed.teacher, bed.split.train, bed.naive_coupling, batch_size=config.naive_batch_size, **common
        )
    ) as naive:
        yield naive


def _buffer(bed: Bed, name: str, *, seed: int = 0, **options: Any) -> CouplingBuffer:
    """The empty buffer of a schedule."""
    schedule = bed.config.schedules[name]
    return CouplingBuffer(
        bed.teacher,
        bed.split.train,
        bed.config.coupling,
        schedule.buffer,
        seed=seed,
        batch_size=schedule.batch_size,
        parts=schedule.gradient_accumulation_steps,
        student_context=not set(bed.teacher.default_train_roles) & set(PREFIX_ROLES),
        **options,
    )


@contextlib.contextmanager
def enough_memory_for(bed: Bed, part: Part, source: Source) -> Iterator[None]:
    """Around a run.

    Raises:
        UserError: where memory runs out, with the setting to lower and its new value.
    """

    def show(settings: Mapping[str, int]) -> str:
        schedule: dict[str, Any] = {}
        for name, value in settings.items():
            group, _, inner = name.rpartition(".")
            (schedule.setdefault(group, {}) if group else schedule)[inner] = value
        return f"the schedule {part.loop!r} these settings: {json.dumps(schedule)}"

    size, doing = bed.config.naive_batch_size, "couplings were made or trained on"
    with (
        enough_memory(source, show)
        if isinstance(source, CouplingBuffer)
        else enough_memory_at("naive_batch_size", size, doing, bed.teacher.device)
    ):
        yield
