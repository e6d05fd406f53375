"""The report's files: one page that holds everything and lets nothing in, the table, the card, and bad input."""

import base64
import dataclasses
import hashlib
import html
import itertools
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from chordflow.cli.main import main
from chordflow.reporting.flow_tables import curvature_by_time, stretches
from chordflow.reporting.page import IN_SIGHT, LARGEST, embed, page, picture
from chordflow.reporting.plots import label
from chordflow.reporting.table import sections
from chordflow.reporting.write import write_report
from chordflow.results.episodes import Clip
from chordflow.results.schema import Results
from chordflow.results.wording import command_lines
from report_samples import HOSTILE, MAKERS, SCRIPT, picture_of, published, sample, write_clip
from small_runs import Capture


class Reader(HTMLParser):
    """Elements, text by element, and identifiers of a page."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.stack: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack, f"</{tag}> ends nothing"
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack:
            self.texts.append((self.stack[-1], data))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module", params=list(MAKERS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    write_clip(folder / "clip.gif")
    write_clip(folder.parent / "outside.gif")
    results = MAKERS[request.param]()
    results.save(folder / "results.json")
    write_report(folder)
    return results, folder


@pytest.fixture(scope="module")
def read(made: tuple[Results, Path]) -> Reader:
    return Reader((made[1] / "report.html").read_text(encoding="utf-8"))


# ---- The page -------------------------------------------------------------------------------------------


def test_elements_are_closed_and_identifiers_are_unique(read: Reader) -> None:
    assert read.stack == []
    names = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(names) == len(set(names))
    for _, attributes in read.elements:
        for reference in ("aria-labelledby", "aria-describedby"):
            if reference in attributes:
                assert attributes[reference] in names
        if (attributes.get("href") or "").startswith("#"):
            assert attributes["href"][1:] in names  # type: ignore[index]


def test_nothing_is_fetched(read: Reader) -> None:
    sources = [a[key] or "" for _, a in read.elements for key in ("src", "href", "data") if key in a]
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert all("http-equiv" not in a or a["http-equiv"] == "Content-Security-Policy" for a in read.of("meta"))
    style = "".join(text for tag, text in read.texts if tag == "style")
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_names_exactly_the_scripts_of_the_page(made: tuple[Results, Path], read: Reader) -> None:
    (policy,) = (a["content"] for a in read.of("meta") if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.split("style-src")[0]
    text = (made[1] / "report.html").read_text(encoding="utf-8")
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    hashes = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts}
    assert len(scripts) == 3
    assert len(text) < 6_000_000
    assert hashes == set(re.findall(r"'sha256-([^']+)'", policy))


def test_plots_hold_what_was_measured(made: tuple[Results, Path], read: Reader) -> None:
    results, plots = made[0], plots_of(read)
    assert set(plots) == {a["data-plot"] for a in read.of("div") if "data-plot" in a}
    euler = next(trace for trace in plots["gap-deployed"]["data"] if trace["name"] == "teacher")
    drawn = dict(zip(euler["x"], euler["y"], strict=True))
    for row in results.gaps:
        if (row.policy, row.solver, row.reference) == ("teacher", "euler", "deployed") and row.rms > 0:
            assert drawn[row.nfe] == pytest.approx(100 * row.rms, rel=1e-4)
            if row.interval is not None:
                at = euler["x"].index(row.nfe)
                high = drawn[row.nfe] + euler["error_y"]["array"][at]
                assert high == pytest.approx(100 * row.interval.high, rel=1e-3)
    assert 10 not in drawn, "the deployed teacher's gap to itself is 0, which a logarithm has no place for"
    if results.floor is not None:
        (line,) = plots["gap-converged"]["layout"]["shapes"]
        assert line["y0"] == pytest.approx(100 * results.floor.rms)
    (ceiling,) = plots["latency"]["layout"]["shapes"]
    assert ceiling["x0"] == pytest.approx(1000 * results.latency.chunk_s(1), rel=1e-3)
    if "difference" in plots and results.rollouts is not None:
        assert any(shape["x0"] == pytest.approx(-2.0) for shape in plots["difference"]["layout"]["shapes"])
    if "timing" in plots:
        for row in range(len(results.timing)):
            assert sum(trace["x"][row] for trace in plots["timing"]["data"]) == pytest.approx(100, abs=0.1)
    for row in results.curvature:
        if "heat-0" in plots and row.policy == "teacher":
            (heat,) = plots["heat-0"]["data"]
            assert [len(heat["z"]), len(heat["z"][0])] == [len(row.s_by_time_and_dim[0]), 100]
            assert heat["z"][0][7] == pytest.approx(row.s_by_time_and_dim[7][0], rel=1e-3)


def test_names_from_files_are_text(read: Reader, made: tuple[Results, Path]) -> None:
    assert not [tag for tag, a in read.elements if any(key.startswith("on") for key in a)]
    assert len(read.of("script")) == 4
    if made[0].device == HOSTILE:
        shown = " ".join(text for tag, text in read.texts if tag not in ("script", "style"))
        assert shown.count(SCRIPT) > 20
        assert "\u202e" not in shown
        data = next(text for tag, text in read.texts if tag == "script" and text.startswith('{"'))
        assert not set("<\u2028") & set(data)


def test_a_page_says_the_same_as_table_and_card(made: tuple[Results, Path], read: Reader) -> None:
    results, folder = made
    shown = [" ".join(text.split()) for tag, text in read.texts if tag not in ("script", "style")]
    for name in ("table.md", "model_card.md"):
        text = html.unescape((folder / name).read_text(encoding="utf-8"))
        text = re.sub(r"\\([\\`*_\[\]|~])", r"\1", text)
        for section in sections(results):
            for row in section.rows if not section.page_only else []:
                for cell in row:
                    assert cell.text in text
                    assert not cell.text or " ".join(cell.text.split()) in shown


def test_what_was_not_measured_has_no_heading() -> None:
    bare = Results(["chordflow"], {}, {}, "cpu", {}, "teacher", None, 10, kind="diagnose")
    read = Reader(page(bare, "."))
    assert [attributes["id"] for attributes in read.of("h2")] == ["verdict", "again", "read"]
    assert "Nothing was measured." in " ".join(text for _, text in read.texts)


def test_every_measure_has_its_plot(made: tuple[Results, Path], read: Reader) -> None:
    if made[0].kind == "evaluate":
        assert {re.sub(r"-\d+$", "", key) for key in plots_of(read)} == {
            "success", "difference", "sequential", "gap-deployed", "gap-converged", "paths", "curvature-time",
            "curvature-parts", "curvature-dims", "heat", "spread", "endpoints", "latency", "motion", "delay", "timing",
        }  # fmt: skip


def plots_of(read: Reader) -> dict[str, Any]:
    (text,) = (text for tag, text in read.texts if tag == "script" and text.startswith('{"'))
    return json.loads(text)


@pytest.mark.parametrize(("name", "shown"), [
    ("<b>bold</b>", "&lt;b&gt;bold&lt;/b&gt;"), ("a & b", "a &amp; b"), ("&lt;", "&amp;lt;"),
    ("two\nlines\x1b[0m", "two lines [0m"), ("x" * 99, "x" * 25 + "\u2026"), ("\u202eעברית", "\u2068עברית\u2069"),
])  # fmt: skip
def test_labels_are_no_markup_for_plotly(name: str, shown: str) -> None:
    assert label(name).strip("\u2068\u2069") == shown.strip("\u2068\u2069")
    assert label(name).startswith("\u2068") is not label(name).isascii()


def test_the_command_can_be_typed_again() -> None:
    typed = command_lines(["chordflow", "diagnose", "--policy.path=a b", "--flag", "$(rm x)"])
    assert typed == "chordflow diagnose \\\n    '--policy.path=a b' \\\n    --flag \\\n    '$(rm x)'"


# ---- What is derived for the page -----------------------------------------------------------------------


def test_curvature_by_time_adds_up_to_the_curvature() -> None:
    row = published("evaluate").curvature[0]
    by_time = curvature_by_time(row)
    assert sum(value**2 for value in by_time) / len(by_time) == pytest.approx(row.curvature**2)
    tenths = stretches(row)
    assert [round(part.begin, 9) for part in tenths] == [round(1 - i / 10, 9) for i in range(10)]
    assert tenths[-1].end == 0
    assert sum(part.share for part in tenths) == pytest.approx(1)
    straight = dataclasses.replace(row, s=0.0, curvature=0.0, s_by_time=[0.0] * 100)
    assert set(curvature_by_time(straight)) == {0.0}
    assert {part.share for part in stretches(straight)} == {0.0}
    coarse = dataclasses.replace(row, times=[1.0, 0.66, 0.33], s_by_time=[0.1, 0.1, 0.2])
    assert [part.share for part in stretches(coarse)] == pytest.approx([0.25, 0.25, 0.5])


def test_a_clip_is_taken_in_with_its_first_frame_and_a_video_with_its_controls(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.gif")
    found = embed(Clip("clip.gif", ["teacher", "student"], [0, 1], [[True, False], [True, True]]), tmp_path)
    source = base64.b64decode(found.source.removeprefix("data:image/gif;base64,"))
    assert source == (tmp_path / "clip.gif").read_bytes()
    assert found.still.startswith("data:image/png;base64,")
    assert (found.size, found.note) == ((246, 80), "")
    said = "2 episodes from the same starts: teacher succeeds in 2, student succeeds in 1 (seeds 0, 1)."
    assert found.text == said
    (tmp_path / "clip.mp4").write_bytes(b"\x00\x00\x00 ftypisom")
    video = embed(Clip("clip.mp4", ["teacher"], [0], [[True]]), tmp_path)
    assert video.still == ""
    assert video.source.startswith("data:video/mp4;base64,")


WHY = {
    "../outside.gif": "lies outside", "link.gif": "lies outside", "/etc/hostname": "lies outside",
    "absent.gif": "is not there", ".": "is not there", "notes.txt": "of a kind", "broken.gif": "cannot be read",
    "null\0.gif": "cannot be read", "large.gif": "too much for a page",
}  # fmt: skip


def test_a_clip_that_cannot_be_shown_is_named_instead(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    write_clip(tmp_path / "outside.gif")
    (folder / "link.gif").symlink_to(tmp_path / "outside.gif")
    (folder / "notes.txt").write_text("x")
    (folder / "broken.gif").write_bytes(b"GIF89a")
    with (folder / "large.gif").open("wb") as file:
        file.truncate(LARGEST + 1)
    for path, why in WHY.items():
        found = embed(Clip(path, ["teacher"], [0], [[True]]), folder)
        assert found.source == ""
        assert why in found.note, path


def test_only_pngs_become_pictures() -> None:
    assert picture(picture_of(3)).startswith("data:image/png;base64,iVBOR")
    for bad in ("", "'><script>", base64.b64encode(b"GIF89a").decode(), picture_of(3) + "\n<"):
        assert picture(bad) == ""


def refused(capsys: Capture, *arguments: str | Path) -> str:
    assert main(["report", *map(str, arguments)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("chordflow report: ")
    assert "\n" not in error
    return error


def test_three_files_are_written_where_they_are_wanted(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "run").mkdir()
    sample().save(tmp_path / "run" / "results.json")
    output = tmp_path / "new" / "deep"
    assert main(["report", str(tmp_path / "run"), f"--output_dir={output}"]) == 0
    assert os.listdir(tmp_path / "run") == ["results.json"]
    said, names = capsys.readouterr().out, ["model_card.md", "report.html", "table.md"]
    assert said.count("Report:") == said.count("Tables:") == 1
    assert sorted(os.listdir(output)) == names
    assert all(name in said for name in names)
    assert (output / "report.html").read_text(encoding="utf-8") == page(sample(), tmp_path)


def test_input_that_cannot_be_used_is_one_sentence(tmp_path: Path, capsys: Capture) -> None:
    file, empty, run = tmp_path / "file", tmp_path / "empty", tmp_path / "run"
    file.write_text("x")
    empty.mkdir()
    run.mkdir()
    sample().save(run / "results.json")
    for arguments, said in (
        ([], "the folder with results.json is missing"),
        ([tmp_path / "absent"], "does not exist"),
        ([empty], "holds no results.json"),
        ([run, "--style=dark"], "--style is not an option"),
        ([run, "--output_dir="], "output_dir is empty"),
        ([run, f"--output_dir={file / 'below'}"], "cannot be made"),
    ):
        assert said in refused(capsys, *arguments)


def test_spoilt_results_leave_an_older_report_as_it_was(tmp_path: Path, capsys: Capture) -> None:
    results = tmp_path / "results.json"
    sample().save(results)
    assert main(["report", str(tmp_path)]) == 0
    capsys.readouterr()
    whole = results.read_text()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path != results}
    for spoilt, why in (
        (whole[: len(whole) // 2], "not valid JSON"),
        (whole.replace('"rms"', '"rns"', 1), "gaps[0].rms is missing"),
    ):
        results.write_text(spoilt)
        assert why in refused(capsys, tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path != results} == before


def test_a_place_that_cannot_be_written_keeps_what_is_there(tmp_path: Path, capsys: Capture) -> None:
    sample().save(tmp_path / "results.json")
    (tmp_path / "report.html").mkdir()
    assert "report.html cannot be written" in refused(capsys, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["report.html", "results.json"]


def test_five_findings_are_in_sight_and_one_part_is_open(read: Reader) -> None:
    lists = [at for at, (_, a) in enumerate(read.elements) if a.get("class") == "findings"]
    assert ["start" in read.elements[at][1] for at in lists] in ([False, True], [False])
    assert sum("open" in a for a in read.of("details")) == 1
    shown = itertools.takewhile(lambda element: element[0] == "li", read.elements[lists[0] + 1 :])
    assert len(list(shown)) <= IN_SIGHT


def test_axes_of_shares_end_at_one_hundred_percent(read: Reader) -> None:
    axes = [plot["layout"][axis] for plot in plots_of(read).values() for axis in ("xaxis", "yaxis")]
    shares = [axis for axis in axes if axis["title"].get("text", "").startswith(("success", "share"))]
    assert shares
    assert all(0 <= axis["range"][0] < axis["range"][1] <= 100 for axis in shares)
