"""`chordflow evaluate`: few-step policies against their teacher."""

from __future__ import annotations

from chordflow import api
from chordflow.console import console, say
from chordflow.experiments.evaluate_config import EvaluateConfig
from chordflow.options import nest, read_options
from chordflow.reporting.table import render

CONFIG = EvaluateConfig

USAGE = """
chordflow evaluate --teacher.path=CHECKPOINT --student.path=outputs/student \\
    --dataset.repo_id=USER/DATASET --env.type=libero --env.task=libero_10 \\
    --output_dir=outputs/eval/student
chordflow evaluate --resume=true \\
    --config_path=outputs/eval/student/evaluate_config.json
"""

COMMON = (
    "teacher.path", "student.path", "dataset.repo_id", "dataset.root", "env.type", "output_dir", "eval.n_episodes",
    "eval.batch_size", "sequential.enable", "margin", "device", "resume", "config_path",
)  # fmt: skip


def run(arguments: list[str]) -> None:
    """Measures, and prints the table and where everything is."""
    done = api.evaluate(command=["chordflow", "evaluate", *arguments], **nest(read_options(arguments)))
    console.print(render(done.measured))
    say(f"Results: {done.folder / 'results.json'}")
    for path in done.files:
        say(f"Report:  {path}")
