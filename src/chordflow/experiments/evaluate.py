"""Policies compared with their teacher: measures on held-out observations, paired episodes, one file of results."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chordflow.console import bar, say
from chordflow.couplings import Split, open_split
from chordflow.disk import write_json
from chordflow.errors import UserError
from chordflow.evaluation.measure import measure
from chordflow.experiments.arms import EPISODES, RolloutResults, check_environment, run_arms, run_like_lerobot
from chordflow.experiments.entrants import Entrant, load_entrants
from chordflow.experiments.evaluate_config import EvaluateConfig
from chordflow.experiments.measured import concluded, read_beforehand, with_measures
from chordflow.experiments.plain import plain
from chordflow.experiments.provenance import device_name
from chordflow.experiments.reflow import RESULTS
from chordflow.experiments.run_folder import command_to_resume, new_folder, only_run, refuse_existing
from chordflow.policies import say_replaced_names
from chordflow.policies.sampling import Sampler
from chordflow.results.schema import STUDENT, TEACHER, PolicyName, Results, Rollouts, installed_versions
from chordflow.results.wording import step_counts
from chordflow.rollouts.episodes import Episode

EVALUATE_CONFIG = "evaluate_config.json"


def evaluate(config: EvaluateConfig, command: list[str]) -> tuple[Results, dict[str, list[Episode]]]:
    """Measures every policy on the dataset and runs it in the environment, as far as either is given.

    What is measured on the dataset is saved before the first episode, each episode as it ends, and all results at the
    end; a run that was stopped goes on from there. `command` is the command line, for the results.

    Returns:
        What was measured, and episodes with frames by label, of the same seeds under each; empty without an
        environment.

    Raises:
        UserError: for input that cannot be used.
    """
    started = time.perf_counter()
    output = config.output_dir
    if not config.resume:
        refuse_existing(output, how_to_go_on(output) if (output / EVALUATE_CONFIG).is_file() else "")
    entrants = load_entrants(config)
    teacher = entrants[TEACHER].policy
    _warn_of_other_steps(config, entrants)
    split = None
    if config.dataset is not None:
        split = open_split(config.dataset, teacher, tolerance_s=config.tolerance_s)
    else:
        say_replaced_names(teacher)
    if config.env is not None:
        check_environment(config, entrants)
    rollouts = None
    with contextlib.nullcontext() if config.resume else _new_folder(output), only_run(output):
        _refuse_another_margin(config)
        write_json(output / EVALUATE_CONFIG, plain(config))
        results = _on_the_dataset(config, command, entrants, split)
        if config.env is not None:
            lerobots = config.noise == "lerobot"
            rollouts = (
                run_like_lerobot(config, entrants) if lerobots else run_arms(config, entrants, results.free)
            )
            results = _with_rollouts(config, results, rollouts)
        results = concluded(results)
        results.save(output / RESULTS)
    say(f"Done in {time.perf_counter() - started:.0f} s.")
    return results, rollouts.clip if rollouts is not None else {}


def _on_the_dataset(
    config: EvaluateConfig, command: list[str], entrants: dict[PolicyName, Entrant], split: Split | None
) -> Results:
    """The results without episodes; those of the run that is resumed, where nothing they depend on changed."""
    student = entrants.get(STUDENT)
    results = Results(
        kind="evaluate",
        command=command,
        settings=plain(config),
        versions=installed_versions(),
        device=device_name(entrants[TEACHER].policy.device),
        seeds={"episodes": config.seed, "measuring": config.measure.seed},
        teacher=config.teacher.path,
        student=student.path if student is not None else None,
        teacher_num_steps=entrants[TEACHER].num_steps,
        policies=[entrant.info for entrant in entrants.values()],
    )
    if split is None or config.dataset is None:
        return results
    before = _measured_before(config, results)
    if before is not None:
        say("Measures on the dataset are those of the run that is resumed.")
        return dataclasses.replace(before, command=command, settings=results.settings)
    read_beforehand(split, config.measure)
    samplers = {name: Sampler(entrant.policy, entrant.num_steps) for name, entrant in entrants.items()}
    with bar("measuring") as progress:
        measures = measure(samplers, split.held_out, config.measure, on_progress=progress.update)
    of, teacher_dir = config.dataset, entrants[TEACHER].folder
    results = concluded(
        with_measures(results, measures, split, dataset=of, config=config.measure, teacher_dir=teacher_dir)
    )
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
        others = sorted((swept | delayed | further | {entrant.num_steps}) - set(trained_for))
        if others:
            say(
                f"Warning: {entrant.field}={entrant.path} was trained for {step_counts(trained_for)} only; what it "
                f"does at {step_counts(others)} is measured all the same, and is not what it is for."
            )


def _refuse_another_margin(config: EvaluateConfig) -> None:
    """A margin is chosen before one looks at outcomes: that of episodes in this folder stays."""
    path = config.output_dir / EVALUATE_CONFIG
    if not config.resume or not path.is_file():
        return
    before = json.loads(path.read_text(encoding="utf-8")).get("margin")
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
    return before if same and before.held_out is not None else None


def _with_rollouts(config: EvaluateConfig, results: Results, rollouts: RolloutResults) -> Results:
    env: Any = config.env
    return dataclasses.replace(
        results,
        success=rollouts.success,
        motion=rollouts.motion,
        delays=rollouts.delays,
        sequential=rollouts.sequential,
        timing=rollouts.timing,
        rollouts=Rollouts(
            env=f"{env.type}, {env.task}" if env.task else str(env.type),
            noise="lerobot" if config.noise == "lerobot" else "paired",
            first_seed=config.seed,
            batch_size=config.eval.batch_size,
            num_workers=config.eval.num_workers,
            margin=config.margin_fraction,
        ),
    )


def how_to_go_on(output: Path) -> str:
    """What to tell the user of an evaluation that was stopped."""
    if (output / EVALUATE_CONFIG).is_file():
        return f"resume with: {command_to_resume('evaluate', output / EVALUATE_CONFIG)}"
    return "nothing was measured yet, so start again."


@contextlib.contextmanager
def _new_folder(output: Path) -> Iterator[None]:
    """The folder of a new run, which a run that fails before anything was measured takes away again."""
    with new_folder(output):
        try:
            yield
        except BaseException:
            if not (output / RESULTS).exists() and not any((output / EPISODES).rglob("*.parquet")):
                (output / EVALUATE_CONFIG).unlink(missing_ok=True)
                shutil.rmtree(output / EPISODES, ignore_errors=True)
            raise
