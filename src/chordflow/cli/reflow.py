"""`chordflow reflow`: the main job."""

from __future__ import annotations

from chordflow import api
from chordflow.console import console, say
from chordflow.experiments.config import ReflowJobConfig
from chordflow.options import nest, read_options
from chordflow.reporting.table import render

CONFIG = ReflowJobConfig

USAGE = """
chordflow reflow --teacher.path=CHECKPOINT --dataset.repo_id=USER/DATASET \\
    --output_dir=outputs/student
chordflow reflow --couplings.path=COUPLINGS --output_dir=outputs/student
chordflow reflow ... --rounds=auto
chordflow reflow ... --observations=rollout --env.type=libero \\
    --env.task=libero_10
chordflow reflow --resume=true \\
    --config_path=RUN/checkpoints/last/pretrained_model/train_config.json
torchrun --nproc-per-node=2 -m chordflow reflow ...
"""

COMMON = (
    "teacher.path", "dataset.repo_id", "dataset.root", "output_dir", "recipe", "steps", "batch_size", "optimizer.lr",
    "buffer.num_observations", "rounds", "device", "resume", "config_path",
)  # fmt: skip


def run(arguments: list[str]) -> None:
    """Trains, measures, and prints the table and where everything is."""
    done = api.reflow(command=["chordflow", "reflow", *arguments], **nest(read_options(arguments)))
    if done.results is None:
        return
    console.print(render(done.results))
    figures = done.folder / "figures"
    say(f"Results: {done.folder / 'results.json'}, {len(list(figures.glob('*')))} pictures in {figures}")
    say(f"Report:  {done.files[0]}")
    say(f"Student: {done.student}")
