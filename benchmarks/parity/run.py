"""Exports policies for every backend and precision, and keeps what the comparison with the checkpoint gave.

    .venv/bin/python benchmarks/parity/run.py
    .venv/bin/python benchmarks/parity/run.py --table

The demo's teacher is trained; the others are the tests' small random policies, one of each family that can be
exported. int8, which needs a dataset, is measured on the demonstrations of the former. Writes results.json beside this
file and the table of docs/deploy.md; `--table` only the latter.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import chordflow
from chordflow.demo.teacher import DATASET_REPO_ID, place_teacher, record_demonstrations
from chordflow.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("results.json")
DOCUMENT = ROOT / "docs" / "deploy.md"
FAMILIES = ("smolvla", "pi0", "pi05", "multi_task_dit")
EPISODES = 20
WAYS = (("onnx", "float32"), ("openvino", "float32"), ("openvino", "bfloat16"))


def main() -> None:
    """Reads the command line."""
    if "--table" not in sys.argv[1:]:
        logging.disable(logging.ERROR)
        RESULTS.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(filled(text, json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")


def measure() -> dict[str, Any]:
    """What the file of results holds."""
    # The families' builders.
    sys.path.insert(0, str(ROOT / "tests"))
    from families import CASES

    rows: list[dict[str, Any]] = []
    versions: dict[str, str] = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        policies = {"the demo's teacher": (place_teacher(folder), {"graphs": "two"})}
        for family in FAMILIES:
            policies[family] = (CASES[family].build(folder / family / "pretrained_model"), {"num_steps": 1})
        for policy, (checkpoint, given) in policies.items():
            ways = WAYS
            if policy == "the demo's teacher":
                record_demonstrations(folder / "dataset", EPISODES)
                ways = (*WAYS, ("openvino", "int8"))
            for backend, precision in ways:
                row = {"policy": policy, "backend": backend, "precision": precision}
                options = {"backend": backend, "precision": precision, **given}
                if precision == "int8":
                    options["dataset"] = {"repo_id": DATASET_REPO_ID, "root": str(folder / "dataset")}
                try:
                    done = chordflow.export(
                        policy=checkpoint, output_dir=folder / f"robot{len(rows)}", **options
                    )
                except UserError as error:
                    rows.append(row | {"refused": str(error).replace(str(checkpoint), policy)})
                else:
                    rows.append(row | {"num_steps": done.manifest["num_steps"], **done.manifest["parity"]})
                    versions |= done.manifest["versions"]
    return {"processor": _processor(), "versions": versions, "rows": rows}


def filled(text: str, results: dict[str, Any]) -> str:
    """A document with the table of results between its markers."""
    head = "| policy | backend | precision | largest | RMS | gap, % | flips |\n|---|---|---|---:|---:|---:|---:|\n"
    table = head + "".join(_row(row) for row in results["rows"])
    start, end = "<!-- parity -->\n", "<!-- /parity -->"
    return re.sub(f"{start}.*?{end}", lambda _: start + table + end, text, flags=re.DOTALL)


def _row(row: dict[str, Any]) -> str:
    start = f"| {row['policy']} | {row['backend']} | {row['precision']} | "
    if "refused" in row:
        return start + "refused | | | |\n"
    numbers = f"{row['max_relative']:.0e} | {row['rms_relative']:.0e} | {row['gap_percent']:.2g}"
    return f"{start}{numbers} | {row['flips']} of {row['flips_of']} |\n"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))


if __name__ == "__main__":
    main()
