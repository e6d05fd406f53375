"""Settings that a run left behind, and whether to go on with it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from draccus import cfgparsing

from chordflow.cli.options import CONFIG_PATH, build, read_options
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


def parse_record[T](
    config_class: type[T],
    arguments: list[str],
    *,
    kind: str,
    file: str,
    what: str,
    load: Callable[[Path], object],
) -> T:
    """The settings of a verb whose record can be gone on with, over those of the record.

    Args:
        config_class: of the settings.
        arguments: the options.
        kind: of the record, which is the verb as well.
        file: its name.
        what: it is of, such as a comparison.
        load: reads it, or refuses it.

    Raises:
        UserError: for options that cannot be used.
    """
    values = read_options(arguments)
    config_path = values.pop(CONFIG_PATH, None)
    base: dict[str, Any] = read_settings(config_path) if config_path else {}
    if not wants_resume(values):
        return build(config_class, values, base.get("settings", base))
    if config_path is None:
        raise UserError(f"resume=true needs --config_path=OUTPUT_DIR/{file}.")
    if base.get("kind") != kind or not isinstance(base.get("settings"), dict):
        raise UserError(f"config_path={config_path} is no file of chordflow {kind}; give OUTPUT_DIR/{file}.")
    # The folder may have been moved since: it is where its file is.
    settings = {**base["settings"], "output_dir": str(Path(config_path).resolve().parent)}
    load(Path(config_path))
    try:
        build(config_class, {}, settings)
    except UserError as error:
        raise UserError(
            f"config_path={config_path} holds settings that cannot be used ({error}); restore the file, or start a "
            f"new {what}."
        ) from error
    return build(config_class, values, settings)


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings in a JSON or YAML file, also those of older releases.

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
    return {name: _renewed(name, value) for name, value in content.items()}


def _renewed(name: str, value: Any) -> Any:
    """A setting of an older release as it is now written."""
    if isinstance(value, dict):
        return {inner: _renewed(inner, inside) for inner, inside in value.items()}
    # 0 stood for couplings that are never replaced.
    never = name == "uses_per_coupling" and value == 0 and not isinstance(value, bool)
    return None if never else value
