"""The questions of `chordflow study`, each with the arms that answer it, and a file of the user's own arms."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from graphlib import CycleError, TopologicalSorter
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from chordflow.checks import check_choice, check_once, check_range, number, once
from chordflow.errors import UserError
from chordflow.experiments.config import RECIPES, ReflowJobConfig
from chordflow.experiments.study.config import ArmSettings, StudyConfig
from chordflow.flow.solvers import SolverName
from chordflow.policies import FlowPolicy
from chordflow.results.schema import TEACHER
from chordflow.results.study import STUDY, LeftOut, Preset
from chordflow.training.methods import MethodConfig
from chordflow.training.optimizers import OptimizerConfig
from chordflow.training.student import StudentInit

OWN = (
    "method", "batch_size", "gradient_accumulation_steps", "num_inference_steps", "student", "coupling", "buffer",
    "optimizer", "scheduler", "ema", "observations", "env", "collect",
)  # fmt: skip
"""Settings of `chordflow reflow` in which an arm may differ."""

TABLE, PAGE = "study.md", "study.html"
"""What a study writes beside `study.json` and the folders of its arms."""

NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
"""Names of arms: they are folders."""


@dataclass
class MethodsStudy(StudyConfig):
    """Which method? Train by several with the same data, seeds and budget.

    Attributes:
        methods: what is trained by: names of own recipes, of chordflow's recipes, and method types with their default
            settings; by default all of them, of those with equal settings the first.
        recipes: own recipes by name, settings of chordflow reflow that are laid over the shared ones, such as
            {"huber": {"method": {"type": "endpoint", "loss": {"type": "pseudo_huber"}}, "optimizer": {"lr": 1e-3}}}.
    """

    PRESET: ClassVar[Preset] = "methods"

    methods: list[str] | None = None
    recipes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_arms("recipes", self.recipes, taken=[*RECIPES, *MethodConfig.get_known_choices()])
        known = self._known()
        if self.methods is None:
            settings = list(known.values())
            self.methods = [name for place, name in enumerate(known) if known[name] not in settings[:place]]
        check_once("methods", self.methods, note=", such as [reflow,endpoint]")
        check_choice("methods", self.methods, known)

    def _known(self) -> dict[str, dict[str, Any]]:
        """Settings by name: of own recipes, of chordflow's, and of method types."""
        types = {name: {"method": {"type": name}} for name in MethodConfig.get_known_choices()}
        return {**self.recipes, **RECIPES, **types}

    def arms_for(self, teacher: FlowPolicy, folder: Path) -> Iterator[ArmSettings]:
        """An arm for each method."""
        for name in self.methods or []:
            yield ArmSettings(name, self._known()[name])


Beginning = Literal[
    "teacher", "teacher_full", "teacher_vlm", "teacher_vlm_full", "pretrained_vlm", "pretrained_vlm_full", "random",
    "random_full",
]  # fmt: skip
BEGINNINGS = {
    name: (StudentInit(name.removesuffix("_full")), name.endswith("_full")) for name in get_args(Beginning)
}
"""What a student can begin as, by name: its `student.init`, and whether all its parts are trained."""

USUAL_BEGINNINGS = ("teacher", "teacher_full", "teacher_vlm", "pretrained_vlm", "random", "random_full")


@dataclass
class BeginningsStudy(StudyConfig):
    """What does a student begin with, and how much does it matter? Train several with the same couplings.

    Attributes:
        arms: teacher, teacher_vlm (its vision-language model with a fresh action head), pretrained_vlm (the one that
            the checkpoint's config names, all else fresh) and random train what the family's adapter trains by
            default, for most the action head; with _full behind the name everything is trained. By default teacher,
            teacher_full, teacher_vlm, pretrained_vlm, random and random_full, as far as the teacher has them.
        learning_rates: peak learning rates; every arm is trained with each.
        looks: after how many steps, or seconds, students are measured, rising; the last is the whole budget. By
            default at the beginning, at an eighth, a quarter and half of it, and at its end.
    """

    PRESET: ClassVar[Preset] = "beginnings"

    arms: list[Beginning] | None = None
    learning_rates: list[float] = once([1e-4, 2e-5], above=0, note=", such as [1e-4,2e-5]")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer.lr != OptimizerConfig.lr and self.optimizer.lr not in self.learning_rates:
            lr = self.optimizer.lr
            raise UserError(f"optimizer.lr={lr:g}: give --learning_rates='[{lr:g}]' instead.")
        if self.arms is not None:
            check_once("arms", self.arms, note=", such as [teacher,teacher_vlm]")
        if not self.method.build().needs.couplings:
            raise UserError(
                f"method.type={self.method.get_choice_name(type(self.method))}: the method does not look at couplings, "
                "which are what all arms have in common; choose another."
            )

    def default_looks(self) -> list[float]:
        """At the beginning and at parts of the budget, of which each is twice the one before."""
        parts = [self.budget / part for part in (8, 4, 2, 1)]
        return sorted({0, *(part if self.steps is None else int(part) for part in parts)})

    def arms_for(self, teacher: FlowPolicy, folder: Path) -> Iterator[ArmSettings | LeftOut]:
        """An arm for each beginning and learning rate."""
        has = [role for role, named in teacher.parameters_by_role().items() if named]
        known: dict[tuple[Any, ...], str] = {}
        for name in self.arms or USUAL_BEGINNINGS:
            init, everything = BEGINNINGS[name]
            train = has if everything else list(teacher.default_train_roles)
            same = known.setdefault((init, frozenset(train)), name)
            try:
                if same != name:
                    raise UserError(f"a {teacher.family} trains everything by default, so this is {same}")
                if init == StudentInit.PRETRAINED_VLM:
                    teacher.pretrained_vlm()
            except UserError as error:
                if self.arms is not None:
                    raise UserError(f"arms: {name}: {error}") from error
                yield LeftOut(name, str(error))
                continue
            student = {"init": init.value, "train": [role.value for role in train]}
            for rate in self.learning_rates:
                way = name if len(self.learning_rates) == 1 else f"{name}, lr {rate:g}"
                settings = {"student": student, "optimizer": {"lr": rate}}
                yield ArmSettings(f"{name}_lr_{rate:g}", settings, way)


@dataclass
class RoundsStudy(StudyConfig):
    """When does another round of reflow stop paying? Train several rounds, several ways.

    Attributes:
        rounds: of each way; each student teaches the next.
        starts: what the student of a round begins as: last (that of the round before), first (the first teacher),
            fresh (the teacher's vision-language model with a fresh action head); or once, a single round of the steps
            of all rounds together.
        solvers: of the couplings. euler takes the steps of the teacher as deployed, at least ten, evenly spaced; the
            others take their defaults in chordflow reflow.
        real_data_shares: shares of every batch that are demonstrations.
        crossed: train all combinations of starts, solvers and shares; otherwise the first of each, and then one
            departure from these at a time.
    """

    PRESET: ClassVar[Preset] = "rounds"

    rounds: int = number(3, at_least=2, note="; a single one is that of chordflow study methods")
    starts: list[Literal["last", "first", "fresh", "once"]] = once(["last", "first", "once"])
    solvers: list[SolverName] = once(["adams_bashforth", "euler"])
    real_data_shares: list[float] = once([0.0, 0.1], at_least=0, below=1, note=", such as [0,0.1]")
    crossed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if "once" in self.starts and self.steps is None:
            raise UserError(
                "starts holds once, which has a number of steps: give --steps in the place of --seconds."
            )

    def _ways(self) -> list[tuple[str, str, float]]:
        """Start, solver and share of every way, the one that the others depart from first."""
        usual = (self.starts[0], self.solvers[0], self.real_data_shares[0])

        def kept(way: tuple[str, str, float]) -> list[bool]:
            return [own == other for own, other in zip(way, usual, strict=True)]

        # By in how many things a way departs; of one, starts before solvers before shares.
        ways: Iterable[tuple[str, str, float]] = product(self.starts, self.solvers, self.real_data_shares)
        order = sorted(ways, key=lambda way: (-sum(kept(way)), kept(way)))
        return order if self.crossed else [way for way in order if sum(kept(way)) >= 2]

    def arms_for(self, teacher: FlowPolicy, folder: Path) -> Iterator[ArmSettings]:
        """A chain of arms for each way; those that begin with the same round share it."""
        shared: set[str] = set()
        for start, solver, share in self._ways():
            # The default solver is not named.
            prefix = "" if solver == "adams_bashforth" else f"{solver}_"
            way = start if solver == "adams_bashforth" else f"{start}, {solver}"
            if share:
                prefix, way = f"{prefix}real_{share:g}_", f"{way}, real {share:g}"
            settings: dict[str, Any] = {
                "method": {"type": "reflow", "real_data_share": share},
                "coupling": {"solver": solver, **({"grid_power": 1.0} if solver == "euler" else {})},
            }
            if start == "once":
                steps = (self.steps or 1) * self.rounds
                yield ArmSettings(f"{prefix}once_{steps}", settings, way, steps=steps)
                continue
            if start == "fresh":
                settings["student"] = {"init": StudentInit.TEACHER_VLM.value}
            first = f"{prefix}fresh_1" if start == "fresh" else f"{prefix}round_1"
            if first not in shared:
                shared.add(first)
                yield ArmSettings(first, settings, way)
            if start == "first":
                settings = {**settings, "student": {"init_path": str(folder.resolve())}}
            taught_by = first
            for nth in range(2, self.rounds + 1):
                name = f"{prefix}{start}_{nth}"
                yield ArmSettings(name, settings, way, teacher=taught_by)
                taught_by = name


@dataclass
class ReuseStudy(StudyConfig):
    """How often may a coupling be used, and how many noises should an observation have? Train with several buffers.

    Attributes:
        uses: values of buffer.uses_per_coupling; null never replaces a coupling.
        noises: values of buffer.noises_per_observation; every one is combined with every number of uses.
    """

    PRESET: ClassVar[Preset] = "reuse"

    uses: list[int | None] = once([1, 3, 10])
    noises: list[int] = once([1, 6], at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("uses", [use for use in self.uses if use is not None], at_least=1)

    def arms_for(self, teacher: FlowPolicy, folder: Path) -> Iterator[ArmSettings]:
        """An arm for each pair."""
        for use, noises in product(self.uses, self.noises):
            name = f"uses_{'all' if use is None else use}_noises_{noises}"
            settings = {"buffer": {"uses_per_coupling": use, "noises_per_observation": noises}}
            yield ArmSettings(name, settings, f"uses={'null' if use is None else use} noises={noises}")


@dataclass
class FileStudy(StudyConfig):
    """Train the arms that a file names.

    Attributes:
        arms: by name, settings of chordflow reflow in which the arm differs from the shared ones; teacher names the
            arm that teaches it, and steps is a budget of its own.
    """

    PRESET: ClassVar[Preset] = "file"

    arms: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_once(
            "arms", list(self.arms), note=", as in arms: {plain: {}, huber: {method.loss.type: huber}}"
        )
        # In YAML, nothing behind a name is null.
        self.arms = {name: {} if own is None else own for name, own in self.arms.items()}
        check_arms("arms", self.arms, also=("teacher", "steps"))
        for name, settings in self.arms.items():
            teacher, steps = settings.get("teacher"), settings.get("steps")
            others = [other for other in self.arms if other != name]
            rule = ""
            if teacher is not None and teacher not in self.arms:
                known = f"choose {' or '.join(others)}." if others else "there is no other arm; leave it out."
                rule = f"teacher={teacher}: {known}"
            elif steps is not None and self.steps is None:
                rule = f"steps={steps}: the budget of this study is in seconds; leave it out."
            elif steps is not None and (type(steps) is not int or steps < 1):
                rule = f"steps={steps}: give a whole number, at least 1."
            if rule:
                raise UserError(f"arms: {name!r}: {rule}")
        self._ordered()

    def _ordered(self) -> list[str]:
        """Names of the arms, teachers first."""
        taught = {name: settings.get("teacher") for name, settings in self.arms.items()}
        graph = {name: [teacher] if teacher is not None else [] for name, teacher in taught.items()}
        try:
            return list(TopologicalSorter(graph).static_order())
        except CycleError as error:
            raise UserError(f"arms: {' <- '.join(error.args[1])}: an arm cannot teach itself.") from error

    def arms_for(self, teacher: FlowPolicy, folder: Path) -> Iterator[ArmSettings]:
        """The arms of the file."""
        for name in self._ordered():
            settings = dict(self.arms[name])
            taught_by, steps = settings.pop("teacher", None), settings.pop("steps", None)
            yield ArmSettings(name, settings, teacher=taught_by, steps=steps)


STUDIES: dict[str, type[StudyConfig]] = {
    study.PRESET: study for study in (MethodsStudy, BeginningsStudy, RoundsStudy, ReuseStudy, FileStudy)
}
"""Every study by the name of its preset."""


def check_arms(
    option: str, arms: dict[str, Any], taken: Iterable[str] = (), also: tuple[str, ...] = ()
) -> None:
    """Makes sure that arms of the user's own have names and settings that they can have.

    Args:
        option: that holds them.
        arms: settings by name.
        taken: names that they cannot have.
        also: settings that they may have although arms of other studies share them.

    Raises:
        UserError: if not.
    """
    taken = {TEACHER, STUDY, TABLE, PAGE, *taken}
    shared = {f.name for kind in (ReflowJobConfig, StudyConfig) for f in fields(kind)} - {*OWN}
    for name, settings in arms.items():
        # Some file systems tell no capitals apart.
        if not NAME.fullmatch(name) or name.casefold() in taken:
            raise UserError(
                f"{option} holds the name {name!r}, which is taken or no name for a folder; choose another, of "
                "letters, digits, '.', '+', '-' or '_'."
            )
        if not isinstance(settings, dict):
            raise UserError(
                f"{option}: {name!r} is {settings!r}; give settings of chordflow reflow, such as "
                '{"method": {"type": "endpoint"}}.'
            )
        for key in settings:
            if str(key).partition(".")[0] in shared and key not in also:
                raise UserError(
                    f"{option}: {name!r} sets {key}, which all arms of a study have in common; leave it out."
                )
