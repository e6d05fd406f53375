"""A document and its Chinese version have the same commands, names, links, figures and tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
CHINESE = (ROOT / "README.zh.md", *sorted((ROOT / "docs").rglob("*.zh.md")))
"""README, and whatever else there is in both languages."""
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


def figures(prose: str) -> Counter[str]:
    return Counter(re.sub(r"\s", "", figure) for figure in FIGURE.findall(prose.translate(WIDE)))


def parts(text: str) -> dict[str, Any]:
    """All that the two languages of a document have in common."""
    tokens = list(flat(PARSER.parse(GENERATED.sub("", text))))

    def contents(*kinds: str) -> list[str]:
        return [token.content for token in tokens if token.type in kinds]

    def targets(kind: str, attribute: str) -> Counter[str]:
        return Counter(place(unquote(str(token.attrs[attribute]))) for token in tokens if token.type == kind)

    prose = "\n".join(contents("text", "html_block", "html_inline"))
    return {
        "outline": [
            token.tag + token.info
            for token in tokens
            if token.type in {"heading_open", "list_item_open", "tr_open", "th_open", "td_open", "image"}
        ],
        "code blocks": [*contents("fence", "code_block")],
        "code spans": Counter(contents("code_inline")),
        "images": targets("image", "src"),
        "links": targets("link_open", "href"),
        "figures": figures(prose),
        # Chinese has no spaces, and markdown then takes some marks of emphasis for asterisks.
        "asterisks": prose.count("*"),
        "generated": [(part["name"], part["content"]) for part in GENERATED.finditer(text)],
    }


def differing(text: str, other: str) -> list[str]:
    one, two = parts(text), parts(other)
    return [name for name in one if one[name] != two[name]]


@pytest.mark.parametrize("chinese", CHINESE, ids=lambda path: path.name)
def test_the_two_languages_say_the_same(chinese: Path) -> None:
    english = original(chinese)
    assert f"[中文]({chinese.name})" in read(english).split("\n## ")[0]
    assert f"[English]({english.name})" in read(chinese).split("\n## ")[0]
    held, found = parts(read(english)), parts(read(chinese))
    for name in held:
        assert found[name] == held[name], f"{name} of {chinese.name} are not those of {english.name}"


@pytest.mark.parametrize("chinese", CHINESE, ids=lambda path: path.name)
def test_what_both_languages_link_to_is_there(chinese: Path) -> None:
    for document in (original(chinese), chinese):
        for token in flat(PARSER.parse(read(document))):
            target = unquote(str(token.attrs.get("href") or token.attrs.get("src") or ""))
            if not target or "://" in target:
                continue
            path, _, anchor = target.partition("#")
            file = document.parent / path if path else document
            assert file.exists(), f"{document.name}: {target}"
            assert not anchor or anchor in anchors(file), f"{document.name}: {target}"


@pytest.mark.parametrize("chinese", CHINESE, ids=lambda path: path.name)
def test_no_digit_changes_unseen(chinese: Path) -> None:
    text = read(chinese)
    # The generated parts are compared as they stand, and the anchors of links are the other test's.
    passed = [*GENERATED.finditer(text), *re.finditer(r"\]\([^)#]*(#[^)]*)\)", text)]
    spans = [range(*match.span(match.re.groups)) for match in passed]
    chosen = [match.start() for match in re.finditer("[0-9]", text)]
    chosen = [at for at in chosen if not any(at in span for span in spans)]
    assert chosen
    for at in chosen:
        changed = f"{text[:at]}{(int(text[at]) + 1) % 10}{text[at + 1 :]}"
        assert differing(text, changed), f"{text[max(0, at - 40) : at + 20]!r} is not held"


@pytest.mark.parametrize(
    ("before", "after", "part"),
    [
        ("6 GB", "6 MB", "figures"),
        (" 500 ", " 五百 ", "figures"),
        ("\n- **RMS", "\n- 5 %\n- **RMS", "figures"),
        ("1e-5", "1e-6", "figures"),
        ("pi0.5", "pi0.6", "figures"),
        ("\nmake test\n", "\nmake tests\n", "code blocks"),
        ("`--recipe=one_step`", "`--recipe=two_step`", "code spans"),
        ("](docs/compare.md)", "](docs/studies.md)", "links"),
        ("](docs/report.png)", "](docs/demo/gap.png)", "images"),
        ("\n## ", "\n### ", "outline"),
        ("| `figures` |", "| | |\n| `figures` |", "outline"),
        ("\n- [docs/compare.md]", "\n[docs/compare.md]", "outline"),
        ("97.3 %", "97.5 %", "generated"),
        ("**RMS", "** RMS", "asterisks"),
    ],
)
def test_a_change_in_one_language_is_seen(before: str, after: str, part: str) -> None:
    for document in (ROOT / "README.md", ROOT / "README.zh.md"):
        text = read(document)
        assert before in text
        assert part in differing(text, text.replace(before, after, 1)), document.name
