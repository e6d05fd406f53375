"""`chordflow bench training`: training with and without reuse of couplings, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chordflow.cli.options import CONFIG_PATH, build, help_text, read_options
from chordflow.console import console, say
from chordflow.errors import UserError
from chordflow.experiments.bench import BENCH, bench_training
from chordflow.experiments.bench_config import TrainingBenchConfig
from chordflow.experiments.settings import read_settings, wants_resume
from chordflow.options import nest
from chordflow.reporting.bench_table import markdown, render
from chordflow.results.files import write_whole

TABLES = "bench.md"

USAGE = """
chordflow bench training --teacher.path=CHECKPOINT --dataset.repo_id=USER/DATASET --output_dir=outputs/bench
chordflow bench training --resume=true --config_path=outputs/bench/bench.json
"""


def run(arguments: list[str]) -> None:
    """Parses the options, trains by every loop, and prints and writes the tables."""
    if not arguments or arguments[0] not in ("training", "--help", "-h"):
        given = f"{arguments[0]!r} is nothing to measure" if arguments else "say what to measure"
        raise UserError(f"{given}; write: chordflow bench training --option=value ...")
    options = arguments[1:] if arguments[0] == "training" else arguments
    if "--help" in options or "-h" in options:
        print(help_text(TrainingBenchConfig, (TrainingBenchConfig.__doc__ or "").split("\n")[0], USAGE))
        return
    config = parse(options)
    bench = bench_training(config, ["chordflow", "bench", *arguments])
    console.print(render(bench))
    write_whole(config.output_dir / TABLES, markdown(bench).encode("utf-8"))
    say(f"Results: {config.output_dir / BENCH}, tables in {config.output_dir / TABLES}")


def parse(arguments: list[str]) -> TrainingBenchConfig:
    """The settings, over those of the benchmark that is gone on with.

    Raises:
        UserError: for options that cannot be used.
    """
    values = read_options(arguments)
    config_path = values.pop(CONFIG_PATH, None)
    base: dict[str, Any] = read_settings(config_path) if config_path else {}
    if not wants_resume(nest(values)):
        return build(TrainingBenchConfig, values, base.get("settings", base))
    if config_path is None:
        raise UserError(f"resume=true needs --config_path=OUTPUT_DIR/{BENCH}.")
    if not isinstance(base.get("settings"), dict):
        raise UserError(f"config_path={config_path} is no file of chordflow bench; give OUTPUT_DIR/{BENCH}.")
    # The folder may have been moved since: it is where its file is.
    settings = {**base["settings"], "output_dir": str(Path(config_path).resolve().parent)}
    return build(TrainingBenchConfig, values, settings)
