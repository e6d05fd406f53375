"""Reports in headless Chromium: nothing fetched, nothing executed that a file brought, all of it usable."""

import itertools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chordflow.reporting.write import write_report
from chordflow.results.schema import Results
from report_samples import HOSTILE, MAKERS, SCRIPT, write_clip

ROOT = Path(__file__).resolve().parent.parent
MODULES = ROOT / ".browser" / "node_modules"
pytestmark = pytest.mark.browser

SAMPLES: dict[str, Callable[[], Results]] = {
    "demo": lambda: Results.load(ROOT / "docs" / "demo" / "results.json"),
    **{name: make for name, make in MAKERS.items() if name != "reflow"},
}


@pytest.fixture(scope="module", params=list(SAMPLES))
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the browser found in one sample's report."""
    chromium = shutil.which("chromium")
    if chromium is None or not MODULES.is_dir() or shutil.which("node") is None:
        pytest.skip("needs node, chromium and .browser: make test-browser sets them up")
    folder = tmp_path_factory.mktemp(request.param)
    write_clip(folder / "clip.gif")
    write_clip(folder.parent / "outside.gif")
    SAMPLES[request.param]().save(folder / "results.json")
    report = write_report(folder)[0]
    # Where a person wants to look at what the tests saw.
    pictures = Path(os.environ.get("CHORDFLOW_SCREENSHOTS", folder)) / request.param
    pictures.mkdir(parents=True, exist_ok=True)
    script = ROOT / "tests" / "browser" / "check.mjs"
    ran = subprocess.run(
        ["node", script, MODULES, chromium, report, pictures], capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    found: dict[str, Any] = json.loads(ran.stdout)
    (plots,) = re.findall(r'id="plots">(.*?)</script>', report.read_text(encoding="utf-8"))
    found |= {"name": request.param, "folder": pictures, "keys": {*json.loads(plots)}}
    return found | {"bytes": report.stat().st_size}


def test_opens_without_errors_dialogs_or_requests(seen: dict[str, Any]) -> None:
    blocked = [text for text in seen["errors"] if "Content Security Policy" in text or "example.com" in text]
    # The only complaints are about what the check itself tries in order to be refused.
    assert [text for text in seen["errors"] if text not in blocked] == []
    assert len(blocked) <= 4
    assert seen["dialogs"] == []
    assert seen["requests"] == []
    assert seen["popups"] == 0
    assert seen["bytes"] < 6_000_000
    assert seen["seconds"] < 30


def test_the_page_is_short_until_it_is_opened_and_no_table_is_wider(seen: dict[str, Any]) -> None:
    assert seen["height"] <= 6_000
    # A link of the list of parts opens its part.
    assert seen["revealed"] == 2
    assert seen["wideTables"] == []
    assert seen["phoneTables"] == []


def test_the_page_lets_no_other_script_run_and_nothing_be_fetched(seen: dict[str, Any]) -> None:
    assert seen["policy"] == {"ran": False, "fetched": False}
    # Refused by the page's policy, not by a network that happens to be absent.
    for what in ("script-src", "connect"):
        assert any("Content Security Policy" in text and what in text for text in seen["errors"])


def test_plots_are_there_with_data_and_a_text_alternative(seen: dict[str, Any]) -> None:
    assert {plot["key"] for plot in seen["plots"]} == seen["keys"]
    for plot in seen["plots"]:
        assert plot["svgs"] >= 2, plot["key"]
        assert min(plot["points"], plot["marks"], plot["width"] - 300) > 0, plot["key"]
        assert plot["name"], plot["key"]
        assert any(c.isdigit() for c in plot["alternative"]), plot["key"]
        assert plot["alternative"][0].upper() == plot["alternative"][0], plot["key"]


def test_tables_sort_by_click_and_by_enter(seen: dict[str, Any]) -> None:
    assert seen["tables"]
    changed = 0
    for name, columns in seen["tables"].items():
        for tried in columns:
            assert tried["clicked"]["sort"] == "ascending", name
            assert tried["entered"]["sort"] == "descending", name
            orders = [(tried["clicked"]["cells"], False), (tried["entered"]["cells"], True)]
            changed += orders[0][0] != orders[1][0]
            for cells, falling in orders:
                assert sorted(cells) == sorted(tried["before"])
                # What was not measured comes last in either order.
                kept = [cell for cell in cells if cell != "-"]
                assert cells[: len(kept)] == kept, name
                # As numbers, percentages too: 9 % comes below 10 %.
                if all(re.fullmatch(r"-?[\d.]+( %)?", cell) for cell in kept):
                    values = [float(cell.removesuffix(" %")) for cell in kept]
                    assert values == sorted(values, reverse=falling), name
    assert changed > 3
    assert "descending" in seen["said"]


def test_keyboard_reaches_everything_and_shows_where_it_is(seen: dict[str, Any]) -> None:
    tabs = seen["tabs"]
    assert tabs["expected"][0].startswith("A Skip to")
    assert tabs["reached"][: len(tabs["expected"])] == tabs["expected"]
    assert tabs["withoutOutline"] == 0


def test_accessibility_by_axe_in_both_themes_with_headings_in_order(seen: dict[str, Any]) -> None:
    assert seen["axeLight"] == []
    assert seen["axeDark"] == []
    levels = seen["headings"]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_the_theme_follows_the_system_and_the_button_and_is_kept(seen: dict[str, Any]) -> None:
    light, dark, again = seen["themes"]
    assert light["paper"] == "rgb(255, 255, 255)"
    assert dark["paper"] == again["paper"] == seen["dark"]["paper"] == "rgb(20, 23, 27)"
    assert dark["pressed"] == again["pressed"] == seen["dark"]["pressed"] == "true"
    # Plots follow: their labels change with the page.
    assert len(light["inks"]) == len(dark["inks"]) == 1
    assert light["inks"] != dark["inks"]


def test_a_phone_needs_no_sideways_scrolling(seen: dict[str, Any]) -> None:
    phone = seen["phone"]
    assert phone["page"] == phone["window"] == 360
    assert phone["wide"] == 0
    assert set(phone["drag"]) == {False}


def test_prints_light_with_everything_unfolded(seen: dict[str, Any]) -> None:
    printed = seen["print"]
    assert (seen["folder"] / "print.pdf").read_bytes().startswith(b"%PDF")
    assert printed["paper"] == "rgb(255, 255, 255)"
    assert printed["controls"] == 0
    assert printed["folded"] > 0
    assert printed["during"][-1] == 0
    assert printed["empty"] == 0
    assert printed["after"] == printed["folded"]


def test_clips_are_still_until_they_are_played(seen: dict[str, Any]) -> None:
    for states in seen["play"]:
        assert states == [["Play", False, True], ["Stop", True, False], ["Play", False, True]]
    assert len(seen["play"]) == (1 if seen["name"] in ("evaluation", "hostile") else 0)
    assert all(picture["wide"] > 0 and picture["alt"] for picture in seen["pictures"])


def test_hostile_text_is_shown_as_it_is(seen: dict[str, Any]) -> None:
    assert seen["suspect"] == []
    # theme, data, plotly, the page's own
    assert seen["scripts"] == 4
    if seen["name"] != "hostile":
        return
    shown = " ".join(seen["text"].split())
    expected = " ".join(HOSTILE.replace("\u2028", " ").replace("\u202e", " ").split())
    for place in ("third ", "Evaluation of out/", "Teacher: ", "1 episode from the same starts: "):
        assert place + expected in shown, place
    assert "../outside.gif lies outside the results' folder" in shown
    assert f"{SCRIPT}.gif is not there any more." in shown
    texts = [text for plot in seen["plots"] for text in plot["texts"]]
    assert any(text.strip("\u2068\u2069").startswith("third \"'><script>") for text in texts)
    assert any("heun<script" in text for text in texts)
