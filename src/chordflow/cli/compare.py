"""`chordflow compare`, the older name of `chordflow study methods`."""

from __future__ import annotations

from chordflow.cli.study import run_alias


def run(arguments: list[str]) -> None:
    """Says what the verb is called now, and runs it."""
    run_alias("methods", "compare", arguments)
