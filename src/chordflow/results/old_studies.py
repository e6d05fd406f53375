"""Recognises studies of older layouts and names their converter; it imports nothing heavy."""

from __future__ import annotations

import shlex
from pathlib import Path

from chordflow.disk import read_object
from chordflow.errors import UserError

OLD_KINDS = ("compare", "study init", "study rounds")
"""What such files say that they are."""

OLD_FILES = ("compare.json", "rounds.json")
"""What they were called; some had today's name."""


def check_layout(path: Path) -> None:
    """Makes sure that a file is of no older layout; of a folder, or in place of a file that is missing, its files.

    Raises:
        UserError: naming the converter.
    """
    folder = path if path.is_dir() else path.parent
    for file in [path] if path.is_file() else [folder / name for name in OLD_FILES]:
        if kind_of(file) in OLD_KINDS:
            raise UserError(
                f"{file} is of an older layout; convert it in a checkout of chordflow's source repository, with: "
                f"python scripts/convert_study.py {shlex.quote(str(file.resolve()))}"
            )


def kind_of(path: Path) -> str:
    """What a file of results says that it is; empty where it cannot be read or does not say so."""
    return str(read_object(path).get("kind", ""))
