"""Fill docs/compare.md with the tables of the comparisons in docs/compare, between the marks of their names.

usage: python scripts/compare_table.py [NAME COMPARE.JSON]

With a name and a file it is copied to docs/compare/NAME.json first.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from chordflow.reporting.compare_table import markdown
from chordflow.results.compare import Comparison
from chordflow.results.files import write_whole

DOCS = Path(__file__).resolve().parents[1] / "docs"
DOCUMENT, RESULTS = DOCS / "compare.md", DOCS / "compare"
TABLES = ("methods", "rollouts", "levers")
"""Names of the tables, their marks and their files."""


def document(text: str, comparisons: Mapping[str, Comparison]) -> str:
    """The document with the tables of comparisons, by name, and the commands that made them."""
    for name, comparison in comparisons.items():
        command = " ".join(_quoted(argument) for argument in comparison.command)
        table = f"Measured with\n\n    {command}\n\n{markdown(comparison)}"
        marked = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
        # A default argument: the table of this turn.
        text, count = marked.subn(lambda _, table=table: table, text)
        if count != 1:
            raise ValueError(f"{DOCUMENT.name} has {count} places for the table {name}")
    return text


def _quoted(argument: str) -> str:
    """An argument as one types it."""
    return f"'{argument}'" if re.search(r"[\s\[\]{}\"*?$]", argument) else argument


if __name__ == "__main__":
    if len(sys.argv) == 3:
        RESULTS.mkdir(exist_ok=True)
        shutil.copyfile(sys.argv[2], RESULTS / f"{sys.argv[1]}.json")
    known = {path.stem: Comparison.load(path) for path in sorted(RESULTS.glob("*.json"))}
    write_whole(DOCUMENT, document(DOCUMENT.read_text(encoding="utf-8"), known).encode("utf-8"))
