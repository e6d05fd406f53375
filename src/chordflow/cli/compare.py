"""`chordflow compare`: methods of training side by side."""

from __future__ import annotations

import json
from typing import Any

from chordflow.cli.options import build, help_text
from chordflow.cli.settings import parse_record
from chordflow.console import console, say
from chordflow.errors import UserError
from chordflow.experiments.collect_config import ObservationSource
from chordflow.experiments.compare import compare
from chordflow.experiments.compare_config import (
    COMMON,
    COMPARE,
    TABLE,
    CompareConfig,
    Planned,
    overrides_of,
)
from chordflow.experiments.config import ReflowJobConfig
from chordflow.experiments.plain import plain
from chordflow.quiet import quiet_stdout
from chordflow.reporting.compare_table import markdown, render
from chordflow.results.compare import Comparison
from chordflow.results.files import write_whole
from chordflow.rollouts.plugins import register_environments

USAGE = """
chordflow compare --teacher.path=CHECKPOINT --dataset.repo_id=USER/DATASET --output_dir=outputs/compare \\
    --methods='[reflow,endpoint,one_step]' --steps=2000 --seeds='[0,1,2]'
chordflow compare ... --seconds=120 --env.type=libero --env.task=libero_10 \\
    --recipes='{"huber": {"method": {"type": "endpoint", "loss": {"type": "pseudo_huber"}}}}'
chordflow compare --resume=true --config_path=outputs/compare/compare.json
"""


def run(arguments: list[str]) -> None:
    """Parses the options, trains and measures, and prints and writes the table."""
    with quiet_stdout():
        register_environments()
    if "--help" in arguments or "-h" in arguments:
        print(help_text(CompareConfig, (CompareConfig.__doc__ or "").split("\n")[0], USAGE))
        return
    config = parse(arguments)

    def write(comparison: Comparison) -> None:
        write_whole(config.output_dir / TABLE, markdown(comparison).encode("utf-8"))

    comparison = compare(config, plan(config), ["chordflow", "compare", *arguments], write)
    # Also of a comparison of which nothing was missing.
    write(comparison)
    console.print(render(comparison))
    say(f"Results: {config.output_dir / COMPARE}, all columns in {config.output_dir / TABLE}")


def parse(arguments: list[str]) -> CompareConfig:
    """The settings, over those of the comparison that is gone on with.

    Raises:
        UserError: for options that cannot be used.
    """
    return parse_record(
        CompareConfig, arguments, kind="compare", file=COMPARE, what="comparison", load=Comparison.load
    )


def plan(config: CompareConfig) -> list[Planned]:
    """What every name of `config.methods` stands for: its own settings over the common ones.

    Raises:
        UserError: for settings that chordflow reflow would not take.
    """
    common = {name: value for name, value in plain(config).items() if name in COMMON}
    common |= {"output_dir": str(config.output_dir), "steps": config.steps or 1}
    planned = []
    for name in config.methods or []:
        origin, about, overrides = overrides_of(name, config.recipes)
        base = common
        if overrides.get("observations") == ObservationSource.ROLLOUT and "env" not in overrides:
            # Observations are collected where episodes are run, unless the recipe names another environment.
            base = {**common, "env": plain(config)["env"]}
        try:
            job = build(ReflowJobConfig, _flat(overrides), base)
        except UserError as error:
            raise UserError(f"methods: {name!r}: {error}") from error
        if origin == "recipe":
            # What is set for all lies under it, so that it is kept whole.
            job.recipe = name
        planned.append(Planned(name, origin, about, job))
    return planned


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as the options that say the same."""
    values: dict[str, str] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            values |= _flat(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return values
