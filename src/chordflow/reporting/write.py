"""A run's folder to its report: a page, a table, a model card; a study's file to its page and its table."""

from pathlib import Path

from rich.console import RenderableType

from chordflow.console import doing
from chordflow.errors import UserError
from chordflow.reporting import study_page, study_table, table
from chordflow.reporting.card import card
from chordflow.reporting.page import page
from chordflow.results.files import write_whole
from chordflow.results.old_studies import check_layout, kind_of
from chordflow.results.schema import RESULTS, Results
from chordflow.results.study import STUDY, Study


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
    target = folder if output is None else Path(output)
    if isinstance(results, Study):
        return write_study(results, target)
    contents = {
        "report.html": page(results, folder),
        "table.md": table.markdown(results),
        "model_card.md": card(results, folder=folder),
    }
    return _write(contents, target)


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
    # Names that are not valid Unicode, which a command line may hold, become question marks.
    return [write_whole(target / name, text.encode(errors="replace")) for name, text in contents.items()]


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
    file = Path(folder)
    if not file.exists():
        raise UserError(f"{file} does not exist; give the folder of a run, with its {RESULTS}.")
    if file.is_dir():
        found = [file / name for name in (RESULTS, STUDY) if (file / name).is_file()]
        if not found:
            check_layout(file)
            raise UserError(
                f"{file} holds no {RESULTS}; give the folder of a run of chordflow that came to its end."
            )
        file = found[0]
    check_layout(file)
    return Study.load(file) if kind_of(file) == "study" else Results.load(file)
