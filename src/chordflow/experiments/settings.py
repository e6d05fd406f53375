"""The settings of a job: what a user gave, over those of a file or of the run that is resumed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from draccus import cfgparsing

from chordflow.couplings.store import MANIFEST, read_manifest
from chordflow.errors import UserError
from chordflow.experiments.couple import CoupleConfig
from chordflow.experiments.diagnose import DiagnoseConfig
from chordflow.experiments.evaluate import EVALUATE_CONFIG
from chordflow.experiments.evaluate_config import EvaluateConfig
from chordflow.options import CONFIG_PATH, settle
from chordflow.quiet import quiet_stdout
from chordflow.rollouts.environments import register_environments


def diagnose_settings(given: Mapping[str, Any]) -> DiagnoseConfig:
    """The settings of a diagnosis.

    Raises:
        UserError: for settings that cannot be used.
    """
    given, path = split_path(given)
    return settle(DiagnoseConfig, given, read_settings(path) if path else None)


def evaluate_settings(given: Mapping[str, Any]) -> EvaluateConfig:
    """The settings of an evaluation, over those of the one that is resumed.

    Raises:
        UserError: for settings that cannot be used.
    """
    with quiet_stdout():
        register_environments()
    given, path = split_path(given)
    if isinstance(given.get("policies"), str):
        # One alone needs no brackets.
        given["policies"] = [given["policies"]]
    base = read_settings(path) if path else {}
    if wants_resume(given):
        if path is None:
            raise UserError(f"resume=true needs --config_path=OUTPUT_DIR/{EVALUATE_CONFIG}.")
        # The run may have been moved since: it is where its settings are.
        base["output_dir"] = str(Path(path).resolve().parent)
    return settle(EvaluateConfig, given, base)


def couple_settings(given: Mapping[str, Any]) -> CoupleConfig:
    """The settings of a store of couplings, over those of the store that is resumed.

    Raises:
        UserError: for settings that cannot be used.
    """
    given, path = split_path(given)
    base: dict[str, Any] = {}
    if path is not None and Path(path).name == MANIFEST and Path(path).exists():
        folder = Path(path).parent
        # The store may have been moved since: it is where its manifest is. What it is to hold may have changed since
        # the command that began it.
        base = {**read_manifest(folder, CONFIG_PATH).about["settings"], "output_dir": str(folder)}
        base["num_observations"] = None
    elif path is not None:
        base = read_settings(path)
    if wants_resume(given) and not base and "output_dir" not in given:
        raise UserError(
            f"resume=true needs --config_path=STORE/{MANIFEST}, or the options of the store again."
        )
    return settle(CoupleConfig, given, base)


def split_path(given: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """What was given, and the file of settings that it names."""
    rest = dict(given)
    path = rest.pop(CONFIG_PATH, None)
    return rest, None if path is None else str(path)


def wants_resume(given: Mapping[str, Any]) -> bool:
    """Whether what was given says `resume=true`.

    Raises:
        UserError: if it says neither true nor false.
    """
    resume = given.get("resume", False)
    if not isinstance(resume, bool):
        raise UserError(f"resume={resume}: give true or false.")
    return resume


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
        raise UserError(f"{CONFIG_PATH}={path} is neither JSON nor YAML; repair the file.") from error
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
