"""A run's folder to its report: a page, a table, a model card."""

from pathlib import Path

from chordflow.errors import UserError
from chordflow.reporting.card import card
from chordflow.reporting.page import page, write_text
from chordflow.reporting.table import markdown
from chordflow.results.files import write_whole
from chordflow.results.schema import Results

RESULTS = "results.json"


def write_report(folder: str | Path, output: str | Path | None = None) -> list[Path]:
    """Write ``report.html``, ``table.md`` and ``model_card.md``.

    Everything is made before anything is written, and each file is written whole: results that cannot be read leave
    an older report as it was.

    Args:
        folder: Of a run, with its ``results.json``.
        output: Where to write, made where it is missing; the run's own folder by default.

    Returns:
        The paths.

    Raises:
        UserError: If there are no results, they cannot be read, or a file cannot be written.
    """
    folder = Path(folder)
    results = Results.load(found_in(folder))
    target = folder if output is None else Path(output)
    contents = {
        "report.html": page(results, folder),
        "table.md": markdown(results),
        "model_card.md": card(results),
    }
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
        UserError: If it is not a folder or holds no results.
    """
    if not folder.exists():
        raise UserError(f"{folder} does not exist; give the folder of a run, with its {RESULTS}.")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; give the folder that holds {RESULTS}.")
    if not (folder / RESULTS).is_file():
        raise UserError(
            f"{folder} holds no {RESULTS}; give the folder of a run of chordflow that came to its end."
        )
    return folder / RESULTS
