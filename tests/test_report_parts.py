"""Tables of results with parts missing: nothing below a table speaks of what the table does not show."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest

from chordflow.reporting.section import ABSENT, Section
from chordflow.reporting.table import facts, sections
from chordflow.results.actions import ChunkTime, Latency
from chordflow.results.episodes import SuccessRow
from chordflow.results.findings import findings, verdict
from chordflow.results.schema import Results
from chordflow.results.statistics import Percentiles
from report_samples import diagnosis, evaluation, sample

BASES = {"reflow": sample(), "diagnose": diagnosis(), "evaluate": evaluation()}


type Change = Callable[[Results], dict[str, Any]]


def without(*names: str) -> Change:
    return lambda results: {name: type(getattr(results, name))() for name in names}


def rows(name: str, keep: Callable[[Any], bool] = lambda row: True, **changes: Any) -> Change:
    """Some rows of a list, with some of their fields emptied."""
    return lambda results: {
        name: [dataclasses.replace(row, **changes) for row in getattr(results, name) if keep(row)]
    }


def of_latency(**changes: Any) -> Change:
    return lambda results: {"latency": results.latency and dataclasses.replace(results.latency, **changes)}


def chunk(num_steps: int, seconds: float) -> ChunkTime:
    return ChunkTime(num_steps, Percentiles(seconds, seconds, seconds, seconds))


def without_needed(row: SuccessRow) -> SuccessRow:
    asked = row.noninferiority and dataclasses.replace(row.noninferiority, episodes_needed=None)
    return dataclasses.replace(row, noninferiority=asked)


LISTS = ("gaps", "success", "curvature", "motion, delays", "timing, policies", "sequential", "spreads")
MISSING: dict[str, Change] = {
    **{names: without(*names.split(", ")) for names in LISTS},
    "latency": lambda _: {"latency": None},
    "held out": lambda _: {"held_out": None},
    "rollouts": lambda _: {"rollouts": None},
    "lerobot's noise": lambda results: {
        "rollouts": results.rollouts and dataclasses.replace(results.rollouts, noise="lerobot"),
        "sequential": [],
        **rows("success", versus_teacher=None, noninferiority=None)(results),
    },
    "gaps to the ODE": rows("gaps", lambda row: row.reference == "deployed"),
    "gaps to the teacher": rows("gaps", lambda row: row.reference == "converged"),
    "gaps' intervals": rows("gaps", interval=None, ratio_to_untrained=None),
    "flips": rows("gaps", flip_rate=None),
    "the floor": rows("gaps", lambda row: (row.policy, row.num_steps) != ("teacher", 10)),
    "other solvers": rows("gaps", lambda row: row.solver == "euler"),
    "the teacher's gaps": rows("gaps", lambda row: row.policy != "teacher"),
    "pairing": rows("success", versus_teacher=None, noninferiority=None),
    "coverage": rows("success", coverage=None),
    "other policies": rows("success", lambda row: (row.policy, row.num_steps) == ("teacher", 10)),
    "episodes needed": lambda results: {"success": [without_needed(row) for row in results.success]},
    "curvature's intervals": rows("curvature", interval=None),
    "percentiles": of_latency(encode=None, step=None, chunks=[]),
    "chunks": of_latency(chunks=[]),
    "processors": of_latency(processors_s=None, memory=None),
    "an idle machine": of_latency(chunks=[chunk(1, 9.0), chunk(10, 9.5)]),
    "the teacher's chunk": of_latency(chunks=[]),
    "motion's pairing": rows("motion", difference=None),
    "motion but jerk": rows("motion", lambda row: row.measure == "jerk"),
    "guidance": rows("delays", lambda row: row.mode != "rtc"),
    "delays' pairing": rows("delays", versus_undelayed=None, jump=None, jerk=None),
}

TERMS = {
    r"Floor:": "floor", r"Of noise:": "of noise", r"Median": "median", r"Median, flips ": "flips",
    r"and differences \(": "mean diff", r"Time of a chunk:": "time", r"Time: 1": "time of a chunk",
    r"Gap: RMS": "gap to the", r"To the untrained:": "to the untrained", r"To the floor:": "to the floor",
    r"Differences are paired": "points to the teacher", r"\bp is McNemar": "p",
    r"intervals of differences": "points to the teacher", r"Coverage:": "coverage", r"Non-inferior:": "decision",
    r"Needed:": "episodes needed", r"Relative:": "relative", r"Spread:": "median spread", r"Delay:": "delay",
    r"Guidance weight:": "guidance weight", r"Overhead:": "overhead", r"e-value,": "e-value, inferior",
    r"jump in ": "jump", r"jerk in ": "jerk", r"path length in ": "path length",
}  # fmt: skip
"""What a line below a table may speak of, and what then stands at the head of a column or in a cell."""


def check(section: Section) -> None:
    """A table as it is shown."""
    texts = (*section.heads, *(cell.text for row in section.rows for cell in row))
    shown = [" ".join(text.split()) for text in texts]
    assert all(len(row) == len(section.heads) for row in section.rows)
    for place in range(section.left, len(section.heads)):
        assert any(row[place].text != ABSENT for row in section.rows), (section.key, section.heads[place])
    said = section.below
    for pattern, needed in TERMS.items():
        if re.search(pattern, said):
            named = [text for text in shown if text == needed or (needed[1:] and text.startswith(needed))]
            assert named, (section.key, pattern, section.heads)
    # No other term is explained than those above.
    terms = re.findall(r"(?:^|[.;] )([A-Z][a-z-]+(?: [a-z]+)?):", said)
    known = " ".join(TERMS)
    assert all(f"{term}:" in known or term in ("Units", "Tried") for term in terms), terms


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("missing", MISSING)
def test_no_table_and_no_sentence_speaks_of_what_is_missing(base: str, missing: str) -> None:
    results = dataclasses.replace(BASES[base], **MISSING[missing](BASES[base]))
    for section in sections(results):
        check(section)
    texts = [verdict(results), *(found.text for found in findings(results))]
    texts += [f"{name}: {value}" for name, value in facts(results)]
    assert all(text and "None" not in text and "nan" not in text for text in texts)
    whole = " ".join(texts)
    paired = any(row.versus_teacher is not None for row in results.success)
    assert ("Newcombe" in whole) == (paired and not results.sequential)
    assert ("paired differences" in whole) == paired


def test_the_most_by_encoding_and_one_step_is_theirs_where_chunks_were_timed() -> None:
    def below(latency: Latency) -> str:
        return next(found.below for found in sections(evaluation(latency=latency)) if found.key == "latency")

    base = evaluation().latency
    assert base is not None
    timed = dataclasses.replace(base, chunks=[chunk(1, 0.018), chunk(10, 0.083)])
    ceiling = (timed.encode_s + 10 * timed.step_s) / (timed.encode_s + timed.step_s)
    assert f"By the medians of encoding and one step, at most {ceiling:.2f} times as fast" in below(timed)
    # One step is the least there is.
    assert "at most" not in below(dataclasses.replace(base, teacher_num_steps=1))
