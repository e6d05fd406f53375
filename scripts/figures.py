"""Makes every published figure of the demo anew, all of one student: `make figures`.

    .venv/bin/python scripts/figures.py [--output_dir=outputs/figures] [--tables]

Runs the demo, evaluates its student, takes a picture of the evaluation's page (with Chromium), copies results,
pictures and tables to docs/, and writes tables into README.md, README.zh.md and docs/evaluate.md, between markers.
A stage that is done is not done again: after an interruption the same command resumes. `--tables` only fills the
documents from the results in docs/. docs/figures.json names the student and the SHA-256 of each file: a test holds
every published figure to it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from chordflow.experiments.measured import concluded
from chordflow.reporting.figures import save_figures
from chordflow.reporting.table import markdown
from chordflow.reporting.write import write_report
from chordflow.results.files import write_whole
from chordflow.results.schema import Results

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = ROOT / "docs" / "figures.json"
PICTURE = ROOT / "docs" / "report.png"
PICTURE_SIZE = "1200,1500"
"""Pixels, as Chromium reads them: the page's head down to its first plots."""

PLACES: dict[str, tuple[tuple[Path, ...], Path, tuple[str, ...], tuple[str, ...]]] = {
    "demo": (
        (ROOT / "README.md", ROOT / "README.zh.md"),
        ROOT / "docs" / "demo",
        (
            "results.json",
            "table.md",
            "demo.gif",
            "figures/trajectories.png",
            "figures/gap.png",
            "figures/loss.png",
        ),
        ("gap", "free", "success", "noninferiority"),
    ),
    "evaluate": (
        (ROOT / "docs" / "evaluate.md",),
        ROOT / "docs" / "evaluate",
        ("results.json", "table.md"),
        ("delays", "timing"),
    ),
}
"""For each run: the documents, the folder of its files, these, and the tables in the documents."""


def commands(output: Path) -> dict[str, list[str]]:
    """What makes each run, by its name.

    Args:
        output: the folder of both runs, as the documents are to name it.
    """
    demo = output / "demo"
    return {
        "demo": ["demo", f"--output_dir={demo}"],
        "evaluate": [
            "evaluate", f"--teacher.path={demo / 'teacher'}", f"--student.path={demo / 'student'}",
            "--dataset.repo_id=chordflow/detour", f"--dataset.root={demo / 'dataset'}",
            "--env.type=detour", "--env.instruction=go any way", "--eval.n_episodes=500",
            "--eval.teacher_num_steps=[2]", "--delay.control_steps=[2]", "--delay.n_episodes=200",
            f"--output_dir={output / 'evaluate'}",
        ],
    }  # fmt: skip


def run(output: Path) -> None:
    """Runs what is not done yet."""
    for name, command in commands(output).items():
        folder = output / name
        if (folder / "results.json").exists():
            continue
        if (settings := folder / "evaluate_config.json").exists():
            command = ["evaluate", "--resume=true", f"--config_path={settings}"]
        elif folder.exists():
            # A demo that was cut short begins again.
            shutil.rmtree(folder)
        subprocess.run([sys.executable, "-m", "chordflow", *command], cwd=ROOT, check=True)


def take_picture(page: Path) -> None:
    """Saves the head of a report as Chromium shows it."""
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("chromium is not on the PATH: `sh scripts/setup_browser.sh` installs it.")
    subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--hide-scrollbars", f"--window-size={PICTURE_SIZE}", "--virtual-time-budget=20000", f"--screenshot={PICTURE}",
         page.as_uri()],
        check=True, capture_output=True,
    )  # fmt: skip


def fill(text: str, results: Results, name: str, tables: Collection[str]) -> str:
    """A document with the measured part in its place.

    Args:
        text: the document.
        results: what was measured.
        name: of the place, as its marker has it.
        tables: which tables.

    Raises:
        ValueError: if the marker is missing.
    """
    content = markdown(results, keys=tables)
    pattern = re.compile(rf"(<!-- {name} table -->\n)[^<]*(?:<(?!!--)[^<]*)*(<!-- end -->)")
    text, count = pattern.subn(lambda m: f"{m[1]}{content}\n{m[2]}", text)
    if count != 1:
        raise ValueError(f"there are {count} places for the table of {name}; there must be one")
    return text


def fill_documents() -> None:
    """Writes the tables of the results in docs/ into the documents."""
    # All are made before the first is written: a missing marker leaves none behind the others.
    filled = {}
    for name, (documents, folder, _, tables) in PLACES.items():
        results = Results.load(folder / "results.json")
        for document in documents:
            filled[document] = fill(document.read_text(encoding="utf-8"), results, name, tables)
    for document, text in filled.items():
        write_whole(document, text.encode("utf-8"))


def published() -> list[Path]:
    """Every published file of the demo and its evaluation."""
    copied = [folder / Path(file).name for _, folder, files, _ in PLACES.values() for file in files]
    return [*copied, PICTURE]


def sha256(file: Path) -> str:
    """A file's SHA-256, in hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def publish(output: Path) -> None:
    """Copies what the runs left to docs/, takes the picture, and writes down whose figures these are."""
    students = set()
    for name, (_, folder, files, _) in PLACES.items():
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copyfile(output / name / file, folder / Path(file).name)
        policies = Results.load(folder / "results.json").policies
        students |= {policy.weights_sha256 for policy in policies if policy.name == "student"}
    if len(students) != 1:
        sys.exit(f"{output} holds the figures of {len(students)} students; delete it and run this again.")
    take_picture((output / "evaluate" / "report.html").resolve())
    fill_documents()
    files = {str(file.relative_to(ROOT)): sha256(file) for file in published()}
    write_whole(
        MANIFEST, (json.dumps({"student_sha256": students.pop(), "files": files}, indent=1) + "\n").encode()
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/figures"))
    parser.add_argument(
        "--tables", action="store_true", help="only fill the documents from the results in docs/"
    )
    options = parser.parse_args()
    os.chdir(ROOT)
    if not options.tables:
        run(options.output_dir)
        for name in PLACES:
            folder = options.output_dir / name
            results = folder / "results.json"
            # Of runs that were made earlier: by today's rules.
            measured = concluded(Results.load(results))
            measured.save(results)
            (folder / "figures").mkdir(exist_ok=True)
            save_figures(measured, folder / "figures")
            write_report(folder)
        publish(options.output_dir)
    else:
        fill_documents()
