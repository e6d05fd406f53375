"""Settings that a run left behind, and whether to go on with it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from draccus import cfgparsing

from chordflow.cli.options import CONFIG_PATH
from chordflow.errors import UserError


def wants_resume(values: dict[str, str]) -> bool:
    """Whether the options say `resume=true`.

    Raises:
        UserError: if they say neither true nor false.
    """
    given = values.get("resume", "false")
    resume = cfgparsing.parse_string(given) if given.strip() else given
    if not isinstance(resume, bool):
        raise UserError(f"resume={given}: give true or false.")
    return resume


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings in a JSON or YAML file.

    Raises:
        UserError: if it cannot be read, or holds none.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            content = cfgparsing.load_config(file, file=str(path))
    except OSError as error:
        raise UserError(
            f"{CONFIG_PATH}={shlex.quote(str(path))} cannot be read ({error.strerror})."
        ) from error
    except Exception as error:
        raise UserError(f"{CONFIG_PATH}={path} is neither JSON nor YAML; mend the file.") from error
    if not isinstance(content, dict):
        raise UserError(f"{CONFIG_PATH}={path} holds no settings; give a JSON object or a YAML mapping.")
    return content
