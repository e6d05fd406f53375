"""chordflow from Python: the functions do what the commands do, refuse as they do, and the document's lines run."""

import logging
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

import chordflow
from chordflow.cli.main import main
from chordflow.errors import UserError
from chordflow.keywords import checked, in_keywords
from chordflow.results.schema import Results
from script_files import ROOT

MEASURE = {"num_observations": 3, "latency_repeats": 2, "converged_noises": 1, "num_steps": [1, 2]}
HOW = {
    "steps": 2, "batch_size": 4, "num_workers": 0, "seed": 5, "coupling": {"num_steps": 2},
    "optimizer": {"type": "adamw"}, "buffer": {"num_observations": 8, "noises_per_observation": 2, "block_size": 4},
    "measure": MEASURE,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(checkpoint: Path, dataset_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the document's lines find their teacher and their demonstrations."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "teacher").symlink_to(checkpoint)
    (folder / "demonstrations").symlink_to(dataset_root)
    return folder


@pytest.fixture(scope="module")
def ran(folder: Path) -> dict[str, Any]:
    """What the names in the document's lines stand for after they have run, with smaller sizes."""
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    block = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    lines = [line for line in block[1].splitlines() if line]
    for name, value in (("measure", MEASURE), ("how", HOW)):
        (place,) = (index for index, line in enumerate(lines) if line.startswith(f"{name} = "))
        lines[place] = f"{name} = {value}"
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec("\n".join(lines).replace("USER/DATASET", "test/tiny"), names)
    return names


def test_a_run_shows_what_it_measured(ran: dict[str, Any], folder: Path) -> None:
    run = ran["run"]
    saved = Results.load(folder / "outputs/student/results.json")
    assert run.results == saved
    assert (run.verdict, run.student.name) == (saved.verdict, "pretrained_model")
    gaps = run.to_pandas("gaps")
    assert list(gaps["rms"]) == [row.rms for row in saved.gaps]
    assert "interval.low" in gaps
    assert run.verdict in run.to_markdown().replace("\n", " ")
    assert "<table" in run._repr_html_()
    with pytest.raises(UserError, match=r"rows=nonsense: .* choose one of .*gaps"):
        run.to_pandas("nonsense")
    page = sorted(path.name for path in (folder / "outputs/page").iterdir())
    assert page == ["model_card.md", "report.html", "table.md"]
    # The command in the results says the same.
    assert saved.command[:3] == ["chordflow", "reflow", "--teacher=teacher"]
    assert '--buffer={"num_observations": 8, "noises_per_observation": 2, "block_size": 4}' in saved.command


def test_all_functions_are_there_after_a_run_and_agree_with_the_commands(
    ran: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    data, run = ran["data"] | {"repo_id": "test/tiny"}, ran["run"]
    assert chordflow.load_policy(run.student).default_num_steps == 1
    store = chordflow.couple(
        teacher="teacher", dataset=data, output_dir=tmp_path / "store", num_observations=8, num_workers=0,
        batch_size=4, seed=5, coupling=HOW["coupling"], buffer={"noises_per_observation": 2, "block_size": 4},
    )  # fmt: skip
    assert store.to_pandas().iloc[0]["observations"] == 8
    assert "observations" in store.to_markdown()
    assert "<table" in store._repr_html_()
    shown = chordflow.report(run.folder, tmp_path / "page")
    assert (shown.results, shown.student.resolve()) == (run.results, run.student.resolve())
    assert repr(run) == "Run('outputs/student')"
    given = {"dataset": data, "measure": MEASURE}
    again = chordflow.diagnose(policy={"path": "teacher"}, output_dir=tmp_path / "again", **given)
    assert again.results.gaps == ran["found"].results.gaps
    compared = chordflow.evaluate(
        policy="teacher", student=run.student, output_dir=tmp_path / "compared", **given
    )
    assert compared.to_pandas().shape[0] == len(compared.results.gaps)
    command = [*run.results.command[1:], f"--output_dir={tmp_path / 'student'}"]
    assert main([argument for argument in command if argument != "--output_dir=outputs/student"]) == 0
    assert Results.load(tmp_path / "student" / "results.json").gaps == run.results.gaps
    with pytest.raises(UserError, match="output_dir=outputs/student exists already"):
        chordflow.reflow(teacher="teacher", dataset=data, output_dir="outputs/student", **HOW)


def test_libraries_are_quiet_within_a_call_and_heard_after_it(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    def load_policy() -> None:
        logging.getLogger("library").error("loud")
        warnings.warn("loud", stacklevel=1)

    logging.disable(logging.NOTSET)
    checked(load_policy)()
    assert (caplog.messages, [str(w.message) for w in recwarn if "loud" in str(w.message)]) == ([], [])
    load_policy()
    assert (caplog.messages, str(recwarn.pop(UserWarning).message)) == (["loud"], "loud")


def test_values_without_a_keyword_are_refused_by_python() -> None:
    with pytest.raises(TypeError, match="positional argument"):
        chordflow.reflow("t", "a/b", output_dir="out")


def test_commands_in_a_sentence_stay_as_they_are() -> None:
    said = "measure.num_steps=[1, 2]: lower --steps, or --optimizer.lr=0.1: chordflow reflow --resume=true --a.b=c"
    assert in_keywords(said, "reflow") == (
        'measure={"num_steps": [1, 2]}: lower steps, or optimizer={"lr": 0.1}: chordflow reflow --resume=true --a.b=c'
    )


@pytest.mark.parametrize(("options", "message"), [
    ({"step": 1}, "step is not an option; did you mean steps?"),
    ({"buffer": {"num_observation": 1}},
        'buffer={"num_observation": ...} is not an option; did you mean buffer={"num_observations": ...}?'),
    ({"buffer": {"num_observations": "x"}}, 'buffer={"num_observations": x}: give a whole number; '),
    ({"steps": True}, "steps=true: give a whole number"),
    ({"config_path": Path("absent.json")}, "config_path=absent.json cannot be read"),
    ({"couplings": {"num_observations": 8}},
        'give couplings={"path": ...} as well, or buffer={"num_observations": ...} instead.'),
])  # fmt: skip
def test_keywords_are_checked_and_named_in_the_words_of_python(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^(?!.*--).*{re.escape(message)}"):
        chordflow.reflow(**{"teacher": "t", "dataset": "a/b", "output_dir": "out", **options})
