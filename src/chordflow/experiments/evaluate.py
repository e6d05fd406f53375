"""Policies compared with their teacher: measures on held-out observations, paired episodes, one file of results."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path

from chordflow.console import say
from chordflow.couplings import Split, check_fits, open_split
from chordflow.disk import read_object, write_json
from chordflow.errors import UserError, named
from chordflow.evaluation.gap import check_same_units
from chordflow.experiments.arms import EPISODES, Clip, check_environment, refuse_other_episodes, run_arms
from chordflow.experiments.config import CheckpointConfig
from chordflow.experiments.evaluate_config import EvaluateConfig
from chordflow.experiments.measured import (
    Entrant,
    load_entrant,
    measured,
    read_beforehand,
    unmeasured,
    with_findings,
)
from chordflow.experiments.run_folder import command_to_resume, new_folder, only_run, refuse_existing
from chordflow.options import plain
from chordflow.policies import FlowPolicy, print_replaced_names, resolve_checkpoint
from chordflow.policies.exported import manifest_of
from chordflow.results.files import same_where_known
from chordflow.results.schema import RESULTS, STUDENT, TEACHER, PolicyName, Results
from chordflow.results.wording import step_counts

EVALUATE_CONFIG = "evaluate_config.json"


def evaluate(config: EvaluateConfig, command: list[str]) -> tuple[Results, Clip]:
    """Measures every policy on the dataset and runs it in the environment, as far as either is given.

    What is measured on the dataset is saved before the first episode, each episode as it ends, and all results at the
    end; a run that was stopped resumes from there. `command` is the command line, for the results.

    Returns:
        What was measured, and episodes with frames by label, of the same seeds under each; empty without an
        environment.

    Raises:
        UserError: for input that cannot be used.
    """
    started = time.perf_counter()
    output = config.output_dir
    if not config.resume:
        refuse_existing(output, how_to_resume(output) if (output / EVALUATE_CONFIG).is_file() else "")
    entrants = _load_entrants(config)
    teacher = entrants[TEACHER].policy
    _warn_of_other_steps(config, entrants)
    split = None
    if config.dataset is not None:
        split = open_split(config.dataset, teacher, tolerance_s=config.tolerance_s)
        for entrant in entrants.values():
            if entrant.name != TEACHER:
                _check_shown(entrant, teacher, split)
    else:
        print_replaced_names(teacher)
    if config.env is not None:
        check_environment(config, entrants)
    new = new_folder(output, _has_measured, (EVALUATE_CONFIG, EPISODES))
    with contextlib.nullcontext() if config.resume else new, only_run(output):
        _refuse_another_margin(config)
        refuse_other_episodes(config, entrants)
        write_json(output / EVALUATE_CONFIG, plain(config))
        results = _on_the_dataset(config, command, entrants, split)
        clip: Clip = {}
        if config.env is not None:
            results, clip = run_arms(config, entrants, results)
        results = with_findings(results)
        results.save(output / RESULTS)
    say(f"Done in {time.perf_counter() - started:.0f} s.")
    return results, clip


def _load_entrants(config: EvaluateConfig) -> dict[PolicyName, Entrant]:
    """The teacher and every candidate by name, the teacher first.

    Raises:
        UserError: if one cannot be loaded or cannot be compared with the teacher.
    """
    given: dict[PolicyName, tuple[CheckpointConfig, str]] = {TEACHER: (config.teacher, "teacher.path")}
    for name, candidate in config.candidates().items():
        given[name] = (candidate, "student.path" if name == STUDENT else f"policies={name}")
    for name, (candidate, option) in given.items():
        # Cheap to see, so before any weights are read.
        if name == TEACHER or not manifest_of(candidate.path):
            resolve_checkpoint(candidate.path, candidate.revision, option)
        elif config.noise == "lerobot":
            raise UserError(
                f"{option}={candidate.path} is an exported folder, which LeRobot's own rollout cannot run; leave "
                "noise=lerobot out."
            )
    entrants: dict[PolicyName, Entrant] = {}
    for name, (candidate, option) in given.items():
        entrants[name] = load_entrant(name, candidate, config, option)
        if name != TEACHER:
            where = f"{option}: {candidate.path}"
            check_comparable(entrants[TEACHER].policy, entrants[name].policy, where)
            if config.dataset is not None:
                check_same_units(entrants[TEACHER].policy, entrants[name].policy, where)
    return entrants


def check_comparable(teacher: FlowPolicy, other: FlowPolicy, where: str) -> None:
    """Makes sure that one noise and one reference make sense for both.

    Args:
        teacher: what the other is compared with.
        other: a policy.
        where: the option that names it, and its path.

    Raises:
        UserError: naming what differs.
    """
    if other.family != teacher.family:
        raise UserError(
            f"{where} is a {other.family} policy and the teacher a {teacher.family} one; the same noise "
            "means something else to each: compare checkpoints of one family."
        )
    a, b = teacher.chunk, other.chunk
    for name, own, wanted, what in (
        ("chunk_size", b.horizon, a.horizon, "chunks"),
        ("max_action_dim", b.padded_dim, a.padded_dim, "padded dimensions"),
        ("the action's size", b.action_dim, a.action_dim, "action spaces"),
    ):
        if own != wanted:
            raise UserError(
                f"{where}: {name} is {own}, but the teacher's is {wanted}; {what} must agree for actions to be "
                "compared: give a checkpoint that was made from this teacher."
            )


def _check_shown(entrant: Entrant, teacher: FlowPolicy, split: Split) -> None:
    """Makes sure that a candidate can act on what the dataset is read for: the teacher's observations.

    Raises:
        UserError: if it looks at other frames, or at what the dataset does not have.
    """
    where = f"{entrant.field}: {entrant.path}"
    own, read = (policy.observation_delta_indices or [0] for policy in (entrant.policy, teacher))
    if own != read:
        raise UserError(
            f"{where} looks at the frames {own} of an observation (0 is now), but the teacher at {read}, for which the "
            "dataset is read: give one of the same n_obs_steps, or compare them in episodes only (leave --dataset.* of "
            "evaluate out)."
        )
    with named(where):
        if absent := check_fits(split.metadata, entrant.policy):
            say(f"Warning: {where} acts without {', '.join(absent)}, which the dataset lacks.")


def _on_the_dataset(
    config: EvaluateConfig, command: list[str], entrants: dict[PolicyName, Entrant], split: Split | None
) -> Results:
    """The results without episodes; those of the run that is resumed, where nothing they depend on changed."""
    results = unmeasured("evaluate", config, command, entrants, {"episodes": config.seed})
    if split is None:
        return results
    before = _measured_before(config, results)
    if before is not None:
        say("Measures on the dataset are those of the run that is resumed.")
        return dataclasses.replace(before, command=command, settings=results.settings)
    read_beforehand(split, config.measure)
    results = measured(results, entrants, split, config.measure)
    results.save(config.output_dir / RESULTS)
    return results


def _warn_of_other_steps(config: EvaluateConfig, entrants: dict[PolicyName, Entrant]) -> None:
    """Says which policies are run at step counts that they were not trained for."""
    swept = set(config.measure.num_steps) if config.dataset is not None else set()
    delayed = set(config.delay.num_steps) if config.delay.control_steps else set()
    for name, entrant in entrants.items():
        trained_for = entrant.info.step_counts
        if trained_for is None:
            continue
        further = set(config.eval.teacher_num_steps) if name == TEACHER and config.env is not None else set()
        # An exported folder has one number of steps.
        more = swept | delayed | further if entrant.exported is None else set()
        others = sorted((more | {entrant.num_steps}) - set(trained_for))
        if others:
            say(
                f"Warning: {entrant.field}={entrant.path} was trained for {step_counts(trained_for)} only; what it "
                f"does at {step_counts(others)} is measured all the same, and is not what it is for."
            )


def _refuse_another_margin(config: EvaluateConfig) -> None:
    """A margin is chosen before outcomes are known: that of the episodes in this folder stays."""
    before = read_object(config.output_dir / EVALUATE_CONFIG).get("margin") if config.resume else None
    if before not in (None, config.margin):
        raise UserError(
            f"margin={config.margin:g}: the run began with {before:g}, and a margin is chosen before one looks; "
            "leave it out, or start a new run."
        )


def _measured_before(config: EvaluateConfig, now: Results) -> Results | None:
    """Results of an earlier run in this folder, if the same was measured on the same."""
    path = config.output_dir / RESULTS
    if not config.resume or not path.is_file():
        return None
    before = Results.load(path)
    settings = ("dataset", "measure", "rename_map")
    same = all(before.settings.get(name) == now.settings[name] for name in settings)
    same &= before.policies == now.policies and before.device == now.device
    pairs = zip(before.policies, now.policies, strict=False)
    same &= all(same_where_known(old.processors_sha256, new.processors_sha256) for old, new in pairs)
    return before if same and before.held_out is not None else None


def how_to_resume(output: Path) -> str:
    """How to resume an evaluation that was stopped, for the user."""
    if (output / EVALUATE_CONFIG).is_file():
        return f"resume with: {command_to_resume('evaluate', output / EVALUATE_CONFIG)}"
    return "nothing was measured yet, so start again."


def _has_measured(output: Path) -> bool:
    return (output / RESULTS).exists() or any((output / EPISODES).rglob("*.parquet"))
