"""Speed-up, ceiling and share of encoding: of one source, and no number where timings contradict each other."""

import io
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from chordflow.evaluation.latency import measure_latency
from chordflow.policies import Context
from chordflow.reporting.card import card
from chordflow.reporting.flow_tables import summary
from chordflow.reporting.page import page
from chordflow.reporting.rollout_tables import latency as latency_table
from chordflow.reporting.table import facts, markdown, render
from chordflow.results.actions import ChunkTime, Latency
from chordflow.results.findings import findings, verdict
from chordflow.results.schema import Results
from chordflow.results.statistics import Percentiles
from chordflow.results.wording import UNRELIABLE
from gaussian_policy import GaussianConfig, GaussianFlowPolicy
from gaussian_setup import make_observations
from report_samples import diagnosis, evaluation, sample


class Machine(GaussianFlowPolicy):
    """A policy whose parts take given seconds of a clock of its own, times what the machine's load makes of them."""

    def __init__(self, encode_s: float, step_s: float, load: Callable[[float], float]) -> None:
        super().__init__(GaussianConfig())
        self.parts, self.load, self.now = (encode_s, step_s), load, 0.0

    def work(self, seconds: float) -> None:
        self.now += seconds * self.load(self.now)

    def encode(self, batch: dict) -> Context:  # type: ignore[override]
        self.work(self.parts[0])
        return super().encode(batch)

    def velocity(self, x_t: torch.Tensor, t: torch.Tensor, context: Context) -> torch.Tensor:
        self.work(self.parts[1])
        return super().velocity(x_t, t, context)


def items(count: int) -> dict:
    return next(make_observations(count).batches(range(count), count))


def timed(machine: Machine, teacher: int, student: int, repeats: int = 7) -> Latency:
    return measure_latency(
        machine, items(1), repeats, teacher_num_steps=teacher,
        student_num_steps=student, chunk_num_steps=(1, 2, student, teacher), clock=lambda: machine.now,
    )  # fmt: skip


PART = st.floats(0.001, 0.5)
STEPS = st.tuples(st.integers(2, 16), st.integers(1, 16)).map(lambda pair: (pair[0], min(pair)))


@settings(max_examples=4)
@given(encode=PART, step=PART, counts=STEPS, slower=st.floats(0.2, 5.0))
def test_a_machine_that_changes_its_pace_leaves_the_ratios(
    encode: float, step: float, counts: tuple[int, int], slower: float
) -> None:
    """Half-way through it becomes slower, or quicker: timed one after another, speed-up and ceiling were far off."""
    teacher, student = counts
    steady = timed(Machine(encode, step, lambda now: 1.0), teacher, student)
    whole = 12 * sum(encode + n * step for n in {0, 1, 2, student, teacher})
    changed = timed(Machine(encode, step, lambda now: 1.0 if now < whole / 2 else slower), teacher, student)
    ceiling = (encode + teacher * step) / (encode + step)
    for latency in (steady, changed):
        assert latency.reliable
        assert latency.ceiling == pytest.approx(ceiling, rel=0.02)
        expected = (encode + teacher * step) / (encode + student * step)
        assert latency.speedup == pytest.approx(expected, rel=0.02)


def test_latency_of_a_policy_of_known_times() -> None:
    class Slow(Machine):
        """Takes 6 ms to encode and 2 ms a step."""

        def work(self, seconds: float) -> None:
            time.sleep(seconds)

    slow, counts = Slow(0.006, 0.002, lambda now: 1.0), {"teacher_num_steps": 5, "student_num_steps": 1}
    latency = measure_latency(slow, items(1), 12, chunk_num_steps=[5, 1, 5], **counts)
    assert [chunk.num_steps for chunk in latency.chunks] == [1, 5]
    assert (latency.encode.p50, latency.step.p50) == (latency.encode_s, latency.step_s)
    assert latency.encode_s >= 0.006
    assert latency.step_s >= 0.002
    for chunk in latency.chunks:
        assert chunk.seconds.p50 >= 0.006 + 0.002 * chunk.num_steps
        # Measured for itself, it is what its parts take, up to what a busy machine adds to either.
        assert chunk.seconds.p50 == pytest.approx(latency.chunk_s(chunk.num_steps), rel=0.35)
    assert 0 < latency.processors_s < 0.006
    weights = 2 * 16 + 16 + 16 + 16  # state_proj's weight and bias, log_std, offsets
    assert (latency.memory.weights_bytes, latency.memory.kind) == (4 * weights, "process")
    assert latency.memory.peak_bytes > 50_000_000


def chunk(num_steps: int, seconds: float) -> ChunkTime:
    return ChunkTime(num_steps, Percentiles(seconds, 1.1 * seconds, 1.2 * seconds, 1.3 * seconds))


def of_chunks(encode: float, step: float, teacher: int, student: int, times: dict[int, float]) -> Latency:
    """Chunks take `times` of what their parts do."""
    chunks = [chunk(n, factor * (encode + n * step)) for n, factor in sorted(times.items())]
    return Latency(encode, step, 1, 30, teacher, student, chunks=chunks)


@pytest.mark.parametrize(("times", "reliable"), [
    ({}, True), ({10: 1.0}, True), ({1: 1.19, 10: 1.19}, True), ({1: 0.81, 10: 0.81}, True),
    ({1: 1.21, 10: 1.21}, False), ({1: 0.79, 10: 0.79}, False), ({1: 1.0, 2: 1.3, 10: 1.0}, False),
    ({1: 1.0, 10: 1.09}, True), ({1: 1.0, 10: 1.11}, False), ({1: 0.92, 10: 1.02}, False),
    ({1: 1.1, 10: 1.0}, True), ({1: 0.2, 10: 2.0}, False), ({1: 1.0, 10: 0.0}, False),
])  # fmt: skip
def test_a_speed_up_above_the_ceiling_or_a_chunk_unlike_its_parts(
    times: dict[int, float], reliable: bool
) -> None:
    latency = of_chunks(0.007, 0.003, 10, 1, times)
    assert latency.reliable == reliable
    # Whatever the chunks took, the ceiling is of the parts, and nothing is clipped.
    assert latency.ceiling == pytest.approx(3.7)
    if times.get(1) and times.get(10):
        assert latency.speedup == pytest.approx(3.7 * times[10] / times[1])


KINDS = {"reflow": sample(), "diagnose": diagnosis(), "evaluate": evaluation()}


def outputs(results: Results) -> dict[str, str]:
    """Everything that is printed of results."""
    file = io.StringIO()
    Console(width=300, file=file).print(render(results, verbose=True))
    shown = {
        "verdict": verdict(results),
        "findings": "\n".join(found.text for found in findings(results)),
        "summary": found.below if (found := summary(results)) is not None else "",
        "facts": "\n".join(value for _, value in facts(results)),
        "terminal": file.getvalue(),
        "markdown": markdown(results),
        "card": card(results),
    }
    return {name: " ".join(text.split()) for name, text in shown.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("times", [{1: 0.2, 10: 2.0}, {1: 1.0, 2: 1.5, 10: 1.0}, {1: 0.5, 10: 0.5}])
def test_of_unreliable_timings_no_number_is_printed_anywhere(kind: str, times: dict[int, float]) -> None:
    # Of an earlier version, whose sentences speak of times.
    old = "One step makes a chunk 987.6 times as fast."
    stored = [replace(found, text=old) for found in KINDS[kind].findings]
    latency = of_chunks(0.0045, 0.0055, 10, 1, times)
    results = replace(KINDS[kind], latency=latency, verdict=old, findings=stored)
    none = replace(results, latency=None, verdict="", findings=findings(results) if stored else [])
    shown, without = outputs(results), outputs(none)
    for name in set(shown) - {"facts", "verdict"}:
        assert UNRELIABLE in shown[name].replace("Timings", "timings"), name
    for name, text in shown.items():
        assert "987.6" not in text, name
        # Beside that sentence nothing is there that would not be there had nothing been timed.
        numbers = {*re.findall(r"\d+(?:\.\d+)?", text)} - {*re.findall(r"\d+(?:\.\d+)?", without[name])}
        assert not numbers, (name, numbers)
        assert not re.search(r"times as fast|ceiling|encoding|to encode|\bp50\b", text), name


def test_the_page_shows_no_time_of_unreliable_timings(tmp_path: Path) -> None:
    for times, reliable in (({1: 0.2, 10: 2.0}, False), ({1: 1.0, 10: 1.0}, True)):
        results = sample(latency=of_chunks(0.0045, 0.0055, 10, 1, times), success=[], trajectories=[])
        text = page(results, tmp_path).split('id="read"')[0]
        assert (UNRELIABLE[1:] in text) == (not reliable)
        assert 'id="time"' in text
        for shown in ("encode the observation", "nothing that takes fewer steps is quicker"):
            assert (shown in text) == reliable


@pytest.mark.parametrize(("student", "times", "words"), [
    (1, {}, "3.7 times as fast (the ceiling: encoding is 70 % of each)"),
    (1, {1: 1.0, 10: 1.05}, "3.9 times as fast (near the ceiling of 3.7: encoding is 70 % of each)"),
    (1, {1: 1.1, 10: 1.0}, "3.4 times as fast (near the ceiling of 3.7: encoding is 70 % of each)"),
    (1, {1: 1.19, 10: 0.9}, "2.8 times as fast (ceiling 3.7: encoding is 70 % of each)"),
    (2, {2: 1.0, 10: 1.0}, "2.8 times as fast (ceiling 3.7: encoding is 54 % of each)"),
    (10, {10: 1.0}, "chunks come no faster (encoding is 19 % of each)"),
])  # fmt: skip
def test_a_measured_speed_up_stands_beside_its_ceiling(student: int, times: dict, words: str) -> None:
    latency = of_chunks(0.007, 0.003, 10, student, times)
    results = sample(latency=latency, curvature=[], gaps=[], success=[])
    said = {found.rule: found.text for found in findings(results)}
    assert words in said["chunks_come_faster"].replace("Chunks", "chunks")


def test_saving_times_more_is_told_by_whole_chunks_where_there_are_any() -> None:
    latency = of_chunks(0.007, 0.003, 10, 1, {1: 1.1, 5: 1.1, 10: 1.0})
    assert latency.relative(10) == 1.0
    assert latency.relative(5) == pytest.approx(1.1 * 22 / 37)
    # Not timed whole: the sums of parts, for both.
    assert latency.relative(4) == pytest.approx(19 / 37)
    assert 1 / latency.relative(1) == latency.speedup


FACTOR = st.floats(0.3, 3.0)


@settings(max_examples=40)
@given(kind=st.sampled_from(["reflow", "diagnose"]), encode=PART, step=PART, counts=STEPS, chunks=st.booleans(),
       factors=st.tuples(FACTOR, FACTOR) | FACTOR.map(lambda f: (f, f)) | st.just((1.0, 1.0)))  # fmt: skip
def test_printed_figures_never_contradict_each_other(
    kind: str, encode: float, step: float, counts: tuple[int, int], factors: tuple[float, float], chunks: bool
) -> None:
    teacher, student = counts
    times = {student: factors[0], teacher: factors[1]} if chunks else {}
    latency = of_chunks(encode, step, teacher, student, times)
    results = replace(KINDS[kind], latency=latency, findings=[], teacher_num_steps=teacher)
    texts = [verdict(results), *(found.text for found in findings(results))]
    table = latency_table(results)
    texts += [table.below] if table is not None else []
    speeds = [float(n) for text in texts for n in re.findall(r"(?<![\d.])(\d+\.\d+) times as fast", text)]
    shares = re.findall(r"encoding is (\S+) % of a one-step chunk", " ".join(texts))
    if not latency.reliable:
        assert (speeds, shares) == ([], [])
        return
    assert speeds or latency.speedup < 1.05
    # A tenth above the ceiling at most, and half a unit of the last digit that is printed.
    assert all(speed <= 1.1 * latency.ceiling + 0.051 for speed in speeds)
    for share in shares:
        part, rounded = float(share.removeprefix("<")) / 100, 0.01 if "<" in share else 0.005
        assert part + teacher * (1 - part) == pytest.approx(latency.ceiling, abs=1.01 * rounded * teacher)
