"""What a study says in words and shows as tables and plots, from figures that are made up; files that are joined."""

import html
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from chordflow.errors import UserError
from chordflow.reporting.section import Section
from chordflow.reporting.study_page import page, panels
from chordflow.reporting.study_table import SEEDS, by_arm, facts, markdown, render, sections
from chordflow.reporting.table import escape
from chordflow.reporting.write import write_report
from chordflow.results import study_summary as summary
from chordflow.results.old_studies import OLD_KINDS
from chordflow.results.paying import paying_rounds
from chordflow.results.study import Study, Untrained, joined
from chordflow.results.study_summary import answers, standings
from script_files import ROOT, load_script
from study_samples import CLEAR, TEACHER, beginnings, figures, of_two_seeds, rounds, study, trial
from study_samples import arm as sample_arm


def cells(section: Section) -> list[list[str]]:
    return [[cell.text for cell in row] for row in section.rows]


def by_head(section: Section) -> list[dict[str, str]]:
    """Every row's cells by what stands at the head of their column."""
    heads = [head.replace("\n", " ") for head in section.heads]
    return [dict(zip(heads, row, strict=True)) for row in cells(section)]


CLEARLY = study(*CLEAR)
OVERLAP = study(*(trial(name, seed, figures(one, 0.1, 0.1)) for name, both in (
    ("a", (0.04, 0.08)), ("b", (0.07, 0.09)), ("c", (0.2, 0.3))) for seed, one in enumerate(both)))  # fmt: skip
TWICE = study(*CLEAR, *(replace(one, arm="one again") for one in CLEAR[:2]))
SOLVES = [trial(name, seed, figures(0.1, 0.1, 0.1), solved=most - seed)
          for name, most in (("a", 40), ("b", 20)) for seed in (0, 1)]  # fmt: skip
BETTER = replace(CLEARLY, untrained=Untrained(10, figures(0.2, 0.051, 0.01), TEACHER))


@pytest.mark.parametrize(("found", "part"), [
    (CLEARLY, "Arm one has the smallest gap at one step to the converged ODE, 4.5 %."),
    (OVERLAP, "No clear winner: arm a has the smallest gap at one step to the converged ODE, 6.0 %."),
    (study(CLEAR[0]), "Arm one has a gap of 4.0 % to the teacher's converged ODE at one step."),
    # A student for one step alone is no candidate, and what counts is the worst of the step counts.
    (CLEARLY, "At every step count (the worst of 1, 2 and 10) all (8.5 %, 8.0 % to 9.0 % over 2 seeds) has"),
    # The ranges over seeds do not overlap, but 40 episodes tell the two no further apart.
    (CLEARLY, "no clear winner between one (95.0 %, 95.0 % to 100.0 % over 2 seeds) and all (87.5 %, 87.5 % to"),
    (OVERLAP, "At one step there is no clear winner between a (6.0 %, 4.0 % to 8.0 % over 2 seeds) and b (8.0 %"),
    (study(CLEAR[0], CLEAR[2]), "no clear winner with a single seed between one (4.0 %) and all (8.0 %)."),
    (study(CLEAR[0], CLEAR[2]), "there is all (8.0 %) alone"),
    (study(*CLEAR, untrained=Untrained(10, figures(0.2, 0.05, 0.01))), "is as good as one at one by its gap (5.0 % "
     "against 4.5 %)"),
    (BETTER, "is not as good as one at one by its gap"),
    (BETTER, "and as good as one in episodes (92.5 % against 95.0 %)."),
    (study(*SOLVES), "a (97.5 %, 97.5 % to 100.0 % over 2 seeds) succeeds most often."),
    # A seed of the one that does as well as the least of the other.
    (study(*SOLVES[:3], trial("b", 1, figures(0.1, 0.1, 0.1), solved=39)), "In episodes at one step there is no clear "
     "winner between a (97.5 %"),
])  # fmt: skip
def test_who_wins_is_said_where_seeds_and_episodes_tell_them_apart(found: Study, part: str) -> None:
    assert part in " ".join(answers(found))


def test_who_is_clearly_behind_and_who_has_equal_settings_is_no_rival() -> None:
    assert not any("c (" in text for text in answers(OVERLAP)[:2])
    same = replace(TWICE.arms[-1], settings=TWICE.arms[0].settings, step_counts=[1])
    assert answers(replace(TWICE, arms=[*TWICE.arms[:-1], same])) == answers(CLEARLY)


def test_an_arm_of_a_file_keeps_its_name_whatever_it_teaches() -> None:
    arms = [
        sample_arm("small"),
        sample_arm("large"),
        *(sample_arm(n, teacher="large") for n in ("second", "third")),
    ]
    found = study(*(trial(one.name, 0, figures(0.1, 0.1, 0.1)) for one in arms), preset="file", arms=arms)
    names = ["teacher, untrained", "small", "large", "second", "third"]
    assert [row[0] for row in cells(by_arm(found))] == names
    differs = [row["differs in"] for row in by_head(by_arm(found))]
    assert differs == ["-", "", "", "teacher=large", "teacher=large"]


def test_the_rows_shown_first_hold_the_best_arm() -> None:
    last = [trial(f"arm_{n:02}", 0, figures(0.5 - n / 100, 0.1, 0.1)) for n in range(20)]
    shown = by_arm(study(*last), ranges=False).short()
    names = [row[0] for row in cells(shown)]
    assert names == ["teacher, untrained", *(f"arm_{n:02}" for n in (*range(6), 17, 18, 19))]
    assert "11 more rows" in shown.below


def test_a_student_that_made_no_step_wins_nothing() -> None:
    found = study(*CLEAR[2:], *(replace(one, steps=0) for one in CLEAR[:2]))
    left = "Left out, because the budget was too small for a step: one."
    assert answers(found) == [*answers(study(*CLEAR[2:])), left]
    assert "one (no step)" in [row[0].text for row in by_arm(found).rows]


def test_the_table_has_the_teacher_then_medians_and_ranges() -> None:
    whole = study(*CLEAR, untrained=Untrained(10, figures(0.3, 0.2, 0.05), TEACHER), env="drift")
    section = by_arm(whole)
    shown, rows = cells(section), by_head(section)
    assert [row[0] for row in shown] == [
        "teacher, untrained", "- at two steps", "- deployed, at ten steps", "one", "- least to largest", "all",
        "- least to largest", "bad", "- least to largest",
    ]  # fmt: skip
    assert shown[0][1:6] == ["10.0", "30.0/15.0/0.3", "20.0/10.0/0.2", "5.0/2.5/0.1", "6.00/70.0"]
    columns = ("gap at 1, %: RMS/median/ flips", "success at one step, %", "points to the teacher", "p")
    assert rows[0][columns[1]] == "25.0 [14.2, 40.2]"
    assert [[row[name] for name in columns] for row in rows[2:5]] == [
        ["-", "90.0 [76.9, 96.0]", "-", "-"],
        ["4.5/2.2/0.0", "95.0 [83.5, 98.6]", "+5.0 [-5.0, +16.7]", "0.500"],
        ["4.0-5.0/2.0-2.5/0.0-0.1", "95.0-100.0", "+5.0 to +10.0", "0.125 to 0.500"],
    ]
    assert shown[3][-4:] == ["10", "20", "yes", "1"]
    assert shown[5][-1] == "any"
    assert by_arm(study(*CLEAR[:-1])).rows[-1][0].text == "bad (1 of 2 seeds)"
    text = markdown(whole)
    assert text.startswith("**Arm one ")
    held = ("- device: cpu, 1 threads", "- each arm: 5 steps; seeds 0, 1", SEEDS)
    assert all(part in text for part in held)
    # How success is taken over seeds is said only where episodes were run.
    unrun = [replace(one, looks=[replace(one.last, success=[])]) for one in CLEAR]
    assert SEEDS not in markdown(study(*unrun))


def test_couplings_that_differ_are_told() -> None:
    found = beginnings()
    differs = replace(found, trials=[replace(found.trials[0], couplings_sha256="b"), *found.trials[1:]])
    for one, said in (
        (found, "couplings: the same to the bit"),
        (differs, "couplings: not the same to the bit"),
    ):
        assert said in markdown(one)
    assert "to the bit" not in markdown(CLEARLY), "not asked for"


def test_the_headline_is_one_short_sentence_with_its_figure() -> None:
    published = [
        Study.load(file) for name in ("compare", "studies") for file in (ROOT / "docs" / name).glob("*.json")
    ]
    of_one_teacher = joined([of_two_seeds(), CLEARLY])
    never = rounds({"last, real 0.1": [[(0.2, 0.4)] * 3]}, kept=None)
    for found in (CLEARLY, OVERLAP, study(CLEAR[0], CLEAR[2]), beginnings(), of_two_seeds(), never, of_one_teacher,
                  *published):  # fmt: skip
        text = answers(found)[0]
        assert len(text.split()) <= 25, text
        assert re.fullmatch(r"[A-Z][^;]*?\d %[^;]*\.", text), text
        assert ". " not in text, text
        assert markdown(found).startswith(f"**{escape(text)}**")
    assert answers(replace(beginnings(), trials=[]))[0] == "Nothing is measured yet."


def test_the_tables_have_every_arm_and_look() -> None:
    found = beginnings()
    arms, gaps, losses, rates = sections(found)
    rows = {row[0]: row for row in cells(arms)}
    # What all arms share is no difference.
    assert rows["random"][1] == "student.init=random, student.train=action_head vision"
    assert "100-200; 100" in rows["teacher"]
    assert "200 (1 of 3); 200 (1 of 3)" in rows["random"]
    assert "never; never" in {cell for row in cells(sections(replace(found, level=0.001))[0]) for cell in row}
    assert cells(gaps)[0] == ["teacher", "30.0", "6.0", "3.0"]
    assert cells(gaps)[1] == ["- least to largest", "30.0-30.0", "4.0-9.0", "2.0-4.0"]
    assert cells(losses)[0] == ["teacher", "0.05", "0.02", "0.01"]
    # The looks before the last have no episodes.
    assert (rates.heads, cells(rates)[2]) == (["arm", "200"], ["random", "80.0"])
    assert ("left out", "pretrained_vlm: it has none") in facts(found)
    unheard = [replace(t, losses=None, looks=[replace(k, success=[]) for k in t.looks]) for t in found.trials]
    assert [section.key for section in sections(replace(found, trials=unheard))] == ["study", "gap"]


def test_the_headline_says_where_another_round_stopped_paying() -> None:
    found = of_two_seeds()
    last, _ = found.chains
    assert [round(one.gap, 4) for one in standings(found, last)] == [0.3, 0.1, 0.096, 0.115]
    assert answers(found) == [
        "Chain last: another round stopped paying after round 2, at a one-step gap of 9.6 % to the first teacher's "
        "converged ODE.",
        "last: another round stopped paying after round 2 (curvature 20 % -> 4.5 % -> 2.5 % -> 1.5 %, gap 30 % -> 10 % "
        "-> 9.6 % -> 12 %; 2 of 2 seeds agree).",
        "One round instead: curvature 2.0 %, gap 6.0 % with once (300 steps).",
    ]
    # The second round pays by the medians, and by itself in one seed of two.
    second = summary.judged(found, last, 1)
    assert (second.gain.pays, second.pays, second.count) == (True, 1, 2)
    assert paying_rounds(standings(found, last), 0.1) == 2


def test_rounds_that_all_pay_and_rounds_that_never_do() -> None:
    falling = rounds({"last": [[(0.2 / 2**k, 0.3 / 2**k) for k in (1, 2, 3)]]})
    assert "last: round 3 still paid (curvature 20 % -> 10 % -> 5.0 % -> 2.5 %" in answers(falling)[1]
    never = rounds({"first, euler": [[(0.2, 0.4)] * 3]}, kept=None)
    assert "Chain first, euler: not even round 1 paid, at a one-step gap of 40 %" in answers(never)[0]


def test_seeds_are_judged_whole_or_not_at_all() -> None:
    """Medians over other seeds in each round would be falls that nobody made."""
    found = of_two_seeds()
    missing = replace(found, trials=[one for one in found.trials if (one.arm, one.seed) != ("last_3", 1)])
    (last, _) = missing.chains
    assert list(summary.whole_seeds(missing, last)) == [0]
    assert [one.gap for one in standings(missing, last)] == [0.3, 0.1, 0.09, 0.11]
    assert "Judged by 1 of 2 seeds so far." in answers(missing)
    assert "| last (1 of 2 seeds) | 3 |" in markdown(missing)
    for less in (replace(found, trials=found.trials[:2]), replace(found, untrained=None, trials=[])):
        assert answers(less)[0] == "No seed has all its rounds yet."


def test_the_table_of_rounds_shows_medians_ranges_and_falls() -> None:
    rows = by_head(by_arm(of_two_seeds()))
    by_round = {(row["arm"], row["round"]): row for row in rows}
    shown = ("curvature %", "spread %", "modes kept %", "curvature falls by %", "gap at 1 falls by %",
             "pays (seeds)")  # fmt: skip
    assert [by_round["last", "2"][name] for name in shown] == ["2.5", "70.0", "50.0", "44", "4", "yes (1/2)"]
    assert [by_round["last", "3"][name] for name in shown[3:]] == ["40", "-20", "no (0/2)"]
    assert [by_round["teacher, untrained", "0"][name] for name in shown[1:3]] == ["40.0", "0.0"]
    assert [row["curvature %"] for row in rows if row["arm"] == "- least to largest"][1] == "2.0-3.0"
    assert {("observations with several modes", "4"), ("once", "300 steps")} <= set(facts(of_two_seeds()))
    # What is explained is shown.
    for ranges in (False, True):
        assert [
            f"{word}: " in by_arm(of_two_seeds(), ranges=ranges).below for word in ("Spread", "Modes")
        ] == [ranges] * 2


def test_plots_over_looks() -> None:
    found = beginnings()
    drawn = {plot.key: plot for group in panels(found) for plot in group}
    assert list(drawn) == ["loss", "curvature", "gap-1", "gap-2", "gap-10", "success"]
    band, line = drawn["gap-1"].figure.data[:2]
    assert (list(line.x), list(line.y)) == ([0, 100, 200], [30, 6, 3])
    assert (list(band.x), list(band.y)) == ([0, 100, 200, 200, 100, 0], [30, 9, 4, 2, 4, 30])
    assert "teacher 3.0 % (2.0 % to 4.0 %)" in drawn["gap-1"].caption
    # The loss has more points than there are looks.
    assert list(drawn["loss"].figure.data[1].x) == [1, 50, 100, 200]
    assert panels(CLEARLY) == [], "a line of one point is none"


def test_plots_over_a_chain_go_from_the_untrained_teacher() -> None:
    drawn = {plot.key: plot for group in panels(of_two_seeds(30)) for plot in group}
    assert list(drawn) == ["curvature", "gap-1", "gap-2", "gap-10", "spread", "modes", "success"]
    band, last, _, once = drawn["gap-1"].figure.data
    assert (list(last.x), list(last.y)) == ([0, 100, 200, 300], [30, 10, 9.6, 11.5])
    assert list(band.y) == [30, 10, 10.2, 12, 11, 9, 10, 30]
    # One round of the steps of three stands above the third of the others.
    assert (list(once.x), list(once.y)) == ([0, 300], [30, 6])
    assert "last 12 % (11 % to 12 %); once 6.0 % (6.0 % to 6.0 %)" in drawn["gap-1"].caption
    assert list(drawn["modes"].figure.data[1].y) == [0, 50, 50, 50]
    assert list(drawn["success"].figure.data[1].y) == [90, 75, 75, 75]


def test_rounds_and_budgets_of_one_way_are_told_apart() -> None:
    found = of_two_seeds()
    more = [replace(one, arm="once_200") for one in found.trials if one.arm == "once"]
    twice = [replace(t, looks=[replace(t.last, mark=50), t.last]) for t in [*found.trials, *more]]
    arms = [*found.arms, replace(found.arm("once"), name="once_200", steps=200)]
    looked = replace(found, arms=arms, trials=twice, looks=[50, 100])
    names = [*(f"last, round {n}" for n in (1, 2, 3)), "once after 300 steps", "once after 200 steps"]
    (gaps,) = (section for section in sections(looked) if section.key == "gap")
    assert [row[0] for row in cells(gaps) if row[0] != "- least to largest"] == names
    (drawn,) = (plot for group in panels(looked) for plot in group if plot.key == "gap-1")
    assert all(f"{name} " in drawn.caption for name in names)
    console = Console(width=80)
    with console.capture() as capture:
        console.print(render(looked, verbose=True))
    heads = [
        line.split()[:2]
        for line in capture.get().split("by optimiser")[0].splitlines()
        if line.startswith("arm ")
    ]
    assert len(heads) > 1
    assert all(head == ["arm", "round"] for head in heads)


@pytest.mark.parametrize("found", [beginnings(), of_two_seeds(), CLEARLY], ids=["init", "rounds", "methods"])
def test_the_page_is_whole_and_escaped(found: Study) -> None:
    text = page(replace(found, teacher="a/<b>", settings={"env": {"type": "<i>"}}))
    outside = text.partition("<script>")[0] + text.rpartition("</script>")[2]
    assert "a/&lt;b&gt;" in text
    assert not re.search("<b>|<i>", outside)
    held = json.loads(re.findall(r'id="plots">(.*?)</script>', text)[0])
    assert set(re.findall(r'data-plot="([\w-]+)"', text)) == set(held)
    folded = text.partition('<details class="part">')[2]
    assert 'id="table-study"' not in folded
    assert ('id="table-gap"' in folded) == found.looks_often
    needed = ('id="theme"', 'id="status"', "chordflow study", "Made by chordflow from study.json", "env.type")
    assert all(part in html.unescape(text) for part in needed)


def test_a_file_comes_back_and_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    for found in (beginnings(), of_two_seeds(12)):
        found.save(path)
        assert Study.load(path) == found
    assert [file.name for file in write_report(tmp_path)] == ["study.html", "study.md"]
    assert (tmp_path / "study.md").read_text() == markdown(found)
    path.write_text("{}")
    with pytest.raises(UserError, match="no schema_version; give a study"):
        Study.load(path)
    with pytest.raises(UserError, match=r"give a study's study\.json"):
        Study.load(tmp_path / "nothing.json")
    older = r"older layout; .*python scripts/convert_study\.py .*study\.json"
    for kind, read in itertools.product(OLD_KINDS, (Study.load, write_report)):
        path.write_text(json.dumps({"kind": kind}))
        with pytest.raises(UserError, match=older):
            read(path)
    path.rename(tmp_path / "compare.json")
    for read, place in ((Study.load, path), (write_report, tmp_path)):
        with pytest.raises(UserError, match=older.replace("study\\.json", "compare\\.json")):
            read(place)


@pytest.mark.parametrize(
    ("name", "kept"), [("study.json", "study.json.old"), ("compare.json", "compare.json")]
)
def test_the_converter_keeps_the_old_file(
    name: str, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load_script(ROOT / "scripts" / "convert_study.py")
    monkeypatch.setattr(script, "converted", lambda old: beginnings())
    (tmp_path / name).write_text('{"kind": "compare"}')
    script.convert(tmp_path / name)
    assert (tmp_path / kept).read_text() == '{"kind": "compare"}'
    assert Study.load(tmp_path / "study.json") == beginnings()
    (tmp_path / name).write_text('{"kind": "compare"}')
    with pytest.raises(UserError, match="exists; move it"):
        script.convert(tmp_path / name)
    for spoilt, said in (("[]", "is no result of"), ('{"kind": "compare"}', "is damaged")):
        (tmp_path / "other.json").write_text(spoilt)
        monkeypatch.undo()
        with pytest.raises(UserError, match=said):
            script.convert(tmp_path / "other.json")
    with pytest.raises(UserError, match="is no file"):
        script.convert(tmp_path / "absent")


def test_studies_of_one_teacher_join() -> None:
    first, second = study(*CLEAR[:3]), study(*CLEAR[3:])
    assert answers(joined([first, second])) == answers(CLEARLY)
    # Of a trial that both have the first counts; equal names with other settings or budgets are two arms.
    assert vars(joined([first, first])).items() >= vars(first).items()
    anew = [replace(one, step_counts=None) for one in first.arms]
    longer = joined([first, replace(first, steps=50, arms=anew)])
    assert [one.name for one in longer.arms] == ["one", "all", "one (2)", "all (2)"]
    assert [one.steps for one in longer.arms] == [None, None, 50, 50]
    more_steps = answers(joined([study(CLEAR[0]), replace(study(CLEAR[0]), steps=50)]))
    assert "between one (4.0 %) and one (2) (4.0 %)" in more_steps[1]
    assert "one (2) after 50 steps" in by_arm(longer).title
    assert "but budgets differ (5 to 50 steps)" in answers(longer)[0]
    # An arm of a single seed is finished where its own study has no more.
    fewer = joined([study(*CLEAR[:2]), study(CLEAR[2]), replace(study(CLEAR[4]), seeds=[0, 1])])
    names = ["teacher, untrained", "one", "all", "bad (1 of 2 seeds)"]
    assert [row["arm"] for row in by_head(by_arm(fewer, ranges=False))] == names
    assert answers(fewer)[0].startswith("No clear winner with a single seed of some arms: arm one ")
    chains = joined([of_two_seeds(), replace(of_two_seeds(), steps=200, looks=[200])]).chains
    assert [one.teacher for one in chains[2]] == [None, "last_1 (2)", "last_2 (2)"]
    others: dict[str, tuple[Any, str]] = {
        "teacher_sha256": ("2" * 64, "of another teacher"), "env": ("libero", "in another environment"),
        "held_out": (None, "on other observations"), "seconds": (3.0, "of another budget"),
    }  # fmt: skip
    for name, (other, what) in others.items():
        with pytest.raises(UserError, match=f"study 2 is .*{what}"):
            joined([first, replace(first, **{name: other})])


def test_the_published_studies_are_read_and_say_what_they_said() -> None:
    files = sorted((ROOT / "docs").glob("*/*.json"))
    found = {file.stem: Study.load(file) for file in files if file.parent.name in ("compare", "studies")}
    for name, part in (
        ("methods", "one_step (4.4 %), all_steps (6.4 %, 5.2 % to 7.6 % over 2 seeds)"),
        ("rounds", "(curvature 18 % -> 7.0 % -> 6.2 % -> 6.1 %, gap 29 % -> 9.3 % -> 9.7 % -> 10 %;"),
    ):
        assert part in " ".join(answers(found[name]))


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize(
    "found", [beginnings(), of_two_seeds(30), study(*CLEAR)], ids=["init", "rounds", "methods"]
)
def test_figures_are_whole_on_a_terminal(found: Study, width: int) -> None:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(found))
    text = console.export_text()
    # Names take two lines where a terminal is narrow, and columns follow below.
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    section = by_arm(found, ranges=False).short()
    for place, head in enumerate(section.heads):
        assert all(line in text for line in head.split("\n"))
        assert all(row[place].text in text for row in section.rows if place >= section.left)
