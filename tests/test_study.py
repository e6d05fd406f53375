"""`chordflow study`: its help, and how it finds a study."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from chordflow.cli.main import main
from chordflow.cli.study import STUDIES
from chordflow.errors import UserError


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What a study of the tests' own, `weather`, is run with."""
    calls: list[list[str]] = []
    module = ModuleType("study_of_the_tests")

    def run(arguments: list[str]) -> None:
        if "--bad" in arguments:
            raise UserError("bad=true: leave it out.")
        calls.append(arguments)

    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(STUDIES, "weather", (module.__name__, "say whether it rains"))
    return calls


def test_the_help_lists_every_study(given: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "--help"]) == 0
    said = capsys.readouterr().out
    for name, (_, text) in STUDIES.items():
        assert f"  {name:<10} {text}" in said.splitlines()
    assert given == []


def test_a_study_is_run_with_what_follows_its_name(
    given: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "weather", "--help"]) == main(["study", "weather", "--a=1", "--b"]) == 0
    assert given == [["--help"], ["--a=1", "--b"]]
    assert main(["study", "weather", "--bad"]) == 2
    assert capsys.readouterr().err == "chordflow study: bad=true: leave it out.\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "say which study; write: chordflow study "),
        (["--steps=3"], "'--steps=3' is not a study; choose one of "),
        (["wether"], "'wether' is not a study; did you mean weather?"),
    ],
)
def test_what_is_no_study_is_refused(
    given: list[list[str]], arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "weather" in said
    assert given == []
