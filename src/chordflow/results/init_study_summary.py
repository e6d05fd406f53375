"""What a study of beginnings says: gaps over seeds, steps to a level, and what is told of them beside it."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Literal

from chordflow.results.compare_summary import Spread, counted, middle_seed, spread_of
from chordflow.results.init_study import Arm, Checkpoint, InitRun, InitStudy
from chordflow.results.schema import SuccessRow
from chordflow.results.wording import percent, plural

TOLD_GAPS = {"teacher": (0.02, 0.05), "pretrained_vlm": (0.10, 0.15), "random": (0.30, 0.50)}
"""What is told in robotics of a student's distance to its teacher's actions, by `student.init`."""

TOLD_LOSSES = {
    "teacher": "0.04, 0.02, 0.01 and 0.008 after 0, 1,000, 5,000 and 20,000 steps",
    "random": "0.15, then 0.12, then 0.08",
}
"""Likewise of the training loss."""


@dataclass(frozen=True)
class Reached:
    """After how many steps the runs of an arm fell under the level.

    Attributes:
        steps: the first checkpoint under it, of each run that has one, rising.
        runs: measured runs.
    """

    steps: list[int]
    runs: int

    @property
    def text(self) -> str:
        """In a few words: `500-1,000`, or `1,000 (2 of 3)` where not all did; `never`."""
        if not self.steps:
            return "never"
        low, high = self.steps[0], self.steps[-1]
        steps = f"{low:,}" if low == high else f"{low:,}-{high:,}"
        return steps if len(self.steps) == self.runs else f"{steps} ({len(self.steps)} of {self.runs})"


def told_gap(init: str) -> str:
    """What is told of an arm's gap, in percent without the sign; empty where nothing is."""
    return "-".join(f"{100 * end:g}" for end in TOLD_GAPS[init]) if init in TOLD_GAPS else ""


def level(study: InitStudy) -> str:
    """The level in percent, as it was given."""
    return f"{100 * study.level:g} %"


def looked_at(study: InitStudy, arm: Arm, step: int) -> list[Checkpoint]:
    """The measured checkpoints of an arm after so many steps, one for each seed."""
    return [
        checkpoint
        for run in study.runs_of(arm.name)
        for checkpoint in run.checkpoints
        if checkpoint.step == step and checkpoint.figures is not None
    ]


def gap(study: InitStudy, arm: Arm, step: int, num_steps: int = 1) -> Spread | None:
    """The RMS gap to the teacher's converged ODE over seeds; None where none is measured."""
    return spread_of(checkpoint.rms(num_steps) for checkpoint in looked_at(study, arm, step))


def success(study: InitStudy, arm: Arm, step: int) -> SuccessRow | None:
    """Success at one step, of several seeds that of `middle_seed`; None where no episodes were run."""
    return middle_seed([c.success[0] for c in looked_at(study, arm, step) if c.success])


def rates(study: InitStudy, arm: Arm, step: int) -> Spread | None:
    """Share of episodes solved at one step, over seeds."""
    return spread_of(c.success[0].rate if c.success else None for c in looked_at(study, arm, step))


def loss_at(run: InitRun, step: int) -> float | None:
    """The training loss by which a run had made so many steps: at 0 that of its first step."""
    found = [loss for at, loss in zip(run.loss.steps, run.loss.losses, strict=True) if at <= max(step, 1)]
    return found[-1] if found else None


def loss(study: InitStudy, arm: Arm, step: int) -> Spread | None:
    """The same over seeds."""
    return spread_of(loss_at(run, step) for run in study.runs_of(arm.name))


def reached(study: InitStudy, arm: Arm, figure: Literal["rms", "median"] = "rms") -> Reached | None:
    """After how many steps an arm's gap at one step falls under the level; None where no run is measured."""
    runs = [run for run in study.runs_of(arm.name) if all(c.figures is not None for c in run.checkpoints)]
    firsts = [
        next(
            (c.step for c in run.checkpoints if (row := c.gap(1)) and getattr(row, figure) < study.level),
            None,
        )
        for run in runs
    ]
    return Reached(sorted(step for step in firsts if step is not None), len(runs)) if runs else None


def same_couplings(study: InitStudy) -> bool | None:
    """Whether all runs of a seed were trained on the same couplings to the bit; None where there are not two."""
    by_seed = [{r.couplings_sha256 for r in study.runs if r.seed == seed} for seed in study.seeds]
    several = [sum(r.seed == seed for r in study.runs) > 1 for seed in study.seeds]
    return all(len(found) <= 1 for found in by_seed) if any(several) else None


def headline(study: InitStudy) -> str:
    """In words what the tables say: of every arm gap, steps to the level and success, with what is told of the gap."""
    said = []
    for arm in study.arms:
        spread, within = gap(study, arm, study.at[-1]), reached(study, arm)
        if spread is not None and within is not None:
            over = f" ({percent(spread.low)} to {percent(spread.high)})" if spread.count > 1 else ""
            said.append(f"{arm.name}: {percent(spread.middle)}{over}, {_when(study, within)}")
    if not said:
        return "Nothing is measured yet."
    told = counted([f"{told_gap(init)} % for {init}" for init in TOLD_GAPS])
    seeds = (
        f"the median and range over {plural(len(study.seeds), 'seed')}"
        if len(study.seeds) > 1
        else "one seed"
    )
    return (
        f"Gap at one step after {study.steps:,} steps, {seeds}, and steps to {level(study)}: "
        f"{'; '.join(said)}. Told is {told}.{_solved(study)}"
    )


def _solved(study: InitStudy) -> str:
    """Success at one step after all training, beside the untrained teacher's; nothing where no episodes were run."""
    found = [(arm.name, rates(study, arm, study.at[-1])) for arm in study.arms]
    students = [f"{name}: {percent(spread.middle, 1)}" for name, spread in found if spread is not None]
    if not students or study.untrained is None or not study.untrained.success:
        return ""
    rows = {row.num_steps: row.rate for row in study.untrained.success if row.group == "all"}
    teacher = counted(
        [f"{percent(rate, 1)} at {plural(steps, 'step')}" for steps, rate in sorted(rows.items())]
    )
    return f" Success at one step then: {'; '.join(students)}. The untrained teacher solves {teacher}."


def _when(study: InitStudy, within: Reached) -> str:
    if not within.steps:
        return f"not under {level(study)}"
    if within.steps[-1] == 0:
        return f"under {level(study)} before any step" + _of(within)
    middle = round(median(within.steps))
    low, high = within.steps[0], within.steps[-1]
    steps = f"{low:,}" if low == high else f"{middle:,} ({low:,} to {high:,})"
    return f"under {level(study)} by step {steps}" + _of(within)


def _of(within: Reached) -> str:
    return "" if len(within.steps) == within.runs else f" in {len(within.steps)} of {within.runs} seeds"
