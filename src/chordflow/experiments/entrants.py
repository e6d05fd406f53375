"""The policies of a comparison, loaded and comparable, and the ways in which they act."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as default
from pathlib import Path

from chordflow.errors import UserError
from chordflow.experiments.config import CheckpointConfig
from chordflow.experiments.evaluate_config import EvaluateConfig
from chordflow.experiments.measured import policy_info
from chordflow.policies import FlowPolicy, load_flow_policy, resolve_checkpoint
from chordflow.results.schema import STUDENT, TEACHER, PolicyInfo, PolicyName
from chordflow.rollouts.delay import Execution


@dataclass(frozen=True)
class Entrant:
    """A policy under its name.

    Attributes:
        name: as rows call it.
        policy: the loaded policy.
        folder: its checkpoint.
        path: as the user gave it.
        num_steps: Euler steps at which it is evaluated as deployed.
        field: the option that it came from.
    """

    name: PolicyName
    policy: FlowPolicy
    folder: Path
    path: str
    num_steps: int
    field: str

    @property
    def info(self) -> PolicyInfo:
        """What results say of it."""
        return policy_info(self.name, self.policy, self.path, self.folder, self.num_steps)


@dataclass(frozen=True)
class Arm:
    """One way to act.

    Attributes:
        name: of the policy.
        policy: the policy.
        num_steps: its solver steps.
        solver: which solver.
        grid_power: how its steps are graded.
        execution: delay, and what is done about it.
    """

    name: PolicyName
    policy: FlowPolicy
    num_steps: int
    solver: str = "euler"
    grid_power: float = 1.0
    execution: Execution = default(default_factory=Execution)

    @property
    def key(self) -> str:
        """A name for files, one for each way to act."""
        parts = [self.name, str(self.num_steps), self.solver]
        if self.grid_power != 1:
            parts.append(f"g{self.grid_power:g}")
        if self.execution.mode != "none":
            parts += [self.execution.mode, f"d{self.execution.delay}"]
        if self.execution.max_guidance_weight is not None:
            parts.append(f"w{self.execution.max_guidance_weight:g}")
        return "-".join(parts)

    @property
    def label(self) -> str:
        """A name for people."""
        solver = "" if self.solver == "euler" else f"{self.solver} "
        text = f"{self.name}, {self.num_steps} {solver}step{'s' * (self.num_steps > 1)}"
        if self.grid_power != 1:
            text += f", grid power {self.grid_power:g}"
        if self.execution.mode == "none":
            return text
        weight = self.execution.max_guidance_weight
        guided = f" at weight {weight:g}" if weight is not None else ""
        return f"{text}, {self.execution.mode}{guided}, delay {self.execution.delay}"


def load_entrants(config: EvaluateConfig) -> dict[PolicyName, Entrant]:
    """The teacher and every candidate by name, the teacher first.

    Raises:
        UserError: if one cannot be loaded or cannot be compared with the teacher.
    """
    given: dict[PolicyName, tuple[CheckpointConfig, str]] = {TEACHER: (config.teacher, "teacher.path")}
    for name, candidate in config.candidates().items():
        given[name] = (candidate, "student.path" if name == STUDENT else f"policies={name}")
    # Cheap to see, so before any weights are read.
    folders = {name: resolve_checkpoint(c.path, c.revision, field) for name, (c, field) in given.items()}
    entrants: dict[PolicyName, Entrant] = {}
    for name, (candidate, field) in given.items():
        policy = load_flow_policy(
            folders[name], device=config.device, rename_map=config.rename_map, field=field
        )
        policy.module.requires_grad_(False)
        steps = candidate.num_inference_steps or policy.default_num_steps
        entrants[name] = Entrant(name, policy, folders[name], candidate.path, steps, field)
        if name != TEACHER:
            check_comparable(entrants[TEACHER], entrants[name])
    return entrants


def check_comparable(teacher: Entrant, other: Entrant) -> None:
    """Makes sure that one noise and one reference make sense for both.

    Raises:
        UserError: if they are of different families, chunk sizes or action spaces.
    """
    where = f"{other.field}: {other.path}"
    if other.policy.family != teacher.policy.family:
        raise UserError(
            f"{where} is a {other.policy.family} policy and the teacher a {teacher.policy.family} one; the same noise "
            "means something else to each: compare checkpoints of one family."
        )
    a, b = teacher.policy.chunk, other.policy.chunk
    pairs: Mapping[str, tuple[int, int, str]] = {
        "chunk_size": (b.horizon, a.horizon, "chunks"),
        "max_action_dim": (b.padded_dim, a.padded_dim, "padded dimensions"),
        "the action's size": (b.action_dim, a.action_dim, "action spaces"),
    }
    for name, (own, wanted, what) in pairs.items():
        if own != wanted:
            raise UserError(
                f"{where}: {name} is {own}, but the teacher's is {wanted}; {what} must agree for actions to be "
                "compared: give a checkpoint that was made from this teacher."
            )
