"""A real process of `chordflow`, and forks of it that real signals stop at random moments, resumed by what they print.

With their loader workers, as a terminal and a cluster do; a process that was killed outright prints nothing.

Run as a script (`python killed_processes.py FOLDER COUNT reflow --teacher.path=...`) it prints what chordflow prints of
the run in FOLDER/whole, which nothing stops. Then it forks until COUNT runs were stopped, so that the imports are paid
once, and leaves in FOLDER/ended.json how each ended and what it left. FOLDER/0, FOLDER/1, ... end as FOLDER/whole does.
"""

import itertools
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

# Nothing that takes long: a library that talks as it is imported would be heard.
from chordflow.cli import main as cli
from chordflow.stopping import SIGNALS


def _process(arguments: list[str], said: Path) -> None:
    from chordflow import api
    from chordflow.cli import jobs

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
    sys.exit(cli.main(arguments))


def _step(output: Path) -> int:
    last = output / "checkpoints" / "last"
    return int(last.resolve().name) if last.exists() else 0


def _hidden(output: Path) -> set[str]:
    return {path.name for path in (output / "checkpoints").glob(".*")}


def _logged(output: Path) -> int:
    from chordflow.training.loop import read_metrics

    return max((int(line["step"]) for line in read_metrics(output / "metrics.jsonl")), default=0)


def run(folder: Path, count: int, options: list[str], seconds: float) -> list[dict[str, Any]]:
    """Stops within `seconds` and resumes until `count` processes were stopped; how each of them ended."""
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

    ended: list[dict[str, Any]] = []
    for chain in itertools.count():
        if len(ended) == count:
            return ended
        output = folder / str(chain)
        new = arguments = [*options, f"--output_dir={output}"]
        while True:
            before, logged, hidden = _step(output), _logged(output), _hidden(output)
            began = time.monotonic()
            process = start(arguments)
            number = (*SIGNALS, signal.SIGKILL)[len(ended) % 3]
            if len(ended) < count:
                process.join(chance.uniform(0.0, seconds))
                if process.exitcode is None:
                    os.killpg(process.pid, number)
            process.join()
            if process.exitcode == 0:
                if arguments is new:
                    # The machine may have been slower before.
                    seconds = min(seconds, time.monotonic() - began)
                break
            text = said.read_text()
            ended.append({
                "signal": number, "code": process.exitcode, "said": text, "before": before, "step": _step(output),
                "logged": _logged(output), "logged_before": logged, "there": output.exists(),
                "hidden": sorted(_hidden(output) - hidden),
            })  # fmt: skip
            if process.exitcode not in (130, 143, -signal.SIGKILL):
                return ended
            last = output / "checkpoints" / "last" / "pretrained_model"
            if command := re.search(r"resume with: chordflow (.*)", text):
                arguments = shlex.split(command[1])
            elif last.exists():
                arguments = ["reflow", "--resume=true", f"--config_path={last}"]
            else:
                shutil.rmtree(output, ignore_errors=True)
                arguments = new


if __name__ == "__main__":
    place, number, given = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    begun = time.monotonic()
    if code := cli.main([*given, f"--output_dir={place / 'whole'}"]):
        sys.exit(code)
    sys.stdout.flush()
    from small_jobs import measured_in_few_steps

    with measured_in_few_steps():
        # Most of its time went into imports, figures and pictures.
        found = run(place, number, given, (time.monotonic() - begun) / 4)
    (place / "ended.json").write_text(json.dumps(found))
