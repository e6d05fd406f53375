"""Real processes of `chordflow`, each stopped by a real signal at a random moment, and resumed by what they print.

With their loader workers, as a terminal and a cluster do; a process that was killed outright prints nothing.

Run as a script (`python killed_processes.py FOLDER COUNT reflow --teacher.path=...`) it forks them, so that the imports
are paid once, until COUNT were stopped, and leaves in FOLDER/ended.json how each ended and what it left. FOLDER/whole
is a run that nothing stopped; FOLDER/0, FOLDER/1, ... end as it does.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from chordflow import api
from chordflow.cli import jobs
from chordflow.cli import main as cli
from chordflow.stopping import SIGNALS
from chordflow.training.loop import read_metrics
from small_jobs import measured_in_few_steps


def _process(arguments: list[str], said: Path) -> None:
    for number in (1, 2):
        os.dup2(os.open(said if number == 2 else os.devnull, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    # Pictures and pages take longer than all else.
    api._illustrate = lambda *_: (Path(),)
    begin = jobs.reflow

    def run_unblocked(given: list[str]) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        try:
            begin(given)
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    jobs.reflow = run_unblocked
    code = 1
    try:
        code = cli.main(arguments)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stderr.flush()
    os._exit(code)


def _step(output: Path) -> int:
    last = output / "checkpoints" / "last"
    return int(last.resolve().name) if last.exists() else 0


def run(folder: Path, count: int, options: list[str]) -> list[dict[str, Any]]:
    """Stops and resumes until `count` processes were stopped; how each of them ended."""
    context, chance, said = multiprocessing.get_context("fork"), random.Random(1), folder / "said"
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Until they are heeded: what is tested is chordflow, and not how Python begins and ends.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def start(arguments: list[str]) -> Any:
        said.write_bytes(b"")
        process = context.Process(target=_process, args=(arguments, said))
        process.start()
        # A group of its own, with its workers.
        os.setpgid(process.pid, process.pid)
        return process

    began = time.monotonic()
    whole = start([*options, f"--output_dir={folder / 'whole'}"])
    whole.join()
    seconds = time.monotonic() - began
    ended: list[dict[str, Any]] = []
    chains = 0
    while len(ended) < count:
        output = folder / str(chains)
        new = arguments = [*options, f"--output_dir={output}"]
        while True:
            before = _step(output)
            process = start(arguments)
            number = (*SIGNALS, signal.SIGKILL)[len(ended) % 3]
            if len(ended) < count:
                process.join(chance.uniform(0.0, seconds))
                if process.exitcode is None:
                    os.killpg(process.pid, number)
            process.join()
            text = said.read_text()
            if process.exitcode == 0:
                break
            lines = [int(line["step"]) for line in read_metrics(output / "metrics.jsonl")]
            ended.append({
                "signal": number, "code": process.exitcode, "said": text, "before": before, "step": _step(output),
                "logged": max(lines, default=0), "there": output.exists(),
                "hidden": [path.name for path in (output / "checkpoints").glob(".*")],
            })  # fmt: skip
            if command := re.search(r"resume with: chordflow (.*)", text):
                arguments = shlex.split(command[1])
            elif _step(output):
                arguments = [
                    "reflow",
                    "--resume=true",
                    f"--config_path={output}/checkpoints/last/pretrained_model",
                ]
            else:
                shutil.rmtree(output, ignore_errors=True)
                arguments = new
            if process.exitcode not in (130, 143, -signal.SIGKILL):
                return ended
        chains += 1
    return ended


if __name__ == "__main__":
    place = Path(sys.argv[1])
    with measured_in_few_steps():
        (place / "ended.json").write_text(json.dumps(run(place, int(sys.argv[2]), sys.argv[3:])))
