"""The documents: two languages say the same, links lead somewhere, generated parts and figures are of today's results.

`make docs-check` runs these tests; `make test` leaves them out.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from chordflow.cli.jobs import study_settings as parse
from chordflow.demo.teacher import ASSETS, TEACHER_FOLDER
from chordflow.experiments.study.plan import job_of
from chordflow.experiments.study.presets import FileStudy
from chordflow.policies.registry import WITHOUT_ADAPTER, own_families
from chordflow.results.findings import verdict
from chordflow.results.schema import Results
from chordflow.results.study import Study
from chordflow.results.study_summary import curvature, gap, over_seeds
from chordflow.results.study_summary import success as success_of
from script_files import ROOT, load_script

pytestmark = pytest.mark.docs

CHINESE = (ROOT / "README.zh.md", *sorted((ROOT / "docs").rglob("*.zh.md")))
DOCUMENTS = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md"),
                    *(ROOT / "packages").rglob("*.md")})  # fmt: skip
TRANSLATED = {chinese.name.replace(".zh.md", ".md") for chinese in CHINESE}

GENERATED = re.compile(
    r"^<!-- (?P<name>(?!end)[\w ]+) -->\n(?P<content>.*?)^<!-- (?:end(?: of \w+)?|/(?P=name)) -->$",
    re.MULTILINE | re.DOTALL,
)
# A word with a digit in it, so `pi0.5` too, with its sign and its unit. Numbers that are spelled out are not held.
FIGURE = re.compile(
    r"(?:(?<![\w.])[-+])?"
    r"[A-Za-z_]*\d(?:\w|[.,](?=\d)|(?<=e)[-+](?=\d))*"
    r"(?:\s?(?:%|[kMGT]i?B|[mnu]?s|[kMG]?Hz)(?![A-Za-z]))?",
    re.ASCII,
)
WIDE = str.maketrans("０１２３４５６７８９％．＋－−", "0123456789%.+--")
PARSER = MarkdownIt("commonmark").enable("table")


def read(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def original(chinese: Path) -> Path:
    return chinese.with_name(chinese.name.replace(".zh.md", ".md"))


def flat(tokens: list[Token]) -> Iterator[Token]:
    """The tokens, each followed by those within it: a link's words, an image's alternative text."""
    for token in tokens:
        yield token
        yield from flat(token.children or [])


def place(target: str) -> str:
    """Where a link leads, in whichever language; the anchors of a document in two languages are its headings' words."""
    path, mark, anchor = target.replace(".zh.md", ".md").partition("#")
    return path if not path or Path(path).name in TRANSLATED else path + mark + anchor


def anchors(document: Path) -> set[str]:
    """What a link to a heading may name, as GitHub makes it of the heading's words."""
    tokens = PARSER.parse(read(document))
    heads = [inline for head, inline in pairwise(tokens) if head.type == "heading_open"]
    words = ("".join(token.content for token in head.children or []) for head in heads)
    return {re.sub(r"[^\w -]", "", word).strip().lower().replace(" ", "-") for word in words}


def parts(text: str) -> dict[str, Any]:
    """All that the two languages of a document have in common."""
    tokens = list(flat(PARSER.parse(GENERATED.sub("", text))))

    def contents(*kinds: str) -> list[str]:
        return [token.content for token in tokens if token.type in kinds]

    prose = "\n".join(contents("text", "html_block", "html_inline"))
    shapes = {"heading_open", "list_item_open", "tr_open", "th_open", "td_open"}
    return {
        "outline": [token.tag + token.info for token in tokens if token.type in shapes],
        "code blocks": contents("fence", "code_block"),
        "code spans": Counter(contents("code_inline")),
        "links": Counter(place(unquote(str(t.attrs["href"]))) for t in tokens if t.type == "link_open"),
        "images": re.findall(r'src="([^"]*)"', text) + [t.attrs["src"] for t in tokens if t.type == "image"],
        "figures": Counter(re.sub(r"\s", "", found) for found in FIGURE.findall(prose.translate(WIDE))),
        # Chinese has no spaces, and markdown then takes some marks of emphasis for asterisks.
        "asterisks": prose.count("*"),
        # The first table has words of its own in each language, which another test holds.
        "generated": [
            (part["name"], part["content"])
            for part in GENERATED.finditer(text)
            if part["name"] != "readme table"
        ],
    }


@pytest.mark.parametrize("chinese", CHINESE, ids=lambda path: path.name)
def test_the_two_languages_say_the_same(chinese: Path) -> None:
    english = original(chinese)
    assert f"[中文]({chinese.name})" in read(english).split("\n## ")[0]
    assert f"[English]({english.name})" in read(chinese).split("\n## ")[0]
    held, found = parts(read(english)), parts(read(chinese))
    for name in held:
        assert found[name] == held[name], f"{name} of {chinese.name} are not those of {english.name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    tokens = list(flat(PARSER.parse(read(document))))
    targets = [str(token.attrs.get("href") or token.attrs.get("src") or "") for token in tokens]
    for target in map(unquote, [*targets, *re.findall(r'src="([^"]*)"', read(document))]):
        if not target or "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_the_first_screen_is_short() -> None:
    assert read(ROOT / "README.md").count("\n") <= 120
    assert len(read(ROOT / "README.md").split()) <= 900
    assert read(ROOT / "README.zh.md").count("\n") <= 120


def test_the_table_of_the_first_screen_is_what_was_measured() -> None:
    script = load_script(ROOT / "scripts" / "figures.py")
    results = Results.load(script.PLACES["evaluate"][0] / "results.json")
    for readme, words in script.READMES.items():
        assert script.fill(read(readme), results, words) == read(readme), (
            "run: python scripts/figures.py --tables"
        )
    *rows, _, answer = script.four_rows(results).splitlines()
    assert len(rows) == 6
    student = results.success_of("student", 1)
    assert f"| {100 * student.rate:.1f} % |" in rows[-1]
    assert answer == f"*{verdict(results)}*"


def test_every_published_figure_of_the_demo_is_of_one_student_and_of_the_shipped_teacher() -> None:
    script = load_script(ROOT / "scripts" / "figures.py")
    manifest = json.loads(script.MANIFEST.read_text(encoding="utf-8"))
    assert list(manifest["files"]) == [str(file.relative_to(ROOT)) for file in script.published()]
    for name, digest in manifest["files"].items():
        assert script.sha256(ROOT / name) == digest, f"{name}: run make figures"
    teacher = script.sha256(ASSETS / TEACHER_FOLDER / "model.safetensors")
    for folder, _ in script.PLACES.values():
        policies = Results.load(folder / "results.json").policies
        weights = {policy.name: policy.weights_sha256 for policy in policies}
        assert weights == {"teacher": teacher, "student": manifest["student_sha256"]}, folder
    for file in (ROOT / "docs").rglob("*.json"):
        study = json.loads(read(file))
        if "outputs/demo" in str(study.get("teacher")) and "teacher_sha256" in study:
            assert study["teacher_sha256"] == teacher, file


def test_the_policies_are_those_of_the_registry() -> None:
    script = load_script(ROOT / "scripts" / "support_table.py")
    for path in (*script.READMES, script.FAMILIES):
        assert read(path) == script.document(path), "run: python scripts/support_table.py"
    rows = set(re.findall(r"^\| `(\w+)`", read(script.FAMILIES), re.MULTILINE))
    assert rows >= {*own_families(), *WITHOUT_ADAPTER}


def test_the_fields_of_results_are_those_of_the_schema() -> None:
    script = load_script(ROOT / "scripts" / "schema_doc.py")
    assert read(ROOT / "docs" / "results.md") == script.document(), "run: python scripts/schema_doc.py"


def test_the_findings_show_the_benchmark() -> None:
    script = load_script(ROOT / "scripts" / "findings_tables.py")
    for document in script.FINDINGS:
        shown = {part["name"]: part["content"] for part in GENERATED.finditer(read(document))}
        assert shown == {"recordings": script.recordings(script.METAWORLD) + "\n"}
    runs = {
        str(file.parent.relative_to(script.METAWORLD)) for file in script.METAWORLD.glob("**/small*.json")
    }
    assert runs - {"goal_height"} == set(script.RECORDINGS)


def test_no_path_of_a_machine_is_published() -> None:
    for file in (*(ROOT / "docs").rglob("*.json"), *(ROOT / "benchmarks").rglob("*.json")):
        text = read(file)
        assert "/tmp/" not in text, file.name
        assert "/home/" not in text, file.name


def study(name: str) -> Study:
    return Study.load(ROOT / "docs" / f"{name}.json")


def holds(heading: str, *figures: str) -> None:
    """Makes sure that the section of the findings under a heading states figures."""
    section = read(ROOT / "docs" / "findings.md").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    missing = set(figures) - set(re.findall(r"\d+(?:\.\d+)?", section))
    assert not missing, f"{heading}: {missing}"


def in_percent(study: Study, name: str, figure: Any, digits: int = 1) -> str:
    """The median over the seeds of an arm."""
    found = over_seeds(study, study.arm(name), figure)
    return f"{100 * found.middle:.{digits}f}"


def untrained(study: Study, *steps: int) -> list[str]:
    """The untrained teacher's gaps."""
    found = [study.untrained.figures.gap(n) for n in steps]
    return [f"{100 * gap.rms:.1f}" for gap in found if gap is not None]


def test_the_findings_say_what_the_studies_found() -> None:
    for name in ("studies/init", "studies/init_metaworld"):
        one = study(name)
        arms = ["teacher", "teacher_vlm", "random", "random_full"]
        holds("What the student starts from", *(in_percent(one, f"{arm}_lr_0.002", gap()) for arm in arms))
        holds("What the student starts from", *untrained(one, 2))
    for name in ("studies/rounds", "studies/rounds_metaworld"):
        one = study(name)
        arms = ["round_1", "last_2", "last_3", "once"]
        holds("Rounds", *(in_percent(one, arm, figure) for arm in arms for figure in (curvature, gap())))
        holds("Rounds", in_percent(one, "first_3", gap()), *untrained(one, 1))
        holds("Rounds", f"{100 * one.untrained.figures.curvature:.1f}")
    one = study("compare/methods")
    holds("Methods and recipes", *untrained(one, 1, 2, 10))
    for arm, steps in {"all_steps": (1, 2, 10), "one_step": (1, 2), "consistency": (1, 2, 10), "noise_biased": (1,),
                       "snapflow": (1,)}.items():  # fmt: skip
        success = success_of(one, one.arm(arm))
        assert success is not None
        holds(
            "Methods and recipes", f"{100 * success.rate:.1f}", *(in_percent(one, arm, gap(n)) for n in steps)
        )
    levers = study("compare/levers")
    holds("Methods and recipes", *(in_percent(levers, arm.name, gap()) for arm in levers.arms))


def test_the_documents_name_options_that_there_are() -> None:
    verbs = json.loads(read(ROOT / "src" / "chordflow" / "options.json")).values()
    known = {option["name"] for verb in verbs if isinstance(verb, dict) for option in verb["options"]}
    # Of every command, of launchers, of LeRobot's commands, of the benchmarks' scripts, and names that have gone.
    known |= {"help", "config_path", "nproc", "multi_gpu", "num_processes", "config_file", "cpu", "publish", "size",
              "policy.type", "policy.push_to_hub", "inference.type", "inference.rtc.max_guidance_weight",
              "checkpoints", "keep_checkpoints", "budgets", "schedules", "dataset"}  # fmt: skip
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        # LeRobot's commands in it are run by a test.
        text = re.sub(r"^(lerobot-|python -m lerobot)(.*\\\n)*.*$", "", read(document), flags=re.MULTILINE)
        names = {name.rstrip(".") for name in re.findall(r"(?<![\w-])--([a-z][\w.]*)", text)}
        unknown = {name for name in names - known if not re.match(r"env\b", name)}
        assert not unknown or document.name == "results.md", f"{document.name}: {sorted(unknown)}"


def test_the_study_of_the_documents_can_be_run(tmp_path: Path) -> None:
    text = read(ROOT / "docs" / "study.md").split("```yaml\n")[1].split("```")[0]
    assert text.count("\n") == 10
    (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
    study = parse("file", [f"--config_path={tmp_path / 'study.yaml'}"])
    assert isinstance(study, FileStudy)
    assert (study.seeds, study.steps, study.looks) == ([0, 1, 2], 2000, [500, 1000, 2000])
    assert study.arms["second"] == {"teacher": "large"}


def test_the_lines_of_a_file_that_replace_older_options_can_be_run(tmp_path: Path) -> None:
    text = read(ROOT / "docs" / "study.md").split("## From the older verbs\n")[1]
    lines = [yaml.safe_load(line) for line in re.findall(r"`([a-z_]+: [^`]+)`", text)]
    settings = {name: value for line in lines for name, value in line.items() if not isinstance(value, dict)}
    arms = {name: value for line in lines for name, value in line.items() if isinstance(value, dict)}
    whole = {"teacher": {"path": "a/b"}, "dataset": {"repo_id": "a/b"}, "output_dir": "c", **settings}
    (tmp_path / "study.yaml").write_text(
        yaml.safe_dump({**whole, "arms": {"first": {}, **arms}}), encoding="utf-8"
    )
    study = parse("file", [f"--config_path={tmp_path / 'study.yaml'}"])
    assert (study.seconds, study.looks, study.level, study.keep_looks) == (180, [60, 180], 0.05, True)
    for arm in study.arms_for(None, tmp_path):
        assert job_of(study, arm)
