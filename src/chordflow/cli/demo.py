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


def demo(arguments: list[str]) -> None:
    """Runs the demo and prints its table."""
    config = build(DemoConfig, read_options(arguments))
    results, output = run_demo(config), config.output_dir
    console.print(render(results))
    figures = output / "figures"
    figures.mkdir(exist_ok=True)
    save_figures(results, figures)
    report, *_ = write_report(output)
    say(f"Results:  {output / 'results.json'} and {output / 'table.md'}")
    say(f"Report:   {report}")
    say(f"Pictures: {figures} and {output / 'demo.gif'}")
    say(f"Student:  {output / 'student/checkpoints/last/pretrained_model'}")
