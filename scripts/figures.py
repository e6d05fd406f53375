"""Makes every published figure of the demo anew, all of one student: `make figures`.

    .venv/bin/python scripts/figures.py [--output_dir=outputs/figures] [--tables]

Runs the demo, evaluates its student, takes a picture of the evaluation's page (with Chromium), copies results and
pictures to docs/, and writes the table of README.md and README.zh.md between its markers. A stage that is done is
not repeated: after an interruption the same command resumes. `--tables` only fills the table from the results in
docs/. docs/figures.json names the student and the SHA-256 of each file; a test compares every published file with it.
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
from pathlib import Path

from chordflow.experiments.measured import with_findings
from chordflow.reporting.pictures import save_figures
from chordflow.reporting.write import write_report
from chordflow.results.files import write_whole
from chordflow.results.schema import Results
from chordflow.results.student_findings import may_replace_the_teacher
from chordflow.results.wording import percent

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = ROOT / "docs" / "figures.json"
PICTURE = ROOT / "docs" / "report.png"
PICTURE_SIZE = "1200,1500"
"""Pixels, as Chromium reads them: the page's head down to its first plots."""

PLACES: dict[str, tuple[Path, tuple[str, ...]]] = {
    "demo": (
        ROOT / "docs" / "demo",
        ("results.json", "demo.gif", "figures/trajectories.png", "figures/gap.png"),
    ),
    "evaluate": (ROOT / "docs" / "evaluate", ("results.json",)),
}
"""For each run: the folder of its published files, and these."""


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


def four_rows(results: Results) -> str:
    """The table of the first screen: teacher, its two free alternatives, and student.

    Args:
        results: of an evaluation with episodes, at the student's one step and at two of the teacher's.

    Raises:
        ValueError: If the results lack a row.
    """
    deployed, free = results.teacher_num_steps, results.free and results.free.best(2)
    latency, even = results.latency, results.success_of("teacher", 2)
    if free is None or latency is None or even is None:
        raise ValueError(
            "the results lack the best way at two evaluations, the times or episodes at two steps"
        )
    seconds = {chunk.num_steps: chunk.seconds.p50 for chunk in latency.chunks}
    rows = []
    for label, policy, num_steps, power in (
        ("teacher", "teacher", deployed, 1.0),
        ("teacher, untrained", "teacher", 1, 1.0),
        ("teacher, untrained, on the grid of its smallest gap", "teacher", free.num_steps, free.grid_power),
        ("**student**", "student", 1, 1.0),
    ):
        gap = free if power != 1 else results.gap(policy, num_steps, "converged")
        success = results.success_of(policy, num_steps, grid_power=power)
        if gap is None or success is None:
            raise ValueError(f"the results lack {label} at {num_steps} steps")
        solved = f"{100 * success.rate:.1f} %" + (
            f" (even steps: {100 * even.rate:.1f} %)" if power != 1 else ""
        )
        time = seconds[num_steps] / seconds[deployed]
        rows.append(f"| {label} | {num_steps} | {solved} | {percent(gap.rms)} | {time:.2g} |")
    head = f"| policy | steps | success in {even.episodes} episodes | gap to the converged ODE | time |"
    answer = may_replace_the_teacher(results)
    return "\n".join([head, "| --- | ---: | ---: | ---: | ---: |", *rows, "", f"*{answer}*"])


CHINESE = {
    "policy | steps": "策略 | 步数",
    "success in": "成功率，",
    "episodes | gap to the converged ODE | time": "个回合 | 与收敛 ODE 的动作差距 | 时间",
    "| teacher, untrained, on the grid of its smallest gap": "| 教师，未训练，差距最小的网格",
    "| teacher, untrained": "| 教师，未训练",
    "| teacher": "| 教师",
    "**student**": "**学生**",
    "(even steps:": "（等长步：",
    " %)": " %）",
}
"""What the table says in Chinese; the verdict stands there as chordflow prints it."""


READMES: dict[Path, dict[str, str]] = {ROOT / "README.md": {}, ROOT / "README.zh.md": CHINESE}


def fill(text: str, results: Results, words: dict[str, str]) -> str:
    """A README with the measured table in its place, in other `words`.

    Raises:
        ValueError: If there is not exactly one place for it.
    """
    pattern = re.compile(r"(?<=<!-- readme table -->\n).*?(?=<!-- end -->)", re.DOTALL)
    table, gap, answer = four_rows(results).partition("\n\n")
    for english, other in words.items():
        table = table.replace(english, other)
    text, count = pattern.subn(lambda _: f"{table}{gap}{answer}\n", text)
    if count != 1:
        raise ValueError(f"there are {count} places for the table; there must be one")
    return text


def fill_documents() -> None:
    """Writes the table into both READMEs, or into neither."""
    results = Results.load(PLACES["evaluate"][0] / "results.json")
    filled = {
        readme: fill(readme.read_text(encoding="utf-8"), results, words) for readme, words in READMES.items()
    }
    for readme, text in filled.items():
        write_whole(readme, text.encode("utf-8"))


def published() -> list[Path]:
    """Every published file of the demo and its evaluation."""
    copied = [folder / Path(file).name for folder, files in PLACES.values() for file in files]
    return [*copied, PICTURE]


def sha256(file: Path) -> str:
    """A file's SHA-256, in hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def publish(output: Path) -> None:
    """Copies what the runs left to docs/, takes the picture, and writes down whose figures these are."""
    students = set()
    for name, (folder, files) in PLACES.items():
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
    parser.add_argument("--tables", action="store_true", help="only fill the table from the results in docs/")
    options = parser.parse_args()
    os.chdir(ROOT)
    if not options.tables:
        run(options.output_dir)
        for name in PLACES:
            folder = options.output_dir / name
            results = folder / "results.json"
            # Of runs that were made earlier: by today's rules.
            measured = with_findings(Results.load(results))
            measured.save(results)
            (folder / "figures").mkdir(exist_ok=True)
            save_figures(measured, folder / "figures")
            write_report(folder)
        publish(options.output_dir)
    else:
        fill_documents()
