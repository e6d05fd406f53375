"""Puts what a demo, and an evaluation of its student, measured into the repository's documents.

    .venv/bin/python scripts/publish_demo.py [outputs/demo [outputs/evaluate]]

Copies results, pictures and tables to docs/demo and docs/evaluate and writes tables into README.md, README.zh.md
and docs/evaluate.md, between markers. Without a folder, the tables are made anew from the copied results. A test
holds the documents to these.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Collection
from itertools import zip_longest
from pathlib import Path

from chordflow.report.table import markdown
from chordflow.results.files import write_whole
from chordflow.results.schema import Results

ROOT = Path(__file__).parent.parent
PICTURES = ("demo.gif", "figures/trajectories.png", "figures/gap.png", "figures/loss.png")

PLACES: dict[str, tuple[tuple[Path, ...], Path, tuple[str, ...], tuple[str, ...]]] = {
    "demo": (
        (ROOT / "README.md", ROOT / "README.zh.md"),
        ROOT / "docs" / "demo",
        ("results.json", "table.md", *PICTURES),
        ("gap", "free", "success", "noninferiority"),
    ),
    "evaluate": (
        (ROOT / "docs" / "evaluate.md",),
        ROOT / "docs" / "evaluate",
        ("results.json", "table.md"),
        ("delays", "timing"),
    ),
}
"""For each run: the documents, the folder of its files, these, and the tables in the documents."""


def fill(text: str, results: Results, name: str, tables: Collection[str]) -> str:
    """A document with the measured part in its place.

    Args:
        text: the document.
        results: what was measured.
        name: of the place, as its marker has it.
        tables: which tables.

    Raises:
        ValueError: if the marker is missing.
    """
    content = markdown(results, keys=tables)
    pattern = re.compile(rf"(<!-- {name} table -->\n)[^<]*(?:<(?!!--)[^<]*)*(<!-- end -->)")
    text, count = pattern.subn(lambda m: f"{m[1]}{content}\n{m[2]}", text)
    if count != 1:
        raise ValueError(f"there are {count} places for the table of {name}; there must be one")
    return text


def publish(output: Path | None, name: str) -> None:
    """Copies the files of a run, where there is a new one, and fills its documents."""
    documents, folder, files, tables = PLACES[name]
    if output is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copyfile(output / file, folder / Path(file).name)
    results = Results.load(folder / "results.json")
    # All are made before the first is written: a missing marker leaves none behind the others.
    filled = [fill(document.read_text(encoding="utf-8"), results, name, tables) for document in documents]
    for document, text in zip(documents, filled, strict=True):
        write_whole(document, text.encode("utf-8"))


if __name__ == "__main__":
    if len(sys.argv) - 1 > len(PLACES):
        sys.exit(f"publish_demo.py takes at most {len(PLACES)} folders, one for each of {', '.join(PLACES)}")
    for run, path in zip_longest(PLACES, sys.argv[1:]):
        publish(Path(path) if path else None, run)
