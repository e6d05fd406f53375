"""Whether distillation is worth it for a checkpoint: everything that can be measured before training."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from chordflow.checks import number
from chordflow.console import say
from chordflow.couplings import TOLERANCE_S, DatasetConfig, open_split
from chordflow.errors import UserError
from chordflow.evaluation.paired import MeasureConfig
from chordflow.experiments.config import CheckpointConfig
from chordflow.experiments.measured import load_entrant, measured, read_beforehand, unmeasured
from chordflow.experiments.provenance import device_name
from chordflow.experiments.run_folder import new_folder
from chordflow.flow.solvers import SolverName
from chordflow.results.schema import RESULTS, TEACHER, Results
from chordflow.results.wording import plural, steps


@dataclass
class DiagnoseMeasureConfig(MeasureConfig):
    """How much is measured, with the defaults of a diagnosis: more steps, more solvers, times for percentiles.

    So many steps and solvers are compared on the first noises of each observation, the ones that the converged ODE is
    solved for; modes and spread are seen from all.
    """

    gap_noises: int | None = number(4, at_least=1)
    num_steps: list[int] = number([1, 2, 3, 4, 5, 8, 10], at_least=1)
    solvers: list[SolverName] = field(default_factory=lambda: ["euler", "midpoint", "heun"])
    latency_repeats: int = number(100, at_least=1)


@dataclass
class DiagnoseConfig:
    """Say before any training whether distillation is worth it for a flow-matching policy, and why.

    Attributes:
        policy: the checkpoint to diagnose.
        dataset: LeRobot dataset whose held-out observations are measured on (its actions are not used).
        output_dir: new folder for results and pictures; by default outputs/diagnose/DATE/TIME.
        device: cuda, mps or cpu; by default the checkpoint's, or what is available.
        tolerance_s: seconds by which a video's frame may miss its timestamp, as in LeRobot.
        rename_map: observation keys of the dataset to keys of the policy, as JSON; replaces the checkpoint's own.
        measure: how much is measured.
    """

    policy: CheckpointConfig
    dataset: DatasetConfig
    output_dir: Path | None = None
    device: str | None = None
    tolerance_s: float = TOLERANCE_S
    rename_map: dict[str, str] = field(default_factory=dict)
    measure: DiagnoseMeasureConfig = field(default_factory=DiagnoseMeasureConfig)

    def __post_init__(self) -> None:
        self.policy.check("policy")


def diagnose(config: DiagnoseConfig, command: list[str]) -> tuple[Path, Results]:
    """Measures a policy as it is; gives the folder, and what was measured.

    The observations are those that LeRobot's rule holds out (`dataset.eval_split`), as in `chordflow reflow`, so that
    the figures before and after training are about the same ones. No training of chordflow's has seen any; the
    results say whether the policy's own may have. `command` is the command line, for the results.

    Raises:
        UserError: for input that cannot be used.
    """
    started, now = time.perf_counter(), datetime.now()
    # Dated as LeRobot's own commands date theirs.
    folder = config.output_dir or Path("outputs/diagnose", f"{now:%Y-%m-%d}", f"{now:%H-%M-%S}")
    if folder.exists():
        raise UserError(f"output_dir={folder} exists already; name a new folder, or leave the option out.")
    path = config.policy.path
    entrant = load_entrant(TEACHER, config.policy, config, "policy.path")
    policy, info = entrant.policy, entrant.info
    split = open_split(config.dataset, policy, tolerance_s=config.tolerance_s)
    read_beforehand(split, config.measure)
    with new_folder(folder):
        say(
            f"Policy: {path} ({info.family}, {info.parameters / 1e6:.2f} M parameters, on "
            f"{device_name(policy.device)}), deployed at {plural(info.num_steps, 'step')}"
        )
        say(
            f"Data:   {config.dataset.repo_id}, {min(config.measure.num_observations, len(split.held_out)):,} of "
            f"{len(split.held_out):,} observations in {plural(len(split.held_out_episodes), 'held-out episode')}"
            f"{split.caveats}"
        )
        if info.step_counts is not None:
            trained = " or ".join(map(steps, info.step_counts))
            say(
                f"Warning: policy.path={path} is a student that was trained for {trained} only; its curvature and "
                "converged ODE say nothing, and no student can be made of it."
            )
        results = unmeasured("diagnose", config, command, {TEACHER: entrant}, {})
        results = measured(results, {TEACHER: entrant}, split, config.measure)
        results.save(folder / RESULTS)
    say(f"Done in {time.perf_counter() - started:.0f} s.")
    return folder, results
