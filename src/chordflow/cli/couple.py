"""`chordflow couple`: couplings on disk, for many trainings."""

from __future__ import annotations

import shlex

from chordflow import api
from chordflow.console import say
from chordflow.experiments.couple import CoupleConfig
from chordflow.options import nest, read_options
from chordflow.training.distributed import joined

CONFIG = CoupleConfig

USAGE = """
chordflow couple --teacher.path=CHECKPOINT --dataset.repo_id=USER/DATASET \\
    --output_dir=outputs/couplings
chordflow couple --resume=true --config_path=outputs/couplings/manifest.json
torchrun --nproc-per-node=2 -m chordflow couple ...
chordflow reflow --couplings.path=outputs/couplings \\
    --output_dir=outputs/student
"""

COMMON = (
    "teacher.path", "dataset.repo_id", "dataset.root", "output_dir", "num_observations", "store_context", "batch_size",
    "buffer.noises_per_observation", "coupling.solver", "device", "seed", "resume", "config_path",
)  # fmt: skip


def run(arguments: list[str]) -> None:
    """Makes the store, and says how to train from it."""
    # Only the first of several processes talks, here too.
    with joined():
        folder = api.couple(**nest(read_options(arguments))).folder
        say(f"Couplings: {folder}")
        say(
            f"Train:     chordflow reflow --couplings.path={shlex.quote(str(folder))} --output_dir=outputs/student"
        )
