"""`chordflow couple`: couplings on disk, for many trainings."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from chordflow.cli.options import CONFIG_PATH, build, help_text, read_options
from chordflow.cli.settings import read_settings, wants_resume
from chordflow.console import say
from chordflow.couplings.store import MANIFEST, read_manifest
from chordflow.errors import UserError
from chordflow.experiments.couple import CoupleConfig, couple
from chordflow.training.distributed import joined

USAGE = """
chordflow couple --teacher.path=CHECKPOINT --dataset.repo_id=USER/DATASET --output_dir=outputs/couplings
chordflow couple --resume=true --config_path=outputs/couplings/manifest.json
torchrun --nproc-per-node=2 -m chordflow couple ...
chordflow reflow --couplings.path=outputs/couplings --output_dir=outputs/student
"""


def run(arguments: list[str]) -> None:
    """Parses the options and makes the store."""
    if "--help" in arguments or "-h" in arguments:
        print(help_text(CoupleConfig, (CoupleConfig.__doc__ or "").split("\n")[0], USAGE))
        return
    with joined():
        folder = couple(parse(arguments))
        say(f"Couplings: {folder}")
        say(
            f"Train:     chordflow reflow --couplings.path={shlex.quote(str(folder))} --output_dir=outputs/student"
        )


def parse(arguments: list[str]) -> CoupleConfig:
    """The settings, over those of the store that is gone on with.

    Raises:
        UserError: for options that cannot be used.
    """
    values = read_options(arguments)
    config_path = values.pop(CONFIG_PATH, None)
    base: dict[str, Any] = {}
    if config_path is not None:
        path = Path(config_path)
        if path.name == MANIFEST and path.exists():
            base = dict(read_manifest(path.parent, CONFIG_PATH).about["settings"])
            # The store may have been moved since: it is where its manifest is.
            base["output_dir"] = str(path.parent)
            # As many as the store was made for, whatever the command that began it.
            base["num_observations"] = None
        else:
            base = read_settings(config_path)
    if wants_resume(values) and not base and "output_dir" not in values:
        raise UserError(
            f"resume=true needs --config_path=STORE/{MANIFEST}, or the options of the store again."
        )
    return build(CoupleConfig, values, base)
