"""Fill docs/compare.md with the table of the comparison in docs/compare.json, between its marks.

usage: python scripts/compare_table.py [COMPARE.JSON]

With a file it is copied to docs/compare.json first.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from chordflow.report.compare_table import markdown
from chordflow.results.compare import Comparison
from chordflow.results.files import write_whole

DOCS = Path(__file__).resolve().parents[1] / "docs"
DOCUMENT, RESULTS = DOCS / "compare.md", DOCS / "compare.json"
_MARKED = re.compile(r"(?<=<!-- compare -->\n).*?(?=<!-- /compare -->)", re.DOTALL)


def document(text: str, comparison: Comparison) -> str:
    """The document with the table of a comparison and the command that made it."""
    command = " ".join(_quoted(argument) for argument in comparison.command)
    table = f"Measured with\n\n    {command}\n\n{markdown(comparison)}"
    made, count = _MARKED.subn(lambda _: table, text)
    if count != 1:
        raise ValueError(f"{DOCUMENT.name} has {count} places for the table of a comparison")
    return made


def _quoted(argument: str) -> str:
    """An argument as one types it."""
    return f"'{argument}'" if re.search(r"[\s\[\]{}\"*?$]", argument) else argument


if __name__ == "__main__":
    if len(sys.argv) > 1:
        shutil.copyfile(sys.argv[1], RESULTS)
    filled = document(DOCUMENT.read_text(encoding="utf-8"), Comparison.load(RESULTS))
    write_whole(DOCUMENT, filled.encode("utf-8"))
