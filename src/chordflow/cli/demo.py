"""`chordflow demo`: the whole job on a small teacher that comes with chordflow."""

from __future__ import annotations

import os

from chordflow.cli.options import CONFIG_PATH, build, help_text, read_options
from chordflow.console import console, say
from chordflow.errors import UserError


def run(arguments: list[str]) -> None:
    """Runs the demo and prints its table."""
    # The demo's teacher and tokenizer are local: no look-up on the Hub can help it.
    os.environ["HF_HUB_OFFLINE"] = "1"
    from chordflow.demo.run import DemoConfig, run_demo
    from chordflow.reporting.figures import save_figures
    from chordflow.reporting.table import render
    from chordflow.reporting.write import write_report

    if "--help" in arguments or "-h" in arguments:
        usage = "chordflow demo --output_dir=outputs/demo"
        print(help_text(DemoConfig, (DemoConfig.__doc__ or "").split("\n")[0], usage, config_file=False))
        return
    options = read_options(arguments)
    if CONFIG_PATH in options:
        raise UserError(f"--{CONFIG_PATH} is not an option of the demo; see --help.")
    config = build(DemoConfig, options)
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
