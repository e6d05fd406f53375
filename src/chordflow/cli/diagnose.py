"""`chordflow diagnose`: is distillation worth it for this checkpoint?"""

from __future__ import annotations

from chordflow import api
from chordflow.console import console, say
from chordflow.experiments.diagnose import DiagnoseConfig
from chordflow.options import nest, read_options
from chordflow.reporting.table import render

CONFIG = DiagnoseConfig

USAGE = """
chordflow diagnose --policy.path=CHECKPOINT --dataset.repo_id=USER/DATASET
"""

COMMON = (
    "policy.path", "policy.num_inference_steps", "dataset.repo_id", "dataset.root", "dataset.episodes", "output_dir",
    "rename_map", "device", "measure.num_observations", "measure.num_steps", "measure.solvers", "config_path",
)  # fmt: skip


def run(arguments: list[str]) -> None:
    """Measures, and prints the table and where everything is."""
    done = api.diagnose(command=["chordflow", "diagnose", *arguments], **nest(read_options(arguments)))
    console.print(render(done.measured))
    figures = done.folder / "figures"
    say(f"Report:  {done.files[0]}")
    say(f"Results: {done.folder / 'results.json'}, {len(list(figures.iterdir()))} pictures in {figures}")
