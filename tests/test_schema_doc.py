"""docs/results.md says what results.json holds."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_is_that_of_the_schema() -> None:
    made = runpy.run_path(str(ROOT / "scripts" / "schema_doc.py"))
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == made["document"](), (
        "run: python scripts/schema_doc.py"
    )
