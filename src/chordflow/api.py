"""chordflow from Python: what the commands do, as functions.

The functions take the names of the options as keywords and plain Python values; a group is a dict. They are checked by
the reader that checks the command line, and raise `UserError`. `command` is the command line that the results name; by
default the equivalent one. `chordflow.reflow` and the others are these functions as `chordflow.keywords` wraps them.

    run = chordflow.reflow(teacher="...", dataset="USER/DATASET", output_dir="outputs/student", steps=2000)
    run.verdict, run.student, run.to_pandas("gaps")
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chordflow import stopping
from chordflow.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from chordflow.couplings.store import Manifest
    from chordflow.policies import FlowPolicy
    from chordflow.results.schema import Results
    from chordflow.results.study import Study

# What takes seconds to import, each function imports.

CLIP = "clips/episodes.gif"
"""The moving picture of an evaluation, in its folder."""


NOTHING = "nothing was written; give the same command again."
"""What an interrupt of a verb that writes at its end leaves."""


class _Shown:
    """A result as a notebook shows it: its `verdict` and its rows, `to_pandas()`; elsewhere its folder, in a line."""

    def __repr__(self: Any) -> str:
        return f"{type(self).__name__}({str(self.folder)!r})"

    def _repr_html_(self: Any) -> str:
        from html import escape

        return f"<p><b>{escape(self.verdict)}</b></p>{self.to_pandas().to_html(index=False, border=0)}"


@dataclass(frozen=True, repr=False)
class Run(_Shown):
    """What a job leaves.

    Attributes:
        folder: of the job, with results.json, the report, and pictures.
        results: all that was measured; None in processes that do not measure, of a run on several GPUs.
        files: the report's page, table and model card.
        student: the student's `pretrained_model` folder, for LeRobot to load; None where none was trained.
    """

    folder: Path
    results: Results | None
    files: tuple[Path, ...] = ()
    student: Path | None = None

    @property
    def measured(self) -> Results:
        """The results; RuntimeError in a process that has not measured."""
        if self.results is None:
            raise RuntimeError("only the first process of a run measures")
        return self.results

    @property
    def verdict(self) -> str:
        """Whether it was worth it, or may be, in a sentence or two, as the command prints it."""
        from chordflow.results.findings import verdict

        return verdict(self.measured)

    def to_pandas(self, rows: str | None = None) -> pd.DataFrame:
        """Rows of the results as a table; nested values have columns such as `interval.low`.

        Args:
            rows: a list of `results`, such as gaps, curvature, success, motion, policies or findings; by default
                success where episodes were run, and gaps otherwise.

        Raises:
            UserError: if there is no such list.
        """
        return _rows(self.measured.to_json(), rows or ("success" if self.measured.success else "gaps"))

    def to_markdown(self) -> str:
        """The verdict and the tables, as in table.md."""
        from chordflow.reporting.table import markdown

        return markdown(self.measured)


@dataclass(frozen=True, repr=False)
class StudyReport(_Shown):
    """What a study came to: its folder, all that was measured, its page and its table."""

    folder: Path
    results: Study
    files: tuple[Path, ...]

    @property
    def verdict(self) -> str:
        """The study's answer in one sentence."""
        from chordflow.results.study_summary import answers

        return answers(self.results)[0]

    def to_pandas(self, rows: str = "trials") -> pd.DataFrame:
        """Rows of the results as a table: trials or arms.

        Raises:
            UserError: if there is no such list.
        """
        return _rows(self.results.to_json(), rows)

    def to_markdown(self) -> str:
        """The tables, as in study.md."""
        from chordflow.reporting.study_table import markdown

        return markdown(self.results)


@dataclass(frozen=True, repr=False)
class Couplings(_Shown):
    """A store of couplings, which `reflow(couplings=folder, ...)` trains from, and what it was made with."""

    folder: Path
    manifest: Manifest

    def to_pandas(self) -> pd.DataFrame:
        """One row: how many observations there are, in how many blocks, and the size of all on disk."""
        import pandas as pd

        made = self.manifest
        num_bytes = sum(file.stat().st_size for file in self.folder.glob("block-*"))
        row = {"observations": made.num_observations, "blocks": made.num_blocks, "num_bytes": num_bytes}
        return pd.DataFrame([row])

    def to_markdown(self) -> str:
        """The row as a table."""
        row = self.to_pandas().iloc[0]
        lines = row.index, ["---"] * len(row), row
        return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)

    @property
    def verdict(self) -> str:
        """Where they are."""
        return f"Couplings in {self.folder}"


@dataclass(frozen=True, repr=False)
class Exported(_Shown):
    """A folder that `chordflow_runtime.load` takes, and what its manifest holds."""

    folder: Path
    manifest: dict[str, Any]

    def to_pandas(self) -> pd.DataFrame:
        """One row: how far it lies from the checkpoint."""
        import pandas as pd

        return pd.DataFrame([self.manifest["parity"]])

    @property
    def verdict(self) -> str:
        """How far it lies from the checkpoint, in a sentence."""
        from chordflow.results.wording import percent

        found = self.manifest["parity"]
        gap = found["teacher"]["gap_percent"] if "teacher" in found else None
        own = f" The checkpoint's own gap to its teacher is {gap:.2g} %." if gap is not None else ""
        return (
            f"On {found['observations']} observations it differs from the checkpoint by {found['max_relative']:.1e} of "
            f"the largest action ({percent(found['gap_percent'] / 100)} of the spread), with {found['flips']} flips in "
            f"{found['flips_of']}.{own}"
        )


def load_policy(
    path: str | Path,
    *,
    revision: str | None = None,
    device: str | None = None,
    rename_map: Mapping[str, str] | None = None,
) -> FlowPolicy:
    """A checkpoint with chordflow's interface of a policy: encode, velocity, sample_noise.

    Args:
        path: `pretrained_model` folder of a LeRobot checkpoint, a run's folder, or a Hub id.
        revision: branch, tag or commit on the Hub.
        device: cuda, mps or cpu; by default the checkpoint's, or what is available.
        rename_map: observation keys of the data to keys of the policy.
    """
    from chordflow.policies import load_flow_policy

    return load_flow_policy(path, revision=revision, device=device, rename_map=rename_map, field="path")


def diagnose(*, command: list[str] | None = None, **options: Any) -> Run:
    """Measures a policy before any training: is a student of few steps worth it?

    Options are those of `chordflow diagnose`, such as policy, dataset, output_dir and measure.
    """
    from chordflow.experiments import diagnose as job
    from chordflow.experiments.settings import diagnose_settings

    config = diagnose_settings(options)
    with stopping.noting(lambda: NOTHING):
        folder, results = job.diagnose(config, command or command_line("diagnose", options))
    report = f"the results are saved; make their report with: chordflow report {shlex.quote(str(folder))}"
    with stopping.noting(lambda: report):
        files = _illustrate(results, folder, "make room and diagnose again into a new folder.")
    return Run(folder, results, files)


def reflow(*, command: list[str] | None = None, **options: Any) -> Run:
    """Trains a student that acts in one or two steps, and measures it.

    Options are those of `chordflow reflow`, such as teacher, dataset, output_dir, steps, batch_size and buffer.
    """
    from chordflow.experiments.rounds import reflow_rounds
    from chordflow.experiments.run_folder import how_to_resume, resume_command
    from chordflow.experiments.settings import reflow_settings
    from chordflow.experiments.share import push
    from chordflow.reporting.card import card
    from chordflow.training.distributed import joined

    with joined():
        config, resume_from = reflow_settings(options)
        output = config.output_dir
        with stopping.noting(lambda: how_to_resume(output)):
            done = reflow_rounds(config, command or command_line("reflow", options), resume_from)
            if done.measured is None:
                return Run(output, None, student=done.student)
            how = f"make room and resume with: {resume_command(output)}"
            run = Run(output, done.results, _illustrate(done.results, output, how), done.student)
        if done.log is not None:
            done.log.end(output / "figures")
        push(config.policy, done.student, partial(card, done.results), config.teacher)
        return run


def evaluate(*, command: list[str] | None = None, **options: Any) -> Run:
    """Compares policies of few steps with their teacher: gaps and latency on a dataset, success in an environment.

    Options are those of `chordflow evaluate`, such as teacher, student, dataset, env, output_dir and eval.
    """
    from chordflow.experiments import evaluate as job
    from chordflow.experiments.settings import evaluate_settings
    from chordflow.reporting.pictures import save_clip
    from chordflow.reporting.write import RESULTS, write_report

    config = evaluate_settings(options)
    output = config.output_dir
    with stopping.noting(lambda: job.how_to_resume(output)):
        results, clip = job.evaluate(config, command or command_line("evaluate", options))
        columns = {name: [(e.seed, e.success, e.frames) for e in run] for name, run in clip.items() if run}
        if columns:
            results = replace(results, clips=[save_clip(columns, output, CLIP)])
            results.save(output / RESULTS)
        return Run(output, results, tuple(write_report(output)))


def couple(**options: Any) -> Couplings:
    """Keeps a teacher's couplings on disk, for many trainings.

    Options are those of `chordflow couple`, such as teacher, dataset, output_dir and num_observations.
    """
    from chordflow.couplings.store import read_manifest
    from chordflow.experiments import couple as job
    from chordflow.experiments.settings import couple_settings
    from chordflow.training.distributed import joined

    with joined():
        folder = job.couple(couple_settings(options))
        return Couplings(folder, read_manifest(folder))


def export(**options: Any) -> Exported:
    """Makes a folder that a robot runs without PyTorch, once it is measured to act as the checkpoint does.

    Options are those of `chordflow export`, such as policy, output_dir, num_steps and dataset.
    """
    from chordflow.experiments import export as job
    from chordflow.experiments.settings import export_settings
    from chordflow.experiments.share import push
    from chordflow.reporting.card import exported_card

    config = export_settings(options)
    with stopping.noting(lambda: NOTHING):
        manifest = job.export(config)
    push(config.policy, config.output_dir, partial(exported_card, manifest), config.policy)
    return Exported(config.output_dir, manifest)


def report(folder: str | Path, output_dir: str | Path | None = None) -> Run | StudyReport:
    """Makes a page, a table and a model card from what a run measured, and page and table of a study.

    Args:
        folder: of a run, with its results.json, or of a study; or that file.
        output_dir: where to write them; made where it is missing; by default `folder`.
    """
    from chordflow.reporting.write import loaded, write_report
    from chordflow.results.study import Study

    files, results, folder = tuple(write_report(folder, output_dir)), loaded(folder), Path(folder)
    folder = folder if folder.is_dir() else folder.parent
    if isinstance(results, Study):
        return StudyReport(folder, results, files)
    # A run writes its student's path relative to itself.
    student = folder / results.student if results.kind == "reflow" and results.student is not None else None
    return Run(folder, results, files, student)


def _rows(content: str, rows: str) -> pd.DataFrame:
    import pandas as pd

    lists = {
        name: value
        for name, value in json.loads(content).items()
        if value and isinstance(value, list) and isinstance(value[0], dict)
    }
    if rows not in lists:
        raise UserError(f"rows={rows}: the results hold no such rows; choose one of {', '.join(lists)}.")
    return pd.json_normalize(lists[rows])


def command_line(verb: str, options: Mapping[str, Any]) -> list[str]:
    """The command line that is equivalent to keyword arguments."""

    def written(value: Any) -> str:
        return str(value) if isinstance(value, str | Path) else json.dumps(value, default=str)

    return ["chordflow", verb, *(f"--{name}={written(value)}" for name, value in options.items())]


def _illustrate(results: Results, folder: Path, remedy: str) -> tuple[Path, ...]:
    """Draws all pictures into a folder that appears whole or not at all, and writes the report; gives its files.

    Raises:
        UserError: if they cannot be written; what to do for the pictures is `remedy`.
    """
    from chordflow.disk import whole_folder
    from chordflow.reporting.pictures import save_figures
    from chordflow.reporting.write import RESULTS, write_report

    what = "pictures"
    try:
        # A resumed run draws anew.
        with whole_folder(folder / "figures") as figures:
            save_figures(results, figures)
        what, remedy = "report", f"make room and run: chordflow report {shlex.quote(str(folder))}"
        return tuple(write_report(folder))
    except (OSError, UserError) as error:
        raise UserError(
            f"output_dir={folder}: the {what} cannot be written ({error}); {RESULTS} is whole: {remedy}"
        ) from error
