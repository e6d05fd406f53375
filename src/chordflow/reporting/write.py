"""A run's folder to its report: a page, a table, a model card; a study's file to its page and its table."""

from pathlib import Path

from rich.console import RenderableType

from chordflow.console import doing
from chordflow.errors import UserError
from chordflow.reporting import study_page, study_table, table
from chordflow.reporting.card import card
from chordflow.reporting.page import page, write_text
from chordflow.results.files import write_whole
from chordflow.results.schema import Results
from chordflow.results.study import OLD_KINDS, STUDY, Study, kind_of

RESULTS = "results.json"


@doing("Writing the report")
def write_report(folder: str | Path, output: str | Path | None = None) -> list[Path]:
    """Write `report.html`, `table.md` and `model_card.md`, of a study `study.html` and `study.md`.

    Everything is made before anything is written, and each file is written whole: results that cannot be read leave
    an older report as it was.

    Args:
        folder: of a run, with its `results.json`, or of a study; or that file.
        output: where to write, made where it is missing; the run's own folder by default.

    Returns:
        The paths.

    Raises:
        UserError: if there are no results, they cannot be read, or a file cannot be written.
    """
    results, folder = loaded(folder), Path(folder)
    folder = folder if folder.is_dir() else folder.parent
    if isinstance(results, Study):
        return write_study(results, folder if output is None else Path(output))
    contents = {
        "report.html": page(results, folder),
        "table.md": table.markdown(results),
        "model_card.md": card(results),
    }
    return _write(contents, folder if output is None else Path(output))


def printed(folder: str | Path) -> RenderableType:
    """What a terminal shows of a run or a study."""
    results = loaded(folder)
    return study_table.render(results) if isinstance(results, Study) else table.render(results)


def loaded(folder: str | Path) -> Results | Study:
    """What a run or a study measured.

    Args:
        folder: of it, or the file in it.

    Raises:
        UserError: if there is nothing, or it cannot be read.
    """
    folder = Path(folder)
    study = folder / STUDY if folder.is_dir() and not (folder / RESULTS).is_file() else folder
    if study.is_file() and kind_of(study) in ("study", *OLD_KINDS):
        return Study.load(study)
    return Results.load(found_in(folder))


def write_study(study: Study, folder: Path) -> list[Path]:
    """Write `study.html` and `study.md`.

    Returns:
        The paths.

    Raises:
        UserError: if a file cannot be written.
    """
    return _write({"study.html": study_page.page(study), "study.md": study_table.markdown(study)}, folder)


def _write(contents: dict[str, str], target: Path) -> list[Path]:
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{target} cannot be made ({error.strerror}); choose another --output_dir."
        ) from error
    return [write_whole(target / name, write_text(text)) for name, text in contents.items()]


def found_in(folder: Path) -> Path:
    """The results of a folder.

    Raises:
        UserError: if it is not there or holds no results.
    """
    if not folder.exists():
        raise UserError(f"{folder} does not exist; give the folder of a run, with its {RESULTS}.")
    if not folder.is_dir():
        return folder
    if not (folder / RESULTS).is_file():
        raise UserError(
            f"{folder} holds no {RESULTS}; give the folder of a run of chordflow that came to its end."
        )
    return folder / RESULTS
