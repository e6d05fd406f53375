"""`chordflow relocate`: repair a checkpoint whose vision-language model has moved."""

from __future__ import annotations

from chordflow.console import say
from chordflow.errors import UserError
from chordflow.options import read_options

HELP = """Repair a checkpoint whose local vision-language model folder has moved

usage:
  chordflow relocate DIR [--vlm.path=FOLDER]

DIR is a pretrained_model folder, or a run's folder with several checkpoints
below it. Rewrites vlm_model_name in config.json and train_config.json and
tokenizer_name in policy_preprocessor.json to an absolute path.

options:
  --vlm.path  (path)
      the folder of the vision-language model; by default a folder of the old
      name in or above DIR"""


def run(arguments: list[str]) -> None:
    """Relocates every checkpoint below a folder."""
    if not arguments or arguments[0].startswith("--"):
        raise UserError("the checkpoint's folder is missing; write chordflow relocate DIR.")
    options = read_options(arguments[1:])
    vlm = options.pop("vlm.path", None)
    if options:
        raise UserError(f"--{next(iter(options))} is not an option; there is only --vlm.path.")
    from chordflow.policies import relocate

    changed = relocate(arguments[0], vlm)
    for file in changed:
        say(f"rewrote {file}")
    if not changed:
        say("Nothing to do: the paths are right already.")
