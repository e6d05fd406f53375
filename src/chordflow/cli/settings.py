"""Settings that a run left behind, and whether to go on with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from chordflow.errors import UserError
from chordflow.experiments.settings import read_settings, wants_resume
from chordflow.options import CONFIG_PATH, build, nest, read_options


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
    if not wants_resume(nest(values)):
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
