"""The reader of options, for verbs that are about to leave; the others import `chordflow.options`."""

from __future__ import annotations

from types import SimpleNamespace

from chordflow.cli.help import of_module
from chordflow.options import CONFIG_PATH, build, merge, options_of, read_options, show_value

__all__ = ["CONFIG_PATH", "build", "help_text", "merge", "options_of", "read_options", "show_value"]


def help_text(config_class: type, title: str, usage: str) -> str:
    """All options of a verb."""
    module = SimpleNamespace(CONFIG=config_class, COMMON=(CONFIG_PATH,), USAGE=f"{title}\n{usage}")
    return of_module(module).text(everything=True)
