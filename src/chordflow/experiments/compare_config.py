"""Settings of `chordflow compare`."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lerobot.envs.configs import EnvConfig

from chordflow.couplings import TOLERANCE_S, BufferConfig, CouplingConfig, DatasetConfig
from chordflow.errors import UserError
from chordflow.evaluation.paired import MeasureConfig
from chordflow.experiments.config import ReflowJobConfig, StudentConfig, TeacherConfig
from chordflow.experiments.recipes import RECIPES
from chordflow.results.compare import STEP_COUNTS, Origin
from chordflow.results.schema import TEACHER
from chordflow.training.methods import MethodConfig
from chordflow.training.optimizers import OptimizerConfig, SOAPConfig

COMMON = (
    "teacher", "dataset", "device", "tolerance_s", "rename_map", "num_workers",
    "batch_size", "gradient_accumulation_steps", "student", "coupling", "buffer", "optimizer",
)  # fmt: skip
"""Options of a comparison that are those of `chordflow reflow`, for every entry."""

OWN = (
    "method", "batch_size", "gradient_accumulation_steps", "num_inference_steps", "student", "coupling", "buffer",
    "optimizer", "scheduler", "ema", "observations", "env", "collect",
)  # fmt: skip
"""Settings of `chordflow reflow` that an entry may have of its own."""

COMPARE, TABLE = "compare.json", "compare.md"
"""What a comparison writes beside the folders of its entries."""

ADDABLE = ("methods", "recipes", "seeds", "output_dir", "resume", "tolerance_s")
"""Settings that may be another when a comparison is gone on with."""

NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
"""Names of entries: they are folders."""


@dataclass
class CompareMeasureConfig:
    """How gaps and curvature are measured; the same observations and noises for all.

    Attributes:
        num_observations: held-out observations; fewer if the held-out episodes have fewer frames.
        noises_per_observation: noises of each, on which one, two and ten steps are compared and from which the
            teacher's modes are found; at least 16.
        converged_noises: noises of each on which gaps to the converged ODE are measured.
        converged_num_steps: Euler steps of the teacher's converged ODE; at least 100, and never less than twice the
            teacher's as deployed.
        batch_size: noises that go through the network together.
        seed: of the observations and noises chosen.
    """

    num_observations: int = 200
    noises_per_observation: int = 16
    converged_noises: int = 4
    converged_num_steps: int = 100
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        self.full()

    def full(self) -> MeasureConfig:
        """The settings of `chordflow reflow` that say the same.

        Raises:
            UserError: for values that cannot be used.
        """
        return MeasureConfig(
            num_observations=self.num_observations,
            noises_per_observation=self.noises_per_observation,
            num_steps=list(STEP_COUNTS),
            solvers=["euler"],
            converged_num_steps=self.converged_num_steps,
            converged_noises=self.converged_noises,
            batch_size=self.batch_size,
            seed=self.seed,
        )


@dataclass
class EpisodesConfig:
    """Episodes, as in `chordflow evaluate`.

    Attributes:
        n_episodes: episodes of every task for each student.
        batch_size: episodes side by side; for speed, results depend on it by rounding alone.
        num_workers: processes that hold the environments; 0 holds them in this one.
        n_action_steps: executed actions of each chunk; by default the checkpoint's.
        seed: of the first episode; the others follow.
    """

    n_episodes: int = 50
    batch_size: int = 16
    num_workers: int = 0
    n_action_steps: int | None = None
    seed: int = 1000

    def __post_init__(self) -> None:
        for name, least in {"n_episodes": 1, "batch_size": 1, "num_workers": 0, "seed": 0}.items():
            if getattr(self, name) < least:
                raise UserError(f"eval.{name}={getattr(self, name)}: give at least {least}.")
        if self.n_action_steps is not None and self.n_action_steps < 1:
            raise UserError(f"eval.n_action_steps={self.n_action_steps}: give at least 1.")

    @property
    def seeds(self) -> list[int]:
        """The seed of every episode of a task."""
        return list(range(self.seed, self.seed + self.n_episodes))


@dataclass
class CompareConfig:
    """Train by several methods with the same data, seeds and budget, and put what came of it into one table.

    Attributes:
        teacher: the checkpoint to reflow.
        dataset: LeRobot dataset whose observations are used (its actions only by methods that need them).
        output_dir: new folder for compare.json, its table and the students.
        methods: what is compared: names of own recipes, of chordflow's recipes, and method types with their default
            settings; by default all of them, of those with equal settings the first.
        recipes: own recipes by name, settings of chordflow reflow that are laid over the common ones, such as
            {"huber": {"method": {"type": "endpoint", "loss": {"type": "pseudo_huber"}}, "optimizer": {"lr": 1e-3}}}.
        steps: the budget of each run in optimiser steps; give this or seconds.
        seconds: the budget of each run in seconds, the making of couplings included.
        seeds: a run of every method for each.
        batch_size: couplings that are looked at in one go.
        gradient_accumulation_steps: how often that is done in a step.
        num_workers: processes that read observations ahead while the buffer is filled.
        device: cuda, mps or cpu; by default the checkpoint's, or what is available.
        tolerance_s: seconds by which a video's frame may miss its timestamp, as in LeRobot.
        rename_map: observation keys of dataset and environment to keys of the policy, as JSON.
        resume: go on with the comparison whose compare.json --config_path names; methods, recipes and seeds may be
            added, and an environment where there was none.
        student: initialisation and freezing.
        coupling: how the teacher's ODE is solved.
        buffer: how many couplings are kept in memory.
        optimizer: what makes steps of gradients.
        env: environment to run episodes in, with the options that lerobot-eval has for it; without it none are run.
        eval: how episodes are run.
        measure: how gaps and curvature are measured.
    """

    teacher: TeacherConfig
    dataset: DatasetConfig
    output_dir: Path
    methods: list[str] | None = None
    recipes: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    seconds: float | None = None
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    batch_size: int = 64
    gradient_accumulation_steps: int = 1
    num_workers: int = 4
    device: str | None = None
    tolerance_s: float = TOLERANCE_S
    rename_map: dict[str, str] = field(default_factory=dict)
    resume: bool = False
    student: StudentConfig = field(default_factory=StudentConfig)
    coupling: CouplingConfig = field(default_factory=CouplingConfig)
    buffer: BufferConfig = field(default_factory=BufferConfig)
    optimizer: OptimizerConfig = field(default_factory=SOAPConfig)
    env: EnvConfig | None = None
    eval: EpisodesConfig = field(default_factory=EpisodesConfig)
    measure: CompareMeasureConfig = field(default_factory=CompareMeasureConfig)

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None):
            raise UserError(
                f"steps={self.steps} and seconds={self.seconds}: the budget of a run is given by one of the two, such "
                "as --steps=2000 or --seconds=120."
            )
        if self.steps is not None and self.steps < 1:
            raise UserError(f"steps={self.steps}: give at least 1.")
        if self.seconds is not None and not (self.seconds > 0 and math.isfinite(self.seconds)):
            raise UserError(f"seconds={self.seconds:g}: give a number above 0.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds={self.seeds}: give at least one, each once, such as [0,1,2].")
        if min(self.seeds) < 0:
            raise UserError(f"seeds={self.seeds}: give whole numbers from 0, such as [0,1,2].")
        for name in ("batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: give at least 1.")
        if self.num_workers < 0:
            raise UserError(f"num_workers={self.num_workers}: give 0 or more.")
        if self.env is None and self.eval != EpisodesConfig():
            raise UserError(
                "eval: these options are about episodes; give --env.type as well, or leave them out."
            )
        for name, overrides in self.recipes.items():
            _check_recipe(name, overrides)
        known = names(self.recipes)
        if self.methods is None:
            self.methods = _different(known, self.recipes)
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise UserError(
                f"methods=[{','.join(self.methods)}]: give at least one, each once, such as [reflow,endpoint]."
            )
        for name in self.methods:
            if name not in known:
                raise UserError(
                    f"methods holds {name!r}, which is neither a recipe nor a method type; {_near(name, known)}"
                )


@dataclass(frozen=True)
class Planned:
    """What is trained under one name.

    Attributes:
        name: of the entry.
        origin: where its settings are from.
        about: what it is, in a sentence; empty for the user's own.
        config: of a job that would train the same; seed, folder and, where the budget is seconds, steps are put in
            for each run.
    """

    name: str
    origin: Origin
    about: str
    config: ReflowJobConfig


def names(own: dict[str, Any]) -> list[str]:
    """Everything that can be compared: own recipes, chordflow's, method types."""
    return [*own, *RECIPES, *MethodConfig.get_known_choices()]


def _different(listed: list[str], own: dict[str, Any]) -> list[str]:
    """Names in their order, without those whose settings an earlier one has."""
    found: dict[str, dict[str, Any]] = {}
    for name in listed:
        overrides = overrides_of(name, own)[2]
        if overrides not in found.values():
            found[name] = overrides
    return list(found)


def overrides_of(name: str, own: dict[str, Any]) -> tuple[Origin, str, dict[str, Any]]:
    """Where an entry is from, what it is, and its settings over the common ones."""
    if name in own:
        return "own", "", own[name]
    if name in RECIPES:
        return "recipe", RECIPES[name].about, RECIPES[name].overrides
    about = (MethodConfig.get_choice_class(name).__doc__ or "").splitlines()[0]
    return "method", about, {"method": {"type": name}}


def _check_recipe(name: str, overrides: Any) -> None:
    taken = (TEACHER, COMPARE, TABLE)
    # Some file systems tell no capitals apart.
    if not NAME.fullmatch(name) or name.casefold() in taken or name in names({}):
        raise UserError(
            f"recipes holds the name {name!r}, which is taken or no name for a folder; choose another, of letters, "
            "digits, '.', '+', '-' or '_'."
        )
    if not isinstance(overrides, dict):
        raise UserError(
            f"recipes: {name!r} is {overrides!r}; give settings of chordflow reflow as a JSON object, such as "
            '{"method": {"type": "endpoint"}}.'
        )
    common = [f.name for f in fields(ReflowJobConfig) if f.name not in OWN]
    for key in overrides:
        if str(key).partition(".")[0] == "rounds":
            raise UserError(
                f"recipes: {name!r} sets {key}, and every run of a comparison is of one round; leave it out, or train "
                "by chordflow reflow."
            )
        if str(key).partition(".")[0] in common:
            raise UserError(
                f"recipes: {name!r} sets {key}, which all entries of a comparison have in common; leave it out."
            )


def _near(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"choose of {', '.join(known)}."
