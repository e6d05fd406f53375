"""`chordflow demo`: the whole job on a small teacher that comes with chordflow."""

from __future__ import annotations

import os

# The demo's teacher and tokenizer are local: no look-up on the Hub can help it. Read as the libraries are imported.
os.environ["HF_HUB_OFFLINE"] = "1"

from chordflow.console import console, say
from chordflow.demo.run import DemoConfig, run_demo
from chordflow.options import build, read_options
from chordflow.reporting.pictures import save_figures
from chordflow.reporting.table import render
from chordflow.reporting.write import write_report

CONFIG = DemoConfig

USAGE = "chordflow demo --output_dir=outputs/demo"

COMMON = ("output_dir", "steps", "episodes", "from_scratch", "demonstrations", "seed", "resume")


def run(arguments: list[str]) -> None:
    """Runs the demo and prints its table."""
    config = build(CONFIG, read_options(arguments))
    results = run_demo(config)
    console.print(render(results))
    figures = config.output_dir / "figures"
    figures.mkdir(exist_ok=True)
    save_figures(results, figures)
    report, *_ = write_report(config.output_dir)
    say(f"Results:  {config.output_dir / 'results.json'} and {config.output_dir / 'table.md'}")
    say(f"Report:   {report}")
    say(f"Pictures: {figures} and {config.output_dir / 'demo.gif'}")
    say(f"Student:  {config.output_dir / 'student/checkpoints/last/pretrained_model'}")
