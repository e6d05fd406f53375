"""`chordflow evaluate`: few-step policies against their teacher."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chordflow import stopping
from chordflow.cli.options import CONFIG_PATH, build, help_text, read_options
from chordflow.cli.settings import read_settings, wants_resume
from chordflow.console import console, say
from chordflow.errors import UserError
from chordflow.experiments.evaluate import EVALUATE_CONFIG, Evaluated, evaluate, how_to_go_on
from chordflow.experiments.evaluate_config import EvaluateConfig
from chordflow.experiments.reflow import RESULTS
from chordflow.quiet import quiet_stdout
from chordflow.reporting.gif import save_side_by_side
from chordflow.reporting.table import render
from chordflow.reporting.write import write_report
from chordflow.results.schema import Clip, Results
from chordflow.rollouts.plugins import register_environments

USAGE = """
chordflow evaluate --teacher.path=CHECKPOINT --student.path=outputs/student --dataset.repo_id=USER/DATASET \\
    --env.type=libero --env.task=libero_10 --output_dir=outputs/eval/student
chordflow evaluate --resume=true --config_path=outputs/eval/student/evaluate_config.json
"""


def run(arguments: list[str]) -> None:
    """Parses the options, measures, prints the table and writes the report."""
    with quiet_stdout():
        register_environments()
    if "--help" in arguments or "-h" in arguments:
        print(help_text(EvaluateConfig, (EvaluateConfig.__doc__ or "").split("\n")[0], USAGE))
        return
    config = parse(arguments)
    with stopping.says(lambda: how_to_go_on(config.output_dir)):
        _evaluate_and_show(config, arguments)


def _evaluate_and_show(config: EvaluateConfig, arguments: list[str]) -> None:
    evaluated = evaluate(config, ["chordflow", "evaluate", *arguments])
    results = _with_clip(evaluated, config.output_dir)
    console.print(render(results))
    say(f"Results: {config.output_dir / RESULTS}")
    for path in write_report(config.output_dir):
        say(f"Report:  {path}")


def parse(arguments: list[str]) -> EvaluateConfig:
    """The settings, over those of the run that is gone on with.

    Raises:
        UserError: for options that cannot be used.
    """
    values = read_options(arguments)
    if "=" in values.get("policies", "") and not values["policies"].lstrip().startswith("["):
        # One alone needs no brackets.
        values["policies"] = f"[{values['policies']}]"
    config_path = values.pop(CONFIG_PATH, None)
    base: dict[str, Any] = read_settings(config_path) if config_path else {}
    if wants_resume(values):
        if config_path is None:
            raise UserError(f"resume=true needs --config_path=OUTPUT_DIR/{EVALUATE_CONFIG}.")
        # The run may have been moved since: it is where its settings are.
        base["output_dir"] = str(Path(config_path).resolve().parent)
    return build(EvaluateConfig, values, base)


CLIP = "clips/episodes.gif"
"""The moving picture, in a run's folder."""

MAX_CLIP_SIDE, MAX_CLIP_FRAMES, MAX_CLIP_BYTES = 256, 150, 12_000_000
"""Bounds of the moving picture: pixels of a frame, frames of an episode, bytes of the file."""


def _with_clip(evaluated: Evaluated, output_dir: Path) -> Results:
    """Draws the same starts side by side, the first ones by seed, and puts the picture among the results."""
    columns = {label: episodes for label, episodes in evaluated.clip.items() if episodes}
    if not columns:
        return evaluated.results
    path = output_dir / CLIP
    path.parent.mkdir(exist_ok=True)
    frames = {
        label: [_small(e.frames) for e in run if e.frames is not None] for label, run in columns.items()
    }
    outcomes = {label: [e.success for e in run] for label, run in columns.items()}
    save_side_by_side(frames, path, outcomes=outcomes, scale=1, max_bytes=MAX_CLIP_BYTES)
    first = next(iter(columns.values()))
    clip = Clip(
        path=CLIP,
        columns=list(columns),
        seeds=[episode.seed for episode in first],
        outcomes=[[runs[i] for runs in outcomes.values()] for i in range(len(first))],
    )
    results = dataclasses.replace(evaluated.results, clips=[clip])
    results.save(output_dir / RESULTS)
    return results


def _small(frames: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Every k-th frame and pixel, so that long episodes of large pictures make a file that can be shown."""
    every = -(-len(frames) // MAX_CLIP_FRAMES)
    pixel = -(-max(frames.shape[1:3]) // MAX_CLIP_SIDE)
    kept = list(frames[::every, ::pixel, ::pixel])
    return kept if (len(frames) - 1) % every == 0 else [*kept, frames[-1, ::pixel, ::pixel]]
